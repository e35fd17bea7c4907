"""Faults are named and survived with equal numbers: damaged files, full disks, other processes, clock changes.

Kills at random moments are tests/studies/test_resume.py in small and bench/faults.py at length.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.config.schema import StudyConfig, validate
from forgetting.errors import ForgettingError, UsageError
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table
from forgetting.studies.engines import Event, Hear, Local
from forgetting.studies.engines.base import Work
from forgetting.studies.inputs import StudyInputs
from forgetting.studies.study import left, study
from forgetting.tuning import checkpoints, stopping
from small_study import fields, numbers

pytestmark = pytest.mark.full


@pytest.fixture
def config(tiny_model: Path, corpora: Path) -> StudyConfig:
    return validate(fields(tiny_model, corpora), where="test")


@pytest.fixture(scope="module")
def whole(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("whole") / "s"
    study(validate(fields(tiny_model, corpora), where="test"), out, engine=Local(1))
    return numbers(out)


def stopped_at(config: StudyConfig, out: Path, step: int) -> Path:
    """Stop the study's run as by a signal; returns the folder of its checkpoints."""

    def hear(event: Event) -> None:
        if event.step == step:
            stopping.request(signal.SIGTERM)

    with pytest.raises(stopping.StoppedError):
        study(config, out, engine=Local(1), on_event=hear)
    return next(out.glob("runs/*/checkpoints"))


