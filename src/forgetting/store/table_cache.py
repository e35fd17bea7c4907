"""Reads the measured rows of many runs into columns, in bulk, and caches those of ended runs in one Parquet file.

The plain files are authoritative; the cache only saves time. A run's cached columns are used only while the size and
modification time of its two files are unchanged. Parquet's checksums detect a damaged cache, which is then recreated.
"""

from __future__ import annotations

import itertools
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .. import files
from ..data import parquet
from ..errors import visible
from .chain import NEEDED, broken, grid_of, misplaced, unmeasured
from .columns import DAMAGED, NUMBERS, TEXTS, WHOLES
from .run_files import RUN_SCHEMA, DamagedError, cells_of, read_run, shared_by_rows, whole_lines

log = logging.getLogger(__name__)
KEPT_FROM = 200
"""Number of ended runs from which their columns are cached; fewer are read fast enough without a cache."""
BULK = 2**24
"""Bytes of rows parsed at once."""
BLOCK = 2**22
"""Bytes of rows parsed by one thread; a batch with a longer line is parsed line by line."""
HEADS = 1 + len(TEXTS) + len(WHOLES) + len(NUMBERS) + 1
"""Number of columns of the cache with one value per run: its id, TEXTS, WHOLES, NUMBERS and its stamp."""
_KINDS = {**dict.fromkeys(WHOLES, pa.int64()), **dict.fromkeys(NUMBERS, pa.float64())}
ENDED = ("done", "failed")
BLANK = b"{}\n"
"""The row of a damaged run, without numbers."""
Stamp = tuple[int, int, int, int]
"""Size in bytes and modification time in ns of run.json, then of measurements.jsonl; zeros for a missing file."""


@dataclass(frozen=True)
class Part:
    """Some runs and their rows.

    Attributes:
        runs: for each run its id, TEXTS, WHOLES and NUMBERS, its `stamp`, and its number of `rows`.
        rows: the measured columns of all runs, one run after another.
    """

    runs: list[dict[str, Any]]
    rows: pa.Table


@dataclass(frozen=True)
class _Run:
    """One run as read: the path and bytes of its rows, its run.json, and its row of `Part.runs`, marked if damaged."""

    file: Path
    rows: bytes
    record: dict[str, Any]
    head: dict[str, Any]


def read_rows(study: Path, columns: Mapping[str, type], records: dict[str, dict[str, Any]] | None = None) -> pa.Table:
    """All rows of a study by run and step, with the requested columns, TEXTS, WHOLES, NUMBERS and `run_id`.

    A damaged run has one row with `status` DAMAGED and without numbers.

    Args:
        study: the study folder.
        columns: measured columns and their types; a column that a row lacks is null.
        records: filled with the record of each run that is read from its plain files, by the name of its folder.

    Raises:
        UsageError: a link in a run's folder.
    """
    schema = pa.schema([(name, pa.int64() if kind is int else pa.float64()) for name, kind in columns.items()])
    found = list(_scan(study / "runs"))
    cache = study / "cache" / "rows.parquet"
    kept = _load(cache, schema) if len(found) >= KEPT_FROM else None
    known = {run["run_id"]: (at, run) for at, run in _offsets(kept)} if kept is not None else {}
    fresh = [(run_id, stamp) for run_id, stamp in found if not _is_known(known.get(run_id), stamp)]
    new = _read(study / "runs", fresh, schema, records)
    whole = new if kept is None else _merge(found, kept, known, new)
    ended = [run for run in whole.runs if run["status"] in ENDED]
    if len(ended) >= KEPT_FROM and sum(run["status"] in ENDED for run in new.runs) * 10 >= len(ended):
        _save(cache, _only_ended(whole))
    return _spread(whole)


