"""Tasks for several processes that fail; in a file of their own, so that the processes need not import the tests."""

from __future__ import annotations

from pathlib import Path

from forgetting.errors import ForgettingError, UsageError
from forgetting.models import processes
from forgetting.store.folder import HeldError
from forgetting.studies.engines.base import Tell


def act(folder: str, task: str, tell: Tell) -> None:
    """A task that fails as its name says, in one process or in both."""
    me = processes.index()
    (Path(folder) / f"{task}-{me}").write_text(str(processes.summed_one(me + 1)))
    if task == "held":
        raise HeldError("run x: held by nobody")
    if task == "second" and me == 1:
        raise processes.RunFailedError("ValueError: of the second")
    if task == "first" and me == 0:
        raise UsageError("of the first")
    if task == "alone" and me == 0:
        tell(1)
        return  # has recorded its own failure; the other waits for it
    if task == "drifts":
        import torch

        linear = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(linear.weight, 1.0 if me == 0 else 1.0 + 2**-23)
        torch.nn.init.zeros_(linear.bias)
        try:
            processes.check_same(linear, trainable=True, when="after step 7")
        except ForgettingError as error:
            raise processes.RunFailedError(str(error)) from None
    processes.wait_for_all()
