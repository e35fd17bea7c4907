"""Whether two models can be compared, on which part of their vocabularies, and which of them is the base.

Each wrong comparison is handled, or refused with its reason. Two really happened (PEFT pull request 3419): unshifted
labels, which `measuring.batches` rules out, and a "before" measured on an adapter that is not the identity, which
`adapters.as_base` and `Fingerprint` rule out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..data import hub
from ..errors import ForgettingError, UsageError
from . import adapters, causal, sources
from .sources import Source

ALTERING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of LoRA initialisations that subtract from the base weights what they put into the adapter. Disabling the
adapter then does not give the base model (Meng et al. 2024, arXiv:2404.02948, eq. 4; PEFT's LoraConfig)."""
SAMPLE_CHARACTERS = 20_000
QUANTISED = re.compile(r"((-unsloth)?-bnb)?-([48]bit|int[48])$|-(gptq|awq)(-[48]bit|-int[48])?$")
"""Endings in names of quantised copies, such as `Llama-3.2-1B-unsloth-bnb-4bit`."""
TUNED = {"instruct", "it", "chat", "base", "pt", "sft", "dpo", "coder", "math", "vl", "thinking", "distill"}
"""Words in names that distinguish models of one family."""


def check_live_adapter(model: Any, instead: str = "give the base model as well: measure(base, tuned)") -> None:
    """Refuse a loaded PeftModel if disabling its adapters does not give the base model; inactive ones change it, too.

    Args:
        model: the PeftModel.
        instead: what the caller's user can do about it.

    Raises:
        UsageError: names the option that changed the base weights.
    """
    for name, config in model.peft_config.items():
        bias = getattr(config, "bias", "none")
        init = getattr(config, "init_lora_weights", True)
        if bias != "none":
            why = f"bias='{bias}' trains the base model's own biases"
        elif isinstance(init, str) and init.lower().startswith(ALTERING_INITS):
            why = f"init_lora_weights='{init}' changes the base model's weights"
        elif getattr(config, "kasa_config", None):
            why = "kasa_config truncates the base model's weights"
        elif getattr(config, "layer_replication", None):
            why = "layer_replication repeats the base model's layers"
        else:
            continue
        raise UsageError(
            f"adapter '{name}': {why}, so disabling the adapter does not restore the base model; {instead}"
        )


def check_made_for(name: str, adapter: Any, base: Source) -> list[str]:
    """Check that an adapter's configuration names the base model that it is measured against.

    Args:
        name: the adapter.
        adapter: its PeftConfig.
        base: the given base model.

    Returns:
        Notices.

    Raises:
        UsageError: it names another model, or another revision of it.
    """
    made_for = getattr(adapter, "base_model_name_or_path", None)
    if not made_for:
        return []
    if made_for != base.name and _is_quantised_copy(made_for, base.name):
        return [f"the adapter was trained on '{made_for}', which by its name is a quantised copy of '{base.name}'"]
    if base.commit is not None and not Path(made_for).expanduser().is_dir() and not _is_path(made_for):
        return _made_for_commit(name, made_for, getattr(adapter, "revision", None), base)
    given = base.config()
    if made_for in (base.name, str(given)):
        return []
    there = Path(made_for).expanduser()
    if there.is_dir() and (there / sources.CONFIG).is_file():
        if sources.folder_hash(str(given)) == sources.folder_hash(str(there)):
            return []
    elif base.commit is None or _is_path(made_for):
        return [f"the adapter was made for '{made_for}', which is not available to compare with '{base.name}'"]
    raise UsageError(
        f"adapter '{name}' was made for '{made_for}', not for '{base.name}'; give '{made_for}' as the base model"
    )


