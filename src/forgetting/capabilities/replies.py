"""Interprets stored rows: the answer, and whether a reply begins with the right answer and runs on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
OTHER = "(another continuation)"
"""The answer to a log-likelihood task if the model prefers another, unknown continuation to the target."""
_PAIR = re.compile(r"\((?:-?[\d.]+(?:e[+-]?\d+)?|-?inf|nan), (True|False)\)")
"""A log-likelihood and whether it is greedy; earlier versions stored answers to log-likelihood tasks like this."""


def answer_of(row: Row) -> str | None:
    """The answer to compare with the other model's; for a single log-likelihood, whether it is the target."""
    answer: str | None = row["answer"]
    if answer is None or not target_only(row):
        return answer
    stored = _PAIR.fullmatch(answer)
    return stored[1] if stored else str(answer != OTHER)


def target_only(row: Row) -> bool:
    """Whether a row's answer is the log-likelihood of its target only: it has no options and no reply."""
    return bool(row["options"] == 0 and row["reply"] is None and row["expect"] is None)


def runs_on(row: Row) -> bool:
    """Whether a reply that counts as wrong begins with the right answer, as a whole word, and runs on.

    Examples:
        >>> row = {"score": 0.0, "target": ["Paris"], "reply": "Paris. The capital of France", "answer": "Paris. The"}
        >>> runs_on(row)
        True
        >>> runs_on({**row, "reply": "Parisian", "answer": "Parisian"})
        False
    """
    if row["score"] != 0 or not isinstance(row["reply"], str):
        return False
    targets = row["target"] if isinstance(row["target"], list) else [row["target"]]
    texts = [text for text in (row["answer"], row["reply"]) if isinstance(text, str)]
    return any(begins_with(text.strip(), str(target).strip()) for text in texts for target in targets)


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer as a whole word or number, and continues after it.

    Examples:
        >>> begins_with("4. Then", "4"), begins_with("42", "4"), begins_with("4.5", "4"), begins_with("4", "4")
        (True, False, False, False)
        >>> begins_with("7 + 6 = 12", "7"), begins_with("7 apples", "7")
        (False, True)
        >>> begins_with("A: it is", "A"), begins_with("A man", "A"), begins_with("Paris-based", "Paris")
        (True, False, False)
    """
    rest = text[len(answer) :]
    if not answer or not rest or not text.startswith(answer):
        return False
    if answer[-1].isdigit():
        return not re.match(r"\w|[.,:]\d|\s*[-+*/×÷=^<>%]", rest)  # neither a longer number nor the start of a sum
    if len(answer) == 1 and answer.isalpha():  # an option's letter, which may also be a word
        return not re.match(r"[\w\s'’-]", rest) or rest.startswith("\n")
    return not re.match(r"[^\W\u3040-\u30ff\u3400-\u9fff]|['’-]\w", rest)  # Han and Kana are written without spaces