def _scan(runs: Path) -> Iterator[tuple[str, Stamp]]:
    """Names of the folders that contain a run's record or rows, in order, with their stamps.

    Raises:
        UsageError: one of them contains a link.
    """
    with suppress(FileNotFoundError):
        for name in sorted(entry.name for entry in os.scandir(runs)):
            sizes, there = [], set()
            for part in ("run.json", "measurements.jsonl", "lock", "adapter", "checkpoints"):
                try:
                    # for tens of thousands of files, creating a Path costs more than stat
                    status = os.stat(f"{runs}/{name}/{part}", follow_symlinks=False)  # noqa: PTH116
                except OSError:
                    sizes += [0, 0]
                else:
                    there.add(part)
                    sizes += [status.st_size, status.st_mtime_ns]
                    if stat.S_ISLNK(status.st_mode):
                        files.refuse_link(runs / name / part, runs)
            if there & {"run.json", "measurements.jsonl"}:  # archives may set all times to 0
                yield name, (sizes[0], sizes[1], sizes[2], sizes[3])


def _is_known(held: tuple[int, dict[str, Any]] | None, stamp: Stamp) -> bool:
    return held is not None and tuple(held[1]["stamp"]) == stamp


def _offsets(part: Part) -> Iterator[tuple[int, dict[str, Any]]]:
    at = 0
    for run in part.runs:
        yield at, run
        at += run["rows"]


def _read(
    runs: Path,
    wanted: Sequence[tuple[str, Stamp]],
    schema: pa.Schema,
    records: dict[str, dict[str, Any]] | None = None,
) -> Part:
    """Read runs from their plain files in batches; one batch is parsed while the next one is read."""
    heads: list[dict[str, Any]] = []
    parsed: list[Future[pa.Table]] = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        for batch in _batches(runs, wanted):
            heads += [run.head for run in batch]
            if records is not None:
                records |= {run.file.parent.name: run.record for run in batch if run.record}
            if parsed:
                parsed[-1].result()  # so that no more than two batches are held
            parsed.append(pool.submit(_parse, batch, schema))
        tables = [schema.empty_table(), *(future.result() for future in parsed)]
    return Part(heads, pa.concat_tables(tables).combine_chunks())


