"""The contract of engines: tasks run once, events in order, tasks are retried if their process dies, then given up."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from forgetting.errors import UsageError
from forgetting.store.folder import RunFolder, StudyFolder
from forgetting.studies import study as module
from forgetting.studies.engines import Event, Local, Ray, context
from forgetting.studies.engines.base import RETRIES, Attempts, Tell
from forgetting.studies.inputs import StudyInputs
from forgetting.studies.study import keep_lost
from forgetting.tuning import stopping
from forgetting.tuning.grid import runs_by_id
from scale_study import make

JOBS = [1, pytest.param(2, marks=pytest.mark.full)]
"""In this process; in two others."""


def do(tasks: list[str], work: Any, jobs: int, events: list[Event] | None = None) -> dict[str, str]:
    hear = (lambda _: None) if events is None else events.append
    return Local(jobs).execute(tasks, work, hear, one_thread=True)


def write(folder: str, task: str, tell: Tell) -> None:
    tell(1)
    (Path(folder) / task).write_text(str(os.getpid()))
    tell(2)


def die_on_b(folder: str, task: str, tell: Tell) -> None:
    if task == "b":
        with (Path(folder) / "deaths").open("a") as file:
            file.write("b")
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, task, tell)


def die_further_on(folder: str, task: str, tell: Tell) -> None:
    """A task that dies one step further each time, like a run that is preempted again and again."""
    seen = Path(folder) / f"{task}.seen"
    reached = len(seen.read_text()) if seen.exists() else 0
    tell(reached + 1)
    if task == "a" and reached < RETRIES + 2:
        seen.write_text("x" * (reached + 1))
        time.sleep(0.1)  # the step is reported before the process ends
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, task, tell)


def fail_on_b(folder: str, task: str, tell: Tell) -> None:
    if task == "b":
        raise UsageError("no such thing")
    time.sleep(0.2)
    write(folder, task, tell)


@pytest.mark.parametrize("jobs", JOBS)
def test_every_task_runs_once_with_its_events_in_order(tmp_path: Path, jobs: int) -> None:
    events: list[Event] = []
    tasks = ["a", "b", "c"]
    assert do(tasks, functools.partial(write, str(tmp_path)), jobs, events) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == tasks
    for task in tasks:
        steps = [(event.kind, event.step) for event in events if event.task == task]
        assert steps == [("started", 0), ("step", 1), ("step", 2), ("ended", 0)]
    in_this_process = {path.read_text() == str(os.getpid()) for path in tmp_path.iterdir()}
    assert in_this_process == {jobs == 1}


@pytest.mark.full
def test_a_task_whose_process_always_dies_is_given_up_and_the_others_continue(tmp_path: Path) -> None:
    tasks, events = ["a", "b", "c", "d"], list[Event]()
    lost = do(tasks, functools.partial(die_on_b, str(tmp_path)), 2, events)
    assert lost == {
        "b": f"its process died {RETRIES + 1} times in a row without progress (killed, probably because memory ran out)"
    }
    assert (tmp_path / "deaths").read_text() == "b" * (RETRIES + 1)
    assert sum(event.kind == "retried" for event in events) == RETRIES
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c", "d", "deaths"}


@pytest.mark.full
def test_a_task_that_makes_progress_each_time_is_not_given_up(tmp_path: Path) -> None:
    assert do(["a", "b"], functools.partial(die_further_on, str(tmp_path)), 2) == {}
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


def test_attempts_count_deaths_without_progress() -> None:
    attempts = Attempts()
    assert [attempts.again("a") for _ in range(RETRIES + 1)] == [True] * RETRIES + [False]
    attempts.note(Event("b", "step", 5))
    assert [attempts.again("b") for _ in range(RETRIES)] == [True] * RETRIES
    attempts.note(Event("b", "step", 5))  # no further than before
    assert not attempts.again("b")
    attempts.note(Event("b", "step", 6))
    assert attempts.again("b")


@pytest.mark.parametrize("jobs", JOBS)
def test_an_exception_of_a_task_ends_the_execution(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(UsageError, match="no such thing"):
        do(["a", "b", "c", "d", "e"], functools.partial(fail_on_b, str(tmp_path)), jobs)
    assert not (tmp_path / "e").exists()


@pytest.mark.full
def test_tasks_of_workers_that_cannot_start_are_reported_as_not_done() -> None:
    lost = do(["a", "b"], _Unloadable(), 2)
    assert lost == dict.fromkeys(["a", "b"], "no worker process could be started (exit code 7)")


class _Unloadable:
    """Pickles, and cannot be unpickled."""

    def __call__(self, task: str, tell: Tell) -> None:
        raise AssertionError

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (7,)


def until_stopped(folder: str, task: str, tell: Tell) -> None:
    for step in range(1, 1000):
        tell(step)
        if stopping.requested() is not None:
            (Path(folder) / task).write_text("checkpoint")
            stopping.check()
        time.sleep(0.02)


@pytest.mark.parametrize("jobs", JOBS)
def test_a_request_to_stop_reaches_running_tasks_and_no_other_starts(tmp_path: Path, jobs: int) -> None:
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if event.step == 5:
            stopping.request(signal.SIGTERM)

    with stopping.at_next_step(), pytest.raises(stopping.StoppedError) as stopped:
        Local(jobs).execute(["a", "b", "c"], functools.partial(until_stopped, str(tmp_path)), hear, one_thread=True)
    assert stopped.value.exit_code == 143
    begun = {event.task for event in events}
    assert begun <= {"a", "b"}
    assert {path.name for path in tmp_path.iterdir()} == begun  # each wrote its checkpoint
    assert stopping.requested() is None  # and the next study is not stopped by it


ORPHAN = """
import functools, sys, time
from forgetting.studies.engines import Local
def work(task, tell):
    while True:
        open(sys.argv[1], "a").write(".")
        time.sleep(0.05)
