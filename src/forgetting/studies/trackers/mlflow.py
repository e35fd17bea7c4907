"""MLflow. MLFLOW_TRACKING_URI sets the server, database or folder, and MLFLOW_EXPERIMENT_NAME the experiment."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from .base import Opening, Outcome, Tracker

KEY = "forgetting.run"
"""The tag used to find a run again, because MLflow assigns ids itself."""
LONGEST, MOST = 6000, 100
"""MLflow's limits: characters of a parameter's value, and parameters per request."""
STATUS: dict[Outcome, str] = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


def allowed(name: str) -> str:
    """A name of a metric or parameter; characters that MLflow does not allow become underscores.

    Examples:
        >>> allowed("laws/news/power/β+1")
        'laws/news/power/__1'
    """
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


class MLflow(Tracker):
    """Uses MLflow's client (https://mlflow.org/docs/latest), which leaves the user's own active run alone."""

    name = package = "mlflow"

    def __init__(self, opening: Opening) -> None:
        """Open the run, or resume the one with our tag."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or opening.project)
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{opening.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {**opening.tags, KEY: opening.id, "study": opening.group}
        self._id = self._client.create_run(experiment, run_name=opening.name, tags=tags).info.run_id
        params = [Param(allowed(key), str(value)[:LONGEST]) for key, value in opening.config.items()]
        for at in range(0, len(params), MOST):
            self._client.log_batch(self._id, params=params[at : at + MOST])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another process created it at the same time
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id, metrics=[Metric(allowed(name), value, now, step) for name, value in numbers.items()]
        )

    def close(self, outcome: Outcome) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._id, STATUS[outcome])
