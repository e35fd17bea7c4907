"""Executes runs as tasks of a Ray cluster, or of a local one started here (https://docs.ray.io).

Every node must see the study folder under the same path and have this package installed. Events of the tasks, and
requests to stop, pass through one actor on the driver's node.
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
from .base import POLL, RETRIES, Attempts, Event, Hear, R, Work, check_least
from .local import count_cores
from .team import Team

WINDOW = 1000
"""Most tasks submitted to Ray at a time."""
TELL_EVERY = 0.5
"""Minimum seconds between two messages of a task about its steps."""
LAST_WORDS = 5.0
"""Seconds that an ending task waits for its messages to arrive."""
NOUNS = {"CPU": "CPU core", "GPU": "GPU"}
REACH = 10.0
"""Seconds to wait for an answer from the cluster to join."""
STORE_BYTES = 100_000_000
"""Size of the object store of a cluster that we start; it only holds messages."""

START = "start one with `ray start --head`; if it asks for a token (Ray 2.59 and later), set RAY_AUTH_MODE=token"
"""Advice if no cluster answers. Ray reads the token itself; it enables tokens without being asked only for `auto`."""


@dataclass(frozen=True)
class Ray:
    """Executes tasks on a Ray cluster.

    Attributes:
        address: address of the cluster, as for ray.init; None takes RAY_ADDRESS, or starts a cluster on this machine.
        cpus: CPU cores per run; None: one per process.
        gpus: GPUs per run, or a fraction of one; None: one per process if a launch computes on GPUs; without a launch,
            1 if the cluster has any GPU, else 0.
        memory: GB of memory that Ray reserves per run; None reserves none.
        launch: the processes of a run, all on one node, from `launching.read_launch`; None: one process.
    """

    address: str | None = None
    cpus: int | None = None
    gpus: float | None = None
    memory: float | None = None
    launch: Launch | None = None

    def __post_init__(self) -> None:
        """Check the resources.

        Raises:
            UsageError: `cpus` below 1 or not whole, `gpus` below 0, or `memory` below 0.001.
        """
        check_least("cpus", self.cpus, 1)
        check_least("gpus", self.gpus, 0.0)
        check_least("memory", self.memory, 0.001)

    @property
    def cores(self) -> int:
        """CPU cores per run."""
        return self.cpus or (1 if self.launch is None else self.launch.processes)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Join or start the cluster and check that a node can take a run; leave it, unless it was joined before."""
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
        """Call the function as a task with the resources of a run; retry if its worker or node dies."""
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
        """Execute all tasks; see `Engine`. Their resources determine how many run at a time."""
        ray = _library()
        each = 1 if self.launch is None else self.launch.processes
        threads = 1 if one_thread else max(1, self.cores // each)
        work = work if self.launch is None else Together(work, self.launch, threads)
        return _Driver(ray, tasks, work, self._options(ray), threads, on_event).run()

    def _options(self, ray: Any) -> dict[str, Any]:
        """Ray's options for a task, including its resources.

        Raises:
            UsageError: no node of the cluster has these resources.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self._gpus(nodes)
        asked = {"CPU": self.cores, "GPU": gpus, "memory": (self.memory or 0) * 1e9}
        if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in asked}
            raise UsageError(
                f"ray: no node has what a run needs ({_words(asked)}); the most on any node: {_words(largest)}"
            )
        # we retry, not Ray, because only we know whether a task made progress since it last died
        options = {"num_cpus": self.cores, "num_gpus": gpus, "max_retries": 0}
        return options | ({"memory": int(self.memory * 1e9)} if self.memory else {})

    def _gpus(self, nodes: list[dict[str, float]]) -> float:
        """GPUs per run; Ray gives a task all its GPUs on one node.

        Raises:
            UsageError: `gpus` differs from the number that the launch's processes need.
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
    cores, gpus = (f"{amounts[kind]:g} {noun}{'' if amounts[kind] == 1 else 's'}" for kind, noun in NOUNS.items())
    return f"{cores}, {gpus}, {amounts['memory'] / 1e9:.3g} GB memory"


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
    """Connect to a cluster or start one, and restore our signal handlers, which ray.init replaces."""
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
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reach(address: str) -> None:
    """Check that something answers at HOST:PORT, because Ray ends the whole process if nothing does.

    Raises:
        UsageError: a Ray Client address, with which the driver would not see the study folder.
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
    """The processes of a run did not finish it.

    Attributes:
        words: the reason.
        died: whether a process died, so that the run can be tried again.
    """

    def __init__(self, words: str, died: bool) -> None:
        """Create it; both arguments are passed on as `args`, so that the error can be pickled."""
        super().__init__(words, died)
        self.words, self.died = words, died


@dataclass(frozen=True)
class Together:
    """Work that a Ray worker executes with several processes, which it starts itself."""

    work: Work
    launch: Launch
    threads: int

    def __call__(self, task: str, tell: Callable[[int], None]) -> None:
        """Execute one task.

        Raises:
            TeamError: the processes did not finish it.
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
    """An actor that passes events to the driver; its answers say whether to stop. Its state can be lost safely."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stopping = False

    def put(self, event: Event) -> bool:
        """Add an event; returns whether the driver requested a stop."""
        if not (self.stopping and event.kind == "started"):  # a task that starts now is told to stop at once
            self.events.append(event)
        return self.stopping

    def take(self, stopping: bool) -> list[Event]:
        """Return all events since the last call; `stopping` says whether the driver requests a stop."""
        self.stopping = stopping
        events, self.events = self.events, []
        return events


_of_driver: dict[str, Work] = {}
"""In a Ray worker: the work of its driver, by the driver's id; it holds the inputs that tasks share."""


def _kept(driver: str, work: Work) -> Work:
    """The first copy of the work that this process received from the driver, as Ray sends one with every task."""
    if driver not in _of_driver:
        _of_driver.clear()  # one driver at a time; frees the inputs of another one
        _of_driver[driver] = work
    return _of_driver[driver]


def attempt(task: str, work: Work, driver: str, mailbox: Any, threads: int) -> None:
    """Execute one task on a Ray worker; `driver` is the driver's id.

    Waits for answers as futures, because Ray lends a task's cores to other tasks while it is in ray.get or ray.wait,
    and would then execute more runs at a time than requested.
    """
    import ray
    import torch

    def put(event: Event) -> Future[bool]:
        answer: Future[bool] = mailbox.put.remote(event).future()
        return answer

    try:
        late = put(Event(task, "started")).result()
    except ray.exceptions.RayError:  # the driver is gone or no longer needs this task
        late = True
    if late:
        raise stopping.StoppedError(signal.SIGTERM)
    torch.set_num_threads(threads)
    answers: list[Future[bool]] = []
    told = time.monotonic()

    def tell(step: int) -> None:
        nonlocal told
        # ignore failed answers: a lost progress message is no reason to stop a run
        if any(answer.exception() is None and answer.result() for answer in answers if answer.done()):
            stopping.request()
        answers[:] = [answer for answer in answers if not answer.done()]
        if time.monotonic() - told >= TELL_EVERY:
            answers.append(put(Event(task, "step", step)))
            told = time.monotonic()

    try:
        with stopping.at_next_step():
            _kept(driver, work)(task, tell)
    finally:  # the driver receives all messages before it learns that the task ended
        wait(answers, timeout=LAST_WORDS)


class _Driver:
    """Submits tasks to Ray, receives their events, and retries those whose worker or node died."""

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
        # Ray may restart it at any time: it is on the driver's node and its state can be lost
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
        """Receive all new events, and tell the tasks whether to stop."""
        try:
            events = self.ray.get(self.mailbox.take.remote(self.stopped))
        except self.ray.exceptions.RayError:  # the actor is being restarted
            return
        for event in events:
            self.begun.add(event.task)
            self.attempts.note(event)
            self.on_event(event)

    def _stop(self) -> None:
        """Ask the active runs to stop at their next step; queued tasks stop as soon as they start.

        Does not use ray.cancel, which interrupts a worker anywhere, and breaks one that is importing torch.
        """
        self.stopped = True
        self.left.clear()
        self._hear()  # tasks that start after this are told to stop
        self.running = {ref: task for ref, task in self.running.items() if task in self.begun}

    def _ended(self, ref: Any, task: str) -> None:
        """Handle the end of a Ray task: success, a death to retry, a reason to give it up, or an error to raise."""
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
        self._hear()  # its last events
        self.on_event(Event(task, "ended"))

    def _died(self, task: str, why: str) -> None:
        if self.attempts.again(task):
            self.on_event(Event(task, "retried", note=why))
            self.left.insert(0, task)
        else:
            self.lost[task] = self.attempts.why(task, why)
            self.on_event(Event(task, "ended"))


def _why(error: BaseException) -> str:
    """Why Ray lost a task, in words."""
    name = type(error).__name__
    known = {
        "OutOfMemoryError": "Ray stopped it because its node was running out of memory",
        "WorkerCrashedError": "its worker was killed, probably because memory ran out",
        "NodeDiedError": "its node died",
        "LocalRayletDiedError": "its node died",
    }
    return known.get(name, f"{name}: {_first(error)}")
