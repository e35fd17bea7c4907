"""The two files of one run, read and checked: its record, run.json, and its rows, measurements.jsonl.

What is wrong with them is a DamagedError, so that one damaged run is left out by name and the others go on.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import files
from ..config.schema import digest_of
from ..errors import ForgettingError, UsageError
from .columns import COLUMNS, NUMBERS, TEXTS, WHOLES, columns_of_texts

RUN_SCHEMA = 1
Kinds = dict[str, type[int] | type[float]]


def row_kinds(texts: Mapping[str, Any] = MappingProxyType({})) -> Kinds:
    """The measured columns of a study with these further texts, and whether each is a whole number."""
    columns = {**COLUMNS, **columns_of_texts(texts)}
    return {
        name: int if column.kind == "whole" else float for name, column in columns.items() if column.source == "row"
    }


class DamagedError(ForgettingError):
    """A file of a run is not as it was written.

    Attributes:
        why: the file within the run, the line where there is one, and what is wrong.
        record: run.json where it can be read and is of another run; else empty.
    """

    def __init__(
        self, file: Path, why: str, line: int | None = None, record: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        at = "" if line is None else f", line {line}"
        super().__init__(f"{file}{at}: damaged: {why}; delete the run's folder to run it again")
        self.why = f"{file.name}{at}: {why}"
        self.record = record


def read_run(file: Path) -> dict[str, Any]:
    """A run.json; empty where there is none.

    Raises:
        DamagedError: it cannot be read, is of another version, or of another run than its folder's.
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
    """How a record is not that of the run whose folder it lies in, in words; empty where it is.

    The id ends in a hash of the configuration (`RunConfig.run_id`). It is taken of what was stored, whatever fields
    this version has; a configuration in which a secret was blotted out has no such hash.
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
    """What a file of a run holds; None where it is not there."""
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
    """The content of a file of rows up to its last line break: what follows was cut by a crash.

    Raises:
        DamagedError: the file cannot be read, or is too long to be one run's.
    """
    content = _content(file, files.MAX_FILE) or b""
    return content[: content.rfind(b"\n") + 1]


def parse_rows(content: bytes, file: Path) -> list[dict[str, Any]]:
    """Rows one by one.

    Raises:
        DamagedError: a line is no row; names it.
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
    """Columns of the rows, one by one; what a row lacks is None.

    Raises:
        DamagedError: a line is no row, or a value no number of its column; names it.
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
        # compared before converted: an int of 400 digits is no float
        if not whole and abs(value) <= sys.float_info.max:
            return float(value)
        if whole and abs(value) < 2**63 and value == int(value):
            return int(value)
    needed = "a whole number" if whole else "a finite number"
    raise DamagedError(file, f"{name} is {value!r:.40} where {needed} is needed", line)


def shared_by_rows(record: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What all rows of a run share, from its record.

    Raises:
        DamagedError: a field is missing or of another kind, as after editing by hand.
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
        "replay_fraction": _replay_fraction(record),
        "rank": options.get("rank"),
        "seed": record.get("seed"),
        "trainable_params": record.get("trainable_params"),
        "model_params": record.get("model_params"),
    }
    for field, value in shared.items():
        missing = value is None and field in (*WHOLES, *NUMBERS)
        text = isinstance(value, str) and field in TEXTS
        whole = isinstance(value, int) and field in WHOLES and not isinstance(value, bool) and abs(value) < 2**63
        number = isinstance(value, int | float) and field in NUMBERS and not isinstance(value, bool) and 0 <= value < 1
        if not (missing or text or whole or number):
            raise DamagedError(file, f"{field} is {value!r:.40}")
    return shared


def _replay_fraction(record: Mapping[str, Any]) -> Any:
    """The share of replay in a run, from its record; None where the record does not say."""
    config = record.get("config")
    if isinstance(config, Mapping) and isinstance(given := config.get("mitigations", ()), list | tuple):
        return replay_fraction(given)
    return None if record.get("mitigation") else 0.0


def replay_fraction(mitigations: Iterable[Any]) -> Any:
    """The share of replay among mitigations as configured: 0 where there is none, None where it is not said."""
    for one in mitigations:
        if isinstance(one, Mapping) and one.get("name") == "replay":
            return one.get("fraction")
    return 0.0
