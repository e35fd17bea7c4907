"""Arguments of the Python functions: checked against their annotations; tables of any kind are accepted."""

from __future__ import annotations

import ast
import functools
import inspect
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from ..errors import UsageError, did_you_mean


class ColumnTable(Protocol):
    """A table with named columns, such as a pandas DataFrame."""

    @property
    def columns(self) -> Any:
        """The columns' names."""


class RowTable(Protocol):
    """A table of rows, such as a datasets.Dataset."""

    @property
    def column_names(self) -> Any:
        """The columns' names."""


P = ParamSpec("P")
R = TypeVar("R")
Test = tuple[Callable[[Any], bool], str]

MODEL = "a folder, a Hub id, `miniature`, a model"
_SEVERAL = (list, tuple, set, frozenset, range)


def wrong_type(name: str, value: Any, allowed: str) -> UsageError:
    """A one-line error that says what came and what is allowed."""
    came = repr(value).splitlines()[0] if isinstance(value, str | numbers.Number | None) else ""
    kind = "None" if value is None else f"{type(value).__name__} {came:.40}".strip()
    return UsageError(f"{name}: got {kind}; allowed: {allowed}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that an unknown argument, or one of the wrong type, is a one-line UsageError.

    Checks annotations of numbers, strings, paths, dictionaries, sequences and literals. A parameter whose annotation
    contains any other name is left to the function.
    """
    signature = inspect.signature(function)
    tests = {name: found for name, p in signature.parameters.items() if (found := _tests(p.annotation))}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in signature.parameters:
                known = did_you_mean(name, [n for n in signature.parameters if n != "self"])
                raise UsageError(f"{function.__qualname__.removesuffix('.__init__')}: no argument '{name}'; {known}")
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in tests and not _fits(value, tests[name]):
                _refuse_inside(name, value, signature.parameters[name].annotation)
                raise wrong_type(name, value, ", ".join(dict.fromkeys(word for _, word in tests[name])))
        return function(*args, **kwargs)

    return call


def _tests(annotation: Any) -> list[Test]:
    """What a value may be according to an annotation's text; empty if the annotation is not checked here."""
    if not isinstance(annotation, str):
        return []
    parts = [_test(part) for part in _split(annotation, "|")]
    return [part for part in parts if part is not None] if None not in parts else []


def _split(annotation: str, mark: str) -> list[str]:
    """The members of `A | B[C | D]`, or of `A, B[C, D]`."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(annotation):
        depth += (character in "[(") - (character in "])")
        if character == mark and depth == 0:
            parts.append(annotation[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, annotation[start:]]]


def _test(part: str) -> Test | None:
    """A test for one member of a union, and that member in words; None if the annotation has another name."""
    head, _, rest = part.partition("[")
    inner = _split(rest[:-1], ",") if rest else []
    match head:
        case "None":
            return (lambda v: v is None), "None"
        case "bool":
            return (lambda v: isinstance(v, bool)), "True or False"
        case "str":
            return (lambda v: isinstance(v, str)), "a string"
        case "int":
            return _is_whole, "a whole number"
        case "float":
            return _is_number, "a number"
        case "Path" | "os.PathLike":
            return (lambda v: isinstance(v, os.PathLike)), "a path"
        case "Any":
            return (lambda _: True), "anything"
        case "Literal":
            choices = ast.literal_eval(f"({rest[:-1]},)")
            return (lambda v: v in choices and not isinstance(v, bool)), ", ".join(map(repr, choices))
    parts = [_tests(one) for one in inner]
    if not inner or not all(parts):
        return None
    words = [" or ".join(_plural(word) for _, word in one) for one in parts]
    if head == "Mapping":
        return (lambda v: isinstance(v, Mapping) and all(_fits(one, parts[1]) for one in v.values())), (
            f"a dictionary of {words[1]} by name"
        )
    if head == "Sequence":
        return (lambda v: _is_several(v) and all(_fits(one, parts[0]) for one in v)), f"a list of {words[0]}"
    if head == "tuple":
        return (lambda v: _is_several(v) and len(v) == len(parts) and all(map(_fits, v, parts))), (
            f"a pair of {words[0]}" if len(parts) == 2 else f"{len(parts)} of {words[0]}"
        )
    return None


def _plural(word: str) -> str:
    """`numbers`, `pairs of numbers`, `lists of strings`, `dictionaries of numbers by name`."""
    head, of, rest = word.partition(" of ")
    if not head.startswith("a ") or (of and head not in ("a pair", "a list", "a dictionary")):
        return word
    noun = head.removeprefix("a ")
    return (f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s") + of + rest


def _refuse_inside(name: str, value: Any, annotation: Any) -> None:
    """Refuse a dictionary or list with a wrong entry.

    Raises:
        UsageError: an entry has the wrong type; names its key or index.
    """
    head = "Mapping" if isinstance(value, Mapping) else "Sequence" if _is_several(value) else ""
    part = next((p for p in _split(annotation, "|") if head and p.startswith(f"{head}[")), "")
    tests = _tests(_split(part.partition("[")[2][:-1], ",")[-1]) if part else []
    for key, entry in value.items() if head == "Mapping" else enumerate(value) if tests else ():
        if tests and not _fits(entry, tests):
            raise wrong_type(f"{name}[{key!r}]", entry, ", ".join(dict.fromkeys(word for _, word in tests)))


def _fits(value: Any, tests: Sequence[Test]) -> bool:
    return any(test(value) for test, _ in tests)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_several(value: Any) -> bool:
    """Whether it is a list or similar; includes numpy arrays and pandas columns."""
    return isinstance(value, _SEVERAL) or (hasattr(value, "__array__") and getattr(value, "ndim", 1) == 1)


def path_of(name: str, value: Any, what: str) -> str:
    """A path or id as text.

    Raises:
        UsageError: neither, or an empty text.
    """
    if not isinstance(value, str | os.PathLike) or not (text := str(os.fspath(value))):
        raise wrong_type(name, value, what)
    return text


def model_of(name: str, value: Any, *, optional: bool = False) -> Any:
    """A model's folder or id as text, or a loaded model unchanged.

    Raises:
        UsageError: neither; also None, unless it is optional.
    """
    if isinstance(value, str | os.PathLike):
        return path_of(name, value, MODEL)
    if not (hasattr(value, "parameters") or (optional and value is None)):
        raise wrong_type(name, value, MODEL)
    return value


def tokenizer_of(value: Any) -> Any:
    """A transformers tokenizer unchanged, or None.

    Raises:
        UsageError: anything else.
    """
    if value is None or (callable(value) and hasattr(value, "eos_token_id")):
        return value
    raise wrong_type("tokenizer", value, "None, or a tokenizer such as AutoTokenizer.from_pretrained(FOLDER)")


def columns_of(value: Any, name: str) -> dict[str, list[Any]] | None:
    """A table's columns by name; None if the value is not a table.

    Args:
        value: a DataFrame, a datasets.Dataset, a dictionary of columns, or a list of dictionaries, one per row.
        name: the argument's name, for messages.

    Raises:
        UsageError: columns of different lengths or with the same name, several splits, or a stream.
    """
    if is_frame(value):
        names = [str(column) for column in value.columns]
        if twice := [one for one in names if names.count(one) > 1]:
            raise UsageError(f"{name}: two columns are called '{twice[0]}'; rename one of them")
        return {str(column): value[column].tolist() for column in value.columns}
    datasets = sys.modules.get("datasets")
    if datasets is not None:
        if isinstance(value, datasets.DatasetDict | datasets.IterableDatasetDict):
            raise UsageError(f"{name}: a DatasetDict has several splits; give one of them: {', '.join(value)}")
        if isinstance(value, datasets.IterableDataset):
            raise UsageError(f"{name}: a stream has no known end; give, for example, list(dataset.take(1000))")
        if isinstance(value, datasets.Dataset):
            return {str(column): list(value[column]) for column in value.column_names}
    if isinstance(value, Mapping):
        return _columns(value, name)
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return _rows(value, name)
    return None


def is_frame(value: Any) -> bool:
    """Whether the value is a pandas DataFrame; does not import pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def from_records(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns from rows; a cell is None if its row lacks the column."""
    rows = [{str(key): cell for key, cell in row.items()} for row in records]
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in names}


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows from columns of equal length."""
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _rows(value: Sequence[Any], name: str) -> dict[str, list[Any]]:
    for i, row in enumerate(value):
        if not isinstance(row, Mapping):
            raise wrong_type(f"{name}, row {i + 1}", row, "a dictionary, like the first row")
    return from_records(value)


def _columns(value: Mapping[Any, Any], name: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for column, cells in value.items():
        if isinstance(cells, str | Mapping) or not isinstance(cells, Iterable):
            raise wrong_type(f"{name}['{column}']", cells, "a list with one value per row")
        found[str(column)] = list(cells)
    lengths = {column: len(cells) for column, cells in found.items()}
    if len(set(lengths.values())) > 1:
        named = ", ".join(f"{column} {length}" for column, length in lengths.items())
        raise UsageError(f"{name}: columns of different lengths: {named}")
    return found
