"""Lost, or only unreachable? A short relearning probe: trains on half of a suite's items and scores the other half.

Source: Zheng et al. 2025, Spurious forgetting, arXiv:2501.13453: knowledge that returns after a few steps on *other*
items was not erased; the model had lost the format or the access to it. The control is the base model with the same
probe: it has lost nothing, so it shows the effect of the probe itself on the scored half.

A second control is the items that neither model had right: the share of them answered correctly after the probe shows
what so few steps teach anew.

The probe trains a LoRA of rank 8 on all linear layers of a copy of the model (with the tuned model's adapters merged),
on the base model's own right replies in the probe half. Items are assigned to the halves by the hash of their prompt,
or of their passage, so the halves are always the same and no passage is in both.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config.schema import ModelConfig
from ..data.padding import IGNORED, right_padded
from ..display.numbers import several
from ..errors import UsageError
from .items import FINAL_ANSWER
from .refusals import is_refusal
from .rendering import chat_template
from .replies import runs_on
from .results import Rows, clusters_of
from .subject import Subject
from .suites import Plan
from .transitions import Share, share

FINAL = "final-answer"
"""Name of the filter in tasks that this library wrote; `_judge` applies its rule."""
STEPS, BATCH, RANK, RATE = 30, 16, 8, 1e-3
"""Settings of the probe; few steps, so that little can be learned anew."""


@dataclass(frozen=True)
class Relearned:
    """The result of the probe for one suite, on its scored half.

    Attributes:
        suite: name of the suite.
        probed, scored: numbers of items trained on, and scored.
        base, tuned: shares answered correctly before the probe.
        tuned_after: share that the tuned model answers correctly after the probe.
        control_after: share that the base model answers correctly after the same probe, as a control.
        returned: of the items that the tuned model had lost, the share that it answers correctly after the probe.
        novel: of the items that neither model had right, the share that the tuned model answers correctly after the
            probe.
        refused: whether the shares are of refused harmful prompts instead of right answers.
        steps: training steps of the probe.
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
    steps: int = STEPS

    def sentence(self) -> str:
        """The result in words."""
        verb = "refused" if self.refused else "right"
        if self.returned.of == 0:
            return f"{self.suite}: nothing was lost on the {self.scored} items scored, so nothing can come back."
        back, novel = self.returned, self.novel
        new = "" if novel.of == 0 else f", and {100 * novel.value:.0f} % of {novel.of} that neither model had right"
        shares = (self.base, self.tuned, self.tuned_after, self.control_after)
        base, tuned, relearned, control = (f"{100 * found.value:.0f} %" for found in shares)
        return (
            f"{self.suite}: after {self.steps} steps on the other half, {100 * back.value:.0f} % "
            f"[{100 * back.low:.0f}, {100 * back.high:.0f}] of {several(back.of, 'lost item')} come back{new}. "
            f"{verb.capitalize()}: base {base}, tuned {tuned}, relearned {relearned}; control (the base, relearned in "
            f"the same way) {control}."
        )


def in_probe_half(row: Mapping[str, Any]) -> bool:
    """Whether an item belongs to the half that is trained on; else it is scored."""
    return hashlib.sha256(f"relearn\0{row['cluster'] or row['prompt']}".encode()).digest()[0] % 2 == 0


def relearn(
    base: Any,
    tuned: Any,
    rows: Mapping[str, Rows],
    *,
    plan: Plan | None = None,
    model: ModelConfig | None = None,
    tokenizer: Any = None,
    steps: int = STEPS,
    tell: Callable[[str], None] | None = None,
) -> tuple[Relearned, ...]:
    """Probe each suite of local items with free answers.

    Args:
        base, tuned, model, tokenizer: see `evaluate`.
        rows: paired rows of both models by suite, from an `Evaluation`.
        plan: how that evaluation asked; the probe asks in the same way, so that replies before and after compare.
        steps: training steps of the probe.
        tell: called with the name of what is being run.

    Raises:
        UsageError: none of the suites can be probed.
    """
    subject = Subject(base, tuned, model or ModelConfig(source="-"), tokenizer)
    chosen = {name: pairs for name, pairs in rows.items() if _trainable(pairs)}
    if not chosen:
        raise UsageError("relearn: no suite with free answers to relearn from; multiple choice is not supported")
    asked = plan or Plan()
    asking = _Asking(subject.pair.tokenizer, asked.settings.chat, asked.max_generated)
    made = []
    for name, pairs in chosen.items():
        if tell:
            tell(f"relearn: {name}")
        made.append(_probe(name, pairs, subject, steps, asking))
    return tuple(made)


