"""The charts of a study as Plotly figures, given as dictionaries that the page's script draws.

Colours are CSS variables of the page (`var(--ink)`); the script resolves them, so one figure serves the light page,
the dark page and print. Each trace's `meta` names its series and, for points, the rows of the data set that it shows:
the script takes their hover texts from one list.
"""

from __future__ import annotations

import html
from typing import Any

import pandas as pd

from forgetting.analysis.fit.curves import bands_said
from forgetting.display.charts import Chart, note, plain_layout
from forgetting.display.numbers import NBSP, count, finite, level, number, plus_minus, several
from forgetting.measuring.quantities import AXES
from forgetting.reporting.curves import banded, bent_line, fitted_line, fitted_sizes, fitted_steps
from forgetting.reporting.mitigated import mitigated_charts
from forgetting.reporting.points import points_trace
from forgetting.reporting.series import Panel, Series
from forgetting.reporting.words import method_name, r2

BASE, FAILED = "base", "failed"  # can be switched in the legend, like the series' keys


def charts(panel: Panel) -> list[Chart]:
    """All charts of one data set, in reading order."""
    if panel.points.empty:
        return []
    return [
        line_chart(panel),
        finetune_chart(panel),
        forgetting_chart(panel),
        size_chart(panel),
        agreement_chart(panel),
        *mitigated_charts(panel),
    ]


def line_chart(panel: Panel) -> Chart:
    """The paper's Figure 2: forgetting loss against fine-tuning loss, all runs, with the fitted line and its band."""
    data = fitted_line(panel) + _points(panel, "finetune_loss", "forgetting_loss", errors=False)
    layout = plain_layout(AXES["finetune_loss"], AXES["forgetting_loss"])
    point = (
        "a mean over the runs of one method and rank at one step" if panel.averaged else "one measurement of one run"
    )
    caption = f"Each point is {point}; training moves a run to the left and up."
    if fit := panel.linear:
        c, s = fit.parameters["c_fft"].value, fit.parameters["s_fft"].value
        r_squared = number(r2(fit, "forgetting_loss"))
        layout["annotations"] = [note(f"L<sub>f</sub> = {_line(c, s)}<br>R² = {r_squared}")]
        caption += f" The line is Eq. 4, fitted to {fit.support('measurement')}; "
        bands = bands_said(data, level(fit.confidence))
        caption += f"{bands + ', and ' if bands else ''}dotted parts are outside the range of the fit"
        caption += ", where bands include other laws that fit about as well." if bands and fit.rivals else "."
    if bend := bent_line(panel):
        data.append(bend.trace)
        better = "" if bend.r2 is None else f" (R² {number(bend.r2)})"
        test = bend.test
        caption += (
            f" The points bend: at both ends of the range they lie {abs(test.size):.2g} ± {test.se:.1g} "
            f"nats/token {'above' if test.size > 0 else 'below'} the line, relative to its middle "
            f"(p = {test.p_holm:.1g}, by runs). The dashed curve is the parabola through them{better}."
        )
    low, high = panel.points["finetune_loss"].min(), panel.points["finetune_loss"].max()
    alt = (
        f"Scatter plot of {several(len(panel.points), 'measurement')}: forgetting loss against fine-tuning loss, "
        f"which runs from {number(low)} to {number(high)} nats per token. "
        "The numbers are in the table of measurements below."
    )
    return Chart(
        "line", "Forgetting against fine-tuning loss", caption, alt, {"data": data, "layout": layout}, wide=True
    )


def finetune_chart(panel: Panel) -> Chart:
    """The paper's Figure 3, left: fine-tuning loss of each series against update steps, with the fitted joint law."""
    data = fitted_steps(panel, "finetune_loss") + _points(panel, "step", "finetune_loss")
    caption = panel.bars + _of_joint(panel, "finetune_loss", "Eq. 5", data)
    alt = _steps_alt("Fine-tuning loss", panel, "falls")
    layout = plain_layout(AXES["step"], AXES["finetune_loss"])
    spec = {"data": data, "layout": layout}
    return Chart("steps-finetune_loss", "Fine-tuning loss against steps", caption, alt, spec)


