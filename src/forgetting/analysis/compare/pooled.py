"""One curve through all ranks of the reference: Eq. 4's line or a parabola, and how far its own ranks are from it.

A contender that shares no rank with the reference is compared with one curve through all reference ranks. The interval
answers: is it farther from that curve than one more rank of the reference would be? Each reference rank in turn is left
out, the curve is fitted to the others, and the rank is treated as if it were the contender. The mean square of what it
seems to save is the variance of the saving of one more rank. It includes the spread between ranks and between runs, the
curve's own uncertainty, and the choice of a wrong form. If each run is one point (PEFT's results), the left-out rank is
judged at its own loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.compare.estimate import NAN, Estimate, student, welch
from forgetting.analysis.compare.path import Path, window
from forgetting.analysis.compare.source import Key
from forgetting.analysis.compare.trend import Trend, trend
from forgetting.analysis.laws.base import Array

FORMS = {"line": 1, "parabola": 2}
GAIN = 0.9  # use a parabola only if its error on left-out ranks is below this share of the line's
LEAST_RANKS = 3


@dataclass(frozen=True)
class Pooled:
    """One curve through all ranks of the reference.

    Attributes:
        curves: its paths by rank.
        form: `line` or `parabola`.
        coefficients: coefficients of the polynomial, highest power first, by the rank left out (None: all ranks).
        why: why this form was chosen.
        errors: root mean square error on left-out ranks, by form, nats/token.
        low, high: the range of losses that the reference's runs pass through.
        trend: how well the curve explains what the reference's runs forgot.
    """

    curves: Mapping[Key, list[Path]]
    form: str
    coefficients: Mapping[Key | None, Array]
    why: str
    errors: dict[str, float]
    trend: Trend

    @property
    def low(self) -> float:
        """The lowest loss of any reference run."""
        return min(p.low for paths in self.curves.values() for p in paths)

    @property
    def high(self) -> float:
        """The highest loss of any reference run."""
        return max(p.high for paths in self.curves.values() for p in paths)

    def mean(self, low: float, high: float, without: Key | None = None) -> float:
        """Forgetting on the curve, averaged over losses from low to high; with `without`, this rank is left out."""
        return average(self.coefficients[without], low, high)

    def saving(self, paths: Sequence[Path], low: float, high: float, confidence: float) -> Estimate:
        """A contender's saving against the curve, averaged over losses from low to high (or at one)."""
        own = np.array([p.mean(low, high) for p in paths])
        value = self.mean(low, high) - float(own.mean())
        return self._with_interval(value, own, self.placebos(low, high), confidence)

    def at_points(self, points: Sequence[tuple[float, float]], confidence: float) -> Estimate:
        """A contender's saving at one (loss, forgetting) point per run, for the losses that the reference measured."""
        inside = [(x, y) for x, y in points if self.low <= x <= self.high]
        if not inside:
            return Estimate(NAN, why="outside the reference's losses")
        each = np.array([self.mean(x, x) - y for x, y in inside])
        middle = float(np.mean([x for x, _ in inside]))
        return self._with_interval(float(each.mean()), each, self.placebos(middle, middle), confidence)

    def placebos(self, low: float, high: float) -> list[float]:
        """The apparent saving of each reference rank against the others, over the part of these losses that it has."""
        found = []
        for key, paths in self.curves.items():
            others = [p for other, mine in self.curves.items() if other != key for p in mine]
            if others and all(p.x.size == 1 for p in paths):
                found += self._left_out_point(key, paths, others)
                continue
            span = window(paths)
            if not others or span is None:
                continue
            a = max(low, span[0], min(p.low for p in others))
            b = min(high, span[1], max(p.high for p in others))
            if a <= b and (a < b or low == high):
                found.append(self.mean(a, b, without=key) - float(np.mean([p.mean(a, b) for p in paths])))
        return found

    def _left_out_point(self, key: Key, paths: Sequence[Path], others: Sequence[Path]) -> list[float]:
        """The apparent saving of a rank with single-point runs, at its own losses: a list of one number, or empty."""
        low, high = min(p.low for p in others), max(p.high for p in others)
        own = [self.mean(p.low, p.low, without=key) - float(p.y[0]) for p in paths if low <= p.low <= high]
        return [float(np.mean(own))] if own else []

    def _with_interval(self, value: float, own: Array, placebos: Sequence[float], confidence: float) -> Estimate:
        if len(placebos) < LEAST_RANKS:
            why = f"only {len(placebos)} reference ranks pass through these losses; an interval needs {LEAST_RANKS}"
            return Estimate(value, runs=own.size, why=why)
        parts = [(float(np.mean(np.square(placebos))), len(placebos) - 1.0)]
        if own.size > 1:
            parts.append((float(own.var(ddof=1)) / own.size, own.size - 1.0))
        elif within := self._between_seeds():
            parts.append(within)
        se, freedom = welch(parts)
        return student(value, se, freedom, confidence, own.size, "one more rank")

    def _between_seeds(self) -> tuple[float, float] | None:
        """Variance between seeds, pooled over ranks, with its degrees of freedom; None if no rank has several seeds."""
        squares, freedom = 0.0, 0
        for paths in self.curves.values():
            span = window(paths)
            if len(paths) > 1 and span is not None:
                each = np.array([p.mean(*span) for p in paths])
                squares += float(np.sum((each - each.mean()) ** 2))
                freedom += each.size - 1
        return (squares / freedom, float(freedom)) if freedom else None


