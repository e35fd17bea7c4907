"""The report's tables as plain rows of text: key figures, runs, measurements, fitted laws, setup."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from forgetting.config import StudyConfig
from forgetting.report.series import Panel, Series, method_of
from forgetting.report.words import (
    count,
    duration,
    finite,
    interval,
    level,
    method_name,
    missing_fit,
    number,
    plus_minus,
    r2,
    symbol,
)

if TYPE_CHECKING:
    from forgetting.fit import Fit

PAPER_R2 = {"linear": "0.945 on OpenOrca, 0.974 on News", "shifted_power": "0.960 on OpenOrca, 0.977 on News"}
SHOWN_ROWS = 1500  # measurements listed in the page; a larger study's are a `forgetting table` away


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, and what it sorts by."""

    text: str
    key: float | str


@dataclass(frozen=True)
class RunRow:
    """One run in the table of runs; `note` says why it failed."""

    run_id: str
    status: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class LawTable:
    """One law over the data sets: parameters by row, data sets by column.

    Attributes:
        name: `linear` or `shifted_power`; the page writes its formula.
        columns: data sets in which it was fitted.
        rows: (letter, subscript, meaning), and a (value, interval) a column.
        r2: (output's subscript, values), and the paper's values for the same law.
        notes: what each fit says about itself, by data set.
        missing: data sets without this fit, and why.
    """

    name: str
    columns: tuple[str, ...]
    confidence: str
    rows: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    r2: tuple[tuple[str, tuple[str, ...], str], ...]
    notes: tuple[tuple[str, str, tuple[str, ...], str], ...]
    missing: tuple[tuple[str, str], ...]


def figure(value: Any, key: Any = None) -> Cell:
    """A numeric cell; what is missing sorts last."""
    sort = value if key is None else key
    return Cell(str(value), float(sort) if finite(sort) else float("1e308"))


def key_figures(
    panels: Sequence[Panel], runs: Sequence[Mapping[str, Any]], rows: pd.DataFrame
) -> list[tuple[str, str]]:
    """The study at a glance: (value, what it is)."""
    states = statuses(runs, rows)
    tally = [f"{sum(s == name for s in states.values())} {name}" for name in ("done", "running", "failed")]
    shown = " · ".join(t for t in tally if not t.startswith("0 ")) or "none"
    figures = [(shown, "runs"), (f"{sum(len(p.points) for p in panels):,}", "measurements")]
    for panel in panels:
        if panel.linear is not None:
            figures.append((number(r2(panel.linear, "forgetting_loss")), f"R² of the line on {panel.name}"))
    floor = rows["forgetting_floor"].median()
    if finite(floor):
        figures.append((number(float(floor)), "forgetting floor, nats/token"))
    train, measured = rows.groupby("run_id")[["train_seconds", "measure_seconds"]].max().sum()
    if train > 0:
        figures.append((duration(float(train + measured)), "training and measuring"))
    return figures


def statuses(runs: Sequence[Mapping[str, Any]], rows: pd.DataFrame) -> dict[str, str]:
    """Status by run id: the run's record first, its table rows where it has no record."""
    found = {str(i): str(s) for i, s in zip(rows["run_id"], rows["status"], strict=True)}
    return found | {str(run.get("run_id", "?")): str(run.get("status", "unknown")) for run in runs}


