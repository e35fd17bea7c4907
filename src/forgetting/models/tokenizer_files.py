"""A tokenizer.json before a library reads it: what its numbers and texts would make it take memory for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError

TOKENIZER = "tokenizer.json"
MAX_TOKENIZER = 2**28
"""Bytes of a tokenizer.json."""
MORE_IDS = 2**16
"""Ids that a tokenizer may leave out, beside eight for each that it has."""
MAX_GROWTH = 100
"""Characters that a tokenizer's normaliser may make of one."""
MAX_CONTENT = 1000
"""Characters that a step of a tokenizer may put in."""
_PUTS_IN = ("content", "prepend", "replacement")


def check_tokenizer(folder: Path, name: str) -> None:
    """Refuse a tokenizer.json with ids or replacements that no honest one has; what else is wrong the library says.

    Args:
        folder: in which it lies, if it does.
        name: the model, for messages.

    Raises:
        UsageError: names the token or step; or not JSON.
    """
    file = folder / TOKENIZER
    if not file.is_file():
        return
    where = f"{name}: {TOKENIZER}"
    content = files.parse_json(
        files.read_text(file, limit=MAX_TOKENIZER), f"{name}: its tokenizer cannot be read: {file}"
    )
    if not isinstance(content, Mapping):
        return
    _check_ids(content, where)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(content.get(part)):
            for field in _PUTS_IN:
                text = step.get(field)
                if isinstance(text, str) and len(text) > MAX_CONTENT:
                    raise UsageError(f"{where}: {part}: {field}: {len(text):,} characters; at most {MAX_CONTENT:,}")
    if (growth := _growth(list(_steps(content.get("normalizer"))))) > MAX_GROWTH:
        raise UsageError(
            f"{where}: normalizer: its steps make {growth:,} characters of one; at most {MAX_GROWTH} are made"
        )


def lacking(folder: Path) -> str:
    """What is then wrong with a tokenizer that cannot be loaded."""
    if (folder / TOKENIZER).is_file():
        return "cannot be loaded"
    return f"its tokenizer cannot be loaded; there is no {TOKENIZER}, which a fast tokenizer is read from"


def _check_ids(content: Mapping[str, Any], where: str) -> None:
    """Libraries make a table as long as the largest id."""
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    added = [token for token in content.get("added_tokens") or () if isinstance(token, Mapping)]
    ids = {str(token.get("content")): token.get("id") for token in added}
    count = len(ids) + (len(vocabulary) if isinstance(vocabulary, Mapping | list) else 0)
    limit = 8 * count + MORE_IDS
    for tokens in (ids, vocabulary if isinstance(vocabulary, Mapping) else {}):
        for token, found in tokens.items():
            if type(found) is int and found >= limit:
                raise UsageError(
                    f"{where}: token {token!r:.60} has the id {found:.20g}; with {count:,} tokens it is below {limit:,}"
                )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder in order, those inside others too."""
    waiting = [part]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list):
            waiting = [*one, *waiting]
        elif isinstance(one, Mapping):
            yield one
            waiting = [*(value for value in one.values() if isinstance(value, list)), *waiting]


def _growth(steps: list[Mapping[str, Any]]) -> int:
    """Characters that the replacements may make of one: one after another only where a later one can find an earlier's.

    A pattern finds what an earlier step has put in if it is a regular expression or shares a character with it.
    """
    made: list[tuple[str, int]] = []
    for step in steps:
        content, pattern = step.get("content"), step.get("pattern")
        if step.get("type") != "Replace" or not isinstance(content, str) or not isinstance(pattern, Mapping):
            continue
        text = pattern.get("String")
        if isinstance(text, str):
            factor = -(-len(content) // max(len(text), 1))
            before = [growth for earlier, growth in made if set(earlier) & set(text)]
        else:
            factor = len(content) + _finds_nothing(str(pattern.get("Regex")))
            before = [growth for _, growth in made]
        made.append((content, max(factor, 1) * max(before, default=1)))
    return max((growth for _, growth in made), default=1)


def _finds_nothing(pattern: str) -> int:
    """1 where a regular expression also matches between two characters, and puts something in there, else 0."""
    try:
        return int(re.compile(pattern).match("") is not None)
    except (re.error, RecursionError, OverflowError):
        return 0