def fit(paths: Sequence[Path], form: str) -> Array:
    """Coefficients of the polynomial, highest power first, by least squares with the same weight for every run."""
    x, y = np.concatenate([p.x for p in paths]), np.concatenate([p.y for p in paths])
    weight = np.concatenate([np.full(p.x.size, 1 / math.sqrt(p.x.size)) for p in paths])
    degree = min(FORMS[form], np.unique(x).size - 1)
    # centred and scaled for numerical accuracy, then converted back
    middle, unit = float(x.mean()), float(x.std()) or 1.0
    scaled = np.polynomial.Polynomial.fit(x, y, degree, w=weight, domain=[middle - unit, middle + unit])
    return np.asarray(scaled.convert(domain=[-1, 1]).coef[::-1])


def pool(curves: Mapping[Key, list[Path]], confidence: float = 0.95, sign: float = 1.0) -> Pooled:
    """Fit one curve to all ranks of the reference: Eq. 4's line, or a parabola if it predicts left-out ranks better.

    Args:
        curves: the reference's curves.
        confidence, sign: as for `trend`.
    """
    paths = [p for mine in curves.values() for p in mine]
    trends = {form: trend(paths, degree, confidence, sign) for form, degree in FORMS.items()}
    fits = {form: _fits(curves, form) for form in FORMS}
    errors = {form: _left_out(curves, form, fits[form]) for form in FORMS}
    if not math.isfinite(errors["line"]):
        return Pooled(
            curves,
            "line",
            fits["line"],
            "too few ranks to leave one out, so the line of Eq. 4 is used",
            errors,
            trends["line"],
        )
    form = "parabola" if errors["parabola"] < GAIN * errors["line"] else "line"
    shown = (
        f"error on left-out ranks: {errors['line']:.3g} nats with the line, {errors['parabola']:.3g} with a parabola"
    )
    verdict = f"the parabola is{'' if form == 'parabola' else ' not'} better by more than {1 - GAIN:.0%}"
    return Pooled(curves, form, fits[form], f"{shown}: {verdict}", errors, trends[form])


def _fits(curves: Mapping[Key, list[Path]], form: str) -> dict[Key | None, Array]:
    """Coefficients by the rank left out; None stands for all ranks."""
    left: list[Key | None] = [None, *curves]
    return {out: fit([p for key, paths in curves.items() if key != out for p in paths], form) for out in left}


def _left_out(curves: Mapping[Key, list[Path]], form: str, fits: Mapping[Key | None, Array]) -> float:
    """Root mean square error on left-out ranks, with equal weights, where the others have measurements."""
    found = []
    for key, paths in curves.items():
        others = [p for other, mine in curves.items() if other != key for p in mine]
        if len(curves) < LEAST_RANKS or np.unique(np.concatenate([p.x for p in others])).size <= FORMS[form]:
            continue
        low, high = min(p.low for p in others), max(p.high for p in others)
        x, y = np.concatenate([p.x for p in paths]), np.concatenate([p.y for p in paths])
        inside = (x >= low) & (x <= high)
        if inside.any():
            found.append(float(np.mean((y[inside] - np.polyval(fits[key], x[inside])) ** 2)))
    return math.sqrt(float(np.mean(found))) if found else NAN


def average(coefficients: Array, low: float, high: float) -> float:
    """Mean of a polynomial of degree 5 or less over [low, high], by three-point Gauss quadrature."""
    middle, half = (low + high) / 2, (high - low) / 2
    at = middle + half * np.array([-math.sqrt(0.6), 0.0, math.sqrt(0.6)])
    return float(np.polyval(coefficients, at) @ np.array([5.0, 8.0, 5.0]) / 18)