def _is_quantised_copy(name: str, original: str) -> bool:
    """Whether a model's name says that it is another one in fewer bits, as in Unsloth's repositories.

    Owners may differ, and one name may say more than the other (`llama-3-8b-bnb-4bit`, `Meta-Llama-3-8B`), unless it
    says that the model is tuned differently.
    """
    short, other = (PurePosixPath(n.replace("\\", "/")).name.lower() for n in (name, original))
    if not QUANTISED.search(short):
        return False
    words, others = (set(re.split(r"[-_. ]", QUANTISED.sub("", n))) for n in (short, other))
    return (words <= others or others <= words) and not (words ^ others) & TUNED


def _is_path(name: str) -> bool:
    return Path(name).expanduser().is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def _made_for_commit(name: str, made_for: str, revision: str | None, base: Source) -> list[str]:
    """`check_made_for` for two Hub ids: repositories get renamed, and another revision may be another model."""
    if made_for == base.name and revision in (None, base.commit):
        return []
    at = f" at revision '{revision}'" if revision else ""
    try:
        meant = hub.find(made_for, revision)
    except ForgettingError:
        if made_for == base.name:
            return [f"the adapter was made for '{made_for}'{at}, which is not available to compare with {base.commit}"]
    else:
        if meant.commit == base.commit:
            return []
    if made_for == base.name:
        raise UsageError(
            f"adapter '{name}' was made for '{made_for}'{at}, but the base model was loaded at commit {base.commit}; "
            f"give revision {revision} (--revision)"
        )
    raise UsageError(
        f"adapter '{name}' was made for '{made_for}', not for '{base.name}'; give '{made_for}' as the base model"
    )


NOT_SHAPING = re.compile(
    r"^_|dropout|_token_id|^(name_or_path|transformers_version|torch_dtype|dtype|use_cache|architectures|vocab_size|"
    r"attn_implementation|experts_implementation|quantization_config|auto_map|id2label|label2id|pad_token|unsloth.*|"
    r"initializer_range|router_aux_loss_coef|output_.*|return_dict|problem_type|tie_word_embeddings)$"
)
"""Configuration fields that do not affect what a model computes from its weights, or that are checked elsewhere."""


def architecture_notices(base: Any, tuned: Any) -> list[str]:
    """A notice if two configurations differ: the models are different, or use the same weights differently."""
    ours, theirs = ((m.get_base_model() if adapters.is_peft(m) else m).config for m in (base, tuned))
    if ours.model_type != theirs.model_type:
        return [f"the models differ in architecture: {ours.model_type} and {theirs.model_type}"]
    ours, theirs = (config.get_text_config().to_dict() for config in (ours, theirs))
    shared = sorted(name for name in ours if name in theirs and not NOT_SHAPING.search(name))
    differing = [
        f"{name} ({ours[name]} and {theirs[name]})"[:120] for name in shared if not _alike(ours[name], theirs[name])
    ]
    return [f"the models' configurations differ in {', '.join(differing)}"] if differing else []


def _alike(one: Any, other: Any) -> bool:
    """Whether two configuration values are equal; numbers up to float32, to which GGUF files round them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


class Fingerprint:
    """Tells, once an adapter is on a model, whether disabling it restores the model."""

    def __init__(self, model: Any) -> None:
        self._sums = [(p, _sum(p)) for p in model.parameters() if not p.is_meta]
        self._tokens = causal.plain_tokens(model)
        self._logits = causal.probe(model, self._tokens)

    def given_back(self, model: Any) -> bool:
        """Whether a PeftModel around the model, with adapters disabled, has its parameters unchanged and its logits.

        Sums detect changes that the logits of a few tokens do not show. Logits detect parameters that are used
        differently, such as repeated layers (layer replication).
        """
        present = {id(p) for p in model.parameters()}
        if not all(id(p) in present and _sum(p) == total for p, total in self._sums):
            return False
        with adapters.as_base(model):
            found = causal.probe(model, self._tokens)
        if found.shape != self._logits.shape:
            return False
        exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
        bound = (1e-3 if exact else 5e-2) * float(
            self._logits.nan_to_num().abs().max()
        )  # one more layer moves them much further
        return torch.allclose(found, self._logits, rtol=0.0, atol=bound, equal_nan=True)


def _sum(parameter: torch.nn.Parameter) -> float:
    return float(parameter.detach().sum(dtype=torch.float64))


def head_rows(model: Any) -> int:
    """Rows of a model's vocabulary."""
    inner = model.get_base_model() if adapters.is_peft(model) else model
    head = inner.get_output_embeddings()
    weight = getattr(head, "weight", None)
    size = weight.shape[0] if weight is not None and weight.dim() == 2 else inner.config.get_text_config().vocab_size
    return int(size)


