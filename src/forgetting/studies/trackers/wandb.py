"""Weights & Biases; respects its environment variables WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_DIR."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .base import Opening, Outcome, Tracker

QUIET = {
    "silent": True,
    "console": "off",  # otherwise our terminal output is captured and sent
    "disable_git": True,  # otherwise uncommitted changes in the user's folder are sent
    "save_code": False,
    "disable_job_creation": True,
    "x_disable_meta": True,  # otherwise the command line is sent
}
"""Settings that keep wandb from sending anything that we do not log; those unknown to its version are omitted."""
LONGEST_TAG = 64


class Wandb(Tracker):
    """A run of one project, grouped by study folder (https://docs.wandb.ai/ref/python/init)."""

    name = package = "wandb"

    @classmethod
    def unready(cls) -> str:
        """Reports a missing API key, which the library would ask for in the middle of a run."""
        import wandb

        if os.environ.get("WANDB_MODE", "online") != "online" or wandb.api.api_key:
            return ""
        return "has no API key; run `wandb login`, or set WANDB_MODE=offline"

    def __init__(self, opening: Opening) -> None:
        """Open the run, or resume the one with this id."""
        import wandb

        known = wandb.Settings.model_fields
        opening.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or opening.project,
            id=opening.id,
            name=opening.name,
            group=opening.group,
            config=dict(opening.config),
            tags=[f"{name}:{value}"[:LONGEST_TAG] for name, value in opening.tags.items()],
            dir=os.environ.get("WANDB_DIR") or str(opening.folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**{name: value for name, value in QUIET.items() if name in known}),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers; the last ones become the run's summary."""
        self._run.log(dict(numbers), step=step)

    def close(self, outcome: Outcome) -> None:
        """Wait until everything is sent or, offline, written."""
        self._run.finish(exit_code=0 if outcome == "done" else 1)
