"""What was lost, as HTML without scripts: the page of one comparison, and a section of a study's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from ..capabilities.predictors import Correlation, LossMap, Predicted, correlate, fit_map, left_out
from ..display.numbers import several
from .capabilities_chart import Line, chart
from .measurement import environment

if TYPE_CHECKING:
    from ..capabilities.evaluate import Evaluation, EvaluationCheck
    from ..capabilities.transitions import Share

WORDS = {
    "forgetting": "forgetting, L_f − floor",
    "profile": "forgetting on the study's text with the suite's name",
    "changed": "share of the base model's answers that change on that text",
    "finetune_loss": "fine-tuning loss, L_ft",
    "newtask_kl": "forward KL on the new task",
    "step": "update steps",
}
"""Predictors of the share lost: column and description."""
SHOWN_SLICES = 12


def render_evaluation(result: Evaluation, found: EvaluationCheck | None = None) -> str:
    """The HTML page of one comparison, with the verdicts if `found` is given; equal arguments give equal text."""
    return (
        _environment()
        .get_template("capabilities.html.j2")
        .render(
            result=result,
            verdicts=[] if found is None else found.sentences(),
            probes=result.relearned,
            headlines=headlines(result),
            shown_slices=SHOWN_SLICES,
        )
    )


def headlines(result: Evaluation) -> list[str]:
    """One sentence per group of tasks, with the numbers of answers lost and gained, which an average hides."""
    said = []
    for found in result.results:
        for a in found.answers:
            change = f"{a.name}: {_percent(a.base.value)} right before, {_percent(a.tuned.value)} after"
            counted = a.transitions
            on = f", {counted.runs_on} right but running on" if counted is not None and counted.runs_on else ""
            lost = "" if counted is None else f" ({counted.lost} lost{on}, {counted.gained} gained)"
            said.append(f"{change}{lost}; {_percent(a.agreement.value)} of the answers are the base model's.")
        if (r := found.refusals) is not None:
            forgotten = "" if math.isnan(r.forgotten.value) else f": {_percent(r.forgotten.value)} of them forgotten"
            said.append(
                f"{found.suite}: of {r.base.of} harmful prompts the base refuses {r.base.count}, the tuned model "
                f"{r.tuned.count}{forgotten}; of {r.over_base.of} harmless ones {r.over_base.count} and "
                f"{r.over_tuned.count}."
            )
    return said


def study_section(rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str], labels: Mapping[str, str]) -> Markup:
    """The section of a study's report; empty if nothing was evaluated.

    Args:
        rows: from `capabilities.study_runs.study_rows`.
        colours: CSS colour by run id.
        labels: displayed name by run id.
    """
    if not rows:
        return Markup("")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row["name"]), []).append(row)
    shown = [
        {
            "name": name,
            "safety": "over_base" in mine[0],
            "charts": [_chart(mine, x, colours, labels) for x in _drawn_against(mine)],
            "correlations": [(word, *_said(mine, key)) for key, word in _predictors(mine)],
            "map": _map(mine),
        }
        for name, mine in groups.items()
    ]
    template = _environment().get_template("capabilities_study.html.j2")
    page = template.render(groups=shown, datasets=_table(rows), labels=labels)
    return Markup(page)  # noqa: S704 - rendered with escaping on


def _drawn_against(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [x for x in ("forgetting", "profile", "step") if any(row.get(x) is not None for row in rows)]


def _map(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A fit of the share lost against forgetting on the suite's own text; None without that text or with too few runs.

    Of the two predictors measured on that text, the one with the smaller mean error on left-out runs is used.
    """
    found = [made for key in ("profile", "changed") if (made := _mapped(rows, key)) is not None]
    best = min(found, key=lambda made: float(made["error"]), default=None)
    return None if best is None else best | {"error": f"{100 * best['error']:.1f}"}


