"""Tables of runs from elsewhere: CSV, JSON lines, Parquet, study folders, PEFT results, W&B and MLflow exports.

A table is a mapping from column names to lists of equal length, one entry a measurement. Cells stay as they were read;
the fit turns them into numbers and names the row and column of what is none. CSV is read without pandas, which takes
longer to import than a fit takes.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting import files
from forgetting.arguments import from_records
from forgetting.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

Table = dict[str, list[Any]]

FINISHED = ("done", "success", "finished", "completed")
"""What other tools call a run whose numbers count, in lower case."""
SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
_CHART = re.compile(r"^(?P<run>.+) - (?P<metric>.+?)(?P<band>__MIN|__MAX)?$")


def read_tables(paths: Sequence[str | Path]) -> Table:
    """Read one table from one or several files or folders.

    Args:
        paths: study folders, tables (.csv, .jsonl, .json, .parquet), or PEFT result files or folders of them. Several
            W&B chart exports, with or without the export of the runs table, are joined by run and step; everything
            else is put below each other.

    Raises:
        UsageError: a file is missing, of another kind, or damaged; the message names it and the line.
    """
    if not paths:
        raise UsageError("no table given")
    tables = [(Path(p), read_table(p)) for p in paths]
    charts = [t for _, t in tables if is_chart(t)]
    if charts:
        return join_charts(charts, [t for _, t in tables if not is_chart(t)])
    if len(tables) == 1:
        return tables[0][1]
    for path, table in tables:
        if "run_id" in table:
            table["run_id"] = [f"{path.stem}/{v}" for v in table["run_id"]]
    return stack([t for _, t in tables])


def read_table(path: str | Path) -> Table:
    """Read one file or folder; see `read_tables`."""
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return normalise(_read_csv(path))
    if suffix == ".jsonl":
        return normalise(_from_objects(path, _read_json_lines(path)))
    if suffix == ".json":
        return _read_json(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    raise UsageError(f"{path}: a table ends in {', '.join(SUFFIXES)}, or is a study folder")


def stack(tables: Sequence[Table]) -> Table:
    """Tables below each other; None where one lacks a column."""
    names = dict.fromkeys(name for table in tables for name in table)
    out: Table = {name: [] for name in names}
    for table in tables:
        count = rows(table)
        for name in names:
            out[name] += table.get(name, [None] * count)
    return out


def split(table: Table, label: str, only: Mapping[str, str], dataset: str | None = None) -> dict[str, Table]:
    """The tables of each data set, or one under `label` where there is no such column.

    Args:
        table: to split.
        label: the name of a table without a column `dataset`.
        only: keep rows whose column has this value, written as text.
        dataset: keep this data set.

    Raises:
        UsageError: an unknown column or data set, or no row left.
    """
    wanted = dict(only) | ({} if dataset is None else {"dataset": dataset})
    keep = list(range(rows(table)))
    for name, value in wanted.items():
        if name not in table:
            raise UsageError(f"table '{label}' has no column '{name}'; {did_you_mean(name, table)}")
        there = {str(v) for v in table[name]}
        if value not in there:
            raise UsageError(f"no row has {name} '{value}'; {did_you_mean(value, sorted(there))}")
        keep = [i for i in keep if str(table[name][i]) == value]
    if not keep:
        raise UsageError(f"table '{label}' has no row with {', '.join(f'{k}={v}' for k, v in wanted.items())}")
    groups: dict[str, list[int]] = {}
    for i in keep:
        groups.setdefault(str(table["dataset"][i]) if "dataset" in table else label, []).append(i)
    return {group: {k: [cells[i] for i in at] for k, cells in table.items()} for group, at in sorted(groups.items())}


def split_frame(
    frame: pd.DataFrame, only: Mapping[str, str], dataset: str | None = None, label: str = "study"
) -> dict[str, pd.DataFrame]:
    """`split` of a DataFrame, such as a study's own table, which may have a million rows.

    Args:
        frame: as `store.load_table` gives it.
        only: keep rows whose column has this value, written as text.
        dataset: keep this data set.
        label: the name of a table without a column `dataset`.

    Raises:
        UsageError: an unknown column or data set, or no row left.
    """
    for name, value in (dict(only) | ({} if dataset is None else {"dataset": dataset})).items():
        if name not in frame:
            raise UsageError(f"table '{label}' has no column '{name}'; {did_you_mean(name, list(frame.columns))}")
        texts = frame[name].astype(str)
        keep = texts == value
        if not keep.any():
            raise UsageError(f"no row has {name} '{value}'; {did_you_mean(value, sorted(texts.unique()))}")
        frame = frame[keep]
    if "dataset" not in frame:
        return {label: frame}
    return {str(name): part for name, part in frame.groupby("dataset", sort=True)}


def later(table: Table, step: float) -> Table:
    """The rows whose step is not before this one.

    Raises:
        UsageError: there is no column `step`, or a cell of it is not a number.
    """
    if "step" not in table:
        raise UsageError("the table has no column 'step' to leave early steps out by")
    try:
        keep = [i for i, v in enumerate(table["step"]) if float(v) >= step]
    except (TypeError, ValueError):
        bad = next(i for i, v in enumerate(table["step"]) if not _is_number(v))
        raise UsageError(f"row {bad + 1}, column 'step': '{table['step'][bad]}' is not a number") from None
    return {k: [cells[i] for i in keep] for k, cells in table.items()}


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def rows(table: Table) -> int:
    """How many rows a table has."""
    return len(next(iter(table.values()), []))


def _read_folder(path: Path) -> Table:
    if (path / "study.yaml").exists():
        from forgetting.store.table import load_table

        frame = load_table(path)
        return {str(name): frame[name].tolist() for name in frame.columns}
    results = sorted(path.glob("*.json"))
    if not results:
        raise UsageError(f"{path}: neither a study folder (no study.yaml) nor a folder of PEFT results (no .json)")
    return from_records([_peft_row(file, _load_json(file)) for file in results])


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(files.read_text(path, encoding="utf-8-sig"), newline=""))
    try:
        return _csv_columns(reader, path)
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _csv_columns(reader: Any, path: Path) -> Table:
    names = [name.strip() for name in next(reader, [])]
    if not any(names):
        raise UsageError(f"{path}: the first line must name the columns, and it is empty")
    files.check_table(len(names), 0, str(path))
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"{path}: column '{min(doubled)}' is there twice")
    out: Table = {name: [] for name in names}
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(names):
            raise UsageError(f"{path}, line {reader.line_num}: {len(cells)} cells where there are {len(names)} columns")
        for name, cell in zip(names, cells, strict=True):
            out[name].append(cell.strip())
    if not rows(out):
        raise UsageError(f"{path}: no row below the column names")
    return out


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    out = [row for _, row in files.json_rows(path)]
    if not out:
        raise UsageError(f"{path}: no rows")
    return out


def _load_json(path: Path) -> Any:
    return files.parse_json(files.read_text(path, encoding="utf-8-sig"), str(path))


def _from_objects(path: Path, objects: Sequence[Mapping[str, Any]]) -> Table:
    """`from_records` of rows from outside, which could each name columns of their own."""
    names: set[str] = set()
    for row in objects:
        names.update(row)
        files.check_table(len(names), 0, str(path))
    files.check_table(len(names), len(objects), str(path))
    return from_records(objects)


def _read_json(path: Path) -> Table:
    content = _load_json(path)
    if isinstance(content, dict) and "run_info" in content:
        return from_records([_peft_row(path, content)])
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return normalise(_from_objects(path, content))
    raise UsageError(f"{path}: neither a list of objects, one a measurement, nor a PEFT result")


def _read_parquet(path: Path) -> Table:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
        files.check_table(metadata.num_columns, metadata.num_rows, str(path))
        frame = pd.read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a Parquet file ({(str(error).splitlines() or ['damaged'])[0]})") from None
    return normalise({str(name): frame[name].tolist() for name in frame.columns})


def _peft_row(path: Path, content: Any) -> dict[str, Any]:
    """One row of a result of PEFT's method_comparison: its last measurement, or what failed."""
    try:
        run, train = content["run_info"], content["train_info"]
        config = run["peft_config"] or {}
        last = train["metrics"][-1] if train["metrics"] else {}
        status = str(train["status"])
    except (KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{path}: not a PEFT result, {error} is missing") from None
    return {
        "dataset": path.parent.parent.name or "peft",
        "method": str(config.get("peft_type") or "full").lower(),
        "rank": config.get("r"),
        "run_id": run.get("experiment_name") or path.stem,
        "seed": (run.get("train_config") or {}).get("seed"),
        "status": "done" if status.lower() in FINISHED else status,
        "step": last.get("step"),
        "trainable_params": train.get("num_trainable_params"),
        "finetune_loss": last.get("train loss"),
        "test_accuracy": last.get("test accuracy"),
        "forgetting": last.get("forgetting"),
    }


def normalise(table: Table) -> Table:
    """MLflow's and W&B's names of runs, states, metrics and parameters become ours; other tables stay as they are."""
    out: Table = {}
    for name, cells in table.items():
        short = name.removeprefix("metrics.").removeprefix("params.")
        if short in out:
            raise UsageError(f"columns '{name}' and another one both mean '{short}'; rename one of them")
        out[short] = cells
    renames = (("Run ID", "run_id"), ("Status", "status"), ("State", "status"), ("Name", "run_id"), ("Step", "step"))
    for theirs, ours in renames:
        if theirs in out and ours not in out and not is_chart(table):
            out[ours] = out.pop(theirs)
    if "status" in out:
        out["status"] = ["done" if str(s).lower() in FINISHED else str(s).lower() for s in out["status"]]
    return out


def is_chart(table: Table) -> bool:
    """Whether a table is the export of a W&B chart: a step, and columns named `RUN - METRIC`."""
    names = list(table)
    return len(names) > 1 and not _CHART.match(names[0]) and all(_CHART.match(name) for name in names[1:])


def join_charts(charts: Sequence[Table], runs: Sequence[Table]) -> Table:
    """W&B charts as one long table, one row a run and step, with the columns of the runs table repeated.

    Args:
        charts: exports of charts; columns `RUN - METRIC`, their `__MIN` and `__MAX` are left out.
        runs: exports of the runs table; joined by the run's name.
    """
    about: dict[str, dict[str, Any]] = {}
    for table in runs:
        if "run_id" not in table:
            raise UsageError("beside W&B charts only the export of the runs table can be read; it has a column Name")
        for i, name in enumerate(table["run_id"]):
            about[str(name)] = {k: cells[i] for k, cells in table.items()}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for table in charts:
        names = list(table)
        for name in names[1:]:
            parts = _CHART.match(name)
            if parts is None or parts["band"]:
                continue
            for step, cell in zip(table[names[0]], table[name], strict=True):
                if cell not in ("", None):
                    row = found.setdefault((parts["run"], str(step)), {"run_id": parts["run"], "step": step})
                    row[parts["metric"]] = cell
    if runs:
        missing = sorted({run for run, _ in found} - set(about))
        if missing:
            raise UsageError(f"run '{missing[0]}' of a chart is not in the export of the runs table")
    return from_records([about.get(row["run_id"], {}) | row for row in found.values()])
