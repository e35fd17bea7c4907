"""Runs as tasks of a Ray cluster, or of one that is started on this machine (https://docs.ray.io).

Every node must see the study folder under the same path and have this package installed. All events of the tasks pass
through one actor beside the driver, which also carries the request to stop.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import ForgettingError, UsageError
from ...models.processes import Launch
from ...tuning import stopping
from . import ray_internals
from .base import POLL, RETRIES, Attempts, Event, Hear, R, Work
from .local import count_cores
from .team import Team

WINDOW = 1000
"""Tasks handed to Ray at a time."""
TELL_EVERY = 0.5
"""Seconds between two messages of a task about its steps."""
LAST_WORDS = 5.0
"""Seconds for which a task that ends waits for its messages to arrive."""
REACH = 10.0
"""Seconds for an answer of a cluster that is to be joined."""
STORE_BYTES = 100_000_000
"""Object store of a cluster that we start ourselves: nothing but messages goes through it."""

START = "start one with `ray start --head`; if it asks for a token (Ray 2.59 and later), set RAY_AUTH_MODE=token"
"""What to do where no cluster answers. Ray itself reads the token, and only for `auto` turns tokens on unasked."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    Attributes:
        address: of the cluster, as ray.init takes it; None starts one on this machine, or joins that of RAY_ADDRESS.
        cpus: CPU cores of a run; None: one a process.
        gpus: GPUs of a run, or a fraction of one; None: one a process where they compute on GPUs, and 1 for a run of
            one process where the cluster has any, else 0.
        memory: GB of memory that a run is given a place by; None asks for none.
        launch: the processes of a run, on one node, as `launching.read_launch` reads it; None: one.
    """

    address: str | None = None
    cpus: int | None = None
    gpus: float | None = None
    memory: float | None = None
    launch: Launch | None = None

    @property
    def cores(self) -> int:
        """CPU cores of a run."""
        return self.cpus or (1 if self.launch is None else self.launch.processes)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Join or start the cluster and see that a run has a place in it; one that was joined before is left as is."""
        ray = _library()
        if ray.is_initialized():
            self._options(ray)
            yield
            return
        _join(ray, self.address)
        try:
            self._options(ray)
            yield
        finally:
            ray.shutdown()

    def call(self, function: Callable[[], R]) -> R:
        """Call it as a task with the resources of a run; again where its worker or node dies."""
        ray = _library()
        for left in reversed(range(RETRIES + 1)):
            task = ray.remote(**self._options(ray))(_call)
            try:
                result: R = ray.get(task.remote(function, self.cores))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                if not left:
                    raise ForgettingError(
                        f"ray: what the runs share could not be computed: {_why(error)}, {RETRIES + 1} times in a row"
                    ) from None
            else:
                return result
        raise AssertionError("the last attempt returns or raises")

    def execute(self, tasks: Sequence[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        """Do all tasks; see `Engine`. How many at a time follows from their resources."""
        ray = _library()
        each = 1 if self.launch is None else self.launch.processes
        threads = 1 if one_thread else max(1, self.cores // each)
        work = work if self.launch is None else Together(work, self.launch, threads)
        return _Driver(ray, tasks, work, self._options(ray), threads, on_event).run()

    def _options(self, ray: Any) -> dict[str, Any]:
        """What a task asks Ray for.

        Raises:
            UsageError: no node of the cluster has it.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self._gpus(nodes)
        asked = {"CPU": self.cores, "GPU": gpus, "memory": (self.memory or 0) * 1e9}
        if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in asked}
            raise UsageError(
                f"ray: no node has what a run needs ({_words(asked)}); the most on any node: {_words(largest)}"
            )
        # Retries are ours: only we know whether a task got further since it last died.
        options = {"num_cpus": self.cores, "num_gpus": gpus, "max_retries": 0}
        return options | ({"memory": int(self.memory * 1e9)} if self.memory else {})

    def _gpus(self, nodes: list[dict[str, float]]) -> float:
        """GPUs that a run asks for: a task of Ray with several has them on one node.

        Raises:
            UsageError: fewer than its processes need.
        """
        if self.launch is None:
            return self.gpus if self.gpus is not None else float(any(node.get("GPU") for node in nodes))
        needed = self.launch.processes if self.launch.device == "cuda" else 0
        if self.gpus is not None and self.gpus != needed:
            raise UsageError(
                f"--run-gpus: got {self.gpus:g}; the processes of a run need {needed}; leave out this option"
            )
        return float(needed)


def _words(amounts: dict[str, float]) -> str:
    return f"{amounts['CPU']:g} CPU cores, {amounts['GPU']:g} GPUs, {amounts['memory'] / 1e9:.3g} GB memory"


def _library() -> Any:
    """The ray package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UsageError(
            f"--engine ray: ray is not installed for this Python {version}; pip install 'forgetting[ray]'"
        ) from None
    return ray


def _join(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one; signals stay ours."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray_internals.settle()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _reach(address)
    own = {"num_cpus": count_cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **(own if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ForgettingError(f"ray: no cluster at {address}: {_first(error)}; {START}") from None
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # ray.init puts its own in their place
            signal.signal(number, handler)


def _reach(address: str) -> None:
    """See that something answers at HOST:PORT: where nothing does, Ray ends the whole process.

    Raises:
        UsageError: a Ray Client address, whose driver would not see the study folder.
        ForgettingError: nothing answers.
    """
    if "://" in address:
        raise UsageError(f"--ray-address: got {address}; give HOST:PORT of the cluster's head, or auto")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as error:
        raise ForgettingError(f"ray: no cluster at {address}: {error}; {START}") from None


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _call(function: Callable[[], R], threads: int) -> R:
    import torch

    torch.set_num_threads(threads)
    return function()


class TeamError(ForgettingError):
    """Why several processes did not end a run together; `died`: one of them did, and the run can be tried again."""

    def __init__(self, words: str, died: bool) -> None:
        """Both go with it from one process to another."""
        super().__init__(words, died)
        self.words, self.died = words, died


@dataclass(frozen=True)
class Together:
    """Work done by several processes, which the worker of the cluster that is given it starts."""

    work: Work
    launch: Launch
    threads: int

    def __call__(self, task: str, tell: Callable[[int], None]) -> None:
        """Do one task.

        Raises:
            TeamError: they did not end it.
        """

        def hear(event: Event) -> None:
            if event.kind == "step":
                tell(event.step)

        team = Team(self.launch, self.work, self.threads)
        try:
            failure = team.do(task, hear)
        finally:
            team.end()
        stopping.check()
        if failure is not None:
            raise TeamError(failure.words, failure.died)


class Mailbox:
    """Events on their way to the driver; every answer says whether to stop. An actor that keeps no state of worth."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stopping = False

    def put(self, event: Event) -> bool:
        """Leave an event; whether the driver asks to stop."""
        if not (self.stopping and event.kind == "started"):  # who comes now is told to do nothing
            self.events.append(event)
        return self.stopping

    def take(self, stopping: bool) -> list[Event]:
        """All events since the last call, for the driver, which says whether it asks to stop."""
        self.stopping = stopping
        events, self.events = self.events, []
        return events


_of_driver: dict[str, Work] = {}
"""In a worker of the cluster: the work of the driver that it serves, which keeps what its tasks share."""


def _kept(driver: str, work: Work) -> Work:
    """The work that this process was given first by the driver: Ray sends a copy with every task."""
    if driver not in _of_driver:
        _of_driver.clear()  # one driver at a time: what another one shared is given back
        _of_driver[driver] = work
    return _of_driver[driver]


def attempt(task: str, work: Work, driver: str, mailbox: Any, threads: int) -> None:
    """Do one task, on a worker of the cluster; `driver` names who asks.

    Answers are waited for as futures: while a task is in ray.get or ray.wait, Ray lends its cores to another task, and
    more runs than asked for would be at work at a time.
    """
    import ray
    import torch

    def put(event: Event) -> Future[bool]:
        answer: Future[bool] = mailbox.put.remote(event).future()
        return answer

    try:
        late = put(Event(task, "started")).result()
    except ray.exceptions.RayError:  # the driver is gone, or done with us
        late = True
    if late:
        raise stopping.StoppedError(signal.SIGTERM)
    torch.set_num_threads(threads)
    answers: list[Future[bool]] = []
    told = time.monotonic()

    def tell(step: int) -> None:
        nonlocal told
        # an answer that is an error is none: progress is no reason to stop a run
        if any(answer.exception() is None and answer.result() for answer in answers if answer.done()):
            stopping.request()
        answers[:] = [answer for answer in answers if not answer.done()]
        if time.monotonic() - told >= TELL_EVERY:
            answers.append(put(Event(task, "step", step)))
            told = time.monotonic()

    try:
        with stopping.at_next_step():
            _kept(driver, work)(task, tell)
    finally:  # the driver hears all before it hears that the task ended
        wait(answers, timeout=LAST_WORDS)


class _Driver:
    """Hands tasks to Ray, hears of them, and tries again those whose worker or node died."""

    def __init__(
        self, ray: Any, tasks: Sequence[str], work: Work, options: dict[str, Any], threads: int, on_event: Hear
    ) -> None:
        self.ray, self.work, self.threads, self.on_event = ray, work, threads, on_event
        self.left = list(tasks)
        self.name = uuid.uuid4().hex
        self.attempts = Attempts()
        self.remote = ray.remote(**options)(attempt)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        # ours to restart: it lies beside the driver and has nothing that could be lost
        self.mailbox = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Mailbox).remote()
        self.running: dict[Any, str] = {}
        self.begun: set[str] = set()
        self.lost: dict[str, str] = {}
        self.error: BaseException | None = None
        self.stopped = False

    def run(self) -> dict[str, str]:
        try:
            while self.left or self.running:
                while self.left and len(self.running) < WINDOW:
                    task = self.left.pop(0)
                    ref = self.remote.options(name=task).remote(task, self.work, self.name, self.mailbox, self.threads)
                    self.running[ref] = task
                ready, _ = self.ray.wait(list(self.running), timeout=POLL)
                self._hear()
                for ref in ready:
                    self._ended(ref, self.running.pop(ref))
                if not self.stopped and (stopping.requested() is not None or self.error is not None):
                    self._stop()
        finally:
            self.ray.kill(self.mailbox)
        if self.error is not None:
            raise self.error
        stopping.check()
        return self.lost

    def _hear(self) -> None:
        try:
            events = self.ray.get(self.mailbox.take.remote(self.stopped))
        except self.ray.exceptions.RayError:  # it is being started again
            return
        for event in events:
            self.begun.add(event.task)
            self.attempts.note(event)
            self.on_event(event)

    def _stop(self) -> None:
        """Ask the runs in hand to stop at their next step; those that wait for a place find this out and do nothing.

        Not by ray.cancel: it interrupts wherever a worker is, and one that was importing torch is then broken.
        """
        self.stopped = True
        self.left.clear()
        self._hear()  # from here on, whoever begins is told not to
        self.running = {ref: task for ref, task in self.running.items() if task in self.begun}

    def _ended(self, ref: Any, task: str) -> None:
        errors = self.ray.exceptions
        try:
            self.ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, TeamError) and not self.stopped:
                if error.cause.died:
                    self._died(task, error.cause.words)
                else:
                    self.lost[task] = error.cause.words
                    self.on_event(Event(task, "ended"))
            elif isinstance(error.cause, stopping.StoppedError | TeamError):
                if not self.stopped:
                    self._died(task, "it was stopped on its node")
            else:
                known = isinstance(error.cause, ForgettingError)
                self.error = self.error or (
                    error.cause
                    if known
                    else ForgettingError(f"{task}: {type(error.cause).__name__}: {_first(error.cause)}")
                )
            return
        except errors.RayError as error:
            if not self.stopped:
                self._died(task, _why(error))
            return
        self._hear()  # what it said last
        self.on_event(Event(task, "ended"))

    def _died(self, task: str, why: str) -> None:
        if self.attempts.again(task):
            self.on_event(Event(task, "retried", note=why))
            self.left.insert(0, task)
        else:
            self.lost[task] = self.attempts.why(task, why)
            self.on_event(Event(task, "ended"))


def _why(error: BaseException) -> str:
    name = type(error).__name__
    known = {
        "OutOfMemoryError": "Ray stopped it because its node was running out of memory",
        "WorkerCrashedError": "its worker was killed, probably because memory ran out",
        "NodeDiedError": "its node died",
        "LocalRayletDiedError": "its node died",
    }
    return known.get(name, f"{name}: {_first(error)}")
