"""Several machines that do one run together: what their commands tell each other, through one of torch's stores.

The command on the first machine serves the store and says what is done; each of the others (`follow`) starts its own
processes when it is told, and says how they ended. Every command counts a beat, by which the others see that it lives.
The processes of a run meet in the same store.
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
"""Seconds for which the machines wait for each other to begin."""
BEAT = 1.0
LOST = 20.0
"""Seconds without a beat after which a machine counts as gone."""
LINGER = 5.0
"""Seconds for which the first machine, at the end, waits for the others to read that it is the end."""


class GoneMachineError(ForgettingError):
    """A machine of the run is gone: the others end, and the same commands go on from the last checkpoint."""

    def __init__(self, machine: int) -> None:
        """Name it."""
        super().__init__(
            f"machine {machine} of the run is gone; everything up to the last checkpoint is kept: run the same "
            "command again on all machines to resume"
        )


class Machines:
    """The commands of all machines of a launch, seen from one of them."""

    def __init__(self, launch: Launch, content: dict[str, Any]) -> None:
        """Serve the store, or wait until the first machine does.

        Args:
            launch: of this machine.
            content: what must be the same on all.

        Raises:
            ForgettingError: nobody serves it in time, or the port is taken.
        """
        self.launch, self.mine = launch, launch.machine
        if self.mine:
            self._wait_for_server()
        self._store = self._connect(serves=self.mine == 0)
        self._beats: dict[int, tuple[int, float]] = {}
        self._over = threading.Event()
        self._store.set(f"machine/{self.mine}", json.dumps(content, sort_keys=True))
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
            raise ForgettingError(
                f"main_process_ip {self.launch.address}, main_process_port {self.launch.port}: {reason}"
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

    def _beat(self) -> None:
        try:
            store = self._connect(serves=False)  # its own: a store answers one question at a time
            while not self._over.wait(BEAT):
                store.add(f"beat/{self.mine}", 1)
        except (RuntimeError, ForgettingError):  # the store is gone: whoever asks next finds out
            return

    @property
    def others(self) -> list[int]:
        """Numbers of the other machines."""
        return [machine for machine in range(self.launch.machines) if machine != self.mine]

    def tell(self, key: str, value: Any) -> None:
        """Say something under a key.

        Raises:
            GoneMachineError: the first machine, with the store, is gone.
        """
        try:
            self._store.set(key, json.dumps(value))
        except RuntimeError:
            raise GoneMachineError(0) from None

    def told(self, key: str) -> Any:
        """What was said under a key; None for nothing yet.

        Raises:
            GoneMachineError: as `tell`.
        """
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except RuntimeError:
            raise GoneMachineError(0) from None

    def gather(self) -> None:
        """On the first machine: wait until all others are there, with the same content.

        Raises:
            UsageError: one asks for something else.
            ForgettingError: one does not come.
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

    def check(self) -> None:
        """See that all machines live, and pass on a request to stop, ours or theirs.

        Raises:
            GoneMachineError: names the machine.
        """
        number = stopping.requested()
        if number is not None:
            self.tell("stop", int(number))
        elif (asked := self.told("stop")) is not None:
            stopping.request(asked)
        now = time.monotonic()
        for machine in self.others if self.mine == 0 else [0]:
            count = self._count(machine)
            before, since = self._beats.get(machine, (-1, now))
            self._beats[machine] = (count, now if count != before else since)
            if count == before and now - since > LOST:
                raise GoneMachineError(machine)

    def _count(self, machine: int) -> int:
        try:
            return int(self._store.add(f"beat/{machine}", 0))
        except RuntimeError:
            raise GoneMachineError(0) from None

    def end(self, why: dict[str, Any], number: int) -> None:
        """On the first machine: say that there is nothing more to do, and why.

        Args:
            why: `stopped`, the signal; `failed`, in words; or nothing.
            number: of the next task.
        """
        try:
            self.tell(f"task/{number}", {"end": why})
            over = time.monotonic() + LINGER
            while time.monotonic() < over and not all(self.told(f"left/{machine}") for machine in self.others):
                time.sleep(POLL)
        except GoneMachineError:
            pass
        self._over.set()

    def leave(self) -> None:
        """On another machine: say that the end was read."""
        self._over.set()
        with suppress(GoneMachineError):
            self.tell(f"left/{self.mine}", True)
