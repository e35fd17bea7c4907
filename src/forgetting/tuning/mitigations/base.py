"""The contract of a mitigation: options in, a run that forgets less out.

A mitigation overrides the hooks that it needs; other packages need not know about it:

    recipe      changes the method or training configuration
    plan        chooses the windows to train on, their order, tokens and weights
    adapt       chooses which parts of the prepared model train
    term        adds to the loss
    afterwards  changes the trained model without training
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
        weights: [W] float64, factor on each window's loss.
    """

    windows: Windows
    order: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Situation:
    """What a mitigation may know about its run before the method changes the model.

    Attributes:
        run: the run; its recipe is already changed by the mitigations.
        base: the base model, as loaded.
        general: the general texts of the study.
        cache: where results shared by the study's runs are stored; may be deleted.
        facts: what a mitigation did, for run.json; each writes under its own name.
    """

    run: RunConfig
    base: Base
    general: GeneralTexts
    cache: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def cached(self, what: str, key: Sequence[Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The result of `compute`, from the study's cache if possible; see `array_cache.kept`.

        The time that computing it took is counted even if it is cached, so that a run's cost does not depend on which
        run came first.

        Args:
            what: a name for the file.
            key: everything that affects the numbers, besides the base model.
            compute: returns named tensors on the CPU.
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
    """Bytes that a mitigation needs in addition to its run.

    Attributes:
        held: while the run trains.
        before: at most before it trains, in addition to the base model.
        step: temporarily in each update step, in addition to the gradients.
        after: once it has trained.
        reads_logits: whether it needs the logits of all positions of the batch.
        windows: windows of general text that pass through the model besides the batch, with all logits.
    """

    held: int = 0
    before: int = 0
    step: int = 0
    after: int = 0
    reads_logits: bool = False
    windows: int = 0


class Term:
    """Something added to a run's loss. Does not use the global random states."""

    def start(self, model: nn.Module) -> None:
        """Called once with the prepared model, before a checkpoint is loaded into it."""

    def reads_logits(self) -> bool:
        """Whether `on_batch` adds anything; if not, it is not called and the logits are not needed."""
        return type(self).on_batch is not Term.on_batch

    def on_batch(self, model: nn.Module, batch: dict[str, Tensor], logits: Tensor, tokens: Tensor | int) -> Any:
        """A part of one batch's loss: sums over its predicted tokens, divided by `tokens`; None for nothing.

        Args:
            model: in training.
            batch: input_ids, attention_mask, labels [B, L], and window [B], each row's index in the course.
            logits: [B, L, V] of the model on the batch.
            tokens: predicted tokens of the whole update step.
        """
        return None

    def on_step(self, model: nn.Module, step: int) -> None:
        """Add gradients once per update step, after those of the batch.

        Args:
            model: in training.
            step: number of finished update steps.
        """

    def state(self) -> dict[str, Any]:
        """Its state for a checkpoint, as JSON values; empty for a term that depends on the step alone."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""


class Mitigation(VariantOptions, ABC):
    """One way to reduce forgetting. Its fields are its options.

    Class attributes:
        name: its name in a configuration.
        references: keys of its sources in `reporting.citations`.
        excludes: mitigations that cannot be combined with it.
        stage: order in which `plan` runs: 0 chooses what to learn from the task's windows, 1 mixes in other text.
        quantised: whether it works with quantised base weights (`model.bits`).
        sharded: whether it works if the model's weights are sharded over processes.
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
        """The general text that it trains on or computes statistics from; it must not be the measured text."""
        return None

    @classmethod
    def check_quantised(cls, how: str) -> None:
        """Refuse quantised base weights if the mitigation needs their gradient.

        Args:
            how: how they are quantised, in words.

        Raises:
            UsageError: names the mitigation, and alternatives.
        """
        if not cls.quantised:
            raise UsageError(
                f"mitigations.{cls.name}: does not work with {how}: it needs gradients, which quantised weights do not "
                "have; use kl, or the model in float32 or bfloat16"
            )

    def shardable(self) -> bool:
        """Whether it works, with its options, if the model's weights are sharded over processes."""
        return self.sharded

    def lengthens(self) -> bool:
        """Whether the first steps of a longer run equal those of a shorter one, to the last digit."""
        return True

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse a run that it cannot work in, before any run starts.

        Raises:
            UsageError: names the mitigation and what it does not work with.
        """

    def check_model(self, run: RunConfig, model: nn.Module) -> None:
        """The same for the base model as prepared by the run's method; only called if overridden."""

    def recipe(self, run: RunConfig) -> RunConfig:
        """The run with its method or training configuration changed."""
        return run

    def plan(self, course: Course, at: Situation) -> Course:
        """Change what the run trains on; the base model is as loaded."""
        return course

    def term(self, at: Situation) -> Term | None:
        """The term added to the loss; the base model is as loaded."""
        return None

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """The memory that it needs.

        Args:
            run: the run with this mitigation.
            model: without values, as the run's method prepares it.
            base: bytes of the base model's weights.
        """
        return Takes()

    def adapt(self, model: nn.Module) -> None:
        """Change which parts of the prepared model train."""

    def afterwards(self, model: nn.Module, at: Situation) -> Iterator[float]:
        """After the last step: put the model into other states, yield the alpha in [0, 1] of each, then restore it."""
        yield from ()


def _shown(value: Any) -> str:
    if isinstance(value, TextConfig):
        return value.source
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
