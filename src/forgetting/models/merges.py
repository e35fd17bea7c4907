"""Checks a merged model by comparing its weights with the base model's and an adapter's.

A merge that lost its adapter, or added it at another scale, still gives a model that runs. Its forgetting does not show
the mistake: the model seems to have forgotten nothing, or more than its adapter did. The weights show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import attaching

SAME, SAME_QUANTISED = 0.02, 0.1
"""How far a scale may be from 1, for plain weights and for quantised ones."""
ALONG = 0.9
"""Minimum cosine between the change in the weights and the adapter's change, to count as that adapter."""
BLOCKS = 0.2
"""Rounding that quantised blocks may add, as a share of the weights' norm."""
KNOWN = 0.1
"""Standard error above which a scale is too uncertain to report."""


def unchanged(base: Any, model: Any) -> bool:
    """Whether all of a model's weights are the base model's, rounded to the model's dtype."""
    ours = dict(base.named_parameters())
    theirs = dict(model.named_parameters())
    return ours.keys() == theirs.keys() and all(_equal(ours[name], one) for name, one in theirs.items())


@dataclass
class Added:
    """How a model's layers differ from the base model's, compared with what an adapter adds to them.

    Sums run over all numbers of the layers that the adapter changes, unless they equal the base model's: `a` is what
    the adapter adds, `m` is what the model adds.

    Attributes:
        layers: number of layers that the adapter changes.
        left: how many of those equal the base model's.
        numbers, aa, am, mm: how many numbers, and sums of a*a, a*m, m*m.
        ww: sum of the squares of the model's weights.
        eps: relative spacing of the model's dtype.
    """

    layers: int = 0
    left: int = 0
    numbers: int = 0
    aa: float = 0.0
    am: float = 0.0
    mm: float = 0.0
    ww: float = 0.0
    eps: float = 0.0

    @property
    def scale(self) -> float:
        """How many times the adapter is in the weights, by least squares."""
        return self.am / self.aa if self.aa else math.nan

    @property
    def rest(self) -> float:
        """Norm of the difference that the adapter at that scale does not explain."""
        return math.sqrt(max(0.0, self.mm - self.scale * self.am)) if self.aa else math.nan

    @property
    def se(self) -> float:
        """Standard error of the scale, if the rest is rounding."""
        return self.rest / math.sqrt(self.aa * self.numbers) if self.aa else math.nan

    def notices(self, adapter: str, *, quantised: bool) -> list[str]:
        """Notices for the reader; none if the model contains the adapter once, or something unrelated.

        Args:
            adapter: its name.
            quantised: whether the weights come from quantised blocks.
        """
        if self.left and self.left == self.layers:
            return [f"the layers that adapter '{adapter}' changes equal the base model's: the adapter is not in them"]
        if not self.aa or not self._of_adapter(quantised):
            return []
        said = []
        if self.left:
            equal = "equals" if self.left == 1 else "equal"
            said.append(
                f"{self.left} of {self.layers} layers that adapter '{adapter}' changes {equal} the base model's"
            )
        tolerance = SAME_QUANTISED if quantised else SAME
        if self.se <= KNOWN and abs(self.scale - 1) > max(tolerance, 4 * self.se):
            lost = ": the adapter is not in them" if abs(self.scale) <= max(tolerance, 4 * self.se) else ""
            times = f"{self.scale:.2f}".replace("-0.00", "0.00")
            said.append(f"the weights differ from the base by {times} times what adapter '{adapter}' adds{lost}")
        return said

    def _of_adapter(self, quantised: bool) -> bool:
        """Whether the difference is the adapter, at some scale, plus rounding."""
        cosine = self.am / math.sqrt(self.aa * self.mm) if self.mm else 1.0
        rounding = BLOCKS if quantised else self.eps / 2
        return abs(cosine) >= ALONG or self.rest <= rounding * math.sqrt(self.ww)


def added(base: Any, model: Any, adapter: Any) -> Added | None:
    """Compare a model's layers with those of the base model and with what an adapter adds to them.

    Args:
        base: the base model; afterwards the adapter is on it.
        model: the model, with plain weights.
        adapter: where the adapter is.

    Returns:
        The sums; None if the adapter does not add to weights, or the layers cannot be compared.
    """
    tuned, _ = attaching.attach(base, adapter)
    found = Added(eps=float(torch.finfo(next(model.parameters()).dtype).eps))
    with torch.no_grad():
        for name, weight, delta in _deltas(tuned):
            try:
                theirs = model.get_submodule(name).weight
            except AttributeError:
                return None
            if weight.is_meta or theirs.is_meta or theirs.shape != weight.shape or not theirs.is_floating_point():
                return None
            _count(found, weight, delta.to(weight.device, torch.float32), theirs.to(weight.device))
    return found if found.layers else None


def _count(found: Added, weight: Tensor, delta: Tensor, theirs: Tensor) -> None:
    rounded = weight.to(theirs.dtype)
    if torch.equal((weight.float() + delta).to(theirs.dtype), rounded):
        return  # the adapter changes nothing here
    found.layers += 1
    if torch.equal(theirs, rounded):
        found.left += 1
        return
    a, m = (one.flatten() for one in (delta, theirs.float() - weight.float()))
    found.numbers += a.numel()
    found.aa += _dot(a, a)
    found.am += _dot(a, m)
    found.mm += _dot(m, m)
    found.ww += _dot(theirs.flatten(), theirs.flatten())


def _dot(one: Tensor, other: Tensor) -> float:
    return float(one.double() @ other.double())


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    if ours.is_meta or theirs.is_meta:  # offloaded, so not comparable here
        return False
    return ours.shape == theirs.shape and torch.equal(ours.to(theirs.device, theirs.dtype), theirs)


def _deltas(tuned: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, base weight and added change of each layer of a PeftModel whose adapter adds to weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = tuned.get_base_model()
    for name, module in inner.named_modules():
        if not isinstance(module, BaseTunerLayer) or not hasattr(module, "get_delta_weight"):
            continue
        if getattr(module, "use_dora", {}).get(attaching.NAME):
            continue  # it also scales the weight
        yield name, module.get_base_layer().weight, module.get_delta_weight(attaching.NAME)
