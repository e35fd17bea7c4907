"""Starting regions for a formula's parameters from the data, by dimensional analysis of the expression.

In `y = A * exp(-((x - m) / w)**2)`, m and w have the unit of x, and A has that of y. So m is searched for in the range
of x, and w between the spacing and the range of x. A fixed region of numbers would entirely miss a peak at x = 451.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forgetting.analysis.laws.base import Array
from forgetting.analysis.laws.formula import FUNCTIONS, Node, depends, evaluate

ZERO = 1e-9
WIDER = 3.0
"""Factor by which scales may exceed a variable's largest value."""


MOST_WAVES = 512
"""Most grid points for a period or frequency."""


@dataclass(frozen=True)
class Region:
    """Where a parameter may start.

    Attributes:
        low, high: its ends.
        log: whether starts are drawn uniformly in the logarithm, not in the value.
        waves: for a frequency, the number of grid points that resolve the waves that the data can show; for a period,
            minus this number; else 0.
    """

    low: float
    high: float
    log: bool
    waves: int = 0

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """[count] values."""
        if self.log:
            return np.exp(rng.uniform(np.log(self.low), np.log(self.high), count))
        return rng.uniform(self.low, self.high, count)

    def grid(self, count: int) -> Array:
        """[count] values from end to end; for waves, more if needed, and evenly spaced in frequency."""
        if self.waves:
            power = -1 if self.waves < 0 else 1
            return np.asarray(np.linspace(self.low**power, self.high**power, max(count, abs(self.waves))) ** power)
        space = np.geomspace if self.log else np.linspace
        return np.asarray(space(self.low, self.high, count))


def regions(tree: Node, x: Mapping[str, Array], y: Array, parameters: Sequence[str]) -> dict[str, Region]:
    """Regions, by name, of the parameters whose unit follows from the units of the variables and the output.

    Args:
        tree: the formula's right side.
        x: [n] values of each variable.
        y: [n] outputs.
        parameters: names of the parameters, which are all other names in the tree.
    """
    units = _Units(parameters, tuple(x))
    units.equal(units.walk(tree), (np.zeros(0), units.base(len(x))))
    spans = [_scales(values) for values in x.values()]
    sizes = np.abs(y[y != 0])
    spans.append((float(sizes.min()), float(sizes.max())) if sizes.size else None)
    out = {}
    for name in parameters:
        region = _between(units.of(name), spans)
        if region is not None:
            out[name] = region
    for inside in units.waves:
        for name in parameters:
            if name in out and depends(inside, frozenset({name})):
                out[name] = _shown(out[name], name, inside, x, parameters)
    for name, (inside, sign) in units.places.items():
        where = np.asarray(evaluate(inside, {k: np.asarray(v) for k, v in x.items()}, frozenset())[0])
        low, high = sorted((sign * float(where.min()), sign * float(where.max())))
        if np.isfinite([low, high]).all() and low < high:
            out[name] = Region(low, high, False)
    return out


def _scales(values: Array) -> tuple[float, float] | None:
    """A variable's smallest distance or size, and WIDER times its largest size or its range; None for a constant."""
    distinct = np.unique(values)
    if distinct.size < 2:
        return None
    sizes = np.abs(distinct[distinct != 0])
    low = min(float(np.diff(distinct).min()), float(sizes.min()))
    high = WIDER * max(float(sizes.max()), float(np.ptp(distinct)))
    return max(low, 1e-6 * high), high


def _between(unit: Array | None, spans: Sequence[tuple[float, float] | None]) -> Region | None:
    """The region of a unit, by its powers of the scales; None for a pure number, or if a scale is unknown."""
    if unit is None or not (np.abs(unit) > ZERO).any():
        return None
    low = high = 0.0
    for power, span in zip(unit, spans, strict=True):
        if abs(power) <= ZERO:
            continue
        if span is None:
            return None
        ends = sorted(power * np.log(end) for end in span)
        low, high = low + ends[0], high + ends[1]
    return Region(float(np.exp(low)), float(np.exp(high)), True) if high < 600 and low > -600 and low < high else None


def _shown(region: Region, name: str, inside: Node, x: Mapping[str, Array], parameters: Sequence[str]) -> Region:
    """A region up to the fastest waves that the data can show, with two points per wave; faster waves are aliased.

    Args:
        region: region of a period or frequency.
        name: the parameter's name.
        inside: the argument of the sine or cosine.
        x: [n] values of each variable.
        parameters: names of all parameters.
    """
    columns = {k: np.asarray(v, dtype=float) for k, v in x.items()}

    def spacing(value: float) -> tuple[float, float]:
        given = columns | dict.fromkeys(parameters, np.asarray(1.0)) | {name: np.asarray(value)}
        phase = np.unique(np.asarray(evaluate(inside, given, frozenset())[0]))
        return (float(np.diff(phase).min()), float(np.ptp(phase))) if phase.size > 1 else (np.nan, np.nan)

    with np.errstate(all="ignore"):
        (dense, span), (other, _) = spacing(region.low), spacing(region.high)
        power = np.log(other / dense) / np.log(region.high / region.low)
        if not np.isfinite(power) or abs(abs(power) - 1) > 1e-3 or not span > 0:
            return region
        limit = region.low * (np.pi / dense) ** (1 / power)
    low, high = (limit, region.high) if power < 0 else (region.low, limit)
    if not low < high:
        return region
    # points a quarter wave apart at the end of the range
    waves = min(MOST_WAVES, int(2 * span / dense) + 1)
    return Region(low, high, True, waves if power > 0 else -waves)