def _batches(runs: Path, wanted: Sequence[tuple[str, Stamp]]) -> Iterator[list[_Run]]:
    """The files of runs, in batches of a little more than BULK bytes of rows."""
    batch: list[_Run] = []
    size = 0
    for run_id, stamp in wanted:
        run = runs / run_id
        file = run / "measurements.jsonl"
        record, head, content = _opened(run, file)
        head = {"run_id": visible(run_id), **head, "stamp": list(stamp)}
        batch.append(_Run(file, content, record, head))
        size += len(content)
        if size > BULK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _opened(run: Path, rows: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The record of a run, its row of `Part.runs` without id and stamp, and the bytes of its rows.

    A damaged run has one blank row.
    """
    record: dict[str, Any] = {}
    head: dict[str, Any] = {**dict.fromkeys(TEXTS, ""), **dict.fromkeys((*WHOLES, *NUMBERS))}
    file = run / "run.json"
    try:
        record = read_run(file)
        if not record:
            raise DamagedError(file, "is missing")
        head = shared_by_rows(record, file)
        content = whole_lines(rows)
        count = content.count(b"\n")
        if not broken(record, content, count):
            return record, head | {"rows": count}, content
    except DamagedError as error:
        with suppress(DamagedError):
            head = shared_by_rows(error.record, file)
    return record, head | {"status": DAMAGED, "rows": 1}, BLANK


def _without_misplaced(part: Part, records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows of runs. A run that lacks a step of its grid or a loss is marked in `part.runs` and gets a blank row."""
    if not {"step", *NEEDED} <= set(part.rows.column_names):
        return part.rows
    pieces = []
    done = 0
    plain = _follow_their_grid(part, records)
    for (at, head), record, follows in zip(list(_offsets(part)), records, plain, strict=True):
        if follows or head["status"] == DAMAGED:
            continue
        step, alpha, *losses = (part.rows[name].slice(at, head["rows"]).to_pylist() for name in ("step", *NEEDED))
        found = misplaced(record, list(zip(step, alpha, strict=True)))
        if not (found or unmeasured(record, list(zip(alpha, *losses, strict=True)))):
            continue
        pieces += [part.rows.slice(done, at - done), _blank(part.rows.schema)]
        done = at + head["rows"]
        head["status"], head["rows"] = DAMAGED, 1
    return pa.concat_tables([*pieces, part.rows.slice(done)]) if pieces else part.rows


def _follow_their_grid(part: Part, records: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """[runs] Whether the rows are exactly the first steps of the run's grid, in order and each with its losses.

    Such runs need no further check. The slower `misplaced` and `unmeasured` check the others.
    """
    counts = [head["rows"] for head in part.runs]
    grids = [
        # a finished run needs all steps: one more than it has rows shows that some are missing
        (grid_of(record) or [])[: count + (record.get("status") == "done")]
        for record, count in zip(records, counts, strict=True)
    ]
    follows = np.array(
        [len(grid) == count and max(grid, default=0) < 2**63 for grid, count in zip(grids, counts, strict=True)], bool
    )
    owner = np.repeat(np.arange(len(counts)), counts)
    among = follows[owner]
    asked = np.fromiter(itertools.chain.from_iterable(itertools.compress(grids, follows)), np.int64)
    other = part.rows["alpha"].is_valid().to_numpy()
    for name in NEEDED[1:]:
        other = other | part.rows[name].is_null().to_numpy()
    other[among] |= part.rows["step"].fill_null(-1).to_numpy()[among] != asked
    follows[owner[other]] = False
    return follows


def _blank(schema: pa.Schema) -> pa.Table:
    return pa.table({field.name: pa.nulls(1, field.type) for field in schema}, schema=schema)


def _parse(batch: Sequence[_Run], schema: pa.Schema) -> pa.Table:
    """The rows of several runs; a damaged run gets one blank row and is marked in its `head`."""
    heads = [run.head for run in batch]
    rows = _parse_bulk(b"".join(run.rows for run in batch), schema, sum(head["rows"] for head in heads))
    if rows is None:  # run by run, to find the damaged one
        rows = pa.concat_tables([_parse_one(run, schema) for run in batch])
    return _without_misplaced(Part(heads, rows), [run.record for run in batch])


def _parse_one(run: _Run, schema: pa.Schema) -> pa.Table:
    """The rows of one run."""
    table = _parse_bulk(run.rows, schema, run.head["rows"])
    if table is not None:
        return table
    columns: dict[str, type[int] | type[float]] = {
        field.name: int if pa.types.is_integer(field.type) else float for field in schema
    }
    try:
        return pa.table(cells_of(run.rows, run.file, columns), schema=schema)
    except DamagedError:
        run.head["status"], run.head["rows"] = DAMAGED, 1
        return _blank(schema)


def _parse_bulk(content: bytes, schema: pa.Schema, count: int) -> pa.Table | None:
    """Parse `count` rows with Arrow; None if it fails or finds another number of rows or infinite numbers."""
    if not content:
        return schema.empty_table()
    if not _begins_with_objects(content):
        return None
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    reading = pyarrow.json.ReadOptions(block_size=min(len(content), BLOCK))
    with suppress(pa.ArrowException):
        table = pyarrow.json.read_json(pa.BufferReader(content), reading, options)
        if table.num_rows == count and _is_finite(table):
            return table.select(schema.names).cast(schema)
    return None


def _begins_with_objects(content: bytes) -> bool:
    """Whether each line begins with `{`: Arrow ends the process (segmentation fault) if a block begins with `null`."""
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    return content.count(b"\n{") + content.startswith(b"{") == lines


def _is_finite(table: pa.Table) -> bool:
    """Whether all numbers are finite or null; Arrow reads a number beyond a float's range as infinite."""
    floats = (column for column in table.columns if pa.types.is_floating(column.type))
    return all(pyarrow.compute.all(pyarrow.compute.is_finite(column)).as_py() is not False for column in floats)


def _merge(
    found: Sequence[tuple[str, Stamp]], kept: Part, known: Mapping[str, tuple[int, dict[str, Any]]], new: Part
) -> Part:
    """Cached and newly read runs in the order of `found`; cached runs that no longer exist are left out."""
    fresh = {run["run_id"]: (at, run) for at, run in _offsets(new)}
    heads: list[dict[str, Any]] = []
    spans: list[tuple[int, int, int]] = []
    for name, _ in found:
        run_id = visible(name)
        source, (at, run) = (1, fresh[run_id]) if run_id in fresh else (0, known[run_id])
        heads.append(run)
        if spans and spans[-1][0] == source and spans[-1][2] == at:
            spans[-1] = (source, spans[-1][1], at + run["rows"])  # adjacent runs become one slice
        else:
            spans.append((source, at, at + run["rows"]))
    tables = [(kept.rows, new.rows)[source].slice(low, high - low) for source, low, high in spans]
    return Part(heads, pa.concat_tables(tables) if tables else new.rows)


def _only_ended(part: Part) -> Part:
    heads = [run for run in part.runs if run["status"] in ENDED]
    if len(heads) == len(part.runs):
        return part
    keep = np.repeat([run["status"] in ENDED for run in part.runs], [run["rows"] for run in part.runs])
    return Part(heads, part.rows.filter(pa.array(keep)))


def _spread(part: Part) -> pa.Table:
    """One table of the rows, with the columns of each run repeated along its rows."""
    counts = [run["rows"] for run in part.runs]
    owner = pa.array(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    table = part.rows
    for name in ("run_id", *TEXTS):
        values = pa.array([run[name] for run in part.runs], pa.large_string())
        table = table.append_column(name, values.take(owner))
    for name, kind in _KINDS.items():
        table = table.append_column(name, pa.array([run[name] for run in part.runs], kind).take(owner))
    return table


def _kept_schema(rows: pa.Schema) -> pa.Schema:
    """The schema of the cache: one row per run, with its measured columns as lists."""
    shared = [
        ("run_id", pa.string()),
        *((name, pa.string()) for name in TEXTS),
        *_KINDS.items(),
    ]
    shared += [("stamp", _list_of(pa.int64())), *((field.name, _list_of(field.type)) for field in rows)]
    return pa.schema(shared, metadata={"forgetting": str(RUN_SCHEMA)})


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind))  # the name that Parquet gives it when read back


def _save(path: Path, part: Part) -> None:
    """Write the cache atomically; a failure is only logged."""
    schema = _kept_schema(part.rows.schema)
    ends = np.cumsum([0, *(run["rows"] for run in part.runs)], dtype=np.int32)
    columns = [pa.array([run[name] for run in part.runs], schema.field(name).type) for name in schema.names[:HEADS]]
    for column in part.rows.combine_chunks().columns:
        values = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        columns.append(pa.ListArray.from_arrays(ends, values, type=_list_of(column.type)))
    table = pa.table(columns, schema=schema)
    try:
        with files.replacing(path) as temporary:
            pq.write_table(
                table,
                temporary,
                compression="lz4",
                use_dictionary=False,
                write_page_checksum=True,
                write_statistics=False,
            )
    except OSError as error:  # such as a full disk or a read-only folder
        log.info("%s: not written: %s", path, error.strerror)


def _load(path: Path, rows: pa.Schema) -> Part | None:
    """The cached runs; None if there is no cache, or it is damaged or has other columns."""
    schema = _kept_schema(rows)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(schema, check_metadata=True):
                return None  # another version or other columns
            parquet.check(path, file.metadata)
            with files.memory_bound(parquet.table_memory(path)):
                table = file.read()
        heads = table.select(schema.names[:HEADS]).to_pylist()
        lists = [column.combine_chunks() for column in table.columns[HEADS:]]
        counts = lists[0].value_lengths()
        if table.num_rows != file.metadata.num_rows or any(not one.value_lengths().equals(counts) for one in lists):
            raise ValueError("columns of different lengths")
        for head, count in zip(heads, counts.to_pylist(), strict=True):
            head["rows"] = count
        return Part(heads, pa.table([one.flatten() for one in lists], schema=rows))
    except FileNotFoundError:
        return None
    except Exception as error:  # pyarrow raises many types for a damaged file; any of them means: read the plain files
        log.warning("%s: damaged (%s); recreating it", path, type(error).__name__)
        return None
