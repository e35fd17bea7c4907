"""Turns a library's error into one clause that a user can act on."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
LONGEST = 300


def explained(error: BaseException) -> str:
    """What failed, in words; also explains kinds of errors whose text alone is not clear.

    Examples:
        >>> explained(KeyError("gold"))
        "no field or name 'gold'"
        >>> explained(IndexError("list index out of range"))
        'there are no items, or an index is out of range (list index out of range)'
    """
    said = first_line(error)
    kinds = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.startswith("jinja2")}
    if "TemplateSyntaxError" in kinds:
        return f"a template is malformed: {said}"
    if "UndefinedError" in kinds:
        return f"a template uses a field that the item lacks: {said}"
    if kinds:
        return f"a template fails: {said}"
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or 'its code').name}, line {error.lineno}: not Python: {error.msg}"
    if isinstance(error, ImportError):
        return f"its Python code cannot be imported: {said}"
    if isinstance(error, KeyError):
        name = error.args[0] if error.args else ""
        if name is None:
            return "a metric is unknown to lm-eval, or lacks its `aggregation`"
        text = str(name).strip().split("\n")[0][:LONGEST]
        return text if " " in text else f"no field or name '{text}'"
    if isinstance(error, IndexError):
        return f"there are no items, or an index is out of range ({said})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or recurses without end"
    if isinstance(error, SystemExit):
        return "its Python code ends the program"
    if isinstance(error, UnicodeError):
        return f"text that is not UTF-8: {said}"
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        return f"its data cannot be read: {first_line(error.__cause__)}"
    if said.startswith("malformed node or string"):
        return "a template gives text instead of a list or a number"
    if "larger than population" in said:
        return "it has fewer examples than `num_fewshot`"
    if isinstance(error, AssertionError) and not str(error):
        return "; ".join(
            ["a check of lm-eval fails", *(f.line or "" for f in traceback.extract_tb(error.__traceback__)[-1:])]
        )
    return said


def where_raised(error: BaseException) -> str:
    """The user's own Python line that raised an error, in brackets; empty if none of the user's files did."""
    libraries = {Path(sys.prefix), Path(sys.base_prefix), PACKAGE}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        outside = "site-packages" not in file.parts and not any(map(file.is_relative_to, libraries))
        if outside and file.is_file():
            return f" ({file.name}, line {frame.lineno})"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the error's class if it has none."""
    text = " ".join(map(str, error.args)) if len(error.args) > 1 and isinstance(error, ImportError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:LONGEST]
