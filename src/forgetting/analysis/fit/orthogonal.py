"""Least squares of columns that may be nearly alike, such as 1, year and year**2, without losing digits.

Sums of products (J'J) square the condition of the columns: of 16 years, those three lose all digits. Singular values of
the columns themselves, scaled to length one, do not.
"""

from __future__ import annotations

import numpy as np

from forgetting.analysis.laws.base import Array

RANK = 1e-13
"""Singular value of columns of length one, relative to the largest, that is rounding and nothing else."""


def lengths(columns: Array) -> Array:
    """[..., k] lengths of [..., m, k] columns, at least the smallest number that can be divided by."""
    biggest = np.maximum(np.abs(columns).max(axis=-2), 1e-150)
    return np.asarray(biggest * np.sqrt(np.sum((columns / biggest[..., None, :]) ** 2, axis=-2)) + 1e-300)


def solved(columns: Array, right: Array) -> Array:
    """[S, k] least-squares coefficients, the shortest of columns of length one where there are many.

    Args:
        columns: [S, m, k], or [1, m, k] of all.
        right: [S, m] what they are to add up to.
    """
    size = lengths(columns)
    left, singular, turn = np.linalg.svd(columns / size[:, None, :], full_matrices=False)
    kept = singular > RANK * singular[:, :1]
    pulled = right @ left[0] if columns.shape[0] == 1 else (right[:, None, :] @ left)[:, 0, :]
    pulled = np.where(kept, pulled / np.where(kept, singular, 1.0), 0.0)
    return np.asarray((pulled[:, None, :] @ turn)[:, 0, :] / size)


def orthogonal(columns: Array, linear: Array) -> tuple[Array, Array]:
    """[m, k] columns, those of linear parameters made orthonormal, and the [k, k] matrix that gives back the old ones.

    Nothing changes where the columns of linear parameters do not have their full rank.

    Args:
        columns: [m, k] of length one.
        linear: [k] which of them a law is linear in.
    """
    back = np.eye(columns.shape[1])
    if linear.sum() < 2 or columns.shape[0] < linear.sum():
        return columns, back
    q, r = np.linalg.qr(columns[:, linear])
    singular = np.linalg.svd(r, compute_uv=False)
    if singular[-1] <= RANK * singular[0]:
        return columns, back
    out = columns.copy()
    out[:, linear] = q
    back[np.ix_(linear, linear)] = r
    return out, back
