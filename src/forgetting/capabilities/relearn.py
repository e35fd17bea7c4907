"""Lost, or only out of reach? A short relearning probe on half of a suite's items, scored on the other half.

Source: Zheng et al. 2025, Spurious forgetting, arXiv:2501.13453: what returns after a few steps on *other* items was
not erased: the model had lost the format, or the way to it. The control is the base model under the same probe: it
never lost anything, so it says what the probe itself does to the scored half.

The second control are items that neither model had right: the share of them that is right after the probe is what so
few steps teach anew.

The probe is a LoRA of rank 8 on all linear layers of a copy of the model (the tuned model's own adapters merged),
trained on what the base model had right in the probe half, in its own words. Items are dealt by the hash of their
prompt, so that the halves stay the same.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config.schema import ModelConfig
from ..data.padding import IGNORED, right_padded
from ..errors import UsageError
from .rendering import chat_template
from .replies import runs_on
from .results import Rows
from .subject import Subject
from .transitions import Share, share

FINAL = "final-answer"
"""The filter of items that this library wrote, whose rule `_judge` knows."""
STEPS, BATCH, RANK, RATE = 30, 16, 8, 1e-3
"""Of the probe: few steps, so that little can be learned anew."""


@dataclass(frozen=True)
class Relearned:
    """One suite, on the items that were not probed with.

    Attributes:
        suite: its name.
        probed, scored: items of either half.
        base, tuned: shares right before the probe.
        tuned_after: the tuned model's after it.
        control_after: the base model's after it: the never-trained control.
        returned: of the items that the base had right and the tuned model lost, the share right after the probe.
        novel: of the items that neither had right, the share right after the probe.
        refused: whether the shares are of refusals of harmful prompts.
    """

    suite: str
    probed: int
    scored: int
    base: Share
    tuned: Share
    tuned_after: Share
    control_after: Share
    returned: Share
    novel: Share
    refused: bool = False

    def sentence(self) -> str:
        """The answer in words."""
        verb = "refused" if self.refused else "right"
        if self.returned.of == 0:
            return f"{self.suite}: nothing was lost on the {self.scored} items scored, so nothing can come back."
        back, novel = self.returned, self.novel
        new = "" if novel.of == 0 else f", of {novel.of} never known {100 * novel.value:.0f} %"
        shares = (self.base, self.tuned, self.tuned_after, self.control_after)
        base, tuned, relearned, control = (f"{100 * found.value:.0f} %" for found in shares)
        return (
            f"{self.suite}: after {STEPS} steps on the other half, of {back.of} lost items {100 * back.value:.0f} % "
            f"come back [{100 * back.low:.0f}, {100 * back.high:.0f}]{new}. {verb.capitalize()}: base {base}, "
            f"tuned {tuned}, relearned {relearned}; control (the base, relearned in the same way) {control}."
        )


def in_probe_half(prompt: str) -> bool:
    """Whether an item is relearned on (else it is scored)."""
    return hashlib.sha256(f"relearn\0{prompt}".encode()).digest()[0] % 2 == 0


def relearn(
    base: Any,
    tuned: Any,
    rows: Mapping[str, Rows],
    *,
    model: ModelConfig | None = None,
    tokenizer: Any = None,
    steps: int = STEPS,
    tell: Callable[[str], None] | None = None,
) -> tuple[Relearned, ...]:
    """Probe each suite of local items that were answered in words.

    Args:
        base, tuned: as for `evaluate`.
        rows: its result's: by suite, the paired rows of both models.
        model, tokenizer: as for `evaluate`.
        steps: of the probe.
        tell: told what is being run.

    Raises:
        UsageError: none of the suites can be probed.
    """
    subject = Subject(base, tuned, model or ModelConfig(source="-"), tokenizer)
    chosen = {name: pairs for name, pairs in rows.items() if _trainable(pairs)}
    if not chosen:
        raise UsageError("relearn: no suite with free answers to relearn from; multiple choice is not supported")
    made = []
    for name, pairs in chosen.items():
        if tell:
            tell(f"relearn: {name}")
        made.append(_probe(name, pairs, subject, steps))
    return tuple(made)


def _trainable(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> bool:
    """Items with a text to learn from; refusals are learned from the base model's own replies."""
    first = pairs[0][0]
    if first["expect"] is not None:
        return any(one["expect"] == "refuse" and one["refused"] and one["reply"] for one, _ in pairs)
    return first["filter"] == FINAL and first["reply"] is not None


