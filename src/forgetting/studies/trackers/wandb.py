"""Weights & Biases, as its environment variables say: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .base import Opening, Outcome, Tracker

QUIET = {
    "silent": True,
    "console": "off",  # else our own lines are caught and sent
    "disable_git": True,  # else uncommitted changes of the user's folder are sent
    "save_code": False,
    "disable_job_creation": True,
    "x_disable_meta": True,  # else the command line is sent
}
"""Settings under which nothing is sent but what we log. A version without one of them is given the others."""
LONGEST_TAG = 64


class Wandb(Tracker):
    """https://docs.wandb.ai/ref/python/init: a run of one project, grouped by study folder."""

    name = package = "wandb"

    @classmethod
    def unready(cls) -> str:
        """No API key: the library would ask for one in the middle of a run."""
        import wandb

        if os.environ.get("WANDB_MODE", "online") != "online" or wandb.api.api_key:
            return ""
        return "has no API key; run `wandb login`, or set WANDB_MODE=offline"

    def __init__(self, opening: Opening) -> None:
        """Open the run, or go on in the one of this id."""
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
        """Record numbers; the last ones are the run's summary."""
        self._run.log(dict(numbers), step=step)

    def close(self, outcome: Outcome) -> None:
        """Wait until all is sent or, offline, written."""
        self._run.finish(exit_code=0 if outcome == "done" else 1)
