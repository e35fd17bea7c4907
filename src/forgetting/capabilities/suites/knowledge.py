"""What a model knows: questions on the miniature's encyclopedia; MMLU for other models.

Hendrycks et al. 2021, *Measuring Massive Multitask Language Understanding*, arXiv:2009.03300.
"""

from __future__ import annotations

from typing import ClassVar

from .base import Answers


class Knowledge(Answers):
    """Questions about facts."""

    name: ClassVar[str] = "knowledge"
    stock: ClassVar[tuple[str, ...]] = ("mmlu",)