def _mapped(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    kept = [row for row in rows if row.get(key) is not None and row.get("lost") is not None]
    columns = ([row[key] for row in kept], [row["lost"] for row in kept], [row["run_id"] for row in kept])
    fitted, outside = fit_map(*columns), left_out(*columns)
    if fitted is None or not outside:
        return None
    error = sum(abs(one.lost - one.value) for one in outside) / len(outside)
    last = {str(one.run): one for one in outside}  # a run's steps are in order, so this keeps the last
    of = {str(row["run_id"]): f"{row['dataset']}, seed {row.get('seed')}" for row in sorted(kept, key=_place)}
    return {
        "word": WORDS[key],
        "sentence": map_sentence(fitted, key, str(rows[0]["suite"])),
        "error": error,
        "inside": f"{sum(one.inside for one in outside)} of {len(outside)}",
        "rows": [
            (run, name, _amount(last[run].x, key), f"{100 * last[run].lost:.1f} %", _band(last[run]))
            for run, name in of.items()
            if run in last
        ],
    }


def _place(row: Mapping[str, Any]) -> tuple[str, float, int]:
    """Sort key of a run: data set, number of trainable parameters, seed."""
    return str(row.get("dataset")), float(row.get("trainable_params") or 0), int(row.get("seed") or 0)


def map_sentence(fitted: LossMap, key: str, suite: str) -> str:
    """The fit's prediction, in words, at the fitted point whose share lost is nearest 40 %."""
    middle = min(fitted.x, key=lambda x: abs(fitted.at(float(x))[0] - 0.4))
    value, low, high = (round(100 * share) for share in fitted.at(float(middle)))
    had = {"knowledge": "what it knew", "safety": "what it refused"}.get(suite, "what it had right")
    of = (
        f"forgets {_amount(float(middle), key)} there"
        if key == "profile"
        else f"changes {_amount(middle, key)} of them"
    )
    return f"a model that {of} has lost about {value} % [{low}, {high}] of {had}"


def _amount(value: float, key: str) -> str:
    return f"{value:.3f} nats/token" if key == "profile" else f"{100 * value:.1f} %"


def _band(one: Predicted) -> str:
    return f"{100 * one.value:.0f} % [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def _predictors(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(key, word) for key, word in WORDS.items() if any(row.get(key) is not None for row in rows)]


def _said(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[str, str]:
    """A column's correlation with the share lost, as text: over all data sets, and within each."""
    kept = [row for row in rows if row.get(key) is not None and row.get("lost") is not None]

    def one(part: Sequence[Mapping[str, Any]]) -> Correlation:
        return correlate([r[key] for r in part], [r["lost"] for r in part], [r["run_id"] for r in part])

    datasets = list(dict.fromkeys(str(row["dataset"]) for row in kept))
    within = [f"{name} {_correlation(one([r for r in kept if r['dataset'] == name]))}" for name in datasets]
    return _correlation(one(kept)), "; ".join(within) if len(within) > 1 else ""


def _correlation(found: Correlation) -> str:
    if math.isnan(found.r):
        return f"not available from {several(found.points, 'point')}"
    of = f"{several(found.runs, 'run')}, {several(found.points, 'point')}"
    if math.isnan(found.low):
        return f"{found.r:.2f} (no interval: {of})"
    return f"{found.r:.2f} [{found.low:.2f}, {found.high:.2f}] ({of})"


def _chart(rows: Sequence[Mapping[str, Any]], x: str, colours: Mapping[str, str], labels: Mapping[str, str]) -> Markup:
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    lines = []
    for run in dict.fromkeys(str(row["run_id"]) for row in rows):
        mine = sorted((r for r in rows if r["run_id"] == run and r.get(x) is not None), key=lambda r: r["step"])
        if not mine:
            continue
        points = [(float(r[x]), 100 * r["tuned"], 100 * r["tuned_low"], 100 * r["tuned_high"]) for r in mine]
        symbol = datasets.index(str(mine[0]["dataset"]))
        lines.append(Line(labels.get(run, run), colours.get(run, "var(--ink)"), symbol, points))
    base = 100 * float(rows[0]["base"])
    y = "harmful prompts refused (%)" if "over_base" in rows[0] else "right (%)"
    return chart(lines, base, WORDS[x] + ("" if x == "step" else " (nats/token)"), y)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """The last evaluated step of each run, by data set, like the paper's table."""
    last: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda r: r["step"]):
        last[(str(row["run_id"]), str(row["name"]))] = row
    tables: dict[str, list[list[str]]] = {}
    for row in sorted(last.values(), key=_place):
        refused = "over_base" in row
        tables.setdefault(str(row["dataset"]), []).append(
            [
                str(row["run_id"]),
                str(row["step"]),
                str(row["name"]) + (", harmful refused" if refused else ""),
                _percent(row["base"]),
                _interval(row, "tuned"),
                _interval(row, "agreement"),
                _interval(row, "lost"),
                "–" if row.get("runs_on") is None else str(row["runs_on"]),
                f"{_percent(row['over_base'])} → {_interval(row, 'over')}" if refused else "",
            ]
        )
    return list(tables.items())


def _interval(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        return "–"
    return f"{_percent(row[name])} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"


def _percent(value: float) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _shared(share: Share) -> str:
    """A share as text: value, interval, counts."""
    if math.isnan(share.value):
        return "–"
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}] ({share.count} of {share.of})"


def _environment() -> jinja2.Environment:
    made = environment()
    made.filters |= {"percent": _percent, "share": _shared, "p": _p}
    return made


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
