"""Prompts for the safety suite: a CSV file (AdvBench, XSTest), a text file with one per line, JSONL, or a Hub id."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ForgettingError, UsageError

COLUMNS = ("prompt", "goal", "Behavior", "instruction", "question", "text")
"""Names of the prompt's column, in order of preference: AdvBench has `goal`, HarmBench `Behavior`."""
CATEGORIES = ("category", "type", "SemanticCategory")
FILES = (".csv", ".txt", ".jsonl")


@dataclass(frozen=True)
class Prompts:
    """Prompts with their categories, which are empty if unknown."""

    texts: list[str]
    categories: list[str]


def read_prompts(source: str) -> Prompts:
    """Read prompts from the first of COLUMNS that exists, and categories from the first of CATEGORIES.

    A repeated prompt is left out.

    Args:
        source: a .csv, .txt or .jsonl file; or a Hub id, optionally `ID:SPLIT`.

    Raises:
        UsageError: no such file, no prompt column, an empty prompt, more fields than the header; names file and line.
        ForgettingError: the Hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.suffix not in FILES:
        if path.is_file():
            raise UsageError(f"{source}: got a {path.suffix or 'file without suffix'}; allowed: {', '.join(FILES)}")
        return _columns(_hub(source), source)
    if path.suffix == ".jsonl":
        return _columns(list(files.json_rows(path)), source)
    text = files.read_text(path)
    if path.suffix == ".txt":
        rows = [(i, {"prompt": line}) for i, line in enumerate(re.split(r"\r\n|[\r\n]", text), start=1) if line.strip()]
        return _columns(rows, source)
    return _columns(_table(text, source), source)


def _table(text: str, source: str) -> list[tuple[int, dict[str, Any]]]:
    """Numbered rows of a CSV file."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = []
    try:
        files.check_table(len(reader.fieldnames or []), 0, source)
        for row in reader:
            if any(map(str.strip, row.pop(None, []))):
                where = f"{source}, line {reader.line_num}"
                raise UsageError(f"{where}: more fields than the header; prompts that contain ',' need quotes")
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise UsageError(f"{source}, line {reader.line_num}: not CSV: {error}") from None
    return rows


def _columns(rows: list[tuple[int, dict[str, Any]]], source: str) -> Prompts:
    if not rows:
        raise UsageError(f"{source}: it contains no prompts")
    there = list(rows[0][1])
    column = next((name for name in COLUMNS if name in there), None)
    if column is None:
        has, allowed = ", ".join(map(str, there)), ", ".join(COLUMNS)
        raise UsageError(f"{source}: no column of prompts; it has {has}; allowed: {allowed}")
    kind = next((name for name in CATEGORIES if any(name in row for _, row in rows)), None)
    texts, categories, seen = [], [], set()
    for number, row in rows:
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{source}, line {number}: {column}: got {value!r}; give a string")
        if value not in seen:
            seen.add(value)
            texts.append(value)
            given = row.get(kind) if kind else None
            categories.append("" if given is None else str(given))
    return Prompts(texts, categories)


def _hub(source: str) -> list[tuple[int, dict[str, Any]]]:
    from ..data.hub_rows import hub_rows

    name, _, split = source.partition(":")
    try:
        return list(enumerate(hub_rows(name, split=split or None), start=1))
    except ForgettingError as error:
        raise type(error)(f"prompts '{source}': {error}") from None
