"""Matrix products of 16-bit numbers with float32 results, and float32 numbers as sums of bfloat16 ones.

A GPU multiplies bfloat16 at about ten times the rate of float32. A float32 number is the sum of two bfloat16 numbers
to 16 bits of its significand, so a product of float32 numbers costs two or three bfloat16 ones, exact to about 1e-5.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def widens(like: Tensor) -> bool:
    """Whether this torch multiplies matrices of a tensor's dtype, on its device, with float32 results."""
    return like.is_cuda and like.dtype in (torch.bfloat16, torch.float16) and _widens(like.device, like.dtype)


@functools.cache
def _widens(device: torch.device, dtype: torch.dtype) -> bool:
    ones = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        return bool((torch.mm(ones, ones, out_dtype=torch.float32) == 16).all())
    except (RuntimeError, TypeError, NotImplementedError):  # a build without this
        return False


def wide(one: Tensor, other: Tensor) -> Tensor:
    """The float32 product of two matrices of 16-bit numbers; on a CPU, which lacks it, by way of float32 matrices."""
    return torch.mm(one, other, out_dtype=torch.float32) if one.is_cuda else one.float() @ other.float()


def halves(x: Tensor, dim: int = 1) -> Tensor:
    """A float32 matrix as twice as many bfloat16 columns (rows, with `dim` 0): the rounded numbers, then the rests."""
    high = x.bfloat16()
    return torch.cat([high, (x - high).bfloat16()], dim)


def summed(x: Tensor, dim: int = 1) -> Tensor:
    """Add the products with the two parts of `halves`, which gives the products with the whole numbers."""
    one, other = x.chunk(2, dim)
    return one + other
