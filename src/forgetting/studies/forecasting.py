"""Where a run of a study ends, from the rows that it has on disk so far."""

from __future__ import annotations

from ..config.schema import RunConfig
from ..measuring.forecast import ANY, PLAIN, Forecast, forecast
from ..store.folder import RunFolder
from ..tuning.mitigations import parse_together, with_recipe
from ..tuning.schedule import learning_rates


def of_run(folder: RunFolder, run: RunConfig) -> Forecast | None:
    """What forgetting a run ends with; None before its first measurement.

    Args:
        folder: the run's, which another process may be writing.
        run: its configuration.

    Raises:
        ForgettingError: a damaged row.
    """
    rows = [row for row in folder.measurements() if row.get("alpha") is None and row["step"] > 0]
    if not rows:
        return None
    together = parse_together(run)
    rates = learning_rates(with_recipe(run, together).training)
    steps, values, errors = zip(*((row["step"], row["forgetting"], row["forgetting_se"]) for row in rows), strict=True)
    prior = ANY if together else PLAIN
    return forecast(steps, values, errors, end=run.training.steps, rates=rates, prior=prior)
