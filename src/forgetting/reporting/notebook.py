"""One chart of a study's report as a Plotly figure."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from forgetting.config.schema import StudyConfig
from forgetting.display.charts import plotly_figure
from forgetting.errors import UsageError, did_you_mean
from forgetting.reporting.aggregate import drawn
from forgetting.reporting.figures import charts, hover_texts
from forgetting.reporting.series import group, panels, tidy

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from forgetting.analysis.fit import Fit


def study_figure(
    config: StudyConfig,
    table: pd.DataFrame,
    runs: Sequence[Mapping[str, Any]],
    fits: Mapping[str, Mapping[str, Fit]],
    dataset: str | None,
    kind: str,
) -> go.Figure:
    """One chart of a study.

    Args:
        config, table, runs, fits: see `render_study`.
        dataset: name of the data set; may be None if the study has only one.
        kind: kind of chart, such as `line`.

    Raises:
        UsageError: no such data set or chart, or no data set given although there are several.
    """
    rows = tidy(table)
    series = group(rows, runs)
    points, _ = drawn(rows, series)
    shown = {panel.name: panel for panel in panels(config.datasets, points, series, fits, rows)}
    if dataset is None and len(shown) > 1:
        raise UsageError(f"figure: several data sets; give dataset=, one of {', '.join(shown)}")
    name = next(iter(shown)) if dataset is None else dataset
    if name not in shown:
        raise UsageError(f"figure: no data set '{name}'; {did_you_mean(name, shown)}")
    found = {chart.kind: chart for chart in charts(shown[name])}
    if not found:
        raise UsageError(f"figure: nothing measured on '{name}' yet")
    if kind not in found:
        raise UsageError(f"figure: no chart '{kind}'; {did_you_mean(kind, found)}")
    return plotly_figure(
        found[kind],
        hover=hover_texts(shown[name]),
        names={s.key: html.escape(s.label) for s in series},
        colours={s.key: s.light for s in series},
    )
