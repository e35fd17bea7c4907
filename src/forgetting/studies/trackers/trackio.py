"""Trackio by Hugging Face: a local database in TRACKIO_DIR, or the Space that TRACKIO_SPACE_ID names."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Opening, Outcome, Tracker


class Trackio(Tracker):
    """Uses Trackio (https://huggingface.co/docs/trackio), which resumes a run by its name: we pass our id as the name.

    The tags are part of the configuration.
    """

    name = package = "trackio"

    def __init__(self, opening: Opening) -> None:
        """Open the run, or resume the one with this name."""
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
        """Wait until everything is written."""
        import trackio

        trackio.finish()  # after run.finish() the library would finish the run again at exit, and print
