"""Adds the KL divergence from the base model to the loss, on general text or on the new task.

Distillation from the model before training: Li and Hoiem 2016, *Learning without Forgetting*, arXiv:1606.09282. KL to a
reference model, as in fine-tuning language models with rewards: Ziegler et al. 2019, arXiv:1909.08593.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ...config.schema import RunConfig, TextConfig
from ...data.windows import Windows
from ...errors import UsageError
from ...models.loading import Base
from . import general
from .base import Mitigation, Situation, Takes, Term

if TYPE_CHECKING:
    from torch import Tensor, nn


class Kl(Mitigation):
    """loss + weight * KL, in nats/token, averaged over the predicted tokens of the chosen text.

    Forward is KL(base || tuned), which preserves everything that the base model predicts; reverse is KL(tuned || base).
    With adapters, the base model is the same model with its adapters off; other methods need a frozen copy in memory.
    """

    name: ClassVar[str] = "kl"
    references: ClassVar[tuple[str, ...]] = ("li2016lwf", "ziegler2019rlhf")
    sharded: ClassVar[bool] = True

    weight: float = Field(1.0, ge=0, description="weight of the divergence in the loss; a list gives one run each")
    on: Literal["general", "task", "both"] = Field(
        "general", description="the text to compute it on; `both` is the sum of the two"
    )
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="`forward` is KL(base || tuned), `reverse` is KL(tuned || base)"
    )
    text: TextConfig | None = Field(
        None, description="the general text; default: the miniature's encyclopedia, in studies of the miniature"
    )
    windows: int = Field(4, ge=1, description="windows of general text per update step, in addition to the batch")

    def general_text(self, run: RunConfig) -> TextConfig | None:
        """See `Mitigation.general_text`."""
        return None if self.on == "task" else general.chosen_text(self.name, self.text, run)

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse options that would have no effect."""
        if self.on == "task" and self.text is not None:
            raise UsageError("mitigations.kl: on: task uses no general text; leave out text, or use on: both")

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """The base model if adapters cannot be switched off, and logits; see `Mitigation.takes`."""
        from .base_pass import copy_held

        windows = 0 if self.on == "task" else self.windows
        return Takes(held=copy_held(run, model, base), reads_logits=self.on != "general", windows=windows)

    def term(self, at: Situation) -> Term:
        """See `Mitigation.term`."""
        text = self.general_text(at.run)
        return _Divergence(self, at, None if text is None else at.general.windows(text))


class _Divergence(Term):
    def __init__(self, options: Kl, at: Situation, windows: Windows | None) -> None:
        from .base_pass import BasePass
        from .divergence import GeneralDivergence

        self.options, self.at, self.windows = options, at, windows
        self.base = BasePass(at)
        self.general: GeneralDivergence | None = None
        if windows is not None:
            how = (options.windows, at.run.training.steps, at.run.seed)
            self.general = GeneralDivergence(windows, *how, self.base.logits, options.direction)

    def start(self, model: nn.Module) -> None:
        self.base.start(model)
        fingerprint = None if self.windows is None else self.windows.fingerprint()
        self.at.facts["kl"] = {"frozen_copy": self.base.copied, "text": fingerprint}

    def reads_logits(self) -> bool:
        return self.options.on != "general"

    def on_batch(self, model: nn.Module, batch: dict[str, Tensor], logits: Tensor, tokens: Tensor | int) -> Any:
        from .base_pass import own_positions
        from .divergence import divergence

        tuned = own_positions(logits, batch["input_ids"])
        base = self.base.logits(model, batch["input_ids"], batch["attention_mask"])
        return self.options.weight * divergence(base, tuned, batch["labels"], self.options.direction) / tokens

    def on_step(self, model: nn.Module, step: int) -> None:
        if self.general is not None:
            self.general.add(model, step, self.options.weight, self.at.base.model.device)
