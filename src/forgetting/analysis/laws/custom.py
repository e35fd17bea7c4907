"""Laws that a user writes: a formula, or a Python function of numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable
from forgetting.analysis.laws.formula import CONSTANTS, affine, evaluate, in_exponent, parse
from forgetting.analysis.laws.scales import Region, regions
from forgetting.errors import UsageError, did_you_mean

EXPONENT_START = (0.05, 1.5)
START = (0.01, 3.0)
GRID = 48
"""Number of values that `grids` gives for a parameter."""
SOURCE = "written by the user"


def check_start(name: str, start: tuple[float, float], bounds: tuple[float, float]) -> None:
    """Refuse a starting region that is invalid or entirely outside the bounds.

    Raises:
        UsageError: ends that are not finite or in the wrong order, or a region outside the bounds.
    """
    first, last = start
    if not (np.isfinite(start).all() and first <= last):
        raise UsageError(f"start of '{name}' is {first:g} to {last:g}; give finite numbers, the smaller first")
    if last < bounds[0] or first > bounds[1]:
        shown = f"{first:g}" if first == last else f"{first:g} to {last:g}"
        raise UsageError(f"start of '{name}' is {shown}, outside its bounds {bounds[0]:g} to {bounds[1]:g}")


def _no_variable(formula: str, names: Sequence[str], columns: Sequence[str]) -> UsageError:
    """The error for a formula that names no column: `y = a` is a mean, `y = a + b*z` may be a typing mistake."""
    choices = f"possible columns: {', '.join(columns) or 'none'}"
    given = [name for name in names if name in columns]
    if given:
        return UsageError(
            f"formula '{formula}' has no variable: {', '.join(given)} was given a start or bounds; {choices}"
        )
    if len(names) < 2:
        return UsageError(f"formula '{formula}' has no variable: it is a constant, not a law; {choices}")
    return UsageError(f"formula '{formula}' has no variable: none of {', '.join(names)} is a column; {choices}")


class FormulaLaw(Law):
    """`output = expression`: names of columns without a start or bounds are variables, all other names parameters."""

    def __init__(
        self,
        formula: str,
        variables: Sequence[str],
        *,
        output: str = "",
        start: Mapping[str, float | tuple[float, float]] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Read a formula.

        Args:
            formula: `loss = E + A/N**alpha`, or only the right side together with `output`.
            variables: the table's columns; those in the formula, without a start or bounds, are its variables.
            output: the column to fit, if the formula does not name it.
            start: by parameter, a value or a region to draw starting values from.
            bounds: by parameter, its lowest and highest value; none by default.

        Raises:
            UsageError: the formula cannot be read, names no output or has it on both sides, or has no variable or
                parameter; or a start or bounds are invalid, or for a name that is not a parameter of it.
        """
        parsed = parse(formula, (*variables, *(start or {}), *(bounds or {})))
        self.name = "custom"
        self.title = "Law written by the user"
        self.formula = formula
        self.source = SOURCE
        self.tree, self._parsed = parsed.tree, parsed
        target = parsed.output or output
        if not target:
            raise UsageError(f"formula '{formula}' does not name its output; write loss = {formula}")
        self.outputs = (target,)
        self._start, self._bounds = dict(start or {}), dict(bounds or {})
        used = tuple(v for v in variables if v in parsed.names and v not in self._start and v not in self._bounds)
        names = tuple(n for n in parsed.names if n not in used)
        if not used:
            raise _no_variable(formula, parsed.names, [v for v in variables if v != target])
        if not names:
            raise UsageError(f"formula '{formula}' has no parameter: {', '.join(used)} are all columns")
        if target in parsed.names:
            raise UsageError(f"formula '{formula}' has its output '{target}' on both sides")
        self.variables = tuple(Variable(v, positive=False) for v in used)
        for name in (*self._start, *self._bounds):
            if name not in names:
                raise UsageError(f"formula '{formula}' has no parameter '{name}'; {did_you_mean(name, names)}")
        self.parameters = tuple(self._parameter(n, self._linear(names)) for n in names)

    def _linear(self, names: Sequence[str]) -> frozenset[str]:
        """A set of parameters in which the formula is jointly linear; a parameter with bounds is not projected out."""
        linear: frozenset[str] = frozenset()
        for name in names:
            if name not in self._bounds and affine(self.tree, linear | {name}):
                linear |= {name}
        return linear

    def _parameter(self, name: str, linear: frozenset[str]) -> Parameter:
        low, high = self._bounds.get(name, (-np.inf, np.inf))
        if not low < high:
            raise UsageError(f"bounds of '{name}' are {low} and {high}; the first must be smaller")
        given = self._start.get(name, EXPONENT_START if in_exponent(self.tree, name) else START)
        start = given if isinstance(given, tuple) else (float(given), float(given))
        check_start(name, start, (low, high) if name in self._start else (-np.inf, np.inf))
        region = (float(np.clip(start[0], low, high)), float(np.clip(start[1], low, high)))
        return Parameter(name, low, high, region, linear=name in linear)

    def _regions(self, x: Mapping[str, Array], y: Array) -> dict[int, Region]:
        """By index, regions from a table's scales for the parameters that are not linear and have no given start."""
        found = regions(self.tree, x, y, self.names)
        return {
            k: found[p.name]
            for k, p in enumerate(self.parameters)
            if p.name in found and p.name not in self._start and not p.linear
        }

    def starts_for(self, count: int, rng: np.random.Generator, x: Mapping[str, Array], y: Array) -> Array:
        """Draw the first half from the starting region, the rest at the scale of the data where it is known."""
        theta = self.starts(count, rng)
        for k, region in self._regions(x, y).items():
            own = np.arange(count) >= count // 2
            theta[own, k] = np.clip(region.draw(int(own.sum()), rng), self.parameters[k].low, self.parameters[k].high)
        return theta

    def grids(self, x: Mapping[str, Array], y: Array) -> dict[int, Array]:
        """GRID values or more across the region of each parameter that is not linear and has no given start value."""
        scaled = self._regions(x, y)
        out = {}
        for k, p in enumerate(self.parameters):
            low, high = p.start
            if not p.linear and (k in scaled or low < high):
                region = scaled.get(k, Region(low, high, low > 0))
                out[k] = np.clip(region.grid(GRID), p.low, p.high)
        return out

    @property
    def spec(self) -> dict[str, Any]:
        """Formula, variables, output, starts and bounds."""
        return {
            "formula": self.formula,
            "variables": list(self.variable_names),
            "output": self.outputs[0],
            "start": {k: list(v) if isinstance(v, tuple) else v for k, v in self._start.items()},
            "bounds": {k: [v if np.isfinite(v) else None for v in pair] for k, pair in self._bounds.items()},
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> FormulaLaw:
        """The inverse of `spec`."""
        bounds = {
            k: (-np.inf if low is None else float(low), np.inf if high is None else float(high))
            for k, (low, high) in spec["bounds"].items()
        }
        start = {k: (v[0], v[1]) if isinstance(v, list) else v for k, v in spec["start"].items()}
        return cls(spec["formula"], spec["variables"], output=spec["output"], start=start, bounds=bounds)

    def hints(self, x: Mapping[str, Array], y: Array) -> list[str]:
        """Warns that an exponent which is usually a parameter was read as the column of the same name."""
        return [
            *super().hints(x, y),
            *self._exponents(),
        ]

    @property
    def called(self) -> str:
        """The formula."""
        return self.formula

    @property
    def reading(self) -> str:
        """Which names are columns, which are fitted, and which are constants."""
        columns = [name for name in self._parsed.names if name in self.variable_names]
        parts = [f"columns {', '.join(columns)}", f"fitted {', '.join(self.names)}"]
        return "; ".join(parts + [f"{name} is {CONSTANTS[name]:.6g}" for name in self._parsed.constants])

    def _exponents(self) -> list[str]:
        return [
            f"'{name}' in an exponent is the column '{name}' of the table, not a parameter; for a parameter give it a "
            f"start or bounds (start, --start {name}={EXPONENT_START[0]:g}:{EXPONENT_START[1]:g}) or another name"
            for name in self.variable_names
            if in_exponent(self.tree, name)
        ]

    def _names(self, theta: Array, x: Mapping[str, Array]) -> dict[str, Array]:
        columns = {name: theta[:, k, None] for k, name in enumerate(self.names)}
        return columns | {v: np.asarray(x[v])[None] for v in self.variable_names}

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n]; NaN where the formula has no real value."""
        with np.errstate(all="ignore"):
            value, _ = evaluate(self.tree, self._names(theta, x), frozenset())
        return np.asarray(np.broadcast_to(value, self._shape(theta, x))[:, None, :])

    def _shape(self, theta: Array, x: Mapping[str, Array]) -> tuple[int, int]:
        return theta.shape[0], len(x[self.variable_names[0]])

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, K], with dual numbers."""
        with np.errstate(all="ignore"):
            _, by = evaluate(self.tree, self._names(theta, x), frozenset(self.names))
        shape = self._shape(theta, x)
        return np.stack([np.broadcast_to(by[name], shape) for name in self.names], axis=-1)[:, None]


