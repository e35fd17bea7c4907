"""Adapters with few parameters, from frozen random matrices or structured products: VeRA, LoHa, LoKr, through PEFT.

VeRA: Kopiczko, Blankevoort & Asano 2023, arXiv:2310.11454. LoHa: Hyeon-Woo, Ye-Bin & Oh 2021 (FedPara),
arXiv:2108.06098. LoKr: Yeh et al. 2023 (LyCORIS), arXiv:2309.14859.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from .base import Context
from .targets import Targeted, adapt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Vera(Targeted):
    """Two frozen random matrices shared by all targets; only factors of their rows train. P = r + out."""

    name: ClassVar[str] = "vera"
    references: ClassVar[tuple[str, ...]] = ("kopiczko2023vera",)

    rank: int = Field(256, ge=1, description="rank r of the shared matrices; a list gives one run each")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters, with matrices drawn from the run's seed; see `Method.prepare`."""
        from peft import TaskType, VeraConfig

        config = VeraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            vera_dropout=self.dropout,
            target_modules=self.targets(model),
            projection_prng_key=context.seed,
        )
        return adapt(model, config, "methods.vera")


class Loha(Targeted):
    """The elementwise product of two low-rank matrices, of rank up to r². P = 2 r (in + out)."""

    name: ClassVar[str] = "loha"
    references: ClassVar[tuple[str, ...]] = ("hyeonwoo2021fedpara", "yeh2023lycoris")
    conv1d: ClassVar[bool] = False

    rank: int = Field(8, ge=1, description="rank r; a list gives one run each")
    alpha: float = Field(8.0, gt=0, description="the adapter's change is scaled by alpha / r")

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        from peft import LoHaConfig, TaskType

        config = LoHaConfig(
            task_type=TaskType.CAUSAL_LM, r=self.rank, alpha=self.alpha, target_modules=self.targets(model)
        )
        return adapt(model, config, "methods.loha")


class Lokr(Targeted):
    """A Kronecker product of a small matrix and a low-rank one. P: see docs/methods.md."""

    name: ClassVar[str] = "lokr"
    references: ClassVar[tuple[str, ...]] = ("yeh2023lycoris",)
    conv1d: ClassVar[bool] = False

    rank: int = Field(8, ge=1, description="rank r of the larger factor; a list gives one run each")
    alpha: float = Field(8.0, gt=0, description="the adapter's change is scaled by alpha / r")
    factor: int = Field(
        -1,
        ge=-1,
        description="divisor of the widths, for the small matrix; -1 takes the one nearest to the square root",
    )

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        from peft import LoKrConfig, TaskType

        config = LoKrConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            alpha=self.alpha,
            decompose_factor=self.factor,
            target_modules=self.targets(model),
        )
        return adapt(model, config, "methods.lokr")
