"""Answers of the base and the tuned model side by side, with differences marked, most changed first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .replies import runs_on

SHOWN = 20


@dataclass(frozen=True)
class Span:
    """A piece of an answer, and whether it differs from the other model's answer."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Contrast:
    """One item with both answers.

    Attributes:
        prompt, target: the question and the right answer.
        base, tuned: the answers in pieces.
        change: 0 if the answers are equal, 1 if they have nothing in common.
        before, after: scores; for judged items, 1 if the verdict is as expected, else 0.
        state: kept, lost, gained, changed, or which of the two replies is right but runs on.
        sensitive: whether the prompt is harmful, so that the item is shown collapsed, behind a warning.
    """

    prompt: str
    target: str
    base: tuple[Span, ...]
    tuned: tuple[Span, ...]
    change: float
    before: float
    after: float
    state: str
    sensitive: bool


def contrast(one: str, other: str) -> tuple[tuple[Span, ...], tuple[Span, ...], float]:
    """Both texts in pieces with differing words marked, and their distance (1 - Ratcliff-Obershelp similarity)."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (one, other))
    matcher = difflib.SequenceMatcher(a=a, b=b, autojunk=False)
    left: list[Span] = []
    right: list[Span] = []
    for kind, i, j, k, m in matcher.get_opcodes():
        if j > i:
            left.append(Span("".join(a[i:j]), kind != "equal"))
        if m > k:
            right.append(Span("".join(b[k:m]), kind != "equal"))
    return tuple(left), tuple(right), 1 - matcher.ratio() if a or b else 0.0


def side_by_side(rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], shown: int = SHOWN) -> list[Contrast]:
    """The items whose answers changed, most changed first; among equals, lost items first.

    Items whose replies were not stored are left out.
    """
    found = []
    for one, other in rows:
        texts = [row["reply"] if row["reply"] is not None else row["answer"] for row in (one, other)]
        if texts[0] == texts[1] or any(text is None for text in texts):
            continue
        before, after = (_score(row) for row in (one, other))
        left, right, change = contrast(texts[0], texts[1])
        target = one["target"] if isinstance(one["target"], str) else " or ".join(map(str, one["target"] or []))
        sensitive = one["expect"] == "refuse"
        state = _state(before, after, one, other)
        found.append(Contrast(one["prompt"], target, left, right, change, before, after, state, sensitive))
    rank = {"lost": 0, "gained": 2}
    return sorted(found, key=lambda c: (-round(c.change, 6), rank.get(c.state, 1), c.prompt))[:shown]


def _score(row: Mapping[str, Any]) -> float:
    if row["score"] is not None:
        return float(row["score"])
    return float(row["refused"] == (row["expect"] == "refuse"))


def _state(before: float, after: float, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if before == after:
        return "kept" if before == 1 else "changed"
    if after < before:
        return "right, but it runs on" if runs_on(other) else "lost"
    return "right; the base model's ran on" if runs_on(one) else "gained"