if __name__ == "__main__":
    Local(2).execute(["a", "b"], work, lambda _: None, one_thread=True)
"""


@pytest.mark.full
def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script, beat = tmp_path / "orphan.py", tmp_path / "beat"
    script.write_text(ORPHAN)
    process = subprocess.Popen([sys.executable, str(script), str(beat)])
    deadline = time.monotonic() + 60
    while not beat.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert beat.exists()
    process.kill()
    process.wait()
    time.sleep(1.5)
    size = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == size


def look_around(folder: str, task: str, tell: Tell) -> None:
    loaded = "transformers" in sys.modules
    (Path(folder) / task).write_text(f"{loaded} {os.environ.get('HF_HUB_CACHE')} {Path.cwd()}")


@pytest.mark.full
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux alone")
@pytest.mark.slow
def test_workers_have_the_libraries_loaded_and_the_current_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    work = functools.partial(look_around, str(tmp_path))
    monkeypatch.setattr(context, "_server", None)  # as in a process that had no workers yet
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    for place, libraries in (("one", not torch.accelerator.is_available()), ("two", False)):
        monkeypatch.setenv("HF_HUB_CACHE", place)  # read when a library is imported
        assert do(["a", "b"], work, 2) == {}
        for task in ("a", "b"):
            assert (tmp_path / task).read_text() == f"{libraries} {place} {Path.cwd()}"
    forkserver._forkserver._stop()  # type: ignore[attr-defined] - it has this test's environment


@pytest.mark.full
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux alone")
@pytest.mark.parametrize("broken", [EOFError(), ConnectionResetError()])
def test_a_killed_server_of_forks_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    def killed(_: object) -> None:
        raise broken

    monkeypatch.setattr(ForkServerProcess, "start", killed)
    assert do(["a", "b"], functools.partial(write, str(tmp_path)), 2) == {}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_run_that_another_process_finished_or_executes_is_not_recorded_as_lost(tmp_path: Path) -> None:
    config = make(tmp_path, 6, measurements=6)
    folder, runs = StudyFolder(tmp_path), runs_by_id(config)
    finished, held, *_ = runs
    folder.run(held).update(status="running")
    lost = dict.fromkeys([finished, held], "no worker process could be started")
    with folder.run(held).lock():
        keep_lost(folder, runs, lost)
    assert [folder.run(run_id).read()["status"] for run_id in lost] == ["done", "running"]
    keep_lost(folder, runs, lost)
    assert [folder.run(run_id).read()["status"] for run_id in lost] == ["done", "failed"]


@pytest.mark.parametrize("jobs", [-1, 0, 1.5, True, "2"])
def test_numbers_of_jobs_below_one_are_refused_since_no_worker_would_start(jobs: Any) -> None:
    with pytest.raises(UsageError, match=f"jobs: got {jobs!r}; give None, or a whole number of at least 1"):
        Local(jobs)


@pytest.mark.parametrize("given", [{"cpus": 0}, {"gpus": -0.5}, {"memory": 0}, {"memory": float("nan")}])
def test_resources_that_no_run_can_have_are_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(UsageError, match=f"{name}: got .*; give None, or a"):
        Ray(**given)


def test_runs_that_are_still_held_are_waited_for_after_others_were_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path, 6, measurements=6)
    folder, inputs = StudyFolder(tmp_path), StudyInputs(config)
    first, second, *_ = inputs.runs
    held = {first, second}
    tried: list[list[str]] = []

    class Engine(Local):
        def execute(self, tasks: Any, *_: Any, **__: Any) -> dict[str, str]:
            tried.append(list(tasks))
            for run_id in set(tasks) - held:
                folder.run(run_id).update(status="done")
            if held:  # another process leaves one run after the other unfinished
                held.remove(min(held))
            return {}

    for run_id in (first, second):
        folder.run(run_id).update(status="running")
    monkeypatch.setattr(RunFolder, "held_by", lambda run: "another process" if run.id in held else None)
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.0)
    module._do_all(folder, inputs, [first, second], Engine(1), lambda _: None, True)
    assert tried == [[first, second], [first], [second]]
