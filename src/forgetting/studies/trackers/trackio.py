"""Trackio, of Hugging Face: a local database, or a Space where TRACKIO_SPACE_ID names one; TRACKIO_DIR moves it."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Opening, Outcome, Tracker


class Trackio(Tracker):
    """https://huggingface.co/docs/trackio: a run goes on by its name, which is our id. Tags are in the config."""

    name = package = "trackio"

    def __init__(self, opening: Opening) -> None:
        """Open the run, or go on in the one of this name."""
        import trackio

        tags = {f"tags.{name}": value for name, value in opening.tags.items()}
        self._run = trackio.init(
            project=opening.project,
            name=opening.id,
            group=opening.group,
            config={**opening.config, **tags},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers."""
        self._run.log(dict(numbers), step=step)

    def close(self, outcome: Outcome) -> None:
        """Wait until all is written."""
        import trackio

        trackio.finish()  # not run.finish(), after which the library finishes the run again on leaving, and prints
