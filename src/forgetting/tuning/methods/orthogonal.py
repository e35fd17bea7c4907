"""Orthogonal methods: OFT and BOFT rotate the weights, OSF trains orthogonally to their main directions.

OFT: Qiu et al. 2023, arXiv:2306.07280; its Cayley-Neumann form: Qiu et al. 2025, arXiv:2506.19847. BOFT: Liu et al.
2023, arXiv:2311.06243. OSF: Nayak et al. 2025, arXiv:2504.07097. All through PEFT.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ...errors import UsageError
from .base import Context
from .targets import Targeted, adapt, shape

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Oft(Targeted):
    """Rotates the inputs of each target block by block; the blocks are orthogonal. P = in (b - 1) / 2."""

    name: ClassVar[str] = "oft"
    quantised: ClassVar[tuple[int, ...]] = (4, 8)
    references: ClassVar[tuple[str, ...]] = ("qiu2023oft", "qiu2025oftv2")
    conv1d: ClassVar[bool] = False

    block_size: int = Field(
        32, ge=2, description="block size b; must divide the inputs of every target; a list gives one run each"
    )

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse a block size that does not divide a target; PEFT would change it."""
        super().check(model, context)
        check_blocks(self, self.block_size, model)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the rotations, all zero; see `Method.prepare`."""
        from peft import OFTConfig, TaskType

        config = OFTConfig(
            task_type=TaskType.CAUSAL_LM, r=0, oft_block_size=self.block_size, target_modules=self.targets(model)
        )
        return adapt(model, config, "methods.oft")


class Boft(Targeted):
    """A product of m sparse rotations, connected as a butterfly, and one factor per output. P = m in b + out."""

    name: ClassVar[str] = "boft"
    references: ClassVar[tuple[str, ...]] = ("liu2023boft",)
    conv1d: ClassVar[bool] = False

    block_size: int = Field(
        4, ge=2, description="block size b; must divide the inputs of every target; a list gives one run each"
    )
    butterfly_factors: int = Field(
        1, ge=1, description="number of rotations m; above 1 PEFT needs a GPU and a CUDA compiler"
    )

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse a block size that does not divide a target."""
        super().check(model, context)
        check_blocks(self, self.block_size, model)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the rotations, all zero; see `Method.prepare`."""
        from peft import BOFTConfig, TaskType

        config = BOFTConfig(
            task_type=TaskType.CAUSAL_LM,
            boft_block_size=self.block_size,
            boft_block_num=0,
            boft_n_butterfly_factor=self.butterfly_factors,
            target_modules=self.targets(model),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns that its kernel cannot be compiled; see below
            adapted = adapt(model, config, "methods.boft")
        used = {len(weight) for name, weight in adapted.named_parameters() if "boft_R" in name}
        if used != {self.butterfly_factors}:  # if PEFT cannot compile its kernel it uses 1, with only a warning
            raise UsageError(
                f"methods.boft.butterfly_factors: got {self.butterfly_factors}; PEFT cannot compile its CUDA kernel "
                "here and would use 1"
            )
        return adapted


def check_blocks(method: Targeted, size: int, model: PreTrainedModel) -> None:
    """Refuse a block size that does not divide the inputs of every target."""
    for name, module in method.linear(model).items():
        if (inputs := shape(module)[0]) % size:
            raise UsageError(
                f"methods.{method.name}.block_size: got {size}, which does not divide the {inputs} inputs of {name}"
            )


class Osf(Targeted):
    """Freezes each target's main singular directions; the rest train orthogonally to them. P = k (in + out + 1).

    k is the number of trained directions: min(in, out) minus the frozen ones. The gradient is projected, so an
    optimiser that rescales it elementwise, such as Adafactor or AdamW, keeps the subspaces separate only approximately.
    """

    name: ClassVar[str] = "osf"
    references: ClassVar[tuple[str, ...]] = ("nayak2025osf",)
    sharded: ClassVar[bool] = False  # it changes whole gradients in hooks that FSDP does not call
    start: ClassVar[Literal["exactly", "rounding", "else"]] = "rounding"
    conv1d: ClassVar[bool] = False

    frozen: float = Field(0.5, gt=0, lt=1, description="share of each target's singular directions to freeze")

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse a share that freezes all or none of a target's directions."""
        super().check(model, context)
        for name, module in self.linear(model).items():
            width = min(shape(module))
            if not 0 < int(width * self.frozen) < width:
                raise UsageError(
                    f"methods.osf.frozen: got {self.frozen}; it freezes {int(width * self.frozen)} of the {width} "
                    f"directions of {name}"
                )

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Split the targets; see `Method.prepare`."""
        from peft import OSFConfig, TaskType

        more: dict[str, Any] = {"effective_rank": self.frozen}  # PEFT's name for the frozen share
        config = OSFConfig(task_type=TaskType.CAUSAL_LM, target_modules=self.targets(model), **more)
        return adapt(model, config, "methods.osf")
