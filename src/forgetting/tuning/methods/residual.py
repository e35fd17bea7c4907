"""Methods that initialise the adapter from a part of W and train that part: PiSSA, OLoRA, CorDA, through PEFT.

With A0, B0 taken from W, the frozen weight becomes W - B0 A0, so step 0 is the base model up to rounding. What is saved
is the difference B A - B0 A0 as a LoRA of rank 2 r, which fits the unchanged base model (Meng et al. 2024, appendix
"Converting PiSSA to LoRA"; PEFT's `path_initial_model_for_weight_conversion`). The scale is 1, as in the papers.

PiSSA: Meng, Wang & Zhang 2024, arXiv:2404.02948. OLoRA: Büyükakyüz 2024, arXiv:2406.01775. CorDA: Yang et al. 2024,
arXiv:2406.05223.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ...config.schema import TextConfig
from .base import Context
from .calibration import draw, general_windows
from .targets import Targeted, adapt, refused

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from ...data.windows import Windows

INITIAL = "forgetting_initial_adapter"
"""Attribute of the model that keeps the adapter's initial weights, by name, on the CPU."""


class Residual(Targeted):
    """A LoRA initialised from a part of W. P = r (in + out)."""

    start: ClassVar[Literal["exactly", "rounding", "else"]] = "rounding"
    sharded: ClassVar[bool] = False  # it is saved as a difference, which PEFT computes on the whole model
    init: ClassVar[str]

    rank: int = Field(
        8, ge=1, description="rank r, at most the width of the narrowest target; a list gives one run each"
    )

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse targets and ranks that the model does not have."""
        super().check(model, context)
        self.check_rank(self.rank, model)

    def lora_config(self, model: PreTrainedModel, **more: Any) -> LoraConfig:
        """PEFT's configuration for these options."""
        from peft import LoraConfig, TaskType

        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.rank,
            target_modules=self.targets(model),
            init_lora_weights=self.init,
            **more,
        )

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        return self.keep_initial(adapt(model, self.lora_config(model), f"methods.{self.name}"))

    def keep_initial(self, adapted: PeftModel) -> PeftModel:
        """Keep the adapter's initial weights, for saving."""
        from peft import get_peft_model_state_dict

        first = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        setattr(adapted, INITIAL, {name: weight.detach().cpu().clone() for name, weight in first.items()})
        return adapted

    def save(self, model: PreTrainedModel | PeftModel, folder: Path) -> None:
        """Save the difference from the initial adapter: a LoRA of rank 2 r on the unchanged base model."""
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory() as temporary:
            initial = Path(temporary) / "initial"
            initial.mkdir()
            save_file(getattr(model, INITIAL), initial / "adapter_model.safetensors")
            model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(initial))


class Pissa(Residual):
    """A and B start as the r largest singular directions of W; the rest is frozen. P = r (in + out)."""

    name: ClassVar[str] = "pissa"
    references: ClassVar[tuple[str, ...]] = ("meng2024pissa",)
    init: ClassVar[str] = "pissa"


class Olora(Residual):
    """B and A start as the first r columns of Q and rows of R, where W = Q R. P = r (in + out)."""

    name: ClassVar[str] = "olora"
    references: ClassVar[tuple[str, ...]] = ("buyukakyuz2024olora",)
    init: ClassVar[str] = "olora"
    conv1d: ClassVar[bool] = False


class Corda(Residual):
    """A and B start from W's singular directions in the metric of a text's activations. P = r (in + out).

    `keep: knowledge` trains the directions that matter least to a general text (`calibration`) and freezes those that
    it needs; `keep: nothing` trains those that matter most to the fine-tuning data (the paper's second mode).
    """

    name: ClassVar[str] = "corda"
    references: ClassVar[tuple[str, ...]] = ("yang2024corda",)
    init: ClassVar[str] = "corda"

    keep: Literal["knowledge", "nothing"] = Field(
        "knowledge",
        description="what to keep: `knowledge` of the calibration text, or `nothing` to adapt to the fine-tuning data",
    )
    calibration: TextConfig | None = Field(
        None,
        description="general text with the fields of `text`; required for `keep: knowledge`; never the measured text",
    )
    calibration_windows: int = Field(
        256, ge=1, description="how many windows of the text to read; the default is the paper's"
    )

    @model_validator(mode="after")
    def _has_its_text(self) -> Self:
        if (self.keep == "knowledge") != (self.calibration is not None):
            raise ValueError(
                f"keep: {self.keep} "
                + ("needs calibration, a general text: {source: ...}" if self.calibration is None else "reads no text")
            )
        return self

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse targets and ranks that the model does not have, and a calibration text that is measured on."""
        super().check(model, context)
        self.windows(context)

    def windows(self, context: Context) -> Windows:
        """The windows to read: the calibration text, or the fine-tuning data."""
        if self.calibration is None:
            return context.train
        return general_windows(self.calibration, context, "methods.corda.calibration")

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Read the text, then add the adapters; see `Method.prepare`."""
        from ...models import peft_internals

        windows = draw(self.windows(context), self.calibration_windows, context.seed)
        method: Literal["kpm", "ipm"] = "kpm" if self.keep == "knowledge" else "ipm"
        config = self.lora_config(model, corda_config=peft_internals.CORDA_CONFIG.value()(corda_method=method))
        preprocess = peft_internals.CORDA.value()
        # CorDA matches names itself and does not know the shorthand
        config.target_modules = set(self.linear(model))
        refused(lambda: preprocess(model, config, run_model=lambda: _run(model, windows)), "methods.corda")
        adapted = adapt(model, config, "methods.corda")
        config.corda_config = None
        return self.keep_initial(adapted)


def _run(model: PreTrainedModel, windows: Windows) -> None:
    """Run the model on one window at a time; PEFT's hooks take a batch of one."""
    import torch

    for index in range(len(windows)):
        ids = torch.from_numpy(windows.window(index)[0].astype("int64"))[None].to(model.device)
        model(input_ids=ids, use_cache=False)
