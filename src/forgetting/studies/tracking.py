"""Sends a study's rows to experiment trackers, each after it is on disk, and the fitted laws at the end.

A file in the run's folder counts the rows sent, so that a resumed run sends no row twice, and rows that a tracker
missed are sent at the end of the study. A tracker cannot end a run or change its numbers.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import logging
import math
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..config.schema import RunConfig, StudyConfig
from ..errors import ForgettingError, UsageError
from ..measuring.quantities import logged
from ..models import processes
from ..store.folder import HeldError, RunFolder, StudyFolder
from ..tuning.stopping import StoppedError
from .trackers import TRACKERS, Opening, Outcome, Tracker

if TYPE_CHECKING:
    from ..analysis.fit import Fit

log = logging.getLogger(__name__)
MARK = "tracking.json"
"""Name of the file that records what was sent: rows in a run's folder, laws in the study folder."""
FOLDER = "tracking"
"""Folder in the study folder for files that trackers write."""
LONGEST_NAME = 100
"""Most characters of a run's id that a tracker's id contains; some trackers allow 128 in all."""


def check(config: StudyConfig) -> None:
    """Check that the configured trackers can be used, before any run starts.

    Raises:
        UsageError: a tracker is not installed, or could not record anything.
    """
    for name in config.tracking:
        kind = TRACKERS.find(name)
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"tracking: {name} is not installed; run: pip install {kind.package}")
        if why := kind.unready():
            raise UsageError(f"tracking: {name} {why}")


@contextmanager
def followed(study: StudyFolder, config: StudyConfig, folder: RunFolder, run: RunConfig) -> Iterator[None]:
    """Send a run's rows to the trackers as the block writes them, preceded by stored rows that were not sent yet."""
    if not config.tracking or not processes.is_main():
        yield
        return
    follower = Follower(folder, config, run, study.path, set(), folder_notice(folder))
    folder.after_row = follower.catch_up
    outcome: Outcome = "failed"
    try:
        yield
        outcome = "done"
    except StoppedError:
        outcome = "stopped"
        raise
    finally:
        folder.after_row = None
        follower.close(outcome)


def folder_notice(folder: RunFolder) -> Callable[[str], None]:
    """A function that adds a sentence to the notices in a run's record."""

    def notice(sentence: str) -> None:
        folder.update(notices=[*folder.read().get("notices", []), sentence])

    return notice


def finish(
    study: StudyFolder, config: StudyConfig, runs: Mapping[str, RunConfig], fits: Mapping[str, Mapping[str, Fit]]
) -> None:
    """Send the rows of finished runs that trackers missed, then the laws as a further run named `laws`.

    Args:
        study: the study folder.
        config: names the trackers.
        runs: the configuration's runs by id.
        fits: fitted laws by data set and name.
    """
    failed: set[str] = set()
    for run_id, run in runs.items() if config.tracking else ():
        folder = study.run(run_id)
        if folder.state().get("status") == "done":
            with suppress(HeldError), folder.lock():
                follower = Follower(folder, config, run, study.path, failed)
                follower.catch_up()
                follower.close("done")
    _send_laws(study, config, fits, failed)


