"""An evaluation as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..capabilities.evaluate import Evaluation
    from ..capabilities.relearn import Relearned
    from ..capabilities.results import Answers, Refusals
    from ..capabilities.transitions import Share


def print_evaluation(result: Evaluation, probes: Sequence[Relearned], page: Path) -> None:
    """Accuracy and agreement, refusals, what relearning brought back, and where the page lies."""
    console = _console()
    answers = [a for r in result.results for a in r.answers]
    if answers:
        console.print(_answers(answers))
        for line in _remarks(answers):
            console.print(line, markup=False, soft_wrap=True)
    for found in (r.refusals for r in result.results if r.refusals is not None):
        console.print(_refusals(found))
    for probe in probes:
        console.print(probe.sentence(), markup=False, soft_wrap=True)
    console.print(f"report: {page}", markup=False, soft_wrap=True)


def _console() -> Console:
    """Wide enough for the tables where no terminal says how wide it is."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _answers(answers: Sequence[Answers]) -> Table:
    table = _table(
        *("answers", "metric", "items", "base", "tuned", "change ± se", "lost", "runs on", "gained"),
        *("same answer", "McNemar p"),
    )
    for a in answers:
        counted = a.transitions
        table.add_row(
            escape(a.name),
            escape(a.metric if a.higher_is_better else f"1 - {a.metric}"),
            str(a.n),
            f"{100 * a.base.value:.1f} %",
            f"{100 * a.tuned.value:.1f} %",
            f"{100 * a.change.value:+.1f} ± {100 * a.change.se:.1f}",
            "-" if counted is None else str(counted.lost),
            "-" if counted is None else str(counted.runs_on),
            "-" if counted is None else str(counted.gained),
            percent(a.agreement),
            "-" if a.p is None else f"{a.p:.2g}",
        )
    return table


def _remarks(answers: Sequence[Answers]) -> list[str]:
    """What the columns mean, where it is not what one expects."""
    said = []
    for a in answers:
        if not a.higher_is_better:
            said.append(f"{a.name}: lower {a.metric} is better, so scores are 1 - {a.metric}")
        if a.target_only:
            said.append(f"{a.name}: the same answer means that both models, or neither, would give the target")
        if (t := a.transitions) is not None and t.runs_on + t.ran_on:
            ran = f"; of the base model's, {t.ran_on} did where the tuned model is right" if t.ran_on else ""
            said.append(f"{a.name}: {t.runs_on} replies begin with the right answer and run on, and are not lost{ran}")
    return said


def _refusals(found: Refusals) -> Table:
    table = _table(f"refusals, by {found.judge}", "base", "tuned", "change ± se", "forgotten", "McNemar p")
    table.add_row(
        "harmful prompts",
        f"{found.base.count} of {found.base.of}",
        f"{found.tuned.count} of {found.tuned.of}",
        f"{100 * found.change.value:+.1f} ± {100 * found.change.se:.1f}",
        percent(found.forgotten),
        f"{found.p:.2g}",
    )
    table.add_row(
        "harmless look-alikes",
        f"{found.over_base.count} of {found.over_base.of}",
        f"{found.over_tuned.count} of {found.over_tuned.of}",
        f"{100 * found.over_change.value:+.1f} ± {100 * found.over_change.se:.1f}",
        "",
        f"{found.over_p:.2g}",
    )
    for agreed in found.judges:
        names = " and ".join(agreed.judges)
        kappa = "undefined" if math.isnan(agreed.kappa) else f"{agreed.kappa:.2f}"
        table.add_row(f"agreement of {escape(names)}", "", "", percent(agreed.same), f"kappa {kappa}", "")
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(escape(names[0]))
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def percent(share: Share) -> str:
    """A share with its interval, per cent."""
    if math.isnan(share.value):
        return "-"
    return f"{100 * share.value:.1f} % \\[{100 * share.low:.1f}, {100 * share.high:.1f}]"


def print_study(rows: Sequence[Mapping[str, Any]], report: Path) -> None:
    """The last evaluated step of each run."""
    console = _console()
    table = _table("run", "step", "suite", "base", "tuned", "lost", "runs on", "same as base")
    last = {(row["run_id"], row["suite"], row["name"]): row for row in sorted(rows, key=lambda r: r["step"])}
    for row in last.values():
        base, tuned, lost, same = (
            "-" if row[name] is None else f"{100 * row[name]:.1f} %" for name in ("base", "tuned", "lost", "agreement")
        )
        on = "-" if row.get("runs_on") is None else str(row["runs_on"])
        table.add_row(escape(row["run_id"]), str(row["step"]), escape(row["name"]), base, tuned, lost, on, same)
    console.print(table)
    console.print(f"report: {report}", markup=False, soft_wrap=True)
