"""Whether a merged model is what it should be: its weights beside the base model's and an adapter's.

A merge that lost its adapter, or that added it at another scale, gives a model that runs. Forgetting alone does not
show it: the model seems to have forgotten nothing, or more than its adapter. The weights do.
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
"""How far from 1 a scale may be, of plain weights and of quantised ones."""
ALONG = 0.9
"""Cosine of what was added with what the adapter adds, from which on it is the adapter that was added."""
BLOCKS = 0.2
"""Of the weights' norm, what quantised blocks may add as rounding."""
KNOWN = 0.1
"""Standard error above which a scale is not known well enough to be spoken of."""


def unchanged(base: Any, model: Any) -> bool:
    """Whether all of a model's weights are those of the base model, rounded to the model's dtype."""
    ours = dict(base.named_parameters())
    theirs = dict(model.named_parameters())
    return ours.keys() == theirs.keys() and all(_equal(ours[name], one) for name, one in theirs.items())


@dataclass
class Added:
    """What stands in a model's layers beside what an adapter adds to the base model's.

    Sums over the numbers of all layers that the adapter changes, of those that are not the base model's: `a` is what
    the adapter adds, `m` is what was added.

    Attributes:
        layers: that the adapter changes.
        left: of those, how many are the base model's.
        numbers, aa, am, mm: how many numbers, and sums of a*a, a*m, m*m.
        ww: sum of the squares of the model's weights.
        eps: step between neighbouring numbers of the model's dtype, relative.
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
        """How many times the adapter stands in the weights, by least squares."""
        return self.am / self.aa if self.aa else math.nan

    @property
    def rest(self) -> float:
        """Norm of what was added and is not the adapter at that scale."""
        return math.sqrt(max(0.0, self.mm - self.scale * self.am)) if self.aa else math.nan

    @property
    def se(self) -> float:
        """Standard error of the scale, taking the rest for rounding."""
        return self.rest / math.sqrt(self.aa * self.numbers) if self.aa else math.nan

    def notices(self, adapter: str, *, quantised: bool) -> list[str]:
        """What a reader should know; nothing of a model that holds the adapter once, or something else altogether.

        Args:
            adapter: its name.
            quantised: whether the weights are numbers of quantised blocks.
        """
        if self.left and self.left == self.layers:
            return [f"the layers that adapter '{adapter}' changes are the base model's: the adapter is not in them"]
        if not self.aa or not self._of_adapter(quantised):
            return []
        said = []
        if self.left:
            said.append(f"{self.left} of {self.layers} layers that adapter '{adapter}' changes are the base model's")
        tolerance = SAME_QUANTISED if quantised else SAME
        if self.se <= KNOWN and abs(self.scale - 1) > max(tolerance, 4 * self.se):
            lost = ": the adapter is not in them" if abs(self.scale) <= max(tolerance, 4 * self.se) else ""
            times = f"{self.scale:.2f}".replace("-0.00", "0.00")
            said.append(f"the weights differ from the base by {times} times what adapter '{adapter}' adds{lost}")
        return said

    def _of_adapter(self, quantised: bool) -> bool:
        """Whether what was added is the adapter, at some scale, and rounding."""
        cosine = self.am / math.sqrt(self.aa * self.mm) if self.mm else 1.0
        rounding = BLOCKS if quantised else self.eps / 2
        return abs(cosine) >= ALONG or self.rest <= rounding * math.sqrt(self.ww)


def added(base: Any, model: Any, adapter: Any) -> Added | None:
    """Compare a model's layers with those of the base model and what an adapter adds to them.

    Args:
        base: the base model; the adapter is on it afterwards.
        model: the model, with plain weights.
        adapter: where the adapter lies.

    Returns:
        The sums; None of an adapter that does not add to weights, or layers that are not to be compared.
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
    if ours.is_meta or theirs.is_meta:  # offloaded: not to be compared here
        return False
    return ours.shape == theirs.shape and torch.equal(ours.to(theirs.device, theirs.dtype), theirs)


def _deltas(tuned: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, base weight and what is added to it, of each layer of a PeftModel whose adapter adds to weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = tuned.get_base_model()
    for name, module in inner.named_modules():
        if not isinstance(module, BaseTunerLayer) or not hasattr(module, "get_delta_weight"):
            continue
        if getattr(module, "use_dora", {}).get(attaching.NAME):
            continue  # it also scales the weight
        yield name, module.get_base_layer().weight, module.get_delta_weight(attaching.NAME)
