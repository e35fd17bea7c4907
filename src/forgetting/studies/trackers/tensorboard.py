"""TensorBoard: event files in the study folder; view them with `tensorboard --logdir STUDY/tracking/tensorboard`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .base import Opening, Outcome, Tracker


class TensorBoard(Tracker):
    """Writes a folder of event files per run (https://pytorch.org/docs/stable/tensorboard.html).

    The configuration and the tags are stored as texts.
    """

    name = package = "tensorboard"

    def __init__(self, opening: Opening) -> None:
        """Open the run's folder; if it exists, add another event file."""
        from torch.utils.tensorboard import SummaryWriter

        folder = opening.folder / "tensorboard" / opening.id
        new = not folder.exists()
        writer: Any = SummaryWriter(str(folder))
        self._writer = writer
        if new:
            for name, content in (("config", opening.config), ("tags", opening.tags)):
                writer.add_text(name, "```json\n" + json.dumps(dict(content), indent=1) + "\n```")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers and write them to disk."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, outcome: Outcome) -> None:
        """Close the event file."""
        self._writer.close()
