"""An adapter at another strength: W + a dW for a scale a, in memory and in its files.

Its effect must be linear in a factor that its files contain: in LoRA this is B, in LoHa and LoKr one factor of a
product, in (IA)³ the vector minus one. DoRA rescales the whole weight, an orthogonal adapter rotates it, and a prompt
changes no weight; these are refused by name, and so is anything trained in addition to the factors.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display.markdown import code
from ..display.numbers import few
from ..errors import UsageError
from . import bounds, sources, weights
from .attaching import NAME

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .sources import Source

FACTORS = {
    "LORA": (re.compile(r"\.lora_(embedding_)?B(\.|$)"), re.compile(r"\.lora_(embedding_)?[AB](\.|$)")),
    "LOHA": (re.compile(r"\.hada_w1_a(\.|$)"), re.compile(r"\.hada_(w[12]_[ab]|t[12])(\.|$)")),
    "LOKR": (re.compile(r"\.lokr_w1(_a)?(\.|$)"), re.compile(r"\.lokr_(w[12](_[ab])?|t2)(\.|$)")),
    "IA3": (re.compile(r"\.ia3_l(\.|$)"), re.compile(r"\.ia3_l(\.|$)")),
}
"""For each PEFT type: the weights to scale, and everything that such an adapter may contain."""
NOT_LINEAR = (
    *("use_dora", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
    *("layer_replication", "modules_to_save", "trainable_token_indices"),
)
"""LoRA options that make the effect nonlinear in B, or train something in addition to it."""

CARD = """---
library_name: peft
---
# A scaled adapter

The adapter {name} with its effect multiplied by {scale:.6g}, made by `forgetting scale`. The original adapter's card
is not copied, because its numbers are for the unscaled adapter.
"""


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter whose strength can be set.

    Attributes:
        source: where it is.
        kind: its PEFT type.
    """

    source: Source
    kind: str

    @classmethod
    def of(cls, source: Source) -> ScaledAdapter:
        """Read an adapter from its files.

        Raises:
            UsageError: not an adapter, or one whose effect is not linear in what its files contain.
        """
        if not source.is_adapter():
            raise UsageError(f"model '{source.name}': a full model; give an adapter ({', '.join(FACTORS)})")
        given = bounds.read_config(source.adapter() / sources.ADAPTER_CONFIG)
        kind = str(given.get("peft_type") or "LORA").upper()
        refused = f"adapter '{source.name}': {kind}"
        if kind not in FACTORS:
            raise UsageError(
                f"{refused}: its effect is not linear in a factor of its files, so it cannot be scaled; allowed: "
                f"{', '.join(FACTORS)}"
            )
        if found := [field for field in NOT_LINEAR if given.get(field)]:
            raise UsageError(
                f"{refused} with {found[0]}: its effect is not linear in one factor, so it cannot be scaled"
            )
        if (bias := given.get("bias") or "none") != "none":
            raise UsageError(
                f"{refused} with bias '{bias}': the base model's biases were also trained, and they cannot be scaled"
            )
        stored = weights.of_file(source.adapter() / sources.ADAPTER_WEIGHTS)
        scaled, own = FACTORS[kind]
        if beside := [name for name in stored if not own.search(name)]:
            raise UsageError(f"{refused}: contains {few(beside, weights.SHOWN)}, which cannot be scaled")
        if not any(scaled.search(name) for name in stored):
            raise UsageError(f"{refused}: contains no weight that can be scaled")
        return cls(source, kind)

    def factor(self, weight: Tensor, scale: float) -> Tensor:
        """A factor at a scale, in float32 or wider; unchanged at scale 1."""
        import torch

        if scale == 1:
            return weight
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return 1 + (wide - 1) * scale if self.kind == "IA3" else wide * scale

    @contextmanager
    def at(self, model: nn.Module) -> Iterator[Any]:
        """A function that sets the scale of the adapter on a model; afterwards it is 1 again."""
        import torch

        pattern = FACTORS[self.kind][0]
        found = [p for name, p in model.named_parameters() if pattern.search(name.replace(f".{NAME}", ""))]
        kept = [parameter.detach().clone() for parameter in found]

        def set_to(scale: float) -> None:
            with torch.no_grad():
                for parameter, before in zip(found, kept, strict=True):
                    parameter.copy_(self.factor(before, scale))

        try:
            yield set_to
        finally:
            set_to(1.0)

    def write(self, folder: Path, scale: float) -> None:
        """Write the adapter at a scale to a PEFT folder; its configuration and other files are copied.

        Raises:
            UsageError: the folder already contains something, or cannot be written.
        """
        from safetensors.torch import load_file, save_file

        there = self.source.adapter()
        check_free(folder)
        tensors = load_file(there / sources.ADAPTER_WEIGHTS)
        pattern = FACTORS[self.kind][0]
        made = {n: self.factor(t, scale).contiguous() if pattern.search(n) else t for n, t in tensors.items()}
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
                new = Path(name) / "adapter"
                new.mkdir()
                for path in there.iterdir():
                    if path.is_file() and path.suffix in sources.SMALL and path.name != "trainer_state.json":
                        shutil.copy(path, new)
                # the adapter's own card describes other weights
                (new / "README.md").write_text(CARD.format(name=code(self.source.name), scale=scale), "utf-8")
                save_file(made, new / sources.ADAPTER_WEIGHTS, metadata={"format": "pt"})
                if folder.exists():
                    folder.rmdir()
                new.replace(folder)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None


def check_free(folder: Path) -> None:
    """Refuse a folder that is not empty.

    Raises:
        UsageError: it exists and is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: already exists; give a new folder")
