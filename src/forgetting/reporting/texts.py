"""The further texts of a study, as HTML: forgetting on each, by run at its last step, and against steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ..config.schema import is_probe
from ..display.commands import command
from ..display.numbers import finite, natural, plus_minus
from ..files import redact
from ..measuring.quantities import of_text
from .capabilities_chart import Line, chart, nice
from .measurement import environment

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
SHOWN_RUNS = 200
"""Most runs that are drawn and listed; if there are more, evenly spaced ones are chosen."""
SHOWN_STEPS = 100
"""Most steps of a run that are drawn; if there are more, evenly spaced ones are chosen, including first and last."""


def texts_section(
    texts: Mapping[str, Any],
    table: pd.DataFrame,
    colours: Mapping[str, str],
    labels: Mapping[str, str],
    folder: str | Path = "STUDY",
) -> Markup:
    """The section of a study's report; empty if the study has no further texts.

    Args:
        texts: the configured texts by name.
        table: one row per measurement.
        colours: CSS colour by run id.
        labels: displayed name by run id.
        folder: the study folder, for the command that the section names.
    """
    if not texts:
        return Markup("")
    columns = {"text": "forgetting"} | {name: of_text("forgetting", name) for name in texts}
    kept = [name for name in texts if is_probe(texts[name])]
    runs, total = _by_run(table, [*columns.values(), *(of_text("kept", name) for name in kept)])
    if not runs:
        return Markup("")
    shown = [
        {"name": name, "of": _what(texts[name]), "chart": _curves(columns[name], runs, colours, labels)}
        for name in texts
    ]
    rows = [_last(run, mine[-1], columns, labels) for run, mine in runs.items()]
    for row, mine in zip(rows, runs.values(), strict=True):
        row["kept"] = [_mean(mine[-1], of_text("kept", name), 100) for name in kept]
    writes = command("table", folder, "--csv")
    page = (
        environment()
        .get_template("texts_study.html.j2")
        .render(
            texts=shown,
            names=list(columns),
            rows=rows,
            kept=kept,
            total=total,
            command=writes,
        )
    )
    return Markup(page)  # noqa: S704 - rendered with escaping on


def _by_run(table: pd.DataFrame, measured: Sequence[str]) -> tuple[dict[str, list[Row]], int]:
    """The rows of each run that did not fail, sorted by step, and the number of such runs.

    Omits interpolated models. At most SHOWN_RUNS runs and SHOWN_STEPS steps of each, evenly spaced.
    """
    wanted = ["run_id", "dataset", "seed", "step", *(name + end for name in measured for end in ("", "_se"))]
    plain = table["alpha"].isna() if "alpha" in table else True
    rows = table.loc[table["status"].isin(["done", "running"]) & plain, [name for name in wanted if name in table]]
    every = rows[["dataset", "run_id"]].astype(str).drop_duplicates()
    pairs = sorted(zip(every["dataset"], every["run_id"], strict=True), key=lambda pair: (pair[0], natural(pair[1])))
    shown = list(dict.fromkeys(run for _, run in pairs))
    total = len(shown)
    if total > SHOWN_RUNS:
        shown = [shown[int(at)] for at in np.linspace(0, total - 1, SHOWN_RUNS).round()]
    rows = rows[rows["run_id"].isin(shown)].sort_values("step", kind="stable")
    found: dict[str, list[Row]] = {run: [] for run in shown}
    for row in rows.to_dict("records"):
        found[str(row["run_id"])].append({str(key): value for key, value in row.items()})
    return {run: _thinned(mine) for run, mine in found.items()}, total


def _thinned(rows: list[Row]) -> list[Row]:
    if len(rows) <= SHOWN_STEPS:
        return rows
    return [rows[int(at)] for at in np.linspace(0, len(rows) - 1, SHOWN_STEPS).round()]


def _what(text: Any) -> str:
    return redact(f"the base model's {text.source}" if is_probe(text) else str(text.source))


def _last(run: str, row: Row, columns: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "dataset": str(row["dataset"]),
        "label": labels.get(run, run),
        "seed": f"{row['seed']:.0f}" if finite(row["seed"]) else "–",
        "step": f"{row['step']:.0f}",
        "means": [_mean(row, column) for column in columns.values()],
    }


def _mean(row: Row, column: str, scale: float = 1.0) -> str:
    return plus_minus(row.get(column), row.get(f"{column}_se"), scale)


def _curves(
    column: str, runs: Mapping[str, Sequence[Row]], colours: Mapping[str, str], labels: Mapping[str, str]
) -> Markup:
    """A chart of forgetting on one text against steps, one line per run, with normal 95 % intervals."""
    datasets = list(dict.fromkeys(str(mine[0]["dataset"]) for mine in runs.values()))
    lines, ends = [], [0.0]
    for run, mine in runs.items():
        points = []
        for row in mine:
            value: Any = row.get(column)
            se: Any = row.get(f"{column}_se")
            if finite(value):
                half = 1.96 * float(se) if finite(se) else 0.0
                points.append((float(row["step"]), float(value), float(value) - half, float(value) + half))
        ends += [end for point in points for end in point[2:]]
        symbol = datasets.index(str(mine[0]["dataset"]))
        lines.append(Line(labels.get(run, run), colours.get(run, "var(--ink)"), symbol, points))
    ticks = nice(min(0.0, math.floor(min(ends) * 50) / 50), max(*ends, 0.01))
    return chart(lines, 0.0, "update steps", "forgetting (nats/token)", y_ticks=ticks, unit=" nats/token")
