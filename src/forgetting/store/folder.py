"""The study folder: plain files that any number of processes may read and one a run may write.

study.yaml                        the configuration, as resolved
runs/<run_id>/run.json            the run's configuration, revisions, versions, hardware, status
runs/<run_id>/measurements.jsonl  one row a measured step, flushed to disk
runs/<run_id>/adapter/            the tuned weights; runs/<run_id>/checkpoints/ while it runs
cache/                            base targets; may be deleted
fits.json  report.html
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import files
from ..config.files import parse_yaml
from ..config.schema import StudyConfig, validate
from ..errors import ForgettingError, UsageError
from ..files import hold, open_own, write_atomically
from . import table_cache

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


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
        return table_cache.read_run(self._own("run.json"))

    def _own(self, name: str) -> Path:
        """A file of the run, which is no link, nor lies behind one inside the study."""
        return files.refuse_link(self.path / name, self.path.parent.parent)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json, the others stay."""
        content = {"schema": table_cache.RUN_SCHEMA, **self.read(), **files.redact_all(fields)}
        write_atomically(self._own("run.json"), json.dumps(content, indent=1) + "\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one measurement; it is on the disk when this returns.

        What does not exist is None in the row (`quantities.row`); a number that is not finite is refused.
        """
        line = json.dumps(dict(row), allow_nan=False)
        with open_own(self._own("measurements.jsonl"), "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def measurements(self) -> list[dict[str, Any]]:
        """The measured rows, in order. A last line cut short by a crash is left out.

        Raises:
            ForgettingError: a line before the last one is damaged; names it.
        """
        file = self._own("measurements.jsonl")
        return table_cache.parse_rows(table_cache.whole_lines(file), file)

    def keep_until(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows measured after `step`, which a resumed run measures again; the rows that stay."""
        kept = [row for row in self.measurements() if row["step"] <= step]
        write_atomically(self.path / "measurements.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; the operating system lets go of it when the process dies.

        Raises:
            HeldError: another process holds it; names it.
            UsageError: the run's folder is a link, or one lies in it.
        """
        files.refuse_link(self.path, self.path.parent.parent)
        self.path.mkdir(parents=True, exist_ok=True)
        files.refuse_links(self.path)
        with ExitStack() as held:
            try:
                file = held.enter_context(hold(self.path / "lock"))
            except BlockingIOError:
                raise HeldError(f"run {self.id}: held by {self._holder()}") from None
            since = datetime.now(UTC).isoformat(timespec="seconds")
            who = json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since})
            with suppress(OSError):  # a full disk: the lock holds without a name in it
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f" {who}".encode())
            yield

    def _holder(self) -> str:
        """Who wrote the lock, in words; only to be read by people."""
        try:
            with (self.path / "lock").open("rb", buffering=0) as file:
                file.seek(1)  # Windows lets nobody read the byte that is locked
                who = json.loads(file.read(1000))
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

    def keep_until(self, step: int) -> list[dict[str, Any]]:
        """The rows that stay; dropping the others is left to the main process."""
        return [row for row in self.measurements() if row["step"] <= step]


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
        self._refuse_links()
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file; out (--out) needs a folder")
        if self.config_file.exists():
            stored = self.config()
            if stored != config:
                raise UsageError(
                    f"{self.path} holds a study of another configuration ({_differences(stored, config)}); "
                    "name another folder with out (--out)"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise UsageError(
                f"{self.path}: not empty and not a study folder (no study.yaml); name another with out (--out)"
            )

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """An existing study.

        Raises:
            UsageError: not a study folder, or a link lies in it.
        """
        if not path.exists():
            raise UsageError(f"{path}: no such folder")
        if not (path / "study.yaml").is_file():
            raise UsageError(f"{path}: not a study folder (no study.yaml in it)")
        folder = cls(path)
        folder._refuse_links()
        return folder

    def _refuse_links(self) -> None:
        """Refuse links to what a study reads and writes; inside a run's folder, whoever holds the run looks for them.

        Raises:
            UsageError: names the link.
        """
        files.refuse_links(self.path, deep=False)
        files.refuse_links(self.path / "runs", deep=False)
        files.refuse_links(self.path / "cache")

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
