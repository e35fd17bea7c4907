"""Replay: general text among the training batches, real or written by the base model itself.

Robins 1995, *Catastrophic Forgetting, Rehearsal and Pseudorehearsal*, Connection Science 7(2). Small shares for
language models: Scialom et al. 2022, *Fine-tuned Language Models are Continual Learners*, arXiv:2205.12393. Text that
the model itself generates: Sun et al. 2019, *LAMOL*, arXiv:1909.03329; Huang et al. 2024, arXiv:2403.01244.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...config.schema import RunConfig, TextConfig
from ...data.windows import Windows, training_order
from ...errors import UsageError
from ...models.loading import Base
from . import general
from .base import Course, Mitigation, Situation

if TYPE_CHECKING:
    from torch import Tensor

SALT = 1_000_003
"""Keeps the order of the general text apart from that of the task."""
GENERATED_AT_ONCE = 64
"""Windows that the base model writes side by side."""


class Replay(Mitigation):
    """A share of the windows that a run trains on is general text.

    The batch keeps its size: general windows stand in for windows of the task, evenly spread over the run, and the
    task's windows come in the order of the plain run, the later ones later or not at all. Of the first k windows of a
    run, k * fraction are general, rounded.
    """

    name: ClassVar[str] = "replay"
    references: ClassVar[tuple[str, ...]] = ("robins1995rehearsal", "scialom2022continual")
    sharded: ClassVar[bool] = True
    stage: ClassVar[int] = 1

    fraction: float = Field(0.05, gt=0, lt=1, description="of the windows trained on; a list is one run each")
    text: TextConfig | None = Field(
        None, description="the general text; default the miniature's encyclopedia, in studies of the miniature"
    )
    generated: bool = Field(False, description="text that the base model samples from its end-of-text token instead")

    def general_text(self, run: RunConfig) -> TextConfig | None:
        """See `Mitigation.general_text`."""
        return None if self.generated else general.chosen_text(self.name, self.text, run)

    def shardable(self) -> bool:
        """Where the base model need not write the text: see `Mitigation.shardable`."""
        return not self.generated

    def lengthens(self) -> bool:
        """Where the base model need not write the text, as much of it as the run needs: see `Mitigation.lengthens`."""
        return not self.generated

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse options that contradict each other, and a share that is no window of the run."""
        if self.generated and self.text is not None:
            raise UsageError("mitigations.replay: give either text or generated: true, not both")
        if self.generated and _first_token(base) is None:
            raise UsageError("mitigations.replay.generated: the tokenizer has no token that begins or ends a text")
        samples = run.training.steps * run.training.batch_size
        if not replayed(samples, self.fraction).any():
            raise UsageError(f"mitigations.replay.fraction: {self.fraction} of {samples} windows is not one window")

    def plan(self, course: Course, at: Situation) -> Course:
        """Put general windows into the order; see `Mitigation.plan`."""
        chosen = replayed(len(course.order), self.fraction)
        count = int(chosen.sum())
        if self.generated:
            mixed = _generate(at, count)
        else:
            mixed = at.general.windows(general.chosen_text(self.name, self.text, at.run))
        order = np.empty_like(course.order)
        order[~chosen] = course.order[: len(order) - count]
        order[chosen] = len(course.windows) + training_order(len(mixed), count, at.run.seed + SALT)
        windows = course.windows.joined(mixed)
        lengths = windows.lengths[order]
        at.facts[self.name] = {
            "windows": count,
            "of_windows": len(order),
            "tokens": int(lengths[chosen].sum()),
            "of_tokens": int(lengths.sum()),
            "text": mixed.fingerprint(),
        }
        return Course(windows, order, np.concatenate([course.weights, np.ones(len(mixed))]))


def replayed(samples: int, fraction: float) -> NDArray[np.bool_]:
    """[samples] which windows of a run are general: of the first k, k * fraction rounded, for every k."""
    counts = np.floor(np.arange(samples + 1) * fraction + 0.5)
    chosen: NDArray[np.bool_] = np.diff(counts) > 0
    return chosen


def _first_token(base: Base) -> int | None:
    """What a text begins with: the tokenizer's first token, or the last of the text before it."""
    tokenizer = base.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return first if isinstance(first, int) else None


def _generate(at: Situation, count: int) -> Windows:
    """`count` windows that the base model samples, at temperature 1 from its whole distribution."""
    key = [at.run.seed, at.run.context, count]
    found = at.cached("generated", key, lambda: _sample(at.base, at.run, count))
    ids, lengths = found["ids"].numpy(), found["lengths"].numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    predicted = np.ones(len(ids), dtype=bool)
    predicted[offsets[:-1]] = False
    names = tuple(f"generated-{i}" for i in range(count))
    return Windows(ids, predicted, offsets, np.arange(count, dtype=np.int32), names)


def _sample(base: Base, run: RunConfig, count: int) -> dict[str, Tensor]:
    import torch

    from ...models.adapters import undisturbed

    first, pad, end = _first_token(base), base.tokenizer.pad_token_id, base.tokenizer.eos_token_id
    assert first is not None  # as `check` saw to
    rows: list[Tensor] = []
    with undisturbed(base.model):
        torch.manual_seed(run.seed + SALT)
        for _ in range(math.ceil(count / GENERATED_AT_ONCE)):
            starts = torch.full((GENERATED_AT_ONCE, 1), first, device=base.model.device)
            written = base.model.generate(
                input_ids=starts,
                attention_mask=torch.ones_like(starts),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=1,
                max_new_tokens=run.context - 1,
                pad_token_id=pad,
                eos_token_id=end,
            )
            rows += [_until_end(row, end) for row in written.cpu()]
    kept = rows[:count]
    return {"ids": torch.cat(kept).to(torch.int32), "lengths": torch.tensor([len(row) for row in kept])}


def _until_end(row: Tensor, end: int | None) -> Tensor:
    """A generated row up to its first end token after the start, without the padding that follows."""
    stops = (row[1:] == end).nonzero() if end is not None else row[:0]
    return row[: int(stops[0]) + 2] if len(stops) else row
