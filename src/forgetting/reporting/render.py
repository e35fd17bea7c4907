"""A study as one self-contained HTML file: text, tables, charts, style and Plotly's script.

The page opens from a file and makes no network requests: its content security policy forbids them, and allows only the
scripts whose hashes it lists. A hostile name of a data set or run could therefore not run a script even if it were not
escaped. (It is: templates escape everything, and JSON inside the page escapes `<`, `>` and `&`.)
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from forgetting.analysis.plan.cost import costs_of_table
from forgetting.capabilities.study_runs import study_rows
from forgetting.config.schema import StudyConfig
from forgetting.display.charts import DARK, LIGHT
from forgetting.display.commands import command
from forgetting.errors import ForgettingError
from forgetting.files import no_room, redact, write_atomically
from forgetting.reporting import sections
from forgetting.reporting.aggregate import drawn
from forgetting.reporting.capabilities import study_section
from forgetting.reporting.citations import citations
from forgetting.reporting.comparison import comparison_section
from forgetting.reporting.figures import charts, hover_texts
from forgetting.reporting.lawtable import law_table
from forgetting.reporting.mitigated import sections_of
from forgetting.reporting.series import Panel, Series, group, panels, tidy
from forgetting.reporting.texts import texts_section
from forgetting.reporting.whatif import what_if, what_if_words
from forgetting.reporting.words import headline
from forgetting.store.growth import grown

if TYPE_CHECKING:
    from forgetting.analysis.compare import Comparison
    from forgetting.analysis.fit import Fit
    from forgetting.analysis.plan import Cost

SCRIPTS = ("report.js", "whatif_law.js", "whatif.js")


def render_study(
    config: StudyConfig,
    table: pd.DataFrame,
    runs: Sequence[Mapping[str, Any]],
    fits: Mapping[str, Mapping[str, Fit]],
    capabilities: Sequence[Mapping[str, Any]] = (),
    comparison: Comparison | None = None,
    unasked: Sequence[str] = (),
    asked: int | None = None,
    growth: Sequence[str] = (),
    folder: Path | str = "STUDY",
    ended: str = "",
) -> str:
    """The report of a study as the text of one HTML file.

    Args:
        config: the study's resolved configuration.
        table: one row per measurement, as `Study.table` returns; rows at step 0 are the base model.
        runs: the run records; the page omits what a record lacks.
        fits: by data set, the laws `linear`, `shifted_power`, `replay` and `kl` that could be fitted.
        capabilities: rows of `capabilities.study_runs.study_rows`, if models were evaluated.
        comparison: the comparison of methods and mitigations, if there are several.
        unasked: ids of stored runs that the configuration does not ask for; the page lists them and omits the rest.
        asked: how many runs the configuration asks for; default as many as there are.
        growth: one line for each time that the study's configuration was extended (`store.growth.grown`).
        folder: the study folder, for the commands on the page.
        ended: why the pilot that made these runs ended; empty for a study, or a pilot that did not end by itself.

    Returns:
        The page; equal arguments give equal text.
    """
    rows = tidy(table)
    series = group(rows, runs)
    points, aggregated = drawn(rows, series)
    shown = panels(config.datasets, points, series, fits, rows)
    scripts = [Markup(get_plotlyjs()), *map(_asset, SCRIPTS)]  # noqa: S704 - a file of an installed package
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            config=config,
            folder=folder,
            css=_asset("report.css"),
            palette=_palette(series),
            texts=_texts(config, table, series, folder),
            capabilities=_evaluated(capabilities, series),
            compare=comparison_section(comparison, series, runs),
            scripts=scripts,
            policy=_policy(scripts),
            setup=[*sections.setup(config, runs, rows), *(("Grown", line) for line in growth)],
            notices=sections.notices(runs),
            citations=citations(config),
            unasked=unasked,
            shown_rows=sections.SHOWN_ROWS,
            aggregated=aggregated,
            **_by_run(shown, runs, rows, series, asked, ended),
            **_by_data_set(shown, table),
        )
    )


def _by_run(
    shown: Sequence[Panel],
    runs: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame,
    series: Sequence[Series],
    asked: int | None,
    ended: str,
) -> dict[str, Any]:
    """The values that the runs give the template: the key figures, the table of runs, and what is still missing."""
    found = sections.statuses(runs, rows)
    return {
        "figures": sections.key_figures(shown, found, rows),
        "run_rows": sections.run_rows(runs, found, rows, series),
        "partial": sections.partial(found, asked, ended),
        "total_runs": len(found),
    }


def _by_data_set(shown: Sequence[Panel], table: pd.DataFrame) -> dict[str, Any]:
    """The values that the panels give the template: the answer, the charts, the laws, a data set with a joint law."""
    return {
        "headlines": [headline(panel) for panel in shown],
        "panels": _panels(shown, table),
        "laws": [law_table(name, shown) for name in ("linear", "shifted_power")],
        "example": next((panel.name for panel in shown if panel.joint is not None), None),
    }


def _texts(config: StudyConfig, table: pd.DataFrame, series: Sequence[Series], folder: Path | str) -> Markup:
    """The section on further texts, with the colours and names of the runs' series."""
    colours = {run: f"var(--{s.key})" for s in series for run in s.runs}
    return texts_section(config.texts, table, colours, {run: s.label for s in series for run in s.runs}, folder)


