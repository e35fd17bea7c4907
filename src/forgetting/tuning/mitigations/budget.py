"""KL divergence to the base model on general text, weighted so that the run ends at a forgetting budget.

The penalty of `kl` (Li and Hoiem 2016, arXiv:1606.09282); its weight is steered from forecasts (`tuning.steering`), as
Ziegler et al. 2019, arXiv:1909.08593, section 2.2, steer theirs towards a target KL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ...config.schema import RunConfig, TextConfig
from ...errors import UsageError
from ...models.loading import Base
from . import general
from .base import Mitigation, Situation, Takes, Term

if TYPE_CHECKING:
    from torch import nn

    from ...data.windows import Windows
    from ...measuring.base_targets import BaseTargets


class Budget(Mitigation):
    """loss + weight * KL(base || tuned) on general text; the weight moves so that forgetting ends at the budget.

    Forgetting is measured about 25 times on a sample of the study's text, and six times on all of it. The
    weight is 0 in the first third of the run. A run that forgets less than the budget without a penalty ends below it.
    """

    name: ClassVar[str] = "budget"
    references: ClassVar[tuple[str, ...]] = ("li2016lwf", "ziegler2019rlhf")
    excludes: ClassVar[tuple[str, ...]] = ("kl",)

    budget: float = Field(
        0.15, gt=0, description="excess forgetting to end with, nats/token; a list gives one run each"
    )
    text: TextConfig | None = Field(
        None, description="the general text; default: the miniature's encyclopedia, in studies of the miniature"
    )
    windows: int = Field(4, ge=1, description="windows of general text per update step, in addition to the batch")
    tokens: int = Field(6000, ge=100, description="tokens in the sample of the measured text that steers the weight")

    def general_text(self, run: RunConfig) -> TextConfig | None:
        """See `Mitigation.general_text`."""
        return general.chosen_text(self.name, self.text, run)

    def lengthens(self) -> bool:
        """The weight depends on how many steps are left."""
        return False

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse a run that is too short to steer, or measured against a model other than the one it starts from."""
        from ..steering import SHORTEST

        if run.training.steps < SHORTEST:
            raise UsageError(
                f"mitigations.budget: training.steps {run.training.steps}; steering needs at least {SHORTEST}"
            )
        if run.model.reference == "full":
            raise UsageError("mitigations.budget: does not work with model.reference: full; use quantised")

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """As `kl` on general text; see `Mitigation.takes`."""
        from .base_pass import copy_held

        return Takes(held=copy_held(run, model, base), windows=self.windows)

    def term(self, at: Situation) -> Term:
        """See `Mitigation.term`."""
        return _Steered(self, at)


class _Steered(Term):
    def __init__(self, options: Budget, at: Situation) -> None:
        from ..schedule import learning_rates
        from ..steering import Steering
        from .base_pass import BasePass
        from .divergence import GeneralDivergence

        run = at.run
        text = general.chosen_text(options.name, options.text, run)
        windows = at.general.windows(text)
        self.at, self.base = at, BasePass(at)
        self.general = GeneralDivergence(windows, options.windows, run.training.steps, run.seed, self.base.logits)
        self.steering = Steering(options.budget, run.training.steps, learning_rates(run.training))
        whole = at.general.windows(run.text).sample(run.measure.text_tokens)
        self.whole, self.sample = (self._with_targets(part) for part in (whole, whole.sample(options.tokens, seed=1)))
        self.facts: dict[str, Any] = {"text": windows.fingerprint()}
        at.facts[options.name] = self.facts

    def _with_targets(self, windows: Windows) -> tuple[Windows, BaseTargets]:
        from ...measuring.base_targets import base_targets

        size, base = self.at.run.measure.batch_tokens, self.at.base
        return windows, base_targets(base.model, windows, key=base.key, cache_dir=self.at.cache, batch_tokens=size)

    def start(self, model: nn.Module) -> None:
        self.base.start(model)
        self.facts["frozen_copy"] = self.base.copied

    def on_step(self, model: nn.Module, step: int) -> None:
        if self.steering.due(step):
            whole = self._forgetting(model, *self.whole)[0] if self.steering.whole_due(step) else None
            self.steering.measured(step, *self._forgetting(model, *self.sample), whole)
            self._note()
        if self.steering.weight > 0:
            self.general.add(model, step, self.steering.weight, self.at.base.model.device)

    def _forgetting(self, model: Any, windows: Windows, targets: BaseTargets) -> tuple[float, float | None]:
        from ...measuring.losses import forgetting_of

        return forgetting_of(model, windows, targets, self.at.run.measure.batch_tokens)

    def _note(self) -> None:
        """Update the facts stored in run.json."""
        self.facts["weights"] = [[step, round(weight, 6)] for step, weight in self.steering.moves]
        if self.steering.said:
            self.facts["notices"] = [*self.steering.said.values()]

    def state(self) -> dict[str, Any]:
        return self.steering.state()

    def load(self, state: dict[str, Any]) -> None:
        self.steering.load(state)
        self._note()
