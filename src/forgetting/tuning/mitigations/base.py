"""The contract of a mitigation: options in, a run that forgets less out.

A mitigation overrides the hooks that it needs, and no other package learns of it:

    recipe      another method or training configuration
    plan        which windows are trained on, in which order, on which tokens, with which weight
    adapt       what of the prepared model trains
    term        what is added to the loss
    afterwards  the trained model, changed without training
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...config.schema import RunConfig, TextConfig, VariantOptions
from ...data.windows import Windows
from ...errors import UsageError
from .general import GeneralTexts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...models.loading import Base


@dataclass(frozen=True)
class Course:
    """What a run trains on.

    Attributes:
        windows: W windows; those of the new task come first.
        order: [steps * batch_size] int64, the window of each sample.
        weights: [W] float64, by which each window's loss is multiplied.
    """

    windows: Windows
    order: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Situation:
    """What a mitigation may know of its run before the method changes the model.

    Attributes:
        run: the run, its recipe already changed by the mitigations.
        base: the base model, as loaded.
        general: the general texts of the study.
        cache: where what is computed once a study is kept; may be deleted.
        facts: what a mitigation did, for run.json; each writes under its own name.
    """

    run: RunConfig
    base: Base
    general: GeneralTexts
    cache: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def cached(self, what: str, key: Sequence[Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `compute` gives, from the study's cache where it is there; see `array_cache.kept`.

        A run that finds it there counts the time that it took all the same: its cost does not depend on which run came
        first.

        Args:
            what: a name for the file.
            key: all that decides the numbers, beside the base model.
            compute: named tensors on the CPU.
        """
        import torch

        from ...data import array_cache

        device = self.base.model.device.type
        content = json.dumps([what, self.base.key, device, torch.__version__, *key], sort_keys=True, default=str)
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        found = array_cache.kept(
            self.cache / f"{what}-{fingerprint[:32]}.safetensors",
            fingerprint,
            lambda: {name: tensor.numpy() for name, tensor in compute().items()},
        )
        self.facts["prepare_seconds"] = round(self.facts.get("prepare_seconds", 0.0) + found.seconds, 3)
        return {name: torch.from_numpy(np.array(array)) for name, array in found.arrays().items()}


@dataclass(frozen=True)
class Takes:
    """Bytes that a mitigation takes beside its run.

    Attributes:
        held: while the run trains.
        before: at most before it trains, beside the base model.
        step: for a moment of each update step, beside the gradients.
        after: once it has trained.
        reads_logits: whether those of all positions of the batch are made.
        windows: of general text that pass through the model beside the batch, with all logits.
    """

    held: int = 0
    before: int = 0
    step: int = 0
    after: int = 0
    reads_logits: bool = False
    windows: int = 0


class Term:
    """Something added to the loss of a run. Draws nothing from the global random states."""

    def start(self, model: nn.Module) -> None:
        """Called once with the prepared model, before a checkpoint is loaded into it."""

    def reads_logits(self) -> bool:
        """Whether `on_batch` adds anything; it is not called otherwise, and the logits need not be made."""
        return type(self).on_batch is not Term.on_batch

    def on_batch(self, model: nn.Module, batch: dict[str, Tensor], logits: Tensor, tokens: Tensor | int) -> Any:
        """A part of one batch's loss: sums over its predicted tokens, over `tokens`; None for nothing.

        Args:
            model: in training.
            batch: input_ids, attention_mask, labels [B, L], and window [B], each row's place in the course.
            logits: [B, L, V] of the model on the batch.
            tokens: predicted tokens of the whole update step.
        """
        return None

    def on_step(self, model: nn.Module, step: int) -> None:
        """Add gradients of its own, once an update step, after those of the batch.

        Args:
            model: in training.
            step: finished update steps.
        """


class Mitigation(VariantOptions, ABC):
    """One way to hold forgetting back. Its fields are its options.

    Class attributes:
        name: its name in a configuration.
        references: keys of its sources in `reporting.citations`.
        excludes: mitigations that it cannot be used together with.
        stage: `plan` runs in this order: 0 what is learned from the task's windows, 1 what is mixed in.
        quantised: whether it works where the base model's weights are quantised (`model.bits`).
        sharded: whether it works where the model's weights are shared out over processes.
    """

    references: ClassVar[tuple[str, ...]] = ()
    excludes: ClassVar[tuple[str, ...]] = ()
    stage: ClassVar[int] = 0
    quantised: ClassVar[bool] = True
    sharded: ClassVar[bool] = False

    def label(self) -> str:
        """Its name and the options that differ from their defaults, for tables: `replay fraction=0.1`."""
        given = [f"{field}={_shown(getattr(self, field))}" for field in type(self).model_fields if self._differs(field)]
        return " ".join([self.name, *given])

    def _differs(self, field: str) -> bool:
        return bool(getattr(self, field) != type(self).model_fields[field].default)

    def general_text(self, run: RunConfig) -> TextConfig | None:
        """The general text that it trains on or takes statistics of, which must not be the measured one."""
        return None

    @classmethod
    def check_quantised(cls, how: str) -> None:
        """Refuse a base model whose weights are quantised, where the mitigation needs their gradient.

        Args:
            how: they are quantised, in words.

        Raises:
            UsageError: names the mitigation, and what would do.
        """
        if not cls.quantised:
            raise UsageError(
                f"mitigations.{cls.name}: does not go together with {how}: quantised weights have no gradient, which "
                "it needs; use kl, or the model in float32 or bfloat16"
            )

    def shardable(self) -> bool:
        """Whether it works, with its options, where the model's weights are shared out over processes."""
        return self.sharded

    def lengthens(self) -> bool:
        """Whether the first steps of a longer run are those of a shorter one, to the last digit."""
        return True

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse a run that it cannot work in, before any run starts.

        Raises:
            UsageError: names the mitigation and what it does not go together with.
        """

    def check_model(self, run: RunConfig, model: nn.Module) -> None:
        """The same, of the base model as the run's method prepares it; only called where it is overridden."""

    def recipe(self, run: RunConfig) -> RunConfig:
        """The run with another method or training configuration."""
        return run

    def plan(self, course: Course, at: Situation) -> Course:
        """Change what the run trains on; the base model is as loaded."""
        return course

    def term(self, at: Situation) -> Term | None:
        """What is added to the loss; the base model is as loaded."""
        return None

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """The memory that it takes.

        Args:
            run: with it.
            model: of no numbers, as the run's method prepares it.
            base: bytes of the base model's weights.
        """
        return Takes()

    def adapt(self, model: nn.Module) -> None:
        """Change what of the prepared model trains."""

    def afterwards(self, model: nn.Module, at: Situation) -> Iterator[float]:
        """After the last step: put the model into other states, each given as its alpha in [0, 1], then back."""
        yield from ()


def _shown(value: Any) -> str:
    if isinstance(value, TextConfig):
        return value.source
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