def _evaluated(capabilities: Sequence[Mapping[str, Any]], series: Sequence[Series]) -> Markup:
    """The section on capabilities, with the colours and names of the runs' series."""
    colours = {run: f"var(--{s.key})" for s in series for run in s.runs}
    return study_section(capabilities, colours, {run: s.label for s in series for run in s.runs})


def write_study_report(
    config: StudyConfig,
    table: pd.DataFrame,
    runs: Sequence[Mapping[str, Any]],
    fits: Mapping[str, Mapping[str, Fit]],
    path: Path,
    comparison: Comparison | None = None,
    unasked: Sequence[str] = (),
    asked: int | None = None,
    ended: str = "",
) -> Path:
    """Write the page of `render_study` to `path` atomically.

    Returns:
        The path written.

    Raises:
        ForgettingError: the file cannot be written.
    """
    capabilities = [row for row in study_rows(path.parent) if row["run_id"] not in unasked]
    how = grown(path.parent, config)
    page = render_study(config, table, runs, fits, capabilities, comparison, unasked, asked, how, path.parent, ended)
    try:
        return write_atomically(path, page, parents=False)
    except OSError as error:
        if no_room(error):
            why = f"{path}: the disk is too full for the report; free some space, then run the same command again"
        else:
            why = f"{path}: the report cannot be written: {error.strerror}; is the folder there, and writable?"
        raise ForgettingError(why) from None


@cache
def environment() -> jinja2.Environment:
    """Jinja for the report's templates, with escaping on, undefined names as errors, and JSON without NaN."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("forgetting.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["command"] = command
    made.filters["pyrepr"] = repr
    made.filters["powers"] = _powers
    made.filters["without_secrets"] = redact
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "ensure_ascii": False}
    return made


def _powers(text: str) -> Markup:
    """Escaped text in which `10^98.5` has its exponent raised."""
    raised = re.sub(r"\b10\^([−\d.]+)", r"10<sup>\1</sup>", str(escape(text)))
    return Markup(raised)  # noqa: S704 - escaped above


def _asset(name: str) -> Markup:
    """The unescaped text of a style sheet or script of this package."""
    text = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 - our own file


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy that allows no requests, no eval, only these scripts, and only inline images."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _palette(series: Sequence[Series]) -> dict[str, Any]:
    """Colours of charts and series by name, for the light and the dark page."""
    return {
        "light": [*LIGHT.items(), *((s.key, s.light) for s in series)],
        "dark": [*DARK.items(), *((s.key, s.dark) for s in series)],
        "series": [s.key for s in series],
    }


def _panels(shown: Sequence[Panel], table: pd.DataFrame) -> list[dict[str, Any]]:
    """The values of each data set for the template."""
    costs, csv = costs_of_table(table), sections.measurements_csv(table)
    return [_panel(panel, costs.get(panel.name)) | {"csv": csv.get(panel.name, "")} for panel in shown]


def _panel(panel: Panel, cost: Cost | None) -> dict[str, Any]:
    """The values of one data set for the template; `cost` is the cost of a training step, if known."""
    made = charts(panel)
    ranked = [s for s in panel.series if s.symbol == "circle"]
    families = {s.label.removesuffix(f" {s.rank}") for s in ranked}
    asked = what_if(panel, cost)
    ranked = ranked if len(ranked) > 1 and len(families) == 1 else []
    return {
        "key": panel.key,
        "name": panel.name,
        "charts": made,
        "payload": {"hover": hover_texts(panel), "charts": [{"kind": c.kind, "spec": c.spec} for c in made]},
        "unresolved": panel.resolution is not None,
        "family": families.pop() if ranked else "",
        "ranked": ranked,
        "others": [s for s in panel.series if s not in ranked],
        "base": len(panel.base),
        "failed": len(panel.failed),
        "measurements": sections.measurement_rows(panel),
        "predicted": sections.predictions(panel),
        "what_if": asked,
        "mitigated": sections_of(panel),
        "what_if_words": ([], []) if asked is None else what_if_words(panel, asked),
        "predict_words": sections.predict_words(panel),
        "total": len(panel.points),
    }
