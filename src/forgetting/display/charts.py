"""The common style of all charts: colours, layout and points; also turns a report's chart into a Plotly figure.

A chart is a plain Plotly specification whose colours are CSS variables (`var(--ink)`), so that the same chart works on
the light page, the dark page, paper and in notebooks. Each trace names its series in `meta`; for points, `meta` also
gives their hover texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

LIGHT = {
    "surface": "#ffffff",
    "raised": "#ffffff",
    "ink": "#1b1e24",
    "soft": "#59616e",
    "rule": "#d9d6cf",
    "grid": "#edebe6",
    "band": "rgba(60, 66, 80, 0.14)",
    "line-fit": "#2b303a",
    "bad": "#b3261e",
}
"""Colours of charts by name, on the light page and in notebooks."""
DARK = {
    "surface": "#1a1d22",
    "raised": "#262a31",
    "ink": "#e9eaec",
    "soft": "#a6adb8",
    "rule": "#3a3f48",
    "grid": "#2a2e35",
    "band": "rgba(200, 206, 218, 0.16)",
    "line-fit": "#d9dce2",
    "bad": "#ff9b92",
}
SANS = "system-ui, sans-serif"

# every colour has a contrast of at least 3:1 with the page background; a test checks it
RANKS_LIGHT = ("#d9772b", "#cf5b3c", "#c2465a", "#a22f75", "#702b8c", "#41278a", "#1b1464")
RANKS_DARK = ("#8468d8", "#b061c8", "#d6629f", "#ee7a72", "#f7a14f", "#f6c453", "#f5f0a6")
OTHERS = (
    ("#00796b", "#4fd1b5", "diamond"),
    ("#1769aa", "#7cb8ff", "square"),
    ("#6d5a00", "#d8c25a", "triangle-up"),
    ("#5a6270", "#c3c9d2", "x"),
    ("#8a3b12", "#ef9a6a", "star"),
    ("#8c1d6b", "#f08fd0", "triangle-down"),
    ("#2e6b1f", "#8fd67a", "pentagon"),
    ("#3d3d9e", "#a9a9f5", "hexagon"),
    ("#b02a2a", "#ff9d96", "hourglass"),
    ("#0b5f75", "#6fd6ea", "bowtie"),
)
"""Light colour, dark colour and symbol of a series without a rank."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        kind: its name for the page, its tests and `figure(kind)`.
        title, caption: plain text above and below it.
        alt: a description for readers who cannot see it.
        spec: the Plotly specification, with `data` and `layout`.
        wide: whether it takes the full width of the page.
    """

    kind: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    wide: bool = False


def plotly_figure(
    chart: Chart,
    *,
    hover: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    colours: Mapping[str, str] | None = None,
) -> go.Figure:
    """A chart as a Plotly figure in the light colours.

    Args:
        chart: a chart of the report.
        hover: the hover texts that the traces' `meta` refers to.
        names: names of the series, for the legend.
        colours: colours of the series, in addition to LIGHT.
    """
    import plotly.graph_objects as go

    styles = {"sans": SANS, **LIGHT, **(colours or {})}
    spec = _resolved(chart.spec, styles)
    legend: set[str] = set()
    for trace in spec["data"]:
        series = str(trace.get("meta", {}).get("series", ""))
        rows = trace.get("meta", {}).get("rows")
        if rows and hover:
            trace["text"] = [hover_html(hover[row]) for row in rows]
        trace["legendgroup"] = series
        trace["showlegend"] = bool(names and series in names and series not in legend and trace.get("visible", True))
        if trace["showlegend"]:
            trace["name"] = (names or {})[series]
            legend.add(series)
    layout = {
        **spec["layout"],
        "title": {"text": chart.title, "font": {"color": LIGHT["ink"], "size": 16}},
        "margin": {"l": 70, "r": 20, "t": 50, "b": 60},
        "height": 455,
        "showlegend": len(legend) > 1,
    }
    return go.Figure(data=spec["data"], layout=layout)


def hover_html(text: str) -> str:
    """Hover text with markup; `text` is escaped already, and its first line is the name."""
    name, *lines = text.split("\n")
    lines = [line.replace("L_ft ", "L<sub>ft</sub> ", 1) if line.startswith("L_ft ") else line for line in lines]
    lines = [line.replace("L_f ", "L<sub>f</sub> ", 1) if line.startswith("L_f ") else line for line in lines]
    return "<br>".join([f"<b>{name}</b>", *lines])


def _resolved(node: Any, styles: Mapping[str, str]) -> Any:
    """A copy with each `var(--name)` replaced by the colour of that name."""
    if isinstance(node, str) and node.startswith("var(--"):
        return styles[node[6:-1]]
    if isinstance(node, Mapping):
        return {key: _resolved(value, styles) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_resolved(item, styles) for item in node]
    return node


def note(text: str) -> dict[str, Any]:
    """A line of text in the upper right corner of a chart."""
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": 0.985,
        "y": 0.97,
        "xanchor": "right",
        "yanchor": "top",
        "align": "right",
        "showarrow": False,
        "font": {"size": 14, "color": "var(--ink)"},
    }


def plain_layout(x_title: str, y_title: str) -> dict[str, Any]:
    """The layout that all charts share."""

    def axis(title: str) -> dict[str, Any]:
        return {
            "title": {"text": title, "font": {"size": 13}, "standoff": 10},
            "gridcolor": "var(--grid)",
            "linecolor": "var(--rule)",
            "tickcolor": "var(--rule)",
            "zeroline": False,
            "automargin": True,
            "ticks": "outside",
            "ticklen": 4,
        }

    return {
        "xaxis": axis(x_title),
        "yaxis": axis(y_title),
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "zoom",
        "margin": {"l": 56, "r": 12, "t": 26, "b": 48},
        "modebar": {"bgcolor": "var(--surface)", "color": "var(--soft)", "activecolor": "var(--ink)"},
        "paper_bgcolor": "var(--surface)",
        "plot_bgcolor": "var(--surface)",
        "font": {"color": "var(--soft)", "size": 12, "family": "var(--sans)"},
        "hoverlabel": {
            "bgcolor": "var(--raised)",
            "bordercolor": "var(--rule)",
            "font": {"color": "var(--ink)", "size": 13, "family": "var(--sans)"},
            "align": "left",
        },
    }


def marker(colour: str, symbol: str = "circle") -> dict[str, Any]:
    """The style of a measured point."""
    line = {"color": colour, "width": 1.8} if symbol.endswith("open") else {"color": "var(--surface)", "width": 0.8}
    return {"color": colour, "symbol": symbol, "size": 7, "line": line}


def floats(values: Iterable[Any]) -> list[float | None]:
    """Floats for JSON: nine significant digits, None if not finite."""
    return [float(f"{float(v):.9g}") if v is not None and math.isfinite(float(v)) else None for v in values]


def blend(colours: Sequence[str], place: float) -> str:
    """The colour at `place` in 0..1 on a scale, interpolated linearly between its stops.

    Examples:
        >>> blend(["#000000", "#ff0000"], 0.5)
        '#800000'
    """
    at = min(max(place, 0.0), 1.0) * (len(colours) - 1)
    low = min(int(at), len(colours) - 2)
    share = at - low
    one, two = (([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (colours[low], colours[low + 1]))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(one, two, strict=True))


def rank_place(index: int, count: int) -> float:
    """The position of the index-th rank on the colour scale of ranks."""
    return index / (count - 1) if count > 1 else 0.7