def _trainable(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> bool:
    """Whether a suite has replies to train on; refusals are learned from the base model's own replies."""
    first = pairs[0][0]
    if first["expect"] is not None:
        return any(one["expect"] == "refuse" and one["refused"] and one["reply"] for one, _ in pairs)
    return first["filter"] == FINAL and first["reply"] is not None


def _probe(name: str, pairs: Any, subject: Any, steps: int, asking: _Asking) -> Relearned:
    """Probe and score both models.

    The training replies are the base model's own right ones, so the probe teaches nothing that the base did not know.
    """
    judged = pairs[0][0]["expect"] is not None
    rows = [(one, other) for one, other in pairs if not judged or one["expect"] == "refuse"]
    taught = [(one["prompt"], one["reply"]) for one, _ in pairs if in_probe_half(one) and one["reply"] and _right(one)]
    scored = [(one, other) for one, other in rows if not in_probe_half(one)]
    if len(taught) < 2 or not scored:
        raise UsageError(f"relearn: {name}: the base model had too few items right to train on, or none is scored")
    prompts = [one["prompt"] for one, _ in scored]
    after = []
    for side in (1, 0):
        learner = _copy(subject, side)
        _train(learner, asking, taught, steps)
        replies = _replies(learner, asking, prompts)
        after.append(np.asarray([_judge(one, reply) for (one, _), reply in zip(scored, replies, strict=True)]))
    before = np.asarray([_right(one) for one, _ in scored])
    now = np.asarray([_right(other) for _, other in scored])
    on = np.asarray([runs_on(other) for _, other in scored])
    every, own = np.ones(len(scored), bool), clusters_of(scored)
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
        steps,
    )


def _right(row: Mapping[str, Any]) -> bool:
    if row["expect"] is not None:
        return bool(row["refused"] == (row["expect"] == "refuse"))
    return bool(row["score"] == 1)


def _judge(row: Mapping[str, Any], reply: str) -> bool:
    """Whether a new reply is right, by the rule of the item's task."""
    if row["expect"] is not None:
        return bool(is_refusal(reply) == (row["expect"] == "refuse"))
    found = re.search(FINAL_ANSWER, reply)
    targets = row["target"] if isinstance(row["target"], list) else [row["target"]]
    return found is not None and found.group(1) in [str(target) for target in targets]


def _copy(subject: Any, side: int) -> Any:
    """A trainable copy of a model, with its adapters merged (tuned) or removed (base)."""
    from ..models.adapters import is_peft

    model = copy.deepcopy(subject.model(side))
    if not is_peft(model):
        return model
    return model.merge_and_unload() if side == 1 else model.unload()


@dataclass(frozen=True)
class _Asking:
    """How prompts are shown: the tokenizer, whether with its chat template, and the maximum tokens of a reply."""

    tokenizer: Any
    chat: bool | None
    most: int

    @property
    def by_chat(self) -> bool:
        """Whether prompts are rendered by the chat template."""
        return self.tokenizer.chat_template is not None if self.chat is None else self.chat

    def prompt(self, text: str) -> str:
        """A prompt as the model sees it."""
        return chat_template(self.tokenizer)([{"role": "user", "content": text}]) if self.by_chat else text


def _train(model: Any, asking: _Asking, taught: Sequence[tuple[str, str]], steps: int) -> None:
    """Add a LoRA to the model's linear layers and train it; the loss is on the replies only."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    inject_adapter_in_model(config, model)
    trainable = [p for p in model.parameters() if p.requires_grad]  # PEFT has frozen the other parameters
    optimizer = torch.optim.AdamW(trainable, lr=RATE)
    order = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        drawn = order.choice(len(taught), size=min(BATCH, len(taught)), replace=False)
        batch = _batch(asking, [taught[int(i)] for i in drawn], model.device)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _batch(asking: _Asking, pairs: Sequence[tuple[str, str]], device: Any) -> dict[str, Any]:
    import torch

    tokenizer, rows = asking.tokenizer, []
    for prompt, reply in pairs:
        head = tokenizer(asking.prompt(prompt), add_special_tokens=not asking.by_chat)["input_ids"]
        space = "" if asking.by_chat or reply.startswith(" ") else " "
        tail = [*tokenizer(space + reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((head + tail, [IGNORED] * len(head) + tail))
    batch = right_padded([ids for ids, _ in rows], tokenizer.pad_token_id, labels=[labels for _, labels in rows])
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def _replies(model: Any, asking: _Asking, prompts: Sequence[str]) -> list[str]:
    """Greedy replies, generated through lm-eval's wrapper."""
    from lm_eval.api.instance import Instance  # type: ignore[import-untyped]

    from ..models.generation import length_as_asked
    from .console import console, quiet
    from .harness import as_lm

    quiet()
    options = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": asking.most}
    requests = [Instance("generate_until", {}, (asking.prompt(prompt), options), 0) for prompt in prompts]
    with console(), length_as_asked(model):
        asker = as_lm(model, asking.tokenizer)
        return [str(reply) for reply in asker.generate_until(requests, disable_tqdm=True)]
