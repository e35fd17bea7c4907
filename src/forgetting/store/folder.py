"""The study folder: plain files that any number of processes may read, and one process per run may write.

study.yaml                        the resolved configuration; history/ has the earlier ones of a study that grew
runs/<run_id>/run.json            the run's configuration, revisions, versions, hardware, status
runs/<run_id>/measurements.jsonl  one row per measured step, flushed to disk
runs/<run_id>/adapter/            the tuned weights; runs/<run_id>/checkpoints/ during the run
cache/                            base targets and parsed rows; may be deleted
fits.json  report.html
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .. import files
from ..config.files import parse_yaml
from ..config.schema import StudyConfig, validate
from ..errors import ForgettingError, UsageError
from ..files import hold, open_own, write_atomically
from . import chain, growth, run_files
from .columns import DAMAGED
from .run_files import DamagedError

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


RUN_FILES = {
    *("run.json", "measurements.jsonl", "lock", "checkpoints", "adapter", "adapter.partial", "error.txt"),
    "tracking.json",
}
"""What a run's folder may contain."""
STUDY_FILES = {
    *("runs", "cache", "history", "lock", "capabilities", "repeats", "fits.json", "compare.json", "report.html"),
    *("tracking", "tracking.json", "pilot.json", "plan.yaml"),
}
"""What a study folder may contain besides study.yaml."""


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: IO[str] | None = None
        self._chain: chain.Chain | None = None
        self.after_row: Callable[[], None] | None = None  # called after each row is on disk

    @property
    def id(self) -> str:
        """The run's id, the name of its folder."""
        return self.path.name

    def check_there(self) -> None:
        """Check that the folder which this process has locked still exists and is the same one.

        Raises:
            GoneError: it was deleted or moved.
        """
        if self._held is None:
            return
        try:
            there = os.path.samestat((self.path / "lock").stat(), os.fstat(self._held.fileno()))
        except OSError:
            there = False
        if not there:
            raise GoneError(self.path)

    def read(self) -> dict[str, Any]:
        """The content of run.json; empty if the run has not started.

        Raises:
            DamagedError: the file is damaged, or belongs to another run.
        """
        return run_files.read_run(self._own("run.json"))

    def _own(self, name: str) -> Path:
        """The path of a file of the run; refused if it, or a folder above it inside the study, is a link."""
        return files.refuse_link(self.path / name, self.path.parent.parent)

    def update(self, **fields: Any) -> None:
        """Set these fields of run.json, without secrets, and keep the others.

        Raises:
            DamagedError: run.json is damaged.
            GoneError: the folder was deleted or moved while this process had it locked.
        """
        self.check_there()
        content = {"schema": run_files.RUN_SCHEMA, **self.read(), **files.redact_all(fields)}
        write_atomically(self._own("run.json"), json.dumps(content, indent=1) + "\n", parents=self._held is None)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one measurement; it is on disk when this returns.

        Missing values are None in the row (`quantities.row`).

        Raises:
            ValueError: a number is not finite.
        """
        line = json.dumps(dict(row), allow_nan=False)
        self.check_there()
        with open_own(self._own("measurements.jsonl"), "a", make=self._held is None) as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._chain is not None:
            self._chain = self._chain.after(row)
        if self.after_row is not None:
            self.after_row()

    def measurements(self) -> list[dict[str, Any]]:
        """The measured rows, in order, without a last line that was cut off by a crash.

        Raises:
            DamagedError: a line before that is damaged; names it.
        """
        file = self._own("measurements.jsonl")
        return run_files.parse_rows(run_files.whole_lines(file), file)

    def keep_until(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows after `step`, which a resumed run measures again, and return the remaining rows."""
        kept = self._until(step)
        self.check_there()
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self._own("measurements.jsonl"), text, parents=self._held is None)
        self._chain = chain.chain_of(kept)
        return kept

    def _until(self, step: int) -> list[dict[str, Any]]:
        if step < 0:
            return []
        return [row for row in self.measurements() if isinstance(row.get("step"), int) and row["step"] <= step]

    def written(self) -> dict[str, Any]:
        """The number of rows and the head of their chain, as stored in a checkpoint."""
        so_far = self._chain or chain.chain_of(self.measurements())
        return {"rows": so_far.rows, "chain": so_far.head}

    def seal(self, **fields: Any) -> None:
        """Set fields of a finished run's run.json, and store hashes of its rows, by which later changes are detected.

        Raises:
            ForgettingError: the rows on disk are not those that this process wrote.
        """
        file = self._own("measurements.jsonl")
        content = run_files.whole_lines(file)
        rows = run_files.parse_rows(content, file)
        sealed = chain.seal(rows, content)
        if self._chain is not None and (self._chain.rows, self._chain.head) != (sealed["rows"], sealed["chain"]):
            raise ForgettingError(f"{file}: changed by another process while the run wrote it")
        self.update(**fields, measured=sealed)

    def state(self) -> dict[str, Any]:
        """As `read`, but for a damaged run.json a record with `status` DAMAGED and the reason in `why`."""
        try:
            return self.read()
        except DamagedError as error:
            return {"run_id": self.id, "status": DAMAGED, "why": error.why}

    def flaw(self) -> str:
        """What is wrong with the run's files, in words; empty if nothing is."""
        record_file, file = self._own("run.json"), self._own("measurements.jsonl")
        try:
            record, content = self.read(), run_files.whole_lines(file)
            if not record:
                return "run.json is missing, so measurements.jsonl belongs to no known run" if content else ""
            run_files.shared_by_rows(record, record_file)
        except DamagedError as error:
            return error.why
        try:
            cells = run_files.cells_of(content, file, run_files.row_kinds(_texts_of(record)))
            found = chain.misplaced(record, list(zip(cells["step"], cells["alpha"], strict=True)))
            found = found or chain.unmeasured(record, list(zip(*(cells[name] for name in chain.NEEDED), strict=True)))
        except DamagedError as error:
            found = error.why
        lost = chain.broken(record, content, content.count(b"\n"))
        return "; ".join(filter(None, (lost, found if content or not lost else "")))

    def damage(self) -> str:
        """What is wrong with the run's files and what to do about it; empty if nothing is wrong."""
        why = self.flaw()
        return f"{why}; restore the file, or delete {self.path} and run the study again" if why else ""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for this process; the operating system releases the lock when the process ends.

        Raises:
            HeldError: another process has locked it; names the process.
            GoneError: the study's folder does not exist.
            UsageError: the run's folder is a link or contains one.
        """
        files.refuse_link(self.path, self.path.parent.parent)
        try:
            self.path.parent.mkdir(exist_ok=True)
            self.path.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise GoneError(self.path) from None
        files.refuse_links(self.path)
        with ExitStack() as held:
            try:
                file = held.enter_context(hold(self.path / "lock"))
            except BlockingIOError:
                raise HeldError(f"run {self.id}: held by {self._holder()}") from None
            since = datetime.now(UTC).isoformat(timespec="seconds")
            who = json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since})
            with suppress(OSError):  # on a full disk; the lock works without the process's name in it
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f" {who}".encode())
            self._held = file
            try:
                yield
            finally:
                self._held = None

    def _holder(self) -> str:
        """The process named in the lock file, for messages."""
        try:
            with (self.path / "lock").open("rb", buffering=0) as file:
                file.seek(1)  # Windows lets no other process read the locked byte
                who = json.loads(file.read(1000))
            return f"process {who['pid']} on {who['host']} since {who['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def held_by(self) -> str | None:
        """The process that has locked the run, in words; None if none has."""
        if not self.path.exists():
            return None
        try:
            with self.lock():
                return None
        except HeldError as error:
            return str(error).split("held by ", 1)[1]


def _texts_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The further texts that a run is measured on, from its own stored configuration."""
    config = record.get("config")
    texts = config.get("texts") if isinstance(config, Mapping) else None
    return texts if isinstance(texts, Mapping) else {}


