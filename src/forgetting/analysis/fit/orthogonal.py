"""Numerically stable least squares for nearly collinear columns, such as 1, year and year**2.

Forming J'J squares the condition number: with 16 yearly rows, these three columns lose all digits. The singular
value decomposition of the columns, scaled to unit length, keeps them.
"""

from __future__ import annotations

import numpy as np

from forgetting.analysis.laws.base import Array

RANK = 1e-13
"""A singular value of unit-length columns below this share of the largest is rounding error."""


def lengths(columns: Array) -> Array:
    """[..., k] lengths of [..., m, k] columns, each at least 1e-300, so that one can divide by them."""
    biggest = np.maximum(np.abs(columns).max(axis=-2), 1e-150)
    return np.asarray(biggest * np.sqrt(np.sum((columns / biggest[..., None, :]) ** 2, axis=-2)) + 1e-300)


def solved(columns: Array, right: Array) -> Array:
    """[S, k] least-squares coefficients; if not unique, those of minimal norm for unit-length columns.

    Args:
        columns: [S, m, k] columns, or [1, m, k] for all S problems.
        right: [S, m] right-hand sides.
    """
    size = lengths(columns)
    left, singular, turn = np.linalg.svd(columns / size[:, None, :], full_matrices=False)
    kept = singular > RANK * singular[:, :1]
    pulled = right @ left[0] if columns.shape[0] == 1 else (right[:, None, :] @ left)[:, 0, :]
    pulled = np.where(kept, pulled / np.where(kept, singular, 1.0), 0.0)
    return np.asarray((pulled[:, None, :] @ turn)[:, 0, :] / size)


def orthogonal(columns: Array, linear: Array) -> tuple[Array, Array]:
    """Orthonormalise the columns of linear parameters.

    Args:
        columns: [m, k] columns of unit length.
        linear: [k] which columns belong to parameters that the law is linear in.

    Returns:
        [m, k] columns, unchanged if fewer than two are linear or these do not have full rank; and the [k, k] matrix
        that turns them into the given columns.
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
