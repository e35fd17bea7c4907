"""Runs as Ray tasks on a cluster of two one-core nodes on this machine: the contract, deaths, stops, equal numbers."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from forgetting.config.schema import StudyConfig, validate
from forgetting.errors import ForgettingError, UsageError
from forgetting.store.folder import StudyFolder
from forgetting.studies.engines import Event, Local, Ray
from forgetting.studies.engines.base import RETRIES, Tell
from forgetting.studies.engines.ray import _reach
from forgetting.studies.study import study
from forgetting.tuning import stopping
from small_study import fields, numbers

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and two nodes; this process has joined it."""
    import ray
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("USAGE_STATS_ENABLED", "0"),
            ("worker_niceness", "0"),
            ("raylet_start_wait_time_s", "120"),
        ):
            patch.setenv(f"RAY_{name}", value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=100_000_000)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes cannot import this file
        with Ray(address=made.address).ready():
            yield made
        made.shutdown()


def write(folder: str, task: str, tell: Tell) -> None:
    tell(1)
    (Path(folder) / task).write_text(str(os.getpid()))


def misbehave(folder: str, task: str, tell: Tell) -> None:
    if task == "dies":
        with (Path(folder) / "deaths").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, task, tell)


def refuse(task: str, tell: Tell) -> None:
    raise UsageError(f"{task}: no such thing")


def until_stopped(folder: str, task: str, tell: Tell) -> None:
    for step in range(1, 3000):
        tell(step)
        if stopping.requested() is not None:
            (Path(folder) / task).write_text("checkpoint")
            stopping.check()
        time.sleep(0.02)


def take_a_while(folder: str, task: str, tell: Tell) -> None:
    began = time.monotonic()
    for step in range(1, 11):
        tell(step)
        time.sleep(0.05)
    (Path(folder) / task).write_text(f"{began} {time.monotonic()}")


def do(tasks: list[str], work: Any, events: list[Event]) -> dict[str, str]:
    return Ray().execute(tasks, work, events.append, one_thread=True)


