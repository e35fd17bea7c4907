"""The study folder: plain files that any number of processes may read and one a run may write.

study.yaml                        the configuration, as resolved
runs/<run_id>/run.json            the run's configuration, revisions, versions, hardware, status
runs/<run_id>/measurements.jsonl  one row a measured step, flushed to disk
runs/<run_id>/adapter/            the tuned weights; runs/<run_id>/checkpoints/ while it runs
cache/                            base targets; may be deleted
fits.json  report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from .config import StudyConfig, validate
from .config_files import parse_yaml
from .errors import ForgettingError, UsageError

RUN_SCHEMA = 1

COLUMNS: dict[str, str] = {
    "dataset": "name of the fine-tuning data set",
    "method": "name of the fine-tuning method",
    "label": "what the study calls the method: its label, or its name",
    "mitigation": "what holds forgetting back, with its options; empty for nothing",
    "rank": "rank of the method, where it has one",
    "seed": "seed of initialisation and data order",
    "run_id": "the run's folder under runs/",
    "status": "running, done or failed",
    "step": "N, update steps so far; 0 is the base model",
    "trainable_params": "P, trainable parameters",
    "finetune_loss": "L_ft, nats/token on held-out fine-tuning data",
    "forgetting_loss": "L_f, nats/token against the base model's argmax tokens on the general text",
    "forgetting_floor": "L_f of the base model itself",
    "forgetting": "L_f - floor",
    "agreement": "share of positions with the base model's top token",
    "data_loss_base": "ground-truth loss of the base model on the general text, nats/token",
    "data_loss_tuned": "the same of the tuned model",
    "finetune_tokens": "targets that finetune_loss is over",
    "finetune_documents": "documents that they lie in",
    "text_tokens": "targets that the losses on general text are over",
    "text_documents": "documents that they lie in",
    "train_tokens": "tokens trained on so far, padding left out",
    "train_seconds": "training time so far",
    "measure_seconds": "measuring time so far",
}
"""Columns of the table and what they mean. Each mean has its standard error beside it under `<column>_se`."""

MEANS = (
    "finetune_loss",
    "forgetting_loss",
    "forgetting_floor",
    "forgetting",
    "agreement",
    "data_loss_base",
    "data_loss_tuned",
)
TIMES = ("train_seconds", "measure_seconds")


def write_atomically(path: Path, text: str) -> Path:
    """Write a file so that a reader, or a crash, sees the old content or the new and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The run's id, the name of its folder."""
        return self.path.name

    def read(self) -> dict[str, Any]:
        """run.json; empty where the run has not begun.

        Raises:
            ForgettingError: the file is damaged.
        """
        file = self.path / "run.json"
        if not file.exists():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ForgettingError(f"{file}: damaged ({error}); delete the run's folder to run it again") from None
        if not isinstance(content, dict) or content.get("schema") != RUN_SCHEMA:
            came = content.get("schema") if isinstance(content, dict) else type(content).__name__
            raise ForgettingError(f"{file}: schema {came}, this version reads {RUN_SCHEMA}")
        return content

    def update(self, **fields: Any) -> None:
        """Set fields of run.json, the others stay."""
        content = {"schema": RUN_SCHEMA, **self.read(), **fields}
        write_atomically(self.path / "run.json", json.dumps(content, indent=1) + "\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one measurement; it is on the disk when this returns.

        A standard error that does not exist (one document) is null.
        """
        line = json.dumps({key: None if value != value else value for key, value in row.items()}, allow_nan=False)
        with (self.path / "measurements.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def measurements(self) -> list[dict[str, Any]]:
        """The measured rows, in order. A last line cut short by a crash is left out.

        Raises:
            ForgettingError: a line before the last one is damaged; names it.
        """
        file = self.path / "measurements.jsonl"
        if not file.exists():
            return []
        lines = file.read_bytes().split(b"\n")
        # A whole line ends in a line break, so what follows the last break was cut.
        rows = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise ForgettingError(
                    f"{file}, line {number}: damaged; delete the run's folder to run it again"
                ) from None
        return rows

    def keep_until(self, step: int) -> None:
        """Drop the rows measured after `step`, which a resumed run measures again."""
        kept = [row for row in self.measurements() if row["step"] <= step]
        write_atomically(self.path / "measurements.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; the operating system lets go of it when the process dies.

        Raises:
            ForgettingError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ForgettingError(f"run {self.id}: another process is running it in this study folder") from None
            yield


class StudyFolder:
    """A study on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create_or_resume(cls, path: Path, config: StudyConfig) -> StudyFolder:
        """The folder of `config`: a new one, or the one that already holds this very study.

        Raises:
            UsageError: the folder holds something else, or a study of another configuration; names what differs.
        """
        folder = cls(path)
        folder.check(config)
        if not folder.config_file.exists():
            try:
                write_atomically(folder.config_file, config.to_yaml())
            except OSError as error:
                raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
        return folder

    def check(self, config: StudyConfig) -> None:
        """Whether the folder is free for `config`; writes nothing.

        Raises:
            UsageError: as `create_or_resume`.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file; --out needs a folder")
        if self.config_file.exists():
            stored = self.config()
            if stored != config:
                raise UsageError(
                    f"{self.path} holds a study of another configuration ({_differences(stored, config)}); "
                    "name another folder with --out"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise UsageError(f"{self.path}: not empty and not a study folder (no study.yaml); name another with --out")

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """An existing study.

        Raises:
            UsageError: not a study folder.
        """
        if not path.exists():
            raise UsageError(f"{path}: no such folder")
        if not (path / "study.yaml").is_file():
            raise UsageError(f"{path}: not a study folder (no study.yaml in it)")
        return cls(path)

    @property
    def config_file(self) -> Path:
        """study.yaml."""
        return self.path / "study.yaml"

    def config(self) -> StudyConfig:
        """The study's configuration, as resolved when it began."""
        text = self.config_file.read_text(encoding="utf-8")
        return validate(parse_yaml(text, where=str(self.config_file)), where=str(self.config_file))

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run, whether it has begun or not."""
        return RunFolder(self.path / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """The runs that have begun, by id."""
        return [RunFolder(file.parent) for file in sorted((self.path / "runs").glob("*/run.json"))]


def _differences(stored: StudyConfig, wanted: StudyConfig) -> str:
    """The first fields in which two configurations differ, with both values."""

    def flat(value: Any, path: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {k: v for key, item in value.items() for k, v in flat(item, f"{path}.{key}".lstrip(".")).items()}
        return {path: value}

    old, new = flat(stored.model_dump(mode="json")), flat(wanted.model_dump(mode="json"))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [f"{key}: there {_short(old.get(key))}, now {_short(new.get(key))}" for key in changed[:3]]
    return "; ".join(shown) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain objects, every digit kept, what is missing as None."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def fitted_rows(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """The rows that the laws are fitted on: ended, plain runs of the study's first method, from `measure.start` on.

    The laws are of one method's grid; the paper fits LoRA ranks and predicts other methods from them (Appendix B).
    Rows of failed runs stay, marked by `status`: the fit leaves them out by name.
    """
    first = config.methods[0].label or config.methods[0].name
    plain = (table["label"] == first) & (table["mitigation"] == "")
    return table[plain & (table["step"] >= config.measure.start) & (table["status"] != "running")]


def load_table(path: Path) -> pd.DataFrame:
    """One row a measurement of a study, under the columns of COLUMNS and their standard errors.

    Rows of failed runs are there, marked by `status`; a run that failed before its first measurement has none.

    Raises:
        UsageError: not a study folder.
        ForgettingError: a damaged file; names it.
    """
    rows = []
    for folder in StudyFolder.open(path).runs():
        run = folder.read()
        shared = {
            "dataset": run["dataset"],
            "method": run["method"]["name"],
            "label": run.get("label", run["method"]["name"]),
            "mitigation": run.get("mitigation", ""),
            "rank": run["method"].get("rank"),
            "seed": run["seed"],
            "run_id": folder.id,
            "status": run["status"],
            "trainable_params": run.get("trainable_params"),
        }
        rows += [{**shared, **row} for row in folder.measurements()]
    names = [name for column in COLUMNS for name in ([column, f"{column}_se"] if column in MEANS else [column])]
    table = pd.DataFrame(rows, columns=names)
    whole = (
        "rank",
        "seed",
        "step",
        "trainable_params",
        *(name for name in names if name.endswith(("_tokens", "_documents"))),
    )
    numbers = [name for name in names if name.removesuffix("_se") in (*MEANS, *TIMES)]
    return table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, "float64"))