@pytest.fixture(scope="module")
def stopped(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study stopped at step 7; tests resume copies of it."""
    out = tmp_path_factory.mktemp("stopped") / "s"
    stopped_at(validate(fields(tiny_model, corpora), where="test"), out, 7)
    return out


def truncate(checkpoint: Path) -> str:
    file = checkpoint / "adapter_model.safetensors"
    size = file.stat().st_size
    os.truncate(file, 100)
    return f"{file.name} has 100 bytes instead of {size:,}"


def lose(checkpoint: Path) -> str:
    (checkpoint / "optimizer.pt").unlink()
    return "optimizer.pt is missing"


def flip(checkpoint: Path) -> str:
    file = checkpoint / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return f"{file.name} was changed"


def test_a_run_stopped_between_two_measurements_has_a_checkpoint_at_that_step(
    config: StudyConfig, tmp_path: Path, whole: dict[str, list[dict[str, Any]]], stopped: Path
) -> None:
    (folder,) = shutil.copytree(stopped, tmp_path / "s").glob("runs/*/checkpoints")
    assert checkpoints.newest(folder).step == 7
    assert [row["step"] for row in next(iter(numbers(tmp_path / "s").values()))] == [0, 2, 4, 6]
    spent = json.loads((folder / "checkpoint-7" / checkpoints.MARK).read_text())["state"]
    study(config, tmp_path / "s", engine=Local(1))
    assert numbers(tmp_path / "s") == whole
    rows = next(iter(StudyFolder.open(tmp_path / "s").runs())).measurements()
    assert rows[3]["train_seconds"] < spent["train_seconds"] <= rows[4]["train_seconds"] + 0.001  # its time is counted


@pytest.mark.parametrize("damage", [truncate, lose, flip])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    config: StudyConfig,
    tmp_path: Path,
    whole: dict[str, list[dict[str, Any]]],
    stopped: Path,
    damage: Callable[[Path], str],
) -> None:
    (folder,) = shutil.copytree(stopped, tmp_path / "s").glob("runs/*/checkpoints")
    wrong = damage(folder / "checkpoint-7")
    study(config, tmp_path / "s", engine=Local(1))
    assert numbers(tmp_path / "s") == whole
    notices = next(iter(StudyFolder.open(tmp_path / "s").runs())).read()["notices"]
    assert f"checkpoint-7 is damaged ({wrong}): resumed from step 6" in notices


def checkpoint(folder: Path, step: int, *, marked: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "weights").write_bytes(b"x" * step)
    if marked:
        checkpoints.mark(path, spent=step)
    return path


def test_checkpoints_are_checked_and_kept_by_step_whatever_the_clock_says(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none") == checkpoints.Found()
    for step, clock in ((4, 4e9), (8, 2e9), (10, 1e6)):  # the clock goes back
        os.utime(checkpoint(tmp_path, step), (clock, clock))
    checkpoint(tmp_path, 12, marked=False)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-8", "checkpoint-10", "checkpoint-12"}
    found = checkpoints.newest(tmp_path)
    assert (found.path, found.step, found.state, found.notices) == (tmp_path / "checkpoint-10", 10, {"spent": 10}, ())
    assert not (tmp_path / "checkpoint-12").exists()  # cut off while it was written: no damage, but not used
    (tmp_path / "checkpoint-10" / checkpoints.MARK).write_text("[]")
    (tmp_path / "checkpoint-8" / "inner" / "weights").write_bytes(b"")
    found = checkpoints.newest(tmp_path)
    assert found.step == -1
    assert found.notices == (
        "checkpoint-10 is damaged (its list of files cannot be read); "
        "checkpoint-8 is damaged (inner/weights has 0 bytes instead of 8): started again at step 0",
    )


def test_an_incomplete_row_is_measured_again(
    config: StudyConfig, tmp_path: Path, whole: dict[str, list[dict[str, Any]]]
) -> None:
    folder = stopped_at(config, tmp_path / "s", 6)
    shutil.rmtree(folder / "checkpoint-6")  # killed between the row and its checkpoint
    file = folder.parent / "measurements.jsonl"
    os.truncate(file, file.stat().st_size - 20)
    assert len(load_table(tmp_path / "s")) == 3
    study(config, tmp_path / "s", engine=Local(1))
    assert numbers(tmp_path / "s") == whole


def test_a_model_that_was_replaced_is_named_before_anything_runs(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    methods = [{"name": "lora", "rank": [2, 4]}]
    changed = validate(fields(model, corpora, methods=methods), where="test")
    base_hash = StudyInputs(changed).base().key
    stopped_at(changed, tmp_path / "s", 4)
    before = numbers(tmp_path / "s")
    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * 1.01}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=rf"the base model changed \({base_hash} then, sha256:.* now\) since run"):
        study(changed, tmp_path / "s", engine=Local(1))
    assert numbers(tmp_path / "s") == before


def test_a_changed_configuration_is_named(config: StudyConfig, tmp_path: Path) -> None:
    stopped_at(config, tmp_path / "s", 4)
    other = config.model_copy(update={"seeds": (1,)})
    with pytest.raises(UsageError, match=r"another configuration \(seeds: there \[0\], now \[1\]\)"):
        study(other, tmp_path / "s", engine=Local(1))


def test_a_clock_that_jumps_changes_nothing(
    config: StudyConfig, tmp_path: Path, whole: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    folder = stopped_at(config, tmp_path / "s", 7)
    for file in folder.parent.rglob("*"):
        clock = jumps.uniform(0, 4e9)
        os.utime(file, (clock, clock))
    study(config, tmp_path / "s", engine=Local(1))
    assert numbers(tmp_path / "s") == whole
    rows = next(iter(StudyFolder.open(tmp_path / "s").runs())).measurements()
    for name in ("train_seconds", "measure_seconds"):
        spent = [row[name] for row in rows]
        assert spent == sorted(spent)
        assert 0 <= spent[-1] < 600


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """After this many calls, any write to the disk fails."""
    real, calls = os.fsync, itertools.count()

    def fsync(file: int) -> None:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("after", [4, 6, 9, 12])
def test_a_full_disk_is_one_clear_error_and_the_run_resumes_when_there_is_space(
    config: StudyConfig, tmp_path: Path, whole: dict[str, list[dict[str, Any]]], after: int
) -> None:
    with full_disk(after), pytest.raises(ForgettingError, match="the disk is full; everything") as error:
        study(config, tmp_path / "s", engine=Local(1))
    assert "\n" not in str(error.value)
    assert next(iter(StudyFolder.open(tmp_path / "s").runs())).read()["status"] == "running"
    study(config, tmp_path / "s", engine=Local(1))
    assert numbers(tmp_path / "s") == whole


def test_a_run_locked_by_another_process_is_named_and_taken_over_when_released(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    config = validate(fields(tiny_model, corpora, methods=[{"name": "lora", "rank": [2, 4]}]), where="test")
    folder = StudyFolder.create_or_resume(tmp_path / "s", config)
    first, second = left(tmp_path / "s")
    holds, events = threading.Event(), list[Event]()
    seen_held = threading.Event()

    def hold() -> None:
        with folder.run(first).lock():
            holds.set()
            seen_held.wait(60)

    def hear(event: Event) -> None:
        events.append(event)
        if event.kind == "held":
            seen_held.set()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait(10)
    result = study(config, tmp_path / "s", engine=Local(1), on_event=hear)
    thread.join()
    held = [event for event in events if event.kind == "held"]
    assert [event.task for event in held] == [first]
    assert f"process {os.getpid()} on " in held[0].note
    assert " since 20" in held[0].note
    ended = [event.task for event in events if event.kind == "ended"]
    assert ended[:2] == [first, second]  # left to the process that holds it; the other run is done meanwhile
    assert ended[2:] == [first]
    assert set(result.table["status"]) == {"done"}
    assert sorted(result.table.groupby("run_id").size()) == [7, 7]


class Deadly:
    """An engine on which one run always dies."""

    def __init__(self, task: str) -> None:
        self.task, self.local = task, Local(1)
        self.ready, self.call = self.local.ready, self.local.call

    def execute(self, tasks: list[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        self.local.execute([task for task in tasks if task != self.task], work, on_event, one_thread=one_thread)
        return {self.task: "its process died 4 times in a row without progress (killed)"}


def test_a_run_whose_process_always_dies_is_stored_as_failed_and_the_others_are_done(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    config = validate(fields(tiny_model, corpora, methods=[{"name": "lora", "rank": [2, 4]}]), where="test")
    StudyFolder.create_or_resume(tmp_path / "s", config)
    bad, good = left(tmp_path / "s")
    result = study(config, tmp_path / "s", engine=Deadly(bad))
    assert result.failed == {bad: "its process died 4 times in a row without progress (killed)"}
    assert set(result.table["run_id"]) == {good}
    assert left(tmp_path / "s") == [bad]  # tried again by the next call
    assert not study(config, tmp_path / "s", engine=Local(1)).failed


MEMORY = """
import resource, sys, torch
from pathlib import Path
from forgetting.config.schema import validate
from forgetting.config.files import parse_yaml
from forgetting.studies.engines import Local
from forgetting.studies.study import study
import transformers.trainer, peft, pandas
torch.ones(64, 64) @ torch.ones(64, 64)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 600_000_000,) * 2)
config = validate(parse_yaml(Path(sys.argv[1]).read_text(), where="study"), where="study")
study(config, Path(sys.argv[2]), engine=Local(1))
"""


@pytest.mark.slow
def test_a_run_that_needs_too_much_memory_is_stored_as_failed_and_the_others_continue(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    # rank 300,000 on this model: 1.3 GB of weights and as much of gradients, of 2.9 GB in all, with 0.6 GB available;
    # more than the whole memory would be refused before the first run
    methods = [{"name": "lora", "rank": [2, 300_000]}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(fields(tiny_model, corpora, methods=methods)))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "study.yaml"), str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    states = {run.read()["method"]["rank"]: run.read() for run in StudyFolder.open(tmp_path / "s").runs()}
    assert states[2]["status"] == "done"
    assert states[300_000]["status"] == "failed"
    assert states[300_000]["why"].startswith("out of memory; use a smaller training.micro_batch_size (")