def test_every_task_runs_once_with_its_events_in_order_in_another_process(cluster: Any, tmp_path: Path) -> None:
    events: list[Event] = []
    tasks = ["a", "b", "c"]
    assert do(tasks, functools.partial(write, str(tmp_path)), events) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == tasks
    for task in tasks:
        kinds = [event.kind for event in events if event.task == task]
        assert (kinds[0], kinds[-1]) == ("started", "ended")
    assert str(os.getpid()) not in {path.read_text() for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_at_most_one_task_per_core_runs_at_a_time(cluster: Any, tmp_path: Path) -> None:
    """Ray gives the core of a worker that waits in ray.get to the next task, so our workers must not."""
    assert do([f"t{i}" for i in range(8)], functools.partial(take_a_while, str(tmp_path)), []) == {}
    spans = [tuple(map(float, path.read_text().split())) for path in tmp_path.iterdir()]
    assert len(spans) == 8
    assert max(sum(low <= began < high for low, high in spans) for began, _ in spans) == 2


@pytest.mark.slow
def test_a_task_whose_process_always_dies_is_given_up_and_the_others_continue(cluster: Any, tmp_path: Path) -> None:
    events: list[Event] = []
    lost = do(["dies", "a"], functools.partial(misbehave, str(tmp_path)), events)
    assert list(lost) == ["dies"]
    assert lost["dies"].startswith(f"its process died {RETRIES + 1} times in a row without progress (")
    assert (tmp_path / "deaths").read_text() == "x" * (RETRIES + 1)
    assert sum(event.kind == "retried" for event in events) == RETRIES
    assert (tmp_path / "a").exists()


def test_an_exception_of_a_task_or_of_the_shared_work_is_raised_here(cluster: Any) -> None:
    with pytest.raises(UsageError, match=r"^a: no such thing$"):
        do(["a"], refuse, [])
    with pytest.raises(UsageError, match=r"^b: no such thing$"):
        Ray().call(functools.partial(refuse, "b", print))


def die(folder: str, times: int) -> str:
    with (Path(folder) / "deaths").open("a") as file:
        file.write("x")
    if len((Path(folder) / "deaths").read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@pytest.mark.slow
def test_the_shared_work_is_repeated_if_its_worker_dies(cluster: Any, tmp_path: Path) -> None:
    assert Ray().call(functools.partial(die, str(tmp_path), 2)) == "done"
    assert (tmp_path / "deaths").read_text() == "xxx"
    (tmp_path / "deaths").unlink()
    with pytest.raises(ForgettingError, match=r"could not be computed: its worker was killed.*, 4 times in a row$"):
        Ray().call(functools.partial(die, str(tmp_path), 99))


def test_a_stop_reaches_running_tasks_and_cancels_waiting_ones(cluster: Any, tmp_path: Path) -> None:
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if event.kind == "step":
            stopping.request(signal.SIGINT)

    with stopping.at_next_step(), pytest.raises(stopping.StoppedError) as stopped:
        Ray().execute(["a", "b", "c", "d"], functools.partial(until_stopped, str(tmp_path)), hear, one_thread=True)
    assert stopped.value.exit_code == 130
    begun = {event.task for event in events}
    assert begun
    assert begun <= {"a", "b"}
    assert {path.name for path in tmp_path.iterdir()} == begun


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Ray(cpus=64), "64 CPU cores, 0 GPUs, 0 GB memory); the most on any node: 1 CPU core, 0 GPUs,"),
        (Ray(gpus=0.5), "1 CPU core, 0.5 GPUs"),
        (Ray(memory=1e6), "1e+06 GB memory"),
    ],
)
def test_resources_that_no_node_has_are_refused_instead_of_waited_for(cluster: Any, asked: Ray, message: str) -> None:
    with pytest.raises(UsageError, match=r"^ray: no node has what a run needs") as error, asked.ready():
        pass
    assert message in str(error.value)


def test_a_study_on_ray_gives_the_numbers_of_one_here(
    cluster: Any, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    config = validate(fields(tiny_model, corpora, methods=[{"name": "lora", "rank": [2, 4]}]), where="test")
    study(config, tmp_path / "here", engine=Local(1))
    result = study(config, tmp_path / "there", engine=Ray())
    assert not result.failed
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")


@pytest.mark.slow
def test_a_study_that_grows_on_ray_equals_one_planned_so_here(
    cluster: Any, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    def made(steps: int, *ranks: int) -> StudyConfig:
        given = fields(tiny_model, corpora, methods=[{"name": "lora", "rank": list(ranks), "dropout": 0.1}])
        return validate(given | {"training": given["training"] | {"steps": steps}}, where="test")

    study(made(4, 2), tmp_path / "there", engine=Ray())
    short = set(numbers(tmp_path / "there"))
    study(made(8, 2, 4), tmp_path / "there", engine=Ray())
    study(made(8, 2, 4), tmp_path / "here", engine=Local(1))
    grown, planned = numbers(tmp_path / "there"), numbers(tmp_path / "here")
    assert grown.keys() - planned.keys() == short
    assert {run: grown[run] for run in planned} == planned
    records = [StudyFolder.open(tmp_path / "there").run(run).read() for run in planned]
    assert [one["went_on"]["step"] for one in records if "went_on" in one] == [4]


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "127.0.0.1:1",
            ForgettingError,
            r"^ray: no cluster at 127\.0\.0\.1:1: .*refused; start one with",
        ),
        ("ray://127.0.0.1:1", UsageError, r"^--ray-address: got ray://127\.0\.0\.1:1; give HOST:PORT"),
    ],
)
def test_an_unreachable_cluster_gives_a_one_line_error(
    address: str, error: type[ForgettingError], message: str
) -> None:
    # Ray itself would end the process
    with pytest.raises(error, match=message):
        _reach(address)
