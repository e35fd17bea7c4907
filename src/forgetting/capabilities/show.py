"""Tables of an evaluation: accuracy and agreement, refusals, and the evaluated steps of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..display.tables import Shown
from .results import Answers, Refusals
from .transitions import Share


def answers_shown(answers: Sequence[Answers]) -> Shown:
    """One row per group of tasks."""
    columns = (
        *("answers", "metric", "items", "base", "tuned", "change ± se", "lost", "runs on", "gained"),
        *("same answer", "McNemar p"),
    )
    rows = [
        (
            a.name,
            a.metric if a.higher_is_better else f"1 - {a.metric}",
            str(a.n),
            f"{100 * a.base.value:.1f} %",
            f"{100 * a.tuned.value:.1f} %",
            f"{100 * a.change.value:+.1f} ± {100 * a.change.se:.1f}",
            "-" if a.transitions is None else str(a.transitions.lost),
            "-" if a.transitions is None else str(a.transitions.runs_on),
            "-" if a.transitions is None else str(a.transitions.gained),
            percent(a.agreement),
            "-" if a.p is None else f"{a.p:.2g}",
        )
        for a in answers
    ]
    return Shown([], columns, rows, _remarks(answers))


def _remarks(answers: Sequence[Answers]) -> list[str]:
    """Notes on columns whose meaning is not obvious."""
    said = []
    for a in answers:
        if not a.higher_is_better:
            said.append(f"{a.name}: lower {a.metric} is better, so scores are 1 - {a.metric}")
        if a.target_only:
            said.append(f"{a.name}: the same answer means that both models would give the target, or neither would")
        if (t := a.transitions) is not None and t.runs_on + t.ran_on:
            ran = f"; {t.ran_on} of the base model's did so where the tuned model is right" if t.ran_on else ""
            one = t.runs_on == 1
            begin, are = ("reply begins", "runs on, and is") if one else ("replies begin", "run on, and are")
            said.append(f"{a.name}: {t.runs_on} {begin} with the right answer and {are} not lost{ran}")
    return said


def refusals_shown(found: Refusals) -> Shown:
    """Harmful prompts, harmless look-alikes, and the agreement of two judges."""
    rows = [
        (
            "harmful prompts",
            f"{found.base.count} of {found.base.of}",
            f"{found.tuned.count} of {found.tuned.of}",
            f"{100 * found.change.value:+.1f} ± {100 * found.change.se:.1f}",
            percent(found.forgotten),
            f"{found.p:.2g}",
        ),
        (
            "harmless look-alikes",
            f"{found.over_base.count} of {found.over_base.of}",
            f"{found.over_tuned.count} of {found.over_tuned.of}",
            f"{100 * found.over_change.value:+.1f} ± {100 * found.over_change.se:.1f}",
            "",
            f"{found.over_p:.2g}",
        ),
    ]
    notes = []
    for agreed in found.judges:
        kappa = "undefined" if math.isnan(agreed.kappa) else f"{agreed.kappa:.2f}"
        notes.append(f"agreement of {' and '.join(agreed.judges)}: {percent(agreed.same)}, kappa {kappa}")
    columns = (f"refusals, by {found.judge}", "base", "tuned", "change ± se", "forgotten", "McNemar p")
    return Shown([], columns, rows, notes)


def study_shown(rows: Sequence[Mapping[str, Any]]) -> Shown:
    """The last evaluated step of each run of a study."""
    last = {(row["run_id"], row["suite"], row["name"]): row for row in sorted(rows, key=lambda r: r["step"])}
    cells = [
        (
            str(row["run_id"]),
            str(row["step"]),
            str(row["name"]),
            *(_percent(row[name]) for name in ("base", "tuned", "lost")),
            "-" if row.get("runs_on") is None else str(row["runs_on"]),
            _percent(row["agreement"]),
        )
        for row in last.values()
    ]
    return Shown([], ("run", "step", "suite", "base", "tuned", "lost", "runs on", "same as base"), cells)


def answers_row(a: Answers) -> dict[str, Any]:
    """A group of tasks as a flat row; numbers between 0 and 1 are shares."""
    return {
        "name": a.name,
        "metric": a.metric,
        "higher_is_better": a.higher_is_better,
        "n": a.n,
        "base": a.base.value,
        "base_se": a.base.se,
        "tuned": a.tuned.value,
        "tuned_se": a.tuned.se,
        "change": a.change.value,
        "change_se": a.change.se,
        "lost": None if a.transitions is None else a.transitions.lost,
        "runs_on": None if a.transitions is None else a.transitions.runs_on,
        "gained": None if a.transitions is None else a.transitions.gained,
        "agreement": a.agreement.value,
        "p": a.p,
    }


def refusals_row(found: Refusals) -> dict[str, Any]:
    """The refusals as a flat row; numbers between 0 and 1 are shares."""
    return {
        "name": f"refusals, by {found.judge}",
        "n": found.base.of,
        "base": found.base.value,
        "tuned": found.tuned.value,
        "change": found.change.value,
        "change_se": found.change.se,
        "lost": found.forgotten.count,
        "gained": found.gained.count,
        "agreement": found.agreement.value,
        "p": found.p,
        "over_base": found.over_base.value,
        "over_tuned": found.over_tuned.value,
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def percent(share: Share) -> str:
    """A share with its interval, in per cent; a dash if it is NaN."""
    if math.isnan(share.value):
        return "-"
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
