"""Reads and checks the two files of one run: its record, run.json, and its rows, measurements.jsonl.

Any fault in them raises DamagedError, so that the damaged run is left out by name and the others are still used.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import files
from ..config.schema import digest_of
from ..errors import ForgettingError, UsageError
from .axes import AXES, Axis
from .columns import COLUMNS, NUMBERS, TEXTS, WHOLES, columns_of_texts

RUN_SCHEMA = 1
Kinds = dict[str, type[int] | type[float]]


def row_kinds(texts: Mapping[str, Any] = MappingProxyType({})) -> Kinds:
    """The measured columns of a study with these further texts, and the type of each: int or float."""
    columns = {**COLUMNS, **columns_of_texts(texts)}
    return {
        name: int if column.kind == "whole" else float for name, column in columns.items() if column.source == "row"
    }


class DamagedError(ForgettingError):
    """A file of a run was changed, is incomplete, or cannot be read.

    Attributes:
        why: the file's name, the line if known, and what is wrong.
        record: the content of run.json if it can be read but belongs to another run; else empty.
    """

    def __init__(
        self, file: Path, why: str, line: int | None = None, record: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        at = "" if line is None else f", line {line}"
        super().__init__(f"{file}{at}: damaged: {why}; delete the run's folder to run it again")
        self.why = f"{file.name}{at}: {why}"
        self.record = record


def read_run(file: Path) -> dict[str, Any]:
    """The content of a run.json; empty if there is no such file.

    Raises:
        DamagedError: it cannot be read, is of another version, or does not belong to the run of its folder.
    """
    content = _content(file, files.MAX_CONFIG)
    if content is None:
        return {}
    try:
        record = files.parse_json(content, "")
    except UsageError as error:
        raise DamagedError(file, str(error).removeprefix(": ")) from None
    if not isinstance(record, dict) or record.get("schema") != RUN_SCHEMA:
        came = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise DamagedError(file, f"schema {came!s:.40}; this version reads {RUN_SCHEMA}")
    if why := _of_another(record, file.parent.name):
        raise DamagedError(file, why, record=record)
    return record


def _of_another(record: Mapping[str, Any], name: str) -> str:
    """Why a record does not belong to the run of its folder, in words; empty if it does.

    The id ends in a hash of the configuration (`RunConfig.run_id`). The fields are hashed as stored, even if this
    version has others. A configuration from which a secret was removed no longer has that hash and is accepted.
    """
    told = record.get("run_id", name)
    if told != name and told != files.redact(name):  # a name may look like a token
        return f"it belongs to run {told!r:.80}, but is in the folder of another"
    config = record.get("config")
    if config is None:
        return ""
    try:
        digest, dataset, seed = digest_of(config), config["dataset_name"], config["seed"]
        method = {key: value for key, value in config["method"].items() if key not in ("label", "mitigations")}
    except (KeyError, TypeError, AttributeError):
        return "its config is not that of a run"
    for field, value in (("dataset", dataset), ("seed", seed), ("method", method)):
        if record.get(field, value) != value:
            return f"its {field} does not match its config"
    if name.endswith(f"-{digest}") or files.HIDDEN in json.dumps(config):
        return ""
    return "its config does not match the run's id"


def _content(file: Path, limit: int) -> bytes | None:
    """The content of a file of a run; None if it does not exist."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DamagedError(file, "not a plain file")
        if found.st_size > limit:
            raise DamagedError(file, f"{found.st_size:,} bytes; the limit for such a file is {limit:,}")
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(file, f"cannot be read: {error.strerror}") from None


def whole_lines(file: Path) -> bytes:
    """The content of a file of rows up to its last line break, as a crash cut off the rest; empty without a file.

    Raises:
        DamagedError: the file cannot be read, or is too large.
    """
    content = _content(file, files.MAX_FILE) or b""
    return content[: content.rfind(b"\n") + 1]


def parse_rows(content: bytes, file: Path) -> list[dict[str, Any]]:
    """The rows of a file, parsed line by line.

    Raises:
        DamagedError: a line is not a JSON object; names the line.
    """
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = files.parse_json(line, "")
        except UsageError as error:
            raise DamagedError(file, str(error).removeprefix(": "), number) from None
        if not isinstance(row, dict):
            raise DamagedError(file, f"needs a JSON object, got {type(row).__name__}", number)
        rows.append(row)
    return rows


def cells_of(
    content: bytes, file: Path, columns: Mapping[str, type[int] | type[float]]
) -> dict[str, list[int | float | None]]:
    """The values of each column, parsed line by line; None where a row lacks the column.

    Raises:
        DamagedError: a line is not a JSON object, or a value is not a number of its column's type; names the line.
    """
    cells: dict[str, list[int | float | None]] = {name: [] for name in columns}
    for number, row in enumerate(parse_rows(content, file), start=1):
        for name, kind in columns.items():
            cells[name].append(_cell(row.get(name), name, kind is int, file, number))
    return cells


def _cell(value: Any, name: str, whole: bool, file: Path, line: int) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        # compare before converting: float() of an int with 400 digits raises OverflowError
        if not whole and abs(value) <= sys.float_info.max:
            return float(value)
        if whole and abs(value) < 2**63 and value == int(value):
            return int(value)
    needed = "a whole number" if whole else "a finite number"
    raise DamagedError(file, f"{name} is {value!r:.40} where {needed} is needed", line)


def shared_by_rows(record: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The columns that all rows of a run share (TEXTS, WHOLES and NUMBERS), from its record.

    Raises:
        DamagedError: a field is missing or has the wrong type, for example after editing by hand.
    """
    method = record.get("method")
    options = method if isinstance(method, Mapping) else {}
    name = options.get("name")
    shared: dict[str, Any] = {
        "dataset": record.get("dataset"),
        "method": name,
        "label": record.get("label", name),
        "mitigation": record.get("mitigation", ""),
        "status": record.get("status"),
        **{axis.column: _value(axis, record) for axis in AXES.values()},
        "rank": options.get("rank"),
        "seed": record.get("seed"),
        "trainable_params": record.get("trainable_params"),
        "model_params": record.get("model_params"),
    }
    for field, value in shared.items():
        missing = value is None and field in (*WHOLES, *NUMBERS)
        text = isinstance(value, str) and field in TEXTS
        whole = isinstance(value, int) and field in WHOLES and not isinstance(value, bool) and abs(value) < 2**63
        number = isinstance(value, int | float) and not isinstance(value, bool) and _in_domain(field, value)
        if not (missing or text or whole or number):
            raise DamagedError(file, f"{field} is {value!r:.40}")
    return shared


def _in_domain(field: str, value: float) -> bool:
    return any(axis.column == field and axis.holds(value) for axis in AXES.values())


def _value(axis: Axis, record: Mapping[str, Any]) -> Any:
    """The value of a mitigation's option in a run, from its record; None if it is not recorded."""
    config = record.get("config")
    if isinstance(config, Mapping) and isinstance(given := config.get("mitigations", ()), list | tuple):
        return axis.of(given)
    return None if record.get("mitigation") else 0.0
