"""A table's information about a law's parameters: sums of products of derivatives, which give a design's errors.

With J the derivatives of the outputs with respect to the fitted coordinates, least squares has the covariance
A^-1 M A^-1, where A = sum J'J over rows, and M = sum over runs of J' V J. If a run's errors are an offset of variance
b^2 plus noise of variance w^2 per row, then M = b^2 sum over runs of (sum J)'(sum J) + w^2 A. Two sums per output are
therefore enough, even for the effect of one more run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.runwise import sums
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Array

SMALL = 1e-10
"""A direction whose eigenvalue of A, scaled to a unit diagonal, is below this share of the largest is undetermined."""


@dataclass(frozen=True)
class Information:
    """Sums over a table of derivatives with respect to the fitted coordinates (logarithms of `log` parameters).

    Attributes:
        points: [O, K, K] sums over rows of J'J, by output.
        runs: [O, K, K] sums over runs of (sum J)'(sum J).
    """

    points: Array
    runs: Array

    def plus(self, derivatives: Array) -> Information:
        """The information with one more run, given its derivatives [O, n, K]."""
        total = derivatives.sum(axis=1)
        points = self.points + np.einsum("onk,onl->okl", derivatives, derivatives)
        return Information(points, self.runs + np.einsum("ok,ol->okl", total, total))

    def variance(self, direction: Array, free: Array, offset: Sequence[float], within: Sequence[float]) -> float:
        """Variance of a linear function of the coordinates in a least-squares fit.

        Args:
            direction: [K] derivatives of the function.
            free: [K] which coordinates are free.
            offset, within: by output, the variances of a run's offset and of a row around it.
        """
        at = np.ix_(free, free)
        matrix = self.points.sum(axis=0)[at]
        scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        inverse = np.linalg.pinv(matrix / scale[:, None] / scale, rcond=SMALL, hermitian=True)
        pull = inverse @ (direction[free] / scale) / scale
        parts = [
            b * (pull @ runs[at] @ pull) + w * (pull @ points[at] @ pull)
            for b, w, runs, points in zip(offset, within, self.runs, self.points, strict=True)
        ]
        return float(sum(parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"points": self.points.tolist(), "runs": self.runs.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(np.array(data["points"], dtype=float), np.array(data["runs"], dtype=float))


def derivatives(problem: Problem, theta: Array) -> Array:
    """[O, n, K] derivatives of the outputs with respect to the fitted coordinates, at theta [K]."""
    with np.errstate(all="ignore"):
        made = problem.law.gradient(theta[None], problem.x)[0] * np.where(problem.log_mask(False), theta, 1.0)
    return np.asarray(np.nan_to_num(made))


def information(problem: Problem, theta: Array, data: Data, cell: Array) -> Information:
    """Compute the sums for a table.

    Args:
        problem: law in fitted coordinates, with one row per cell; a cell is a set of rows with equal variables.
        theta: [K] the best fit.
        data: the table.
        cell: [n] cell index of each row.
    """
    made = derivatives(problem, theta)
    count = np.bincount(cell, minlength=made.shape[1]).astype(float)
    one, runs = np.ones(cell.size), len(data.runs)
    whole = np.stack([sums(output, one, cell, data.run, runs) for output in made])
    points = np.einsum("ock,c,ocl->okl", made, count, made)
    return Information(points, np.einsum("ork,orl->okl", whole, whole))
