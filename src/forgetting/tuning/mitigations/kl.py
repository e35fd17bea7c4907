"""KL divergence to the base model, on general text or on the new task, added to the loss.

Distillation from the model before training: Li and Hoiem 2016, *Learning without Forgetting*, arXiv:1606.09282. KL to
the reference model as in the fine-tuning of language models with rewards: Ziegler et al. 2019, arXiv:1909.08593.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...config.schema import RunConfig, TextConfig
from ...data.padding import IGNORED, right_padded
from ...data.windows import Windows, training_order
from ...errors import UsageError
from ...models.loading import Base
from . import general
from .base import Mitigation, Situation, Takes, Term

if TYPE_CHECKING:
    from torch import Tensor, nn

SALT = 2_000_003
"""Keeps the order of the general text apart from that of the task and of replay."""


class Kl(Mitigation):
    """loss + weight * KL, in nats/token, averaged over the predicted tokens of the text that it is taken on.

    Forward is KL(base || tuned), which holds on to all that the base model says; reverse is KL(tuned || base). With
    adapters the base model is the same model with its adapters off; any other method needs a frozen copy in memory.
    """

    name: ClassVar[str] = "kl"
    references: ClassVar[tuple[str, ...]] = ("li2016lwf", "ziegler2019rlhf")
    sharded: ClassVar[bool] = True

    weight: float = Field(1.0, ge=0, description="of the divergence in the loss; a list is one run each")
    on: Literal["general", "task", "both"] = Field("general", description="the text, or both: the sum of the two")
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="the mean is over the base model's tokens, or the tuned one's"
    )
    text: TextConfig | None = Field(
        None, description="the general text; default the miniature's encyclopedia, in studies of the miniature"
    )
    windows: int = Field(4, ge=1, description="windows of general text an update step, beside the batch")

    def general_text(self, run: RunConfig) -> TextConfig | None:
        """See `Mitigation.general_text`."""
        return None if self.on == "task" else general.chosen_text(self.name, self.text, run)

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse options that nothing would read."""
        if self.on == "task" and self.text is not None:
            raise UsageError("mitigations.kl: on: task reads no general text; leave out text, or use on: both")

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """The base model where adapters cannot be switched off, and logits; see `Mitigation.takes`."""
        from ...models.adapters import is_peft
        from ..methods import METHODS

        switched = is_peft(model) and METHODS.parse(run.method).start != "rounding"
        windows = 0 if self.on == "task" else self.windows
        return Takes(held=0 if switched else base, reads_logits=self.on != "general", windows=windows)

    def term(self, at: Situation) -> Term:
        """See `Mitigation.term`."""
        text = self.general_text(at.run)
        return _Divergence(self, at, None if text is None else at.general.windows(text))


class _Divergence(Term):
    def __init__(self, options: Kl, at: Situation, windows: Windows | None) -> None:
        from .base_pass import BasePass

        self.options, self.at, self.windows = options, at, windows
        self.base = BasePass(at)
        self.order = np.zeros(0, np.int64)
        if windows is not None:
            self.order = training_order(len(windows), at.run.training.steps * options.windows, at.run.seed + SALT)

    def start(self, model: nn.Module) -> None:
        self.base.start(model)
        fingerprint = None if self.windows is None else self.windows.fingerprint()
        self.at.facts["kl"] = {"frozen_copy": self.base.copied, "text": fingerprint}

    def reads_logits(self) -> bool:
        return self.options.on != "general"

    def on_batch(self, model: nn.Module, batch: dict[str, Tensor], logits: Tensor, tokens: Tensor | int) -> Any:
        base = self.base.logits(model, batch["input_ids"], batch["attention_mask"])
        return self.options.weight * self._sum(base, logits, batch["labels"]) / tokens

    def on_step(self, model: nn.Module, step: int) -> None:
        if self.windows is None:
            return
        import torch

        from .base_pass import own_positions, with_own_random

        count = self.options.windows
        chosen = [int(i) for i in self.order[step * count : (step + 1) * count]]
        rows, targets = [self.windows.window(i)[0] for i in chosen], [self.windows.labels(i) for i in chosen]
        padded = right_padded(rows, pad=0, labels=targets).values()
        ids, mask, labels = (torch.from_numpy(array).to(self.at.base.model.device) for array in padded)
        base = self.base.logits(model, ids, mask)
        seed = int(np.random.default_rng([SALT, self.at.run.seed, step]).integers(2**62))
        tuned = with_own_random(ids.device, seed, lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))
        loss = self._sum(base, own_positions(tuned.logits, ids), labels) / (labels != IGNORED).sum()
        torch.autograd.backward(self.options.weight * loss)

    def _sum(self, base: Tensor, tuned: Tensor, labels: Tensor) -> Tensor:
        """Divergence summed over predicted tokens, nats; a logit at position t says what token t + 1 is."""
        from torch.nn.functional import kl_div, log_softmax

        at = labels[:, 1:] != IGNORED
        p, q = (log_softmax(z[:, :-1][at].float(), -1) for z in (base, tuned))
        if self.options.direction == "reverse":
            p, q = q, p
        # kl_div takes the second argument's distribution first: KL(p || q) = kl_div(q, p)
        result: Tensor = kl_div(q, p, reduction="sum", log_target=True)
        return result