def forgetting_chart(panel: Panel) -> Chart:
    """The paper's Figure 3, right, minus the floor: forgetting against steps, and what is indistinguishable from 0."""
    floor = float(panel.points["forgetting_floor"].median())
    fitted = fitted_steps(panel, "forgetting_loss", floor) if finite(floor) else []
    data = fitted + _points(panel, "step", "forgetting")
    caption = panel.bars + unresolved_said(panel)
    caption += _of_joint(panel, "forgetting_loss", "Eq. 6 minus the floor", data) if fitted else ""
    layout = plain_layout(AXES["step"], AXES["forgetting"])
    _add_unresolved(layout, panel)
    alt = _steps_alt("Forgetting", panel, "rises")
    return Chart("steps-forgetting", "Forgetting against steps", caption, alt, {"data": data, "layout": layout})


def _of_joint(panel: Panel, output: str, what: str, data: list[dict[str, Any]]) -> str:
    """What the curves of the joint law in a chart against steps show, in words; empty without the law."""
    if panel.joint is None:
        return ""
    fitted = f"fitted to {several(panel.joint.n_runs, 'run')} at once (R² {number(r2(panel.joint, output))})"
    said = f" Curves are {what}, {fitted}; dotted outside the range of the fit."
    if (bands := bands_said(data, level(panel.joint.confidence))) and (at := banded(panel)):
        said += f" Bands at {at.label}: {bands}; those of other ranks are in the table of predictions."
    return said


def _steps_alt(name: str, panel: Panel, way: str) -> str:
    return (
        f"{name} against update steps, one curve per method or rank ({len(panel.series)} in all); it "
        f"usually {way} with steps. The numbers are in the table of measurements below."
    )


def unresolved_said(panel: Panel) -> str:
    """What the band of forgetting that is not distinguishable from 0 shows, in words; empty if it is unknown."""
    if panel.resolution is None:
        return ""
    return (
        f" The shaded band is forgetting that this text cannot distinguish from 0 (95{NBSP}%): up to "
        f"{number(panel.resolution, 2)} nats/token, from the standard errors of the measurements nearest to that "
        "border. Hollow points lie in it."
    )


