"""(IA)³: learned factors on keys, values and the inner activations of feed-forward layers, through PEFT.

Liu et al. 2022, *Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning*,
arXiv:2205.05638. It has few parameters with a large effect each, so it needs a higher learning rate than LoRA (3e-3 in
the paper).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from ...errors import UsageError
from .base import Context, Method
from .targets import Layers, adapt, choose, linear_modules, matching

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Ia3(Method):
    """One factor per output of each target module, or per input of feed-forward ones. P = sum of those widths."""

    name: ClassVar[str] = "ia3"
    quantised: ClassVar[tuple[int, ...]] = (4, 8)
    references: ClassVar[tuple[str, ...]] = ("liu2022ia3",)

    target_modules: tuple[str, ...] | None = Field(
        None, min_length=1, strict=False, description="module names; default: PEFT's choice for the architecture"
    )
    feedforward_modules: tuple[str, ...] | None = Field(
        None,
        strict=False,
        description="target modules whose inputs are scaled instead of their outputs; default: PEFT's choice",
    )
    layers: Layers = Field(
        None, description="decoder layers, counted from 0, or from the top if negative; or e.g. `top-4`; default: all"
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.target_modules is None) != (self.feedforward_modules is None):
            raise ValueError("give both target_modules and feedforward_modules (which may be []), or neither")
        beside = [name for name in self.feedforward_modules or () if name not in (self.target_modules or ())]
        if beside:
            raise ValueError(f"feedforward_modules: '{beside[0]}' is not in target_modules")
        return self

    def modules(self, model: PreTrainedModel) -> tuple[list[str], list[str]]:
        """Names of the target modules, and of the feed-forward ones among them.

        Raises:
            UsageError: none are given and PEFT has no default for this architecture.
        """
        from ...models.peft_internals import ia3_choice

        kind = model.config.model_type
        if self.target_modules is not None:
            wanted, inner = list(self.target_modules), list(self.feedforward_modules or ())
        elif (choice := ia3_choice(kind)) is not None:
            wanted, inner = choice
        else:
            names = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear_modules(model)}))
            raise UsageError(
                f"methods.ia3.target_modules: PEFT has no default for the architecture '{kind}'; name the modules of "
                f"keys, values and the feed-forward's last (also in feedforward_modules), out of: {names}"
            )
        targets = choose(model, wanted, self.layers, "methods.ia3")
        chosen = [targets] if isinstance(targets, str) else targets
        return chosen, inner if self.layers is None else matching(chosen, inner)

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse modules and layers that the model does not have."""
        self.modules(model)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the factors, all 1; see `Method.prepare`."""
        from peft import IA3Config, TaskType

        targets, inner = self.modules(model)
        config = IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=targets, feedforward_modules=inner)
        return adapt(model, config, "methods.ia3")
