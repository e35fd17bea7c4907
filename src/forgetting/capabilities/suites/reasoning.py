"""What a model can work out: the miniature's problems; ARC-Challenge, as in the paper, and GSM8K for other models.

Clark et al. 2018, *Think you have Solved Question Answering? Try ARC, the AI2 Reasoning Challenge*, arXiv:1803.05457.
Cobbe et al. 2021, *Training Verifiers to Solve Math Word Problems*, arXiv:2110.14168.
"""

from __future__ import annotations

from typing import ClassVar

from .base import Answers


class Reasoning(Answers):
    """Problems to solve."""

    name: ClassVar[str] = "reasoning"
    stock: ClassVar[tuple[str, ...]] = ("arc_challenge", "gsm8k")