def run_rows(runs: Sequence[Mapping[str, Any]], rows: pd.DataFrame, series: Sequence[Series]) -> list[RunRow]:
    """One row a run, stored or measured, at its last measured step."""
    records = {str(run.get("run_id", "?")): run for run in runs}
    labels = {run: s.label for s in series for run in s.runs}
    last = rows.sort_values("step").groupby("run_id").tail(1).set_index("run_id")
    measured: dict[str, dict[str, Any]] = {
        str(i): dict(r) for i, r in zip(last.index, last.to_dict("records"), strict=True)
    }
    made = []
    for run_id, status in statuses(runs, rows).items():
        record, row = records.get(run_id, {}), measured.get(run_id, {})
        method = method_of(record)
        rank = row.get("rank", method.get("rank"))
        name = labels.get(run_id) or method_name(str(method.get("name", record.get("method", "?"))))
        params = row.get("trainable_params", record.get("trainable_params"))
        seconds = row.get("train_seconds")
        cells = (
            Cell(
                str(row.get("dataset", record.get("dataset", "?"))), str(row.get("dataset", record.get("dataset", "?")))
            ),
            Cell(name, float(rank) if finite(rank) else name),
            _count_cell(row.get("seed", record.get("seed"))),
            figure(count(params), params),
            _count_cell(row.get("step")),
            _value(row, "finetune_loss"),
            _value(row, "forgetting_loss"),
            _value(row, "forgetting"),
            _value(row, "agreement", 100),
            figure(duration(seconds), seconds),
        )
        made.append(RunRow(run_id, status, _note(record, status), cells))
    return made


def _note(record: Mapping[str, Any], status: str) -> str:
    if status != "failed":
        return ""
    why = record.get("why") or "no reason was stored"
    return f"{why if isinstance(why, str) else json.dumps(why, default=str)} (not in the fits)"


def _count_cell(value: Any) -> Cell:
    return figure(f"{value:.0f}" if finite(value) else "–", value)


def _value(row: Mapping[str, Any], column: str, scale: float = 1.0) -> Cell:
    value = row.get(column)
    return figure(plus_minus(value, row.get(f"{column}_se"), scale), value)


def measurement_rows(panel: Panel) -> list[tuple[str, ...]]:
    """Every measurement of a data set as text, for readers without the charts."""
    labels = {s.key: s.label for s in panel.series}
    rows = panel.points.sort_values(["run_id", "step"]).head(SHOWN_ROWS)
    return [
        (
            row["run_id"],
            labels.get(row["series"], row["method"]),
            f"{row['step']:.0f}",
            plus_minus(row["finetune_loss"], row["finetune_loss_se"]),
            plus_minus(row["forgetting_loss"], row["forgetting_loss_se"]),
            plus_minus(row["forgetting"], row["forgetting_se"]),
            plus_minus(row["agreement"], row["agreement_se"], 100),
            plus_minus(row["data_loss_tuned"], row["data_loss_tuned_se"]),
        )
        for row in rows.to_dict("records")
    ]


def law_table(name: str, panels: Sequence[Panel]) -> LawTable:
    """One law's parameters over the data sets."""
    fits = {p.name: p.linear if name == "linear" else p.joint for p in panels}
    made: dict[str, Fit] = {key: fit for key, fit in fits.items() if fit is not None}
    names = list(dict.fromkeys(key for fit in made.values() for key in fit.parameters))
    outputs = list(dict.fromkeys(key for fit in made.values() for key in fit.r2))
    return LawTable(
        name=name,
        columns=tuple(made),
        confidence=" and ".join(dict.fromkeys(level(fit.confidence) for fit in made.values())),
        rows=tuple((*symbol(key), tuple(_estimate(fit, key) for fit in made.values())) for key in names),
        r2=tuple(
            (_output(key), tuple(number(r2(fit, key)) for fit in made.values()), _paper(name, key)) for key in outputs
        ),
        notes=tuple((key, _support(fit), tuple(fit.warnings), _diagnostics(fit)) for key, fit in made.items()),
        missing=tuple((p.name, missing_fit(p)) for p in panels if fits[p.name] is None),
    )


def _estimate(fit: Fit, key: str) -> tuple[str, str]:
    if key not in fit.parameters:
        return "–", ""
    estimate = fit.parameters[key]
    return number(estimate.value, 4), interval(estimate.low, estimate.high)


def _output(column: str) -> str:
    return symbol(column)[1] or column


def _paper(law: str, column: str) -> str:
    return PAPER_R2.get(law, "") if column == "forgetting_loss" else ""