def _probe(name: str, pairs: Any, subject: Any, steps: int) -> Relearned:
    """Both models probed and scored.

    The taught reply is the base model's own where that was right, so that the probe teaches what was lost and its
    wording, and nothing new.
    """
    judged = pairs[0][0]["expect"] is not None
    rows = [(one, other) for one, other in pairs if not judged or one["expect"] == "refuse"]
    taught = [
        (one["prompt"], one["reply"])
        for one, _ in pairs
        if in_probe_half(one["prompt"]) and one["reply"] and _right(one)
    ]
    scored = [(one, other) for one, other in rows if not in_probe_half(one["prompt"])]
    if len(taught) < 2 or not scored:
        raise UsageError(f"relearn: {name}: too few items that the base had right to relearn from")
    prompts = [one["prompt"] for one, _ in scored]
    after = []
    for side in (1, 0):
        learner = _copy(subject, side)
        _train(learner, subject.pair.tokenizer, taught, steps)
        replies = _replies(learner, subject.pair.tokenizer, prompts)
        after.append(np.asarray([_judge(one, reply) for (one, _), reply in zip(scored, replies, strict=True)]))
    before = np.asarray([_right(one) for one, _ in scored])
    now = np.asarray([_right(other) for _, other in scored])
    on = np.asarray([runs_on(other) for _, other in scored])
    every, own = np.ones(len(scored), bool), np.arange(len(scored))
    return Relearned(
        name,
        len(taught),
        len(scored),
        share(before, every, own),
        share(now, every, own),
        share(after[0], every, own),
        share(after[1], every, own),
        share(after[0], before & ~now & ~on, own),
        share(after[0], ~before & ~now, own),
        judged,
    )


def _right(row: Mapping[str, Any]) -> bool:
    if row["expect"] is not None:
        return bool(row["refused"] == (row["expect"] == "refuse"))
    return bool(row["score"] == 1)


def _judge(row: Mapping[str, Any], reply: str) -> bool:
    """Whether a new reply is right, by the rule of the item's task."""
    import re

    from .items import FINAL_ANSWER
    from .refusals import is_refusal

    if row["expect"] is not None:
        return bool(is_refusal(reply) == (row["expect"] == "refuse"))
    found = re.search(FINAL_ANSWER, reply)
    targets = row["target"] if isinstance(row["target"], list) else [row["target"]]
    return found is not None and found.group(1) in [str(target) for target in targets]


def _copy(subject: Any, side: int) -> Any:
    """A copy of a model that may be trained, its adapters merged (tuned) or left out (base)."""
    from ..models.adapters import is_peft

    model = copy.deepcopy(subject.model(side))
    if not is_peft(model):
        return model
    return model.merge_and_unload() if side == 1 else model.unload()


def _train(model: Any, tokenizer: Any, taught: Sequence[tuple[str, str]], steps: int) -> None:
    """A LoRA in place of the model's linear layers, trained on the replies alone."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    inject_adapter_in_model(config, model)
    trainable = [p for p in model.parameters() if p.requires_grad]  # PEFT freezes what is not its own
    optimizer = torch.optim.AdamW(trainable, lr=RATE)
    order = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        drawn = order.choice(len(taught), size=min(BATCH, len(taught)), replace=False)
        batch = _batch(tokenizer, [taught[int(i)] for i in drawn], model.device)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _batch(tokenizer: Any, pairs: Sequence[tuple[str, str]], device: Any) -> dict[str, Any]:
    import torch

    rows = []
    for prompt, reply in pairs:
        head = tokenizer(_asked(tokenizer, prompt), add_special_tokens=tokenizer.chat_template is None)["input_ids"]
        space = "" if reply.startswith(" ") else " "
        tail = [*tokenizer(space + reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((head + tail, [IGNORED] * len(head) + tail))
    batch = right_padded([ids for ids, _ in rows], tokenizer.pad_token_id, labels=[labels for _, labels in rows])
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def _asked(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        return prompt
    chat = [{"role": "user", "content": prompt}]
    return chat_template(tokenizer)(chat)


def _replies(model: Any, tokenizer: Any, prompts: Sequence[str], most: int = 64) -> list[str]:
    """Greedy replies, by the harness's own wrapper."""
    from lm_eval.api.instance import Instance  # type: ignore[import-untyped]

    from ..models.generation import length_as_asked
    from .console import console, quiet
    from .harness import as_lm

    quiet()
    options = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": most}
    requests = [Instance("generate_until", {}, (_asked(tokenizer, prompt), options), 0) for prompt in prompts]
    with console(), length_as_asked(model):
        asker = as_lm(model, tokenizer)
        return [str(reply) for reply in asker.generate_until(requests, disable_tqdm=True)]
