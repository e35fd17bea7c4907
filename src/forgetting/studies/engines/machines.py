"""Communication between the commands of several machines that execute one run together, through a torch TCPStore.

The command on the first machine serves the store and announces the tasks. The command on each other machine (`follow`)
then starts its own processes, and reports how they ended. Every command counts heartbeats, so that the others notice if
it dies; if it is started again before they do, they try the current task again with it. The processes of a run use the
same store to form their group.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from ...errors import ForgettingError, UsageError
from ...models.processes import Launch
from ...tuning import stopping
from .base import POLL

MEET = 1800.0
"""Seconds that machines wait for each other at the beginning."""
BEAT = 1.0
"""Seconds between heartbeats."""
LOST = 20.0
"""Seconds without a heartbeat after which a machine counts as gone."""
LINGER = 5.0
"""Seconds that the first machine waits at the end for the others to read the announcement."""


class GoneMachineError(ForgettingError):
    """A machine of the run is gone; the others end, and the same commands resume from the last checkpoint."""

    def __init__(self, machine: int) -> None:
        """Create the error for the machine with this index."""
        super().__init__(
            f"machine {machine} of the run is gone; everything up to the last checkpoint is kept: run the same "
            "command again on all machines to resume"
        )


class Machines:
    """The connection of this machine's command to those of the launch's other machines."""

    def __init__(self, launch: Launch, content: dict[str, Any]) -> None:
        """Serve the store, or wait until the first machine does.

        Args:
            launch: the launch, with this machine's index.
            content: what must be equal on all machines.

        Raises:
            ForgettingError: the first machine does not answer in time, or the port is taken.
        """
        self.launch, self.mine = launch, launch.machine
        if self.mine:
            self._wait_for_server()
        self._store = self._connect(serves=self.mine == 0)
        self._beats: dict[int, tuple[int, float]] = {}
        self._joins: dict[int, int] = {}
        self._over = threading.Event()
        self.begin = self._join(content)
        """Number of the first task that this machine takes part in."""
        threading.Thread(target=self._beat, daemon=True).start()

    def _connect(self, *, serves: bool) -> Any:
        import torch

        stores: Any = torch.distributed
        try:
            return stores.TCPStore(
                str(self.launch.address),
                self.launch.port,
                is_master=serves,
                wait_for_workers=False,
                timeout=timedelta(seconds=60),
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            # a study that is already finished ends there before a slow machine has joined
            gone = (
                "" if serves else " (machine 0 has ended in the meantime; see its output, or start all commands again)"
            )
            raise ForgettingError(
                f"main_process_ip {self.launch.address}, main_process_port {self.launch.port}: {reason}{gone}"
            ) from None

    def _wait_for_server(self) -> None:
        place, end = (str(self.launch.address), self.launch.port), time.monotonic() + MEET
        while True:
            stopping.check()
            try:
                socket.create_connection(place, timeout=2).close()
            except (OSError, OverflowError) as error:
                if time.monotonic() > end:
                    raise ForgettingError(
                        f"machine 0 does not answer at {place[0]}:{place[1]} (main_process_ip, main_process_port): "
                        f"{error}"
                    ) from None
                time.sleep(BEAT)
            else:
                return

    def _join(self, content: dict[str, Any]) -> int:
        """Tell the others that this command is here; if it replaces one that died, the current task is tried again.

        Returns:
            Number of the first task that this machine takes part in.
        """
        now = self.told("now")  # read first: the first machine announces the next task once it sees the join
        self.tell(f"machine/{self.mine}", content)
        self.tell(f"left/{self.mine}", False)
        self._joins[self.mine] = self._count(f"joins/{self.mine}", 1)
        return 0 if now is None else int(now) + 1

    def _beat(self) -> None:
        try:
            store = self._connect(serves=False)  # its own connection, as each handles one request at a time
            while not self._over.wait(BEAT):
                store.add(f"beat/{self.mine}", 1)
        except (RuntimeError, ForgettingError):  # the store is gone; the main thread's next request reports it
            return

    @property
    def others(self) -> list[int]:
        """Indices of the other machines."""
        return [machine for machine in range(self.launch.machines) if machine != self.mine]

    def tell(self, key: str, value: Any) -> None:
        """Store a value under a key.

        Raises:
            GoneMachineError: the first machine, which serves the store, is gone.
        """
        try:
            self._store.set(key, json.dumps(value))
        except RuntimeError:
            raise GoneMachineError(0) from None

    def told(self, key: str) -> Any:
        """The value stored under a key; None if there is none yet.

        Raises:
            GoneMachineError: see `tell`.
        """
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except RuntimeError:
            raise GoneMachineError(0) from None

    def gather(self) -> None:
        """On the first machine: wait until all others have joined, and check that their content is equal.

        Raises:
            UsageError: a machine has different content.
            ForgettingError: a machine does not join in time.
        """
        end, ours = time.monotonic() + MEET, self.told(f"machine/{self.mine}")
        for machine in self.others:
            while (theirs := self.told(f"machine/{machine}")) is None:
                stopping.check()
                if time.monotonic() > end:
                    raise ForgettingError(
                        f"machine {machine} of {self.launch.machines} did not join; start the command on it, too"
                    )
                time.sleep(POLL)
            if changed := [name for name in ours if ours[name] != theirs.get(name)]:
                name = changed[0]
                raise UsageError(
                    f"machine {machine} has {name} {theirs.get(name)!r}, but machine 0 has {ours[name]!r}; "
                    "give the same on all machines"
                )

    def announce(self, number: int, task: dict[str, Any]) -> None:
        """On the first machine: tell the others what to do next."""
        self._joins |= {machine: self._count(f"joins/{machine}") for machine in self.others}
        self.tell("now", number)
        self.tell(f"task/{number}", task)

    def restarted(self, machine: int) -> bool:
        """Whether a machine's command was started again: ours since it joined, another since the last announcement."""
        return self._count(f"joins/{machine}") != self._joins[machine]

    def check(self) -> None:
        """Check that the machines are alive, and pass on requests to stop in both directions.

        Raises:
            GoneMachineError: names the machine.
            ForgettingError: another command has taken this one's place.
        """
        if self.mine and self.restarted(self.mine):
            raise ForgettingError(
                f"another command was started as machine {self.mine}, and takes the place of this one"
            )
        number = stopping.requested()
        if number is not None:
            self.tell("stop", int(number))
        elif (asked := self.told("stop")) is not None:
            stopping.request(asked)
        now = time.monotonic()
        for machine in self.others if self.mine == 0 else [0]:
            count = self._count(f"beat/{machine}")
            before, since = self._beats.get(machine, (-1, now))
            self._beats[machine] = (count, now if count != before else since)
            if count == before and now - since > LOST:
                raise GoneMachineError(machine)

    def _count(self, key: str, more: int = 0) -> int:
        """The value of a counter in the store, after adding `more`."""
        try:
            return int(self._store.add(key, more))
        except RuntimeError:
            raise GoneMachineError(0) from None

    def end(self, why: dict[str, Any], number: int) -> None:
        """On the first machine: announce that there is nothing more to do, and why.

        Args:
            why: `stopped` with the signal, `failed` with the reason in words, or empty.
            number: number of the next task.
        """
        try:
            self.tell(f"task/{number}", {"end": why})
            over = time.monotonic() + LINGER
            while time.monotonic() < over and not all(self.told(f"left/{machine}") for machine in self.others):
                time.sleep(POLL)
        except GoneMachineError:  # the store is gone, so nothing can be announced
            pass
        self._over.set()

    def leave(self) -> None:
        """On another machine: confirm that the end was read."""
        self._over.set()
        with suppress(GoneMachineError):
            self.tell(f"left/{self.mine}", True)
