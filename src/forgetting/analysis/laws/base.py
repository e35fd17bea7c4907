"""The contract of a law: names and bounds of its parameters, values, gradient, starting region, gauge.

A law maps variables (such as trainable parameters P and steps N) and parameters theta to one or more outputs (losses).
Everything is batched over parameter vectors, so that thousands of starts or bootstrap resamples are one numpy
computation.

Shapes: S parameter vectors, K parameters, O outputs, n rows of a table, V variables.
A new law is one file with one subclass of `Law` and one row in `LAWS` (laws/__init__.py); the contract test in
tests/analysis/test_laws_contract.py then checks that it meets all of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Floats, or complex numbers for derivatives by the complex step."""
SMALLEST, LARGEST = 1e-60, 1e60
"""Allowed sizes of numbers other than 0. Products of four, such as squared weighted residuals, stay within floats."""
SIZES = f"0 or a size of {SMALLEST:g} to {LARGEST:g} is needed; choose another unit"
"""The allowed sizes in words, to follow `where` in a message."""


ROUNDING = 16 * float(np.finfo(float).eps)
"""Relative differences of numbers below this are rounding errors."""


def is_constant(values: Array) -> bool:
    """Whether values are equal up to rounding."""
    return bool(np.ptp(values) <= ROUNDING * np.max(np.abs(values)))


def incomputable(values: Array) -> Array:
    """Whether each value is not finite, or is too large or too small to compute with (SMALLEST, LARGEST)."""
    size = np.abs(values)
    return np.asarray(~((size == 0) | ((size >= SMALLEST) & (size <= LARGEST))))


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
        name: its reported name.
        low, high: bounds for the fit; infinite if there are none.
        start: region from which starting points are drawn uniformly (in the logarithm with `log`).
        log: whether it is positive and spread over orders of magnitude; the fit then works on its logarithm.
        linear: whether it is one of the parameters in which the law is jointly linear, with the others fixed (variable
            projection).
        gauge: not None if data cannot distinguish this parameter from others; the fit fixes it at this value and says
            so.
        meaning: a short description for reports.
    """

    name: str
    low: float
    high: float
    start: tuple[float, float]
    log: bool = False
    linear: bool = False
    gauge: float | None = None
    meaning: str = ""


@dataclass(frozen=True)
class Variable:
    """One variable of a law: its default table column, and the values it may take.

    Attributes:
        name: its name, and that of its column by default.
        positive: whether it must be positive.
        meaning: a short description for reports.
        zero: whether 0 is allowed as well, if it must be positive.
    """

    name: str
    positive: bool = True
    meaning: str = ""
    zero: bool = False

    def allows(self, values: Array) -> Array:
        """Whether each value is finite and, if the variable must be positive, positive (or zero with `zero`)."""
        fine = np.isfinite(values)
        if self.positive:
            fine &= (values >= 0) if self.zero else (values > 0)
        return fine

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        return ("a number from 0 up" if self.zero else "a positive number") if self.positive else "a finite number"


class Law(ABC):
    """The contract of a law, which fits, predictions and plans use."""

    name: str
    title: str
    formula: str
    source: str
    variables: tuple[Variable, ...]
    outputs: tuple[str, ...]
    not_negative: tuple[str, ...] = ()
    """Outputs that the law cannot fit below zero."""
    parameters: tuple[Parameter, ...]

    @abstractmethod
    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """The law's outputs.

        Args:
            theta: [S, K] parameter vectors, in the order of `parameters`; may be complex.
            x: [n] values for each variable.

        Returns:
            [S, O, n], in the outputs' unit (nats per token for losses).
        """

    @abstractmethod
    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """Derivatives of `values` by each parameter: [S, O, n, K], a new array that the caller may change."""

    def adapt(self, x: Mapping[str, Array], y: Array) -> Adapted:
        """The coordinates in which this law is fitted to one table.

        Args:
            x: [n] values for each variable.
            y: [O, n] measured outputs.

        Returns:
            The law itself, unless a subclass has better conditioned coordinates.
        """
        del x, y
        return Adapted(self)

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """Draw [count, K] starting points from the starting region."""
        columns = []
        for p in self.parameters:
            low, high = p.start
            if p.log:
                columns.append(np.exp(rng.uniform(np.log(low), np.log(high), count)))
            else:
                columns.append(rng.uniform(low, high, count))
        return np.stack(columns, axis=1)

    def starts_for(self, count: int, rng: np.random.Generator, x: Mapping[str, Array], y: Array) -> Array:
        """Draw [count, K] starting points for one table: [n] values of each variable, and [O * n] outputs."""
        del x, y
        return self.starts(count, rng)

    def grids(self, x: Mapping[str, Array], y: Array) -> dict[int, Array]:
        """Values of single parameters, by index, to try from other points; none by default."""
        del x, y
        return {}

    @property
    def spec(self) -> dict[str, Any]:
        """Data for JSON from which `law_from_spec` rebuilds this law; empty for a law in `LAWS`."""
        return {}

    def undetermined(self, x: Mapping[str, Array]) -> frozenset[str]:
        """Parameters that no losses at these variables can determine; none by default."""
        del x
        return frozenset()

    def hints(self, x: Mapping[str, Array], y: Array) -> list[str]:
        """Sentences about these data that a reader of the fit should know; by default, about constant columns."""
        return constant_outputs(self.outputs, y) + [
            f"{name} is {x[name][0]:g} in every row: these rows do not say what {' and '.join(self.outputs)} would be "
            "at another value"
            for name in self.variable_names
            if is_constant(x[name])
        ]

    @property
    def called(self) -> str:
        """What messages call the law: its name, or the formula that a user wrote."""
        return self.name

    @property
    def reading(self) -> str:
        """How the names in a user's formula were interpreted; empty for other laws."""
        return ""

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names, in order."""
        return tuple(p.name for p in self.parameters)

    @property
    def variable_names(self) -> tuple[str, ...]:
        """Variable names, in order."""
        return tuple(v.name for v in self.variables)


def constant_outputs(outputs: Sequence[str], y: Array) -> list[str]:
    """A sentence for each output that is the same in every row; y is [O, n], or its rows one after the other."""
    flat = [
        f"{name} is {values[0]:g} in every row"
        for name, values in zip(outputs, np.reshape(y, (len(outputs), -1)), strict=True)
        if is_constant(values)
    ]
    return [f"{said}: there is no effect to fit, and anything but 0 is rounding" for said in flat]


class Adapted:
    """A law in the coordinates of one table: the law to optimise (`law`), and the parameters to report (`public`)."""

    of_outputs = False
    """Whether `public` depends on the outputs and weights."""
    notes: tuple[str, ...] = ()
    """Sentences about the gauge: which parameters are fixed, at which values, and what follows."""

    def __init__(self, law: Law) -> None:
        self.law = law

    def fitted_name(self, name: str) -> str | None:
        """The fitted coordinate that equals this reported parameter; None if it is a mixture of several."""
        return name

    def made_of(self, name: str) -> tuple[str, ...]:
        """The fitted coordinates that determine a reported parameter; empty if the rows alone do."""
        fitted = self.fitted_name(name)
        return () if fitted is None else (fitted,)

    def public(self, theta: Array, y: Array, weights: Array) -> Array:
        """Parameters as reported, [S, K_public].

        Args:
            theta: [S, K] fitted coordinates.
            y: [S, O, n] the outputs that each was fitted to.
            weights: [S, n] the weight of each row in that fit.
        """
        del y, weights
        return theta
