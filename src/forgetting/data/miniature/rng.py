"""A random generator whose results are the same on every Python version, so that the corpora are equal byte for byte.

`random.Random` guarantees this only for `random()`, not for `choice`, `shuffle` or `sample`. This class is splitmix64
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators") in integer arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


@lru_cache(maxsize=256)
def _zipf_cumulative(n: int) -> tuple[int, ...]:
    """[n] Cumulative sums of integer weights proportional to 1/(i + 6); the offset keeps the first from dominating."""
    total, sums = 0, []
    for i in range(n):
        total += 100_000 // (i + 6)
        sums.append(total)
    return tuple(sums)


class Rng:
    """A stream of random choices, determined by a seed and a label.

    Args:
        seed: any integer.
        label: name of the stream; streams with different labels are independent.

    Examples:
        >>> Rng(0, "a").below(1000) == Rng(0, "a").below(1000)
        True
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int, label: str = "") -> None:
        digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
        self._state = int.from_bytes(digest[:8], "big")

    def bits(self) -> int:
        """The next 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """An integer in 0..n-1 (multiply-and-shift; its bias of n / 2**64 does not matter here)."""
        return (self.bits() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """An integer in low..high, inclusive."""
        return low + self.below(high - low + 1)

    def percent(self, p: int) -> bool:
        """True with a probability of p percent."""
        return self.below(100) < p

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[self.below(len(items))]

    def zipf(self, items: Sequence[T]) -> T:
        """One of the items, with probabilities that decrease by rank as those of words in a language do."""
        sums = _zipf_cumulative(len(items))
        mark, low, high = self.below(sums[-1]), 0, len(sums) - 1
        while low < high:
            middle = (low + high) // 2
            if mark < sums[middle]:
                high = middle
            else:
                low = middle + 1
        return items[low]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a new order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k different items, in random order."""
        if k > len(items):
            raise ValueError(f"cannot sample {k} of {len(items)} items")
        return self.shuffled(items)[:k]
