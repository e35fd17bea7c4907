"""A study's runs shown in trackers: each row after it is on the disk, and the laws at the end.

The stored rows are the truth. What was sent is noted beside them, so that a run that goes on sends no row twice and a
row that a tracker missed is sent at the end of the study. No tracker can end a run or change a number of it.
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
"""What was sent: in a run's folder of its rows, in the study's of the laws."""
FOLDER = "tracking"
"""In the study's folder, for what trackers write."""
LONGEST_NAME = 100
"""Characters of a run's id in a tracker's, which may be no longer than 128."""


def check(config: StudyConfig) -> None:
    """See that the trackers can be used, before anything is started.

    Raises:
        UsageError: one is not installed, or could record nothing.
    """
    for name in config.tracking:
        kind = TRACKERS.find(name)
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"tracking: {name} is not installed; run: pip install {kind.package}")
        if why := kind.unready():
            raise UsageError(f"tracking: {name} {why}")


@contextmanager
def followed(study: StudyFolder, config: StudyConfig, folder: RunFolder, run: RunConfig) -> Iterator[None]:
    """Send the rows of a run that is done inside, as they are written; those first that a tracker has not yet."""
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
    """What adds a sentence to the notices of a run's record."""

    def notice(sentence: str) -> None:
        folder.update(notices=[*folder.read().get("notices", []), sentence])

    return notice


def finish(
    study: StudyFolder, config: StudyConfig, runs: Mapping[str, RunConfig], fits: Mapping[str, Mapping[str, Fit]]
) -> None:
    """Send the rows of finished runs that trackers missed, then the laws, as one more run called `laws`.

    Args:
        study: its folder.
        config: which trackers.
        runs: those of the configuration, by id.
        fits: laws by data set and name.
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
    """Sends what is stored of one run to trackers, each row once."""

    def __init__(
        self,
        folder: RunFolder,
        config: StudyConfig,
        run: RunConfig,
        study: Path,
        failed: set[str],
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Read what was sent before.

        Args:
            folder: the run, held by this process.
            config: which trackers.
            run: what the run was configured as.
            study: the study's folder.
            failed: trackers that failed, which are left alone; those that fail from now on are added.
            notice: told of a failure in one sentence.
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
        content["method"].pop("mitigations", None)  # the alternatives; those of this run are a field of their own
        self._opening = _opening(folder.id, self._mark.key, config, content, tags, study)

    def catch_up(self) -> None:
        """Send the stored rows that each tracker has not."""
        for name in self._names:
            if name not in self._failed:
                self._attempt(name, functools.partial(self._send, name))

    def _send(self, name: str) -> None:
        for row in self._folder.measurements()[self._mark.sent.get(name, 0) :]:
            if name not in self._open:
                self._mark.write()  # the id is kept before anything is sent under it
                self._open[name] = TRACKERS[name](self._opening)
            self._open[name].log(numbers(row), int(row["step"]))
            self._mark.sent[name] = self._mark.sent.get(name, 0) + 1
            self._mark.write()

    def close(self, outcome: Outcome) -> None:
        """Close what was opened."""
        for name, tracker in self._open.items():
            self._attempt(name, functools.partial(tracker.close, outcome))

    def _attempt(self, name: str, call: Callable[[], None]) -> None:
        if why := _failure(call):
            self._failed.add(name)
            sentence = f"tracking: {name} failed, and run {self._folder.id} continues without it: {why}"
            log.warning("%s", sentence)
            with suppress(ForgettingError, OSError):
                self._notice(sentence)


class Mark:
    """What was sent to each tracker, and what makes its ids this folder's own."""

    def __init__(self, file: Path, study: Path) -> None:
        """Read it, where it is there; a damaged one counts as none, so that all is sent again, under another id."""
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
        """Keep it."""
        text = json.dumps({"key": self.key, "sent": self.sent}) + "\n"
        files.write_atomically(self._file, text, parents=False)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a measured row under the names that trackers show them by.

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
    """A configuration with dots in its keys; what is not set is left out.

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
    """Send the laws to the trackers that have not these very numbers."""
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
    """What tells whether the laws are those that were sent."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).digest()


def law_numbers(fits: Mapping[str, Mapping[str, Fit]]) -> dict[str, float]:
    """Parameters, their intervals, R² and rows of each law, by `laws/DATASET/LAW/…`; what is not finite is left out."""
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
    """Call a tracker's library: why that failed, in one line; empty where it did not.

    What it prints is kept from standard output, which is the command's own, and its random numbers from the run's.
    """
    state, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # of libraries that use no generator
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
