"""Forecasts the final forgetting of a run from the rows that it has written so far."""

from __future__ import annotations

from dataclasses import replace

from ..config.schema import RunConfig
from ..measuring.forecast import ANY, PLAIN, Forecast, forecast
from ..store.folder import RunFolder
from ..tuning.mitigations import parse_together, with_recipe
from ..tuning.schedule import learning_rates


def of_run(folder: RunFolder, run: RunConfig) -> Forecast | None:
    """Forecast the forgetting at the end of a run; None before its first measurement.

    Args:
        folder: the run's folder; another process may be writing to it.
        run: the run's configuration.

    Raises:
        ForgettingError: a row is damaged.
    """
    rows = [row for row in folder.measurements() if row.get("alpha") is None and row["step"] > 0]
    if not rows:
        return None
    together = parse_together(run)
    rates = learning_rates(with_recipe(run, together).training)
    steps, values, errors = zip(*((row["step"], row["forgetting"], row["forgetting_se"]) for row in rows), strict=True)
    prior = ANY if together else PLAIN
    found = forecast(steps, values, errors, end=run.training.steps, rates=rates, prior=prior)
    return replace(found, guide=run.model.source != "miniature")