def _embedding_rows(model: Any) -> int:
    """Tokens that a model can read."""
    inner = model.get_base_model() if adapters.is_peft(model) else model
    sizes = [p.shape[0] for p in inner.get_input_embeddings().parameters() if p.dim() == 2 and not p.is_meta]
    return max(sizes, default=head_rows(model))


def known_rows(model: Any) -> int:
    """How many tokens a model can read and predict."""
    return min(head_rows(model), _embedding_rows(model))


def shared_rows(base: Any, tuned: Any, largest: int) -> tuple[int | None, list[str]]:
    """The part of the vocabulary that both models have, and a notice if one has more.

    Args:
        base, tuned: the models.
        largest: the largest token id in the text.

    Returns:
        None if the vocabularies have the same size, else the number of shared rows; notices.

    Raises:
        UsageError: the text has tokens that one of the models lacks.
    """
    sizes, known = (head_rows(base), head_rows(tuned)), (known_rows(base), known_rows(tuned))
    if largest >= min(known):
        which = "base" if known[0] <= known[1] else "tuned"
        raise UsageError(
            f"the text has token {largest}, but the {which} model's vocabulary has {min(known)} rows; "
            "are these the right model and tokenizer?"
        )
    if sizes[0] == sizes[1]:
        return None, []
    notice = (
        f"the base model's vocabulary has {sizes[0]} rows and the tuned model's {sizes[1]}: "
        f"compared on the first {min(sizes)}, with probabilities renormalised over them"
    )
    return min(sizes), [notice]


def check_tokenizers(base: Any, tuned: Any, texts: Sequence[str]) -> list[str]:
    """Check that two tokenizers agree; tokens may have been added after the base's.

    Returns:
        Notices.

    Raises:
        UsageError: they differ.
    """
    ours, theirs = base.get_vocab(), tuned.get_vocab()
    moved = sorted((token for token, index in ours.items() if theirs.get(token, -1) != index), key=ours.__getitem__)
    if moved:
        raise UsageError(
            f"the tokenizers differ: {len(moved)} of the base model's {len(ours)} tokens are missing or have another "
            f"id in the tuned model's, {moved[0]!r:.40} among them; losses of different tokens cannot be compared"
        )
    for text in texts:
        sample = text[:SAMPLE_CHARACTERS]
        ids = tuned(sample, verbose=False)["input_ids"]
        if base(sample, verbose=False)["input_ids"] != ids:
            if own := [token for token in tuned.convert_ids_to_tokens(ids) if token not in ours]:
                raise UsageError(
                    f"the text contains {own[0]!r:.40}, a token that only the tuned model's tokenizer has; losses of "
                    "different tokens cannot be compared; give text without it"
                )
            raise UsageError(
                f"the tokenizers split the same text differently, for example {sample[:40]!r}; "
                "losses of different tokens cannot be compared"
            )
    added = len(theirs) - len(ours)
    plural = "" if added == 1 else "s"
    notices = [f"the tuned model's tokenizer has {added} added token{plural}, unused in the text"] if added else []
    return notices + _template_notices(base, tuned)


def _template_notices(base: Any, tuned: Any) -> list[str]:
    """A notice if both tokenizers have a chat template and the templates differ."""
    ours, theirs = (getattr(one, "chat_template", None) for one in (base, tuned))
    if not ours or not theirs or ours == theirs:
        return []
    return ["the tuned model's chat template differs from the base model's; chats are rendered with the base's"]