class ReadOnlyRun(RunFolder):
    """The folder of a run for its processes other than the main one, which alone writes to it."""

    def update(self, **fields: Any) -> None:
        """Do nothing; the main process writes."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Do nothing; the main process writes."""

    def keep_until(self, step: int) -> list[dict[str, Any]]:
        """Return the rows up to `step`; the main process drops the others."""
        return self._until(step)

    def seal(self, **fields: Any) -> None:
        """Do nothing; the main process writes."""


class HeldError(ForgettingError):
    """Another process has locked the run."""


class GoneError(ForgettingError):
    """The folder of a run or study was deleted or moved during a run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path}: deleted or moved during the run, which stops and writes nothing there: "
            "`forgetting study FOLDER` resumes what is left, in its new place"
        )


class StudyFolder:
    """A study on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create_or_resume(cls, path: Path, config: StudyConfig) -> StudyFolder:
        """Create the folder of a study, or open an existing one of the same study or of one that can grow into it.

        Args:
            path: the study folder.
            config: the study's configuration, which is stored in study.yaml.

        Raises:
            UsageError: the folder contains something else, a study that cannot grow into this one, or a study that
                would grow while a process executes one of its runs; or it cannot be written. Names what differs.
        """
        folder = cls(path)
        folder.check(config)
        try:
            if not folder.config_file.exists():
                write_atomically(folder.config_file, config.to_yaml())
            elif not (stored := folder.config()).is_same(config):
                folder._grow(config)
            elif stored != config:  # only the trackers differ
                write_atomically(folder.config_file, config.to_yaml(), parents=False)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
        return folder

    def _grow(self, config: StudyConfig) -> None:
        """Replace the stored configuration, and keep the old one in the history."""
        try:
            with hold(self.path / "lock"):
                self.check(config)
                growth.History(self.path).keep(files.read_text(self.config_file, limit=files.MAX_CONFIG))
                write_atomically(self.config_file, config.to_yaml(), parents=False)
        except BlockingIOError:
            raise UsageError(
                f"{self.path}: another process is changing this study; try again when it is done"
            ) from None

    def _refuse_busy(self, found: str) -> None:
        """Refuse to change the configuration while a process executes a run.

        Args:
            found: what would change, in words.

        Raises:
            UsageError: names the process and what would change.
        """
        for run in self.folders():
            if (run.path / "lock").exists() and (who := run.held_by()):
                raise UsageError(
                    f"{self.path}: cannot change ({found}) while {who} executes run {run.id}; wait until it has "
                    "ended, or stop it, then run the same command again"
                )

    def check(self, config: StudyConfig) -> None:
        """Check that `create_or_resume` would accept this configuration; writes nothing.

        Raises:
            UsageError: as `create_or_resume`.
        """
        self._refuse_links()
        for run in self.folders():
            files.refuse_links(run.path, deep=False)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file; out (--out) needs a folder")
        if self.config_file.exists():
            stored = self.config()
            if not stored.is_same(config):
                growth.refuse(stored, config, self.path)
                self._refuse_busy(growth.told(growth.differences(stored, config)))
        elif self.path.exists() and any(self.path.iterdir()) and not self._lacks_only_its_config():
            raise UsageError(
                f"{self.path}: neither empty nor a study folder (no study.yaml); choose another with out (--out)"
            )

    def check_there(self) -> None:
        """Check that the study still exists.

        Raises:
            GoneError: it was deleted or moved. Files that were written in its old place since then are deleted.
        """
        if not self.config_file.exists():
            self._delete_leftovers()
            raise GoneError(self.path)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace a FileNotFoundError of the block if its cause is that the study was deleted or moved.

        Raises:
            GoneError: the study was deleted or moved.
        """
        try:
            yield
        except FileNotFoundError:
            self.check_there()
            raise

    def _delete_leftovers(self) -> None:
        """Delete caches, locks and incomplete weights in the old place of a moved study, and nothing else."""
        for run in (self.path / "runs").glob("*"):
            if run.is_dir() and {entry.name for entry in run.iterdir()} <= {"lock", "checkpoints", "adapter.partial"}:
                shutil.rmtree(run, ignore_errors=True)
        with suppress(OSError):
            (self.path / "runs").rmdir()
        with suppress(OSError):
            if [entry.name for entry in self.path.iterdir()] == ["cache"]:
                shutil.rmtree(self.path / "cache", ignore_errors=True)
            self.path.rmdir()

    def _lacks_only_its_config(self) -> bool:
        """Whether this is a study folder without study.yaml: it has runs, and nothing that a study does not write."""
        if {entry.name for entry in self.path.iterdir()} - STUDY_FILES:
            return False
        runs = list((self.path / "runs").glob("*"))
        inside = [{entry.name for entry in run.glob("*")} for run in runs if RUN_ID.fullmatch(run.name)]
        return bool(runs) and len(inside) == len(runs) and all(names and names <= RUN_FILES for names in inside)

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """Open an existing study.

        Raises:
            UsageError: not a study folder, or it contains a link.
        """
        if not path.exists():
            raise UsageError(f"{path}: no such folder")
        if not (path / "study.yaml").exists():
            raise UsageError(f"{path}: not a study folder (it has no study.yaml)")
        folder = cls(path)
        folder._refuse_links()
        return folder

    def _refuse_links(self) -> None:
        """Refuse links in a study folder; links in a run's folder are refused when the run is locked.

        Raises:
            UsageError: names the link.
        """
        files.refuse_links(self.path, deep=False)
        files.refuse_links(self.path / "runs", deep=False)
        files.refuse_links(self.path / "cache")

    @property
    def config_file(self) -> Path:
        """The path of study.yaml."""
        return self.path / "study.yaml"

    def config(self) -> StudyConfig:
        """The study's resolved configuration, from study.yaml.

        Raises:
            UsageError: the file is missing, unreadable or invalid.
        """
        files.check_plain(self.config_file)
        text = files.read_text(self.config_file, limit=files.MAX_CONFIG)
        return validate(parse_yaml(text, where=str(self.config_file)), where=str(self.config_file))

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run, which need not exist yet.

        Raises:
            UsageError: not a run id, for example because it contains a path separator.
        """
        if not RUN_ID.fullmatch(run_id):
            raise UsageError(f"run '{run_id[:80]}': not a run id: letters, digits, '.', '_' and '-' only")
        return RunFolder(self.path / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """The runs that have started, sorted by id."""
        return [run for run in self.folders() if (run.path / "run.json").exists()]

    def folders(self) -> list[RunFolder]:
        """Every entry of runs/, whether it is a run or not, sorted by name; none if there is no such folder.

        Raises:
            UsageError: the folder cannot be read.
        """
        runs, names = self.path / "runs", []
        try:
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(runs) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            raise UsageError(f"{runs}: cannot be read: {error.strerror}") from None
        return [RunFolder(runs / name) for name in names]