Unit = tuple[Array, Array]
"""Powers of the unknown units of parameters, and of the known units of variables and the output."""


@dataclass
class _Units:
    """Linear equations between powers of units: terms of a sum have equal units, arguments of functions have none."""

    parameters: Sequence[str]
    variables: Sequence[str]
    rows: list[tuple[int, Array, Array]] = field(default_factory=list)
    """Equations in reduced form: the pivot, and the coefficients of unknown and of known units."""
    places: dict[str, tuple[Node, float]] = field(default_factory=dict)
    """By parameter that is a position on a variable's axis: the variable's expression, and the sign that it takes."""
    waves: list[Node] = field(default_factory=list)
    """Arguments of sines and cosines."""
    free: int = 0
    """Number of unknown units of subexpressions, such as a power with a fitted exponent."""

    def base(self, which: int) -> Array:
        """The unit of one variable, or of the output."""
        return np.asarray(np.eye(len(self.variables) + 1)[which])

    def of(self, name: str) -> Array | None:
        """The unit of a parameter; None if the equations do not determine it."""
        at = self.parameters.index(name)
        for pivot, left, right in self.rows:
            others = np.delete(left, pivot)
            if pivot == at and not (np.abs(others) > ZERO).any():
                return right
        return None

    def equal(self, one: Unit, other: Unit) -> None:
        """Add an equation, unless it contradicts the others."""
        size = max(len(one[0]), len(other[0]), *(len(row) for _, row, _ in self.rows), 0)
        left, right = _wide(one[0], size) - _wide(other[0], size), other[1] - one[1]
        for pivot, row, known in self.rows:
            factor = left[pivot]
            left, right = left - factor * _wide(row, size), right - factor * known
        if not (np.abs(left) > ZERO).any():
            return
        # units of subexpressions are eliminated first, so that those of parameters remain
        inner = np.flatnonzero(np.abs(left[len(self.parameters) :]) > ZERO)
        first = int(inner[0]) + len(self.parameters) if inner.size else int(np.argmax(np.abs(left) > ZERO))
        left, right = left / left[first], right / left[first]
        self.rows = [
            (pivot, _wide(row, size) - _wide(row, size)[first] * left, known - _wide(row, size)[first] * right)
            for pivot, row, known in self.rows
        ]
        self.rows.append((first, left, right))

    def walk(self, node: Node) -> Unit:
        """The unit of a tree; adds equations on the way."""
        none = np.zeros(0), np.zeros(len(self.variables) + 1)
        if node.kind == "number":
            return none
        if node.kind == "name":
            if node.name in self.variables:
                return none[0], self.base(self.variables.index(node.name))
            return self._unknown(self.parameters.index(node.name)), none[1]
        parts = [self.walk(child) for child in node.children]
        if node.kind == "neg":
            return parts[0]
        if node.kind in FUNCTIONS:
            return self._function(node, parts[0], none)
        return self._binary(node, parts[0], parts[1], none)

    def _unknown(self, at: int) -> Array:
        return np.asarray(np.eye(at + 1)[at])

    def _function(self, node: Node, inside: Unit, none: Unit) -> Unit:
        if node.kind in ("sin", "cos"):
            self.waves.append(node.children[0])
        if node.kind == "sqrt":
            return inside[0] / 2, inside[1] / 2
        if node.kind != "log" and depends(node, frozenset(self.parameters)):
            self.equal(inside, none)
        return none

    def _binary(self, node: Node, one: Unit, other: Unit, none: Unit) -> Unit:
        if node.kind in ("*", "/"):
            sign = 1.0 if node.kind == "*" else -1.0
            size = max(len(one[0]), len(other[0]))
            return _wide(one[0], size) + sign * _wide(other[0], size), one[1] + sign * other[1]
        if node.kind == "**":
            power = _constant(node.children[1])
            if power is not None:
                return one[0] * power, one[1] * power
            self.equal(other, none)
            self.free += 1
            return self._unknown(len(self.parameters) + self.free - 1), none[1]
        self._place(node)
        names = frozenset(self.parameters)
        numbers = [not depends(child, names | frozenset(self.variables)) for child in node.children]
        fitted = [depends(child, names) for child in node.children]
        # a user who writes 1 + x treats x as a plain number: this says nothing about the unit of x
        if not (any(numbers) and not any(fitted)):
            self.equal(one, other)
        return other if numbers[0] else one

    def _place(self, node: Node) -> None:
        """Note a parameter that is added to or subtracted from a variable, because it is a position on its axis."""
        names, variables = frozenset(self.parameters), frozenset(self.variables)
        for mine, other, sign in ((0, 1, -1.0 if node.kind == "+" else 1.0), (1, 0, -1.0 if node.kind == "+" else 1.0)):
            child, beside = node.children[mine], node.children[other]
            if (
                child.kind == "name"
                and child.name in names
                and depends(beside, variables)
                and not depends(beside, names)
            ):
                self.places[child.name] = (beside, sign)


def _wide(row: Array, size: int) -> Array:
    return np.pad(row, (0, max(0, size - len(row))))


def _constant(node: Node) -> float | None:
    """The value of an expression that contains only numbers; None for another, or if it is not finite."""
    if _mentions(node):
        return None
    value = float(evaluate(node, {}, frozenset())[0])
    return value if np.isfinite(value) else None


def _mentions(node: Node) -> bool:
    return node.kind == "name" or any(_mentions(child) for child in node.children)
