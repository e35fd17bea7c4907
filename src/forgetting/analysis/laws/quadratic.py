"""Losses as a polynomial of degree two in a law's variables: the surface that a law is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable

SPREAD = 3.0
"""Ratio of a variable's largest to its smallest value above which its logarithm is used."""


@dataclass(frozen=True)
class Axis:
    """The scale that gives a variable's position in the measured range: -1 and 1 at its ends, 0 in the middle.

    Attributes:
        middle, half: middle and half width of the range, of the logarithm with `log`.
        log: whether the variable is positive and spans more than a factor of SPREAD.
    """

    middle: float
    half: float
    log: bool

    @classmethod
    def of(cls, values: Array) -> Self:
        """The axis for measured values that are not all equal."""
        low, high = float(values.min()), float(values.max())
        log = low > 0 and high > SPREAD * low
        ends = np.log([low, high]) if log else np.array([low, high])
        return cls(float(ends.mean()), float(np.ptp(ends)) / 2, log)

    def place(self, values: Array) -> Array:
        """[n] positions; NaN where a logarithm does not exist."""
        with np.errstate(all="ignore"):
            at = np.log(np.where(values > 0, values, np.nan)) if self.log else values
        return np.asarray((at - self.middle) / self.half)


class QuadraticSurface(Law):
    """Each output, or its logarithm, as a polynomial of the variables' positions; a term is a product, () means 1."""

    def __init__(
        self, outputs: Sequence[str], axes: Mapping[str, Axis], terms: Sequence[Sequence[str]], *, log: bool = False
    ) -> None:
        self.log = log
        self.outputs = tuple(outputs)
        self.axes = dict(axes)
        self.terms = tuple(tuple(term) for term in terms)
        squared = [v for v in axes if (v, v) in self.terms]
        self.name = f"quadratic in {' and '.join(squared)}"
        self.title = self.formula = f"polynomial in {', '.join(axes)}, {self.name}"
        self.source = "a surface without theory, to see what a law assumes"
        self.variables = tuple(Variable(v, positive=axis.log) for v, axis in self.axes.items())
        self.parameters = tuple(
            Parameter(f"{'*'.join(term) or '1'} of {output}", -np.inf, np.inf, (0.0, 1.0), linear=True)
            for output in self.outputs
            for term in self.terms
        )

    @property
    def spec(self) -> dict[str, Any]:
        """Data for JSON, from which `from_spec` rebuilds the law."""
        axes = {v: [a.middle, a.half, a.log] for v, a in self.axes.items()}
        terms = [list(term) for term in self.terms]
        return {"outputs": list(self.outputs), "axes": axes, "terms": terms, "log": self.log}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The inverse of `spec`."""
        axes = {str(v): Axis(float(middle), float(half), bool(log)) for v, (middle, half, log) in spec["axes"].items()}
        return cls(spec["outputs"], axes, spec["terms"], log=bool(spec["log"]))

    def basis(self, x: Mapping[str, Array]) -> Array:
        """[n, T] the terms' values."""
        places = {v: axis.place(np.asarray(x[v])) for v, axis in self.axes.items()}
        columns = []
        for term in self.terms:
            column = np.ones(np.shape(next(iter(places.values()))))
            for v in term:
                column = column * places[v]
            columns.append(column)
        return np.stack(columns, axis=-1)

    def split(self, theta: Array) -> Array:
        """[S, O, T] coefficients of [S, K] parameters."""
        return theta.reshape(len(theta), len(self.outputs), len(self.terms))

    def solve(self, theta: Array, output: str, level: float, along: str, at: Mapping[str, float], *, up: bool) -> Array:
        """[S] values of a variable at which an output crosses a level upwards (or downwards); infinite if it does not.

        Args:
            theta: [S, K].
            output: one of the outputs.
            level: its value.
            along: the variable.
            at: values of the other variables.
            up: whether the output, as the variable increases, crosses the level upwards.
        """
        power = [np.zeros(len(theta)) for _ in range(3)]
        coefficients = self.split(theta)[:, self.outputs.index(output)]
        for term, coefficient in zip(self.terms, coefficients.T, strict=True):
            rest = [float(self.axes[v].place(np.array(at[v]))) for v in term if v != along]
            power[term.count(along)] += coefficient * np.prod(rest)
        constant, slope, bend = power
        with np.errstate(all="ignore"):
            height = np.log(level) if self.log else level
            root = np.sqrt(slope**2 - 4 * bend * (constant - height))
            # the root where the derivative, +- `root`, has the requested sign; this form also works for bend 0
            place = 2 * (height - constant) / (slope + (root if up else -root))
            axis = self.axes[along]
            inner = axis.middle + axis.half * place
            found = np.exp(inner) if axis.log else inner
        return np.where(np.isfinite(found), found, np.inf)

    def at_each(self, theta: Array, output: str, x: Mapping[str, Array]) -> Array:
        """[S] values of an output, each for one of [S, K] parameter vectors at its own values [S] of the variables."""
        with np.errstate(all="ignore"):
            made = np.einsum("st,st->s", self.split(theta)[:, self.outputs.index(output)], self.basis(x))
            return np.asarray(np.exp(made) if self.log else made)

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, O, n]."""
        made = self.split(theta) @ self.basis(x).T
        return np.asarray(np.exp(made) if self.log else made)

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, O, n, K]."""
        basis = self.basis(x)
        own = np.eye(len(self.outputs))[:, None, :, None] * basis[None, :, None, :]
        one = own.reshape(len(self.outputs), len(basis), -1)
        whole = np.broadcast_to(one, (len(theta), *one.shape)).astype(np.result_type(theta, float))
        return whole * self.values(theta, x)[..., None] if self.log else whole
