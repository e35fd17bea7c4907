"""Whether two models can be compared at all, on what part of their vocabularies, and which of them is the base.

Each wrong comparison is handled or refused by name. Two were real (PEFT pull request 3419): labels that were not
shifted, which `batches` rules out, and a "before" taken on an adapter that is not the identity, which `passes.as_base`
and `restores_base` rule out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import hub
from ..data.windows import Windows
from ..errors import ForgettingError, UsageError
from . import adapters, sources
from .sources import Source

ALTERING_INITS = ("pissa", "olora", "corda", "loftq")
"""LoRA initialisations that subtract from the base weights what they put into the adapter: with the adapter disabled,
the base model is not there any more (Meng et al. 2024, arXiv:2404.02948, eq. 4; PEFT's LoraConfig)."""
SAMPLE_CHARACTERS = 20_000


def check_live_adapter(model: Any) -> None:
    """Refuse a live PeftModel whose base cannot be had by disabling its adapters.

    Raises:
        UsageError: names the option that changed the base weights.
    """
    for name in model.active_adapters:
        config = model.peft_config[name]
        bias = getattr(config, "bias", "none")
        init = getattr(config, "init_lora_weights", True)
        if bias != "none":
            why = f"bias='{bias}' trains the base model's own biases"
        elif isinstance(init, str) and init.split("_")[0].lower() in ALTERING_INITS:
            why = f"init_lora_weights='{init}' changes the base model's weights"
        else:
            continue
        raise UsageError(
            f"adapter '{name}': {why}, so disabling the adapter does not give the base model back; "
            "give the base model beside it: measure(base, tuned)"
        )


def check_made_for(name: str, adapter: Any, base: Source) -> list[str]:
    """Whether an adapter's configuration names the base model that it is measured against.

    Args:
        name: the adapter.
        adapter: its PeftConfig.
        base: the base model that was given.

    Returns:
        Notices.

    Raises:
        UsageError: it names another one, or another revision of it.
    """
    made_for = getattr(adapter, "base_model_name_or_path", None)
    if not made_for:
        return []
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
        return [f"the adapter was made for '{made_for}', which is not here to compare with '{base.name}'"]
    raise UsageError(
        f"adapter '{name}' was made for '{made_for}', not for '{base.name}'; give '{made_for}' as the base model"
    )


def _is_path(name: str) -> bool:
    return Path(name).expanduser().is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def _made_for_commit(name: str, made_for: str, revision: str | None, base: Source) -> list[str]:
    """`check_made_for` between two Hub ids: repositories are renamed, and a revision of one may be another model."""
    if made_for == base.name and revision in (None, base.commit):
        return []
    at = f" at revision '{revision}'" if revision else ""
    try:
        meant = hub.find(made_for, revision)
    except ForgettingError:
        if made_for == base.name:
            return [f"the adapter was made for '{made_for}'{at}, which is not to be had to compare with {base.commit}"]
    else:
        if meant.commit == base.commit:
            return []
    if made_for == base.name:
        raise UsageError(
            f"adapter '{name}' was made for '{made_for}'{at}, and the base model was taken at commit {base.commit}; "
            f"give --revision {revision}"
        )
    raise UsageError(
        f"adapter '{name}' was made for '{made_for}', not for '{base.name}'; give '{made_for}' as the base model"
    )


def weight_sums(model: Any) -> list[tuple[torch.nn.Parameter, float]]:
    """Each parameter with its sum: cheap evidence, later, of whether anything changed it."""
    return [(p, float(p.detach().sum(dtype=torch.float64))) for p in model.parameters() if not p.is_meta]


def restores_base(model: Any, before: Sequence[tuple[torch.nn.Parameter, float]]) -> bool:
    """Whether disabling a PeftModel's adapters gives the base model: its parameters are all there, unchanged.

    Args:
        model: the PeftModel.
        before: `weight_sums` of the base model before the adapter came.
    """
    present = {id(p) for p in model.parameters()}
    return all(id(p) in present and float(p.detach().sum(dtype=torch.float64)) == total for p, total in before)


def head_rows(model: Any) -> int:
    """Rows of a model's vocabulary."""
    inner = model.get_base_model() if adapters.is_peft(model) else model
    head = inner.get_output_embeddings()
    weight = getattr(head, "weight", None)
    size = weight.shape[0] if weight is not None and weight.dim() == 2 else inner.config.get_text_config().vocab_size
    return int(size)


def shared_rows(base: Any, tuned: Any, windows: Windows) -> tuple[int | None, list[str]]:
    """The part of the vocabulary that both models have, and a notice where it is not the whole of both.

    Returns:
        None where vocabularies are of one size, else the number of shared rows; notices.

    Raises:
        UsageError: the text has tokens that one of the models lacks.
    """
    sizes = head_rows(base), head_rows(tuned)
    largest = int(windows.input_ids.max(initial=0))
    if largest >= min(sizes):
        which = "base" if sizes[0] <= sizes[1] else "tuned"
        raise UsageError(
            f"the text has token {largest}, but the {which} model's vocabulary has {min(sizes)} rows; "
            "are these the right model and tokenizer?"
        )
    if sizes[0] == sizes[1]:
        return None, []
    notice = (
        f"the base model's vocabulary has {sizes[0]} rows and the tuned model's {sizes[1]}: "
        f"compared on the first {min(sizes)}, probabilities renormalised over them"
    )
    return min(sizes), [notice]


def check_tokenizers(base: Any, tuned: Any, texts: Sequence[str]) -> list[str]:
    """Whether two tokenizers say the same of a text; tokens may have been added behind the base's.

    Returns:
        Notices.

    Raises:
        UsageError: they differ.
    """
    ours, theirs = base.get_vocab(), tuned.get_vocab()
    moved = [token for token, index in ours.items() if theirs.get(token, -1) != index]
    if moved:
        raise UsageError(
            f"the tokenizers differ: {len(moved)} of the base model's {len(ours)} tokens are missing or have another "
            f"id in the tuned model's, {moved[0]!r:.40} among them; losses of different tokens cannot be compared"
        )
    for text in texts:
        sample = text[:SAMPLE_CHARACTERS]
        if base(sample, verbose=False)["input_ids"] != tuned(sample, verbose=False)["input_ids"]:
            raise UsageError(
                f"the tokenizers cut the same text differently, for example {sample[:40]!r}; "
                "losses of different tokens cannot be compared"
            )
    added = len(theirs) - len(ours)
    return [f"the tuned model's tokenizer has {added} added tokens, which the text does not use"] if added else []
