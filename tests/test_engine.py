"""The local engine: every task once, events in order, a dead worker is reported and the others go on."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forgetting.engine.local import Event, Tell, execute


def write(folder: str, task: str, tell: Tell) -> None:
    tell(1)
    (Path(folder) / task).write_text(str(os.getpid()))
    tell(2)


def die_on_b(folder: str, task: str, tell: Tell) -> None:
    if task == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, task, tell)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_once_with_its_events_in_order(tmp_path: Path, workers: int) -> None:
    events: list[Event] = []
    tasks = ["a", "b", "c"]
    died = execute(tasks, functools.partial(write, str(tmp_path)), workers=workers, threads=1, on_event=events.append)
    assert died == []
    assert sorted(path.name for path in tmp_path.iterdir()) == tasks
    for task in tasks:
        mine = [(event.kind, event.step) for event in events if event.task == task]
        assert mine == [("started", 0), ("step", 1), ("step", 2), ("ended", 0)]
    in_this_process = {path.read_text() == str(os.getpid()) for path in tmp_path.iterdir()}
    assert in_this_process == {workers == 1}


def test_a_worker_that_dies_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    tasks = ["a", "b", "c", "d"]
    died = execute(tasks, functools.partial(die_on_b, str(tmp_path)), workers=2, threads=1, on_event=lambda _: None)
    assert died == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_when_all_workers_died_the_tasks_left_are_reported_too(tmp_path: Path) -> None:
    tasks = ["b", "b", "c"]
    died = execute(tasks, functools.partial(die_on_b, str(tmp_path)), workers=2, threads=1, on_event=lambda _: None)
    assert died == ["b", "b", "c"]


def test_workers_that_cannot_start_leave_their_tasks_undone_and_reported() -> None:
    assert sorted(execute(["a", "b"], _Unloadable(), workers=2, threads=1, on_event=lambda _: None)) == ["a", "b"]


class _Unloadable:
    """Pickles, and cannot be unpickled."""

    def __call__(self, task: str, tell: Tell) -> None:
        raise AssertionError

    def __reduce__(self) -> tuple[object, ...]:
        return sys.exit, (7,)


ORPHAN = """
import functools, sys, time
from forgetting.engine.local import execute
def work(task, tell):
    while True:
        open(sys.argv[1], "a").write(".")
        time.sleep(0.05)
if __name__ == "__main__":
    execute(["a", "b"], work, workers=2, threads=1, on_event=lambda _: None)
"""


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