def _add_unresolved(layout: dict[str, Any], panel: Panel) -> None:
    """Shade the forgetting that cannot be distinguished from 0, and name it."""
    limit = panel.resolution
    if limit is None:
        return
    layout["yaxis"]["rangemode"] = "tozero"
    across = {"xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    border = {"color": "var(--soft)", "width": 1, "dash": "dot"}
    layout["shapes"] = [
        {"type": "rect", "y0": -limit, "y1": limit, "line": {"width": 0}, "fillcolor": "var(--band)", **across},
        {"type": "line", "y0": limit, "y1": limit, "line": border, **across},
    ]
    place = {"xref": "paper", "x": 0.99, "xanchor": "right", "y": limit, "yanchor": "bottom", "showarrow": False}
    text = f"not distinguishable from 0: up to {number(limit, 2)}"
    layout["annotations"] = [{"text": text, "font": {"size": 11, "color": "var(--soft)"}, **place}]


def size_chart(panel: Panel) -> Chart:
    """Forgetting at the last step against the number of trainable parameters; the ticks name the ranks."""
    last = panel.last()
    step = float(last["step"].iloc[0])
    data = fitted_sizes(panel, step) + _points(panel, "trainable_params", "forgetting", rows=last)
    layout = plain_layout("trainable parameters P (log scale)", AXES["forgetting"])
    sizes = last.groupby("series")["trainable_params"].median()
    ticks = [(float(sizes[s.key]), s) for s in panel.series if finite(sizes.get(s.key))]
    ticks.sort(key=lambda tick: tick[0])
    ticks = [tick for tick in ticks if tick[0] > 0]
    names = [f"{method_name_of(s)}<br>{count(size)}" for size, s in ticks]
    layout["xaxis"] |= {"type": "log", "tickvals": [size for size, _ in ticks], "ticktext": names, "minor": {}}
    behind = int((panel.measured.groupby("run_id")["step"].max() < step).sum())
    _add_unresolved(layout, panel)
    caption = f"At step {step:.0f}, the last one measured.{unresolved_said(panel)}"
    if panel.joint and (bands := bands_said(data, level(panel.joint.confidence))):
        caption += f" The curve is Eq. 6 minus the floor: {bands}."
    if behind:
        caption += f" {behind} {'run has' if behind == 1 else 'runs have'} not reached it and are not shown."
    alt = f"Forgetting at step {step:.0f} against rank: " + "; ".join(
        f"{s.label} {plus_minus(*_pair(last, s, 'forgetting'))}" for s in panel.series
    )
    return Chart("size", "Forgetting against rank", caption, alt, {"data": data, "layout": layout})


def agreement_chart(panel: Panel) -> Chart:
    """Agreement with the base model against update steps, one line per run."""
    data = _points(panel, "step", "agreement", scale=100, lines=True)
    last = panel.last()
    alt = f"Share of positions with the base model's top token, at step {last['step'].iloc[0]:.0f}: " + "; ".join(
        f"{s.label} {plus_minus(*_pair(last, s, 'agreement'), scale=100)} %" for s in panel.series
    )
    caption = "Share of positions of the general text where the most likely token is still the base model's."
    layout = plain_layout(AXES["step"], AXES["agreement"])
    return Chart("agreement", "Agreement with the base model", caption, alt, {"data": data, "layout": layout})


def method_name_of(series: Series) -> str:
    """A tick's label: the rank of a series with the ranks' colours, else the escaped label of the series."""
    ranked = series.rank is not None and series.symbol == "circle"
    return f"r = {series.rank}" if ranked else html.escape(series.label.removesuffix(" fine-tuning"))


def hover_texts(panel: Panel) -> list[str]:
    """One hover text per row of `panel.hoverable`: run, step, rank, and values with standard errors.

    Lines are escaped and have no markup. The script adds it, because each angle bracket in a script block takes six
    bytes.
    """
    texts = []
    limit = panel.resolution
    for row in panel.hoverable.to_dict("records"):
        rank = f" · rank {row['rank']:.0f}" if finite(row["rank"]) else ""
        seed = f" · seed {row['seed']:.0f}" if finite(row["seed"]) else ""
        lines = [
            html.escape(row["run_id"]),
            f"{html.escape(method_name(row['method']))}{rank}{seed} · step {row['step']:.0f}",
            f"L_ft  {plus_minus(row['finetune_loss'], row['finetune_loss_se'])}",
            f"L_f  {plus_minus(row['forgetting_loss'], row['forgetting_loss_se'])}",
            f"forgetting  {plus_minus(row['forgetting'], row['forgetting_se'])} nats/token",
        ]
        if limit is not None and row["step"] > 0 and abs(row["forgetting"]) <= limit:
            lines.append("not distinguishable from 0")
        if finite(row["agreement"]):
            lines.append(f"agreement  {plus_minus(row['agreement'], row['agreement_se'], 100)} %")
        if row["status"] == "failed":
            lines.append("failed run, not in the fits")
        elif row["status"] != "done":
            lines.append("not finished, not in the fits yet")
        texts.append("\n".join(lines))
    return texts


def unresolved(panel: Panel, rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows have a forgetting that cannot be distinguished from 0."""
    limit = -1.0 if panel.resolution is None else panel.resolution
    return rows["forgetting"].abs() <= limit


def _pair(rows: pd.DataFrame, series: Series, column: str) -> tuple[float, float]:
    """Mean over the series' runs, and their mean standard error, since the runs share their documents."""
    mine = rows[rows["series"] == series.key]
    return float(mine[column].mean()), float(mine[f"{column}_se"].mean())


def _line(c: float, s: float) -> str:
    """The right-hand side of the line's equation, with its signs."""
    join = "+" if s >= 0 else "−"
    return f"{number(-c)} · L<sub>ft</sub> {join} {number(abs(s))}"


def _points(
    panel: Panel,
    x: str,
    y: str,
    *,
    rows: pd.DataFrame | None = None,
    scale: float = 1.0,
    errors: bool = True,
    lines: bool = False,
) -> list[dict[str, Any]]:
    """One trace of points per series, and hidden ones for the base model and for failed runs."""
    traces = []
    for series in panel.series:
        mine = panel.of(series)
        if rows is not None:
            mine = rows[rows["series"] == series.key].sort_values(["run_id", "step"])
        inside = unresolved(panel, mine) if y == "forgetting" else mine["step"] < 0
        for rows_, symbol in ((mine[~inside], series.symbol), (mine[inside], f"{series.symbol}-open")):
            if not rows_.empty:
                colour = f"var(--{series.key})"
                traces.append(
                    points_trace(rows_, x, y, colour, symbol, series.key, scale=scale, errors=errors, lines=lines)
                )
    if rows is None:
        extras = ((panel.base, "var(--ink)", "circle-open", BASE), (panel.failed, "var(--bad)", "x-thin-open", FAILED))
        for others, colour, mark, key in extras:
            if not others.empty:
                trace = points_trace(others, x, y, colour, mark, key, scale=scale, errors=False)
                traces.append(trace | {"visible": False})
    return traces