class FunctionLaw(Law):
    """A Python function `f(parameters, variables) -> values`, both given as dictionaries of arrays.

    Parameters have shape [S, 1], variables have shape [n]. The function must use numpy operations that accept complex
    numbers (no abs, no comparisons of parameters), because derivatives use the complex step. Such a fit can be saved,
    but a law loaded from JSON has lost its function and cannot predict.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Array], dict[str, Array]], Array],
        parameters: Sequence[Parameter],
        variables: Sequence[str],
        output: str,
    ) -> None:
        for p in parameters:
            check_start(p.name, p.start, (p.low, p.high))
        self.name = "function"
        self.title = "Python function written by the user"
        self.formula = f"{output} = {getattr(function, '__name__', 'a function')}({', '.join(variables)})"
        self.source = SOURCE
        self.function = function
        self.parameters = tuple(parameters)
        self.variables = tuple(Variable(v, positive=False) for v in variables)
        self.outputs = (output,)

    @property
    def called(self) -> str:
        """Output, function and variables."""
        return self.formula

    @property
    def spec(self) -> dict[str, Any]:
        """Formula, variables and output, without the function, which JSON cannot store."""
        return {"function": self.formula, "variables": list(self.variable_names), "output": self.outputs[0]}

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n]."""
        named = {name: theta[:, k, None] for k, name in enumerate(self.names)}
        value = self.function(named, {v: np.asarray(x[v]) for v in self.variable_names})
        shape = (theta.shape[0], len(x[self.variable_names[0]]))
        return np.asarray(np.broadcast_to(value, shape))[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, K]: the complex step at real parameters, central differences at complex ones."""
        columns = []
        for k in range(theta.shape[1]):
            if np.iscomplexobj(theta):
                h = 1e-6 * np.maximum(np.abs(theta[:, k].real), 1e-3)
                ends = [theta.copy(), theta.copy()]
                ends[0][:, k] += h
                ends[1][:, k] -= h
                columns.append((self.values(ends[0], x) - self.values(ends[1], x)) / (2 * h)[:, None, None])
            else:
                stepped = theta.astype(complex)
                stepped[:, k] += 1e-40j
                columns.append(self.values(stepped, x).imag / 1e-40)
        return np.stack(columns, axis=-1)


class LostFunctionLaw(FunctionLaw):
    """A `FunctionLaw` read from a file: formula, variables and output, but neither parameters nor a function."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(self._lost, (), spec["variables"], spec["output"])
        self.formula = spec["function"]

    def _lost(self, parameters: dict[str, Array], variables: dict[str, Array]) -> Array:
        del parameters, variables
        raise UsageError(f"this fit used a Python function ({self.formula}), which a file cannot store; fit it again")