class Follower:
    """Sends the stored rows of one run to trackers, each row once."""

    def __init__(
        self,
        folder: RunFolder,
        config: StudyConfig,
        run: RunConfig,
        study: Path,
        failed: set[str],
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Read how much was sent before.

        Args:
            folder: the run's folder, whose lock this process holds.
            config: names the trackers.
            run: the run's configuration.
            study: the study folder.
            failed: names of trackers that failed, which are not used again; further failures are added to it.
            notice: called with one sentence for each failure.
        """
        self._folder, self._notice, self._failed = folder, notice, failed
        self._names, self._open = config.tracking, dict[str, Tracker]()
        self._mark = Mark(folder.path / MARK, study)
        rank = run.method.options.get("rank")
        tags = {
            "dataset": run.dataset_name,
            "method": run.method.label or run.method.name,
            **({"rank": rank} if rank is not None else {}),
            **({"mitigations": "+".join(one.name for one in run.mitigations)} if run.mitigations else {}),
            "seed": run.seed,
        }
        content = {"study": study.resolve().name, "run_id": folder.id, **run.model_dump(mode="json")}
        content["method"].pop("mitigations", None)  # all alternatives; this run's are in the field `mitigations`
        self._opening = _opening(folder.id, self._mark.key, config, content, tags, study)

    def catch_up(self) -> None:
        """Send each tracker the stored rows that it does not have."""
        for name in self._names:
            if name not in self._failed:
                self._attempt(name, functools.partial(self._send, name))

    def _send(self, name: str) -> None:
        for row in self._folder.measurements()[self._mark.sent.get(name, 0) :]:
            if name not in self._open:
                self._mark.write()  # store the id before sending anything under it
                self._open[name] = TRACKERS[name](self._opening)
            self._open[name].log(numbers(row), int(row["step"]))
            self._mark.sent[name] = self._mark.sent.get(name, 0) + 1
            self._mark.write()

    def close(self, outcome: Outcome) -> None:
        """Close the trackers' runs."""
        for name, tracker in self._open.items():
            self._attempt(name, functools.partial(tracker.close, outcome))

    def _attempt(self, name: str, call: Callable[[], None]) -> None:
        """Call a tracker; if it fails, give a notice and do not use it again."""
        if why := _failure(call):
            self._failed.add(name)
            sentence = f"tracking: {name} failed, and run {self._folder.id} continues without it: {why}"
            log.warning("%s", sentence)
            with suppress(ForgettingError, OSError):
                self._notice(sentence)


class Mark:
    """What was sent to each tracker (number of rows, or a hash of the laws), and a key that makes ids unique."""

    def __init__(self, file: Path, study: Path) -> None:
        """Read the file if it exists. A damaged one is ignored, so everything is sent again under a new id."""
        self._file = files.refuse_link(file, study)
        content: Any = {}
        with suppress(OSError, ValueError, UsageError):
            content = files.parse_json(files.read_text(self._file, limit=files.MAX_CONFIG).encode(), "")
        content = content if isinstance(content, dict) else {}
        sent = content.get("sent")
        sound = isinstance(sent, dict) and all(type(count) is int and count >= 0 for count in sent.values())
        self.key = str(content["key"]) if sound and "key" in content else secrets.token_hex(3)
        self.sent: dict[str, int] = dict(sent) if sound and isinstance(sent, dict) and "key" in content else {}

    def write(self) -> None:
        """Write the numbers sent and the key to the file."""
        text = json.dumps({"key": self.key, "sent": self.sent}) + "\n"
        files.write_atomically(self._file, text, parents=False)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a measured row under the names used in trackers.

    Examples:
        >>> numbers({"step": 50, "alpha": None, "kl": 0.25, "forgetting[chat]_se": 0.5, "peak_memory": None})
        {'forgetting/kl': 0.25, 'forgetting/chat/forgetting_se': 0.5}
        >>> numbers({"step": 50, "alpha": 0.5, "kl": 0.25})
        {'forgetting/alpha-0.5/kl': 0.25}
    """
    under = "forgetting" if row.get("alpha") is None else f"forgetting/alpha-{row['alpha']:g}"
    kept = {name: value for name, value in row.items() if name not in ("step", "alpha") and value is not None}
    return {f"{under}/{logged(name)}": value for name, value in kept.items()}


def flat(value: Any, path: str = "") -> dict[str, str | int | float | bool]:
    """A nested configuration as a flat dictionary with dotted keys; omits fields that are not set.

    Examples:
        >>> flat({"training": {"steps": 8}, "seeds": [0, 1], "texts": {}, "subset": None})
        {'training.steps': 8, 'seeds': '[0, 1]'}
    """
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{path}.{name}".lstrip(".")).items()}
    if value is None or value in ([], ()):
        return {}
    return {path: value if isinstance(value, str | int | float | bool) else json.dumps(value)}


def _opening(
    name: str, key: str, config: StudyConfig, content: Mapping[str, Any], tags: Mapping[str, Any], study: Path
) -> Opening:
    return Opening(
        f"{name[-LONGEST_NAME:].lstrip('-._')}-{key}",
        name,
        config.name,
        study.resolve().name,
        flat(files.redact_all(content)),
        files.redact_all({tag: str(value) for tag, value in tags.items()}),
        study / FOLDER,
    )


def _send_laws(
    study: StudyFolder, config: StudyConfig, fits: Mapping[str, Mapping[str, Fit]], failed: set[str]
) -> None:
    """Send the laws to the trackers that do not have the same numbers already."""
    found = law_numbers(fits)
    if not found:
        return
    mark = Mark(study.path / MARK, study.path)
    digest = int.from_bytes(hash_of(found)[:6])
    rows = max(fit.n_points for laws in fits.values() for fit in laws.values())
    content = {**config.model_dump(mode="json"), "study": study.path.resolve().name}
    opening = _opening("laws", mark.key, config, content, {"kind": "laws"}, study.path)
    for name in config.tracking:
        if name in failed or mark.sent.get(name) == digest:
            continue

        def send(name: str = name) -> None:
            mark.write()
            tracker = TRACKERS[name](opening)
            tracker.log(found, rows)
            tracker.close("done")
            mark.sent[name] = digest
            mark.write()

        if why := _failure(send):
            log.warning("tracking: %s failed, so the laws are not shown there: %s", name, why)


def hash_of(found: Mapping[str, float]) -> bytes:
    """A hash of the laws' numbers, to tell whether they were already sent."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).digest()


def law_numbers(fits: Mapping[str, Mapping[str, Fit]]) -> dict[str, float]:
    """Parameters with intervals, R² and counts of each law, named `laws/DATASET/LAW/…`; only finite numbers."""
    found: dict[str, float] = {}
    for dataset, laws in fits.items():
        for law, fit in laws.items():
            under = f"laws/{dataset}/{law}"
            for name, estimate in fit.parameters.items():
                ends = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
                found |= {f"{under}/{name}{end}": value for end, value in ends.items()}
            found |= {f"{under}/r2_{output}": value for output, value in fit.r2.items()}
            found |= {f"{under}/rows": fit.n_points, f"{under}/runs": fit.n_runs}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _failure(call: Callable[[], None]) -> str:
    """Call a tracker's library; returns why it failed in one line, or an empty text.

    Hides what it prints from standard output, and restores the state of the global random numbers afterwards.
    """
    state, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # libraries may use the global generators
    try:
        with redirect_stdout(io.StringIO()):
            call()
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return files.redact(f"{type(error).__name__}: {said:.300}")
    finally:
        random.setstate(state)
        np.random.set_state(numpys)  # noqa: NPY002
    return ""
