"""The study folder: plain files that any number of processes may read and one a run may write.

study.yaml                        the configuration, as resolved
runs/<run_id>/run.json            the run's configuration, revisions, versions, hardware, status
runs/<run_id>/measurements.jsonl  one row a measured step, flushed to disk
runs/<run_id>/adapter/            the tuned weights; runs/<run_id>/checkpoints/ while it runs
cache/                            base targets; may be deleted
fits.json  report.html
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa

from .. import files
from ..config.files import parse_yaml
from ..config.schema import StudyConfig, validate
from ..errors import ForgettingError, UsageError
from . import table_cache

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

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
    "alpha": "share of the way from the base model to the trained one, after training; empty for the trained model",
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
    "peak_memory": "most memory that training took so far, MiB: allocated on a GPU, of the whole process on a CPU",
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
COSTS = ("train_seconds", "measure_seconds", "peak_memory")
"""What differs from one execution of a run to the next."""


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


def _open_own(path: Path, mode: str) -> IO[str]:
    """Open a file of a run for writing; a link in its place, which would lead the writing elsewhere, is refused.

    Raises:
        ForgettingError: the file is a link.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    try:
        return open(path, mode, encoding="utf-8", opener=opener)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ForgettingError(f"{path}: a symbolic link; a run's files must be its own") from None
        raise


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
        return table_cache.read_run(self.path / "run.json")

    def update(self, **fields: Any) -> None:
        """Set fields of run.json, the others stay."""
        content = {"schema": table_cache.RUN_SCHEMA, **self.read(), **files.redact_all(fields)}
        write_atomically(self.path / "run.json", json.dumps(content, indent=1) + "\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one measurement; it is on the disk when this returns.

        A standard error that does not exist (one document) is null.
        """
        line = json.dumps({key: None if value != value else value for key, value in row.items()}, allow_nan=False)
        with _open_own(self.path / "measurements.jsonl", "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def measurements(self) -> list[dict[str, Any]]:
        """The measured rows, in order. A last line cut short by a crash is left out.

        Raises:
            ForgettingError: a line before the last one is damaged; names it.
        """
        file = self.path / "measurements.jsonl"
        return table_cache.parse_rows(table_cache.whole_lines(file), file)

    def keep_until(self, step: int) -> None:
        """Drop the rows measured after `step`, which a resumed run measures again."""
        kept = [row for row in self.measurements() if row["step"] <= step]
        write_atomically(self.path / "measurements.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; the operating system lets go of it when the process dies.

        Raises:
            HeldError: another process holds it; names it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _open_own(self.path / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HeldError(f"run {self.id}: held by {self._holder()}") from None
            since = datetime.now(UTC).isoformat(timespec="seconds")
            who = json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since})
            with suppress(OSError):  # a full disk: the lock holds without a name in it
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), who.encode())
            yield

    def _holder(self) -> str:
        """Who wrote the lock, in words; only to be read by people."""
        try:
            who = json.loads((self.path / "lock").read_bytes()[:1000])
            return f"process {who['pid']} on {who['host']} since {who['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def held_by(self) -> str | None:
        """Which process holds the run, in words, or None."""
        try:
            with self.lock():
                return None
        except HeldError as error:
            return str(error).split("held by ", 1)[1]


class Onlooker(RunFolder):
    """The same run seen by a process that helps to do it and writes nothing: the main one does."""

    def update(self, **fields: Any) -> None:
        """Left to the main process."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Left to the main process."""

    def keep_until(self, step: int) -> None:
        """Left to the main process."""


class HeldError(ForgettingError):
    """Another process holds the run."""


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
        text = files.read_text(self.config_file, limit=files.MAX_CONFIG)
        return validate(parse_yaml(text, where=str(self.config_file)), where=str(self.config_file))

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run, whether it has begun or not.

        Raises:
            UsageError: what came is no run id: it has a separator or another character that no id has.
        """
        if not RUN_ID.fullmatch(run_id):
            raise UsageError(f"run '{run_id[:80]}': not a run id: letters, digits, '.', '_' and '-' only")
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
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in found]


def fitted_rows(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """The rows that the laws are fitted on: ended, plain runs of the study's first method, from `measure.start` on.

    The laws are of one method's grid; the paper fits LoRA ranks and predicts other methods from them (Appendix B).
    Rows of failed runs stay, marked by `status`: the fit leaves them out by name.
    """
    first = config.methods[0].label or config.methods[0].name
    plain = (table["label"] == first) & (table["mitigation"] == "")
    plain &= table["alpha"].isna()
    return table[plain & (table["step"] >= config.measure.start) & (table["status"] != "running")]


def load_table(path: Path) -> pd.DataFrame:
    """One row a measurement of a study, under the columns of COLUMNS and their standard errors.

    Rows of failed runs are there, marked by `status`; a run that failed before its first measurement has none.

    Raises:
        UsageError: not a study folder.
        ForgettingError: a damaged file; names it.
    """
    names = [name for column in COLUMNS for name in ([column, f"{column}_se"] if column in MEANS else [column])]
    measured = [name for name in names if name not in ("run_id", *table_cache.TEXTS, *table_cache.WHOLES)]
    means = {name for name in measured if name.removesuffix("_se") in (*MEANS, *COSTS, "alpha")}
    found = table_cache.read_rows(
        StudyFolder.open(path).path, {name: float if name in means else int for name in measured}
    )
    table = found.select(names).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get, split_blocks=True)
    texts: pd.DataFrame = table.astype(dict.fromkeys(("run_id", *table_cache.TEXTS), "str"))
    return texts