def _support(fit: Fit) -> str:
    ranges = []
    for name, (low, high) in fit.measured_range.items():
        letter, below = symbol(name)
        show = count if name in ("trainable_params", "step") else number
        ranges.append(f"{letter}{'_' + below if below else ''} {show(low)} to {show(high)}")
    runs = f"{fit.n_points} measurements of {fit.n_runs} {'run' if fit.n_runs == 1 else 'runs'}"
    return runs + (f"; {', '.join(ranges)}" if ranges else "")


def _diagnostics(fit: Fit) -> str:
    return json.dumps(dict(fit.diagnostics), indent=2, sort_keys=True, default=str) if fit.diagnostics else ""


def setup(config: StudyConfig, runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was run, on what, with what: (term, description)."""
    training, measure = config.training, config.measure
    model = config.model.source + (f" at {config.model.revision}" if config.model.revision else "")
    steps = config.measured_steps()
    facts = [
        ("Base model", f"{model}, {config.model.dtype}"),
        ("General text", _source(config.text)),
        *((f"Data set {name}", _source(data)) for name, data in config.datasets.items()),
        ("Methods", "; ".join(_options({"name": m.name, **m.options}) for m in config.methods)),
        ("Seeds", ", ".join(str(seed) for seed in config.seeds)),
        (
            "Training",
            f"{training.steps} update steps, {training.batch_size} windows of {config.context} tokens a step, "
            f"{training.optimizer}, learning rate {training.learning_rate:g}, {training.schedule} after "
            f"{training.warmup_steps} warm-up steps",
        ),
        ("Measured", f"at step 0 and at {len(steps) - 1} steps from {measure.start} to {steps[-1]}"),
    ]
    facts += [(label, text) for label, text in tokens(runs)]
    facts += [(f"Version of {name}", text) for name, text in _union(runs, "versions")]
    facts += [(name.replace("_", " ").capitalize(), text) for name, text in _union(runs, "hardware")]
    times = sorted(str(run[key]) for run in runs for key in ("started", "finished") if run.get(key))
    if times:
        facts.append(("Run between", f"{times[0]} and {times[-1]}"))
    return facts


def tokens(runs: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Tokens measured, by data set: whatever counts named `*tokens` the run records keep."""
    found: dict[str, list[str]] = {}
    for run in runs:
        inner = run.get("tokens")
        counts = {str(k): v for k, v in inner.items()} if isinstance(inner, Mapping) else {}
        counts |= {str(k): v for k, v in run.items() if str(k).endswith("_tokens") and finite(v)}
        for key, value in counts.items():
            shown = f"{value:,.0f}" if finite(value) else str(value)
            found.setdefault(key, []).append(shown)
    return [
        (f"Tokens, {key.removesuffix('_tokens').replace('_', ' ')}", ", ".join(dict.fromkeys(values)))
        for key, values in found.items()
    ]


def _source(data: Any) -> str:
    parts = [data.source, data.subset, data.split, data.revision]
    return ", ".join(part for part in parts if part)


def _options(options: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in options.items() if key != "name")
    name = method_name(str(options.get("name", "?")))
    return f"{name} ({rest})" if rest else name


def _union(runs: Iterable[Mapping[str, Any]], key: str) -> list[tuple[str, str]]:
    """The values of a mapping in the run records, all of them where runs differ."""
    found: dict[str, list[str]] = {}
    for run in runs:
        holder = run.get(key)
        for name, value in holder.items() if isinstance(holder, Mapping) else ():
            found.setdefault(str(name), []).append(str(value))
    return [(name, ", ".join(dict.fromkeys(values))) for name, values in found.items()]


def notices(runs: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """What runs wanted a reader to know: each notice once, with the number of runs that gave it."""
    tally: dict[str, int] = {}
    for run in runs:
        given = run.get("notices")
        for notice in given if isinstance(given, list | tuple) else ():
            tally[str(notice)] = tally.get(str(notice), 0) + 1
    return list(tally.items())
