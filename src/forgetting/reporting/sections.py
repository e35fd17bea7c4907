"""The report's tables as plain rows of text: key figures, runs, measurements, fitted laws, setup."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from forgetting.analysis.fit.show import number as digits
from forgetting.analysis.fit.show import span
from forgetting.analysis.plan.predict import predict_rows
from forgetting.config.bits import quantised_notes
from forgetting.config.schema import StudyConfig
from forgetting.display.commands import exact
from forgetting.display.numbers import MINUS, count, duration, finite, level, natural, number, plus_minus, several
from forgetting.display.spreadsheets import cell
from forgetting.errors import UsageError
from forgetting.measuring.quantities import BY_NAME
from forgetting.reporting.series import Panel, Series, method_of
from forgetting.reporting.words import method_name, r2

FLOOR = BY_NAME["forgetting_floor"]
SHOWN_RUNS = 1000
"""Most runs that the page lists; `forgetting table` writes all."""
SHOWN_ROWS = 1500
"""Most measurements that the page lists; `forgetting table` writes all."""


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the key that it sorts by."""

    text: str
    key: float | str


@dataclass(frozen=True)
class RunRow:
    """One run in the table of runs; `note` says why it failed."""

    run_id: str
    status: str
    note: str
    cells: tuple[Cell, ...]


def figure(value: Any, key: Any = None) -> Cell:
    """A numeric cell; missing values sort last."""
    sort = value if key is None else key
    return Cell(str(value), float(sort) if finite(sort) else float("1e308"))


def key_figures(panels: Sequence[Panel], found: Mapping[str, str], rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The study's key figures: value and meaning.

    Args:
        panels: the data sets.
        found: as from `statuses`.
        rows: a tidy table.
    """
    tally = Counter(found.values())
    others = "".join(f", {tally[name]} {name}" for name in ("running", "failed", "damaged") if tally[name])
    figures = [
        (str(tally["done"]), f"run{'' if tally['done'] == 1 else 's'} done{others}"),
        (f"{_counted(panels, rows):,}", "measurements"),
    ]
    for panel in panels:
        if panel.linear is not None:
            figures.append((number(r2(panel.linear, "forgetting_loss")), f"R² of the line on {panel.name}"))
    floor = rows["forgetting_floor"].median()
    if finite(floor):
        figures.append((number(float(floor)), f"{FLOOR.title}, {FLOOR.unit}"))
    train, measured = rows.groupby("run_id")[["train_seconds", "measure_seconds"]].max().sum()
    if train > 0:
        figures.append((duration(float(train + measured)), "training and measuring"))
    return figures


def partial(found: Mapping[str, str], asked: int | None = None, ended: str = "") -> str:
    """A sentence on how many runs of an unfinished study, or of a pilot that ended, are done; empty if all of a study.

    Args:
        found: as from `statuses`.
        asked: how many runs the configuration asks for; default as many as there are.
        ended: why a pilot ended by itself; empty for anything else.
    """
    tally = Counter(found.values())
    whole = max(asked or 0, tally.total())
    if tally["done"] == whole and not ended:
        return ""
    tally["not started"] = whole - tally.total()
    others = ", ".join(f"{number} {name}" for name, number in sorted(tally.items()) if name != "done" and number)
    if ended:
        return f"The pilot ended with {several(tally['done'], 'run')}{f' ({others})' if others else ''}: {ended}."
    are = "is" if tally["done"] == 1 else "are"
    return (
        f"Partial: {tally['done']} of {several(whole, 'run')} {are} done ({others}). Laws, intervals and comparisons "
        "use only finished runs and may change with the others."
    )


def _counted(panels: Sequence[Panel], rows: pd.DataFrame) -> int:
    """Number of measurements after step 0 of runs that did not fail, even if the panels show means of them."""
    names = [panel.name for panel in panels]
    return int(((rows["step"] != 0) & (rows["status"] != "failed") & rows["dataset"].isin(names)).sum())


def statuses(runs: Sequence[Mapping[str, Any]], rows: pd.DataFrame) -> dict[str, str]:
    """Status by run id, from the run's record, or from the table if there is no record."""
    one = rows.drop_duplicates("run_id", keep="last")
    found = {str(i): str(s) for i, s in zip(one["run_id"], one["status"], strict=True)}
    return found | {str(run.get("run_id", "?")): str(run.get("status", "unknown")) for run in runs}


def run_rows(
    runs: Sequence[Mapping[str, Any]], found: Mapping[str, str], rows: pd.DataFrame, series: Sequence[Series]
) -> list[RunRow]:
    """One row per stored or measured run, at its last measured step; if too many, SHOWN_RUNS, failed ones first.

    Args:
        runs: the run records.
        found: as from `statuses`.
        rows: a tidy table.
        series: the study's series.
    """
    records = {str(run.get("run_id", "?")): run for run in runs}
    labels = {run: s.label for s in series for run in s.runs}
    every = sorted(found.items(), key=lambda run: natural(run[0]))
    if len(every) > SHOWN_RUNS:
        every = sorted(every, key=lambda run: run[1] not in ("failed", "damaged"))[:SHOWN_RUNS]
    steps = rows[["run_id", "step"]].reset_index(drop=True)  # two columns only: there may be a million rows
    steps = steps[steps["run_id"].isin([run_id for run_id, _ in every])]
    last = rows.iloc[steps.sort_values("step", kind="stable").drop_duplicates("run_id", keep="last").index]
    measured = {str(row["run_id"]): row for row in last.to_dict("records")}
    made = []
    for run_id, status in every:
        record, row = records.get(run_id, {}), measured.get(run_id, {})
        method = method_of(record)
        rank = row.get("rank", method.get("rank"))
        name = labels.get(run_id) or method_name(str(method.get("name", record.get("method", "?"))))
        params = row.get("trainable_params", record.get("trainable_params"))
        dataset = str(row.get("dataset", record.get("dataset", "?")))
        cells = (
            Cell(dataset, dataset),
            Cell(name, float(rank) if isinstance(rank, int | float) and finite(rank) else name),
            _count_cell(row.get("seed", record.get("seed"))),
            figure(count(params), params),
            _count_cell(row.get("step")),
            _value(row, "forgetting"),
            _value(row, "agreement", 100),
            _value(row, "finetune_loss"),
            _value(row, "forgetting_loss"),
            figure(duration(row.get("train_seconds")), row.get("train_seconds")),
        )
        made.append(RunRow(run_id, status, _note(record, status), cells))
    return made


def _note(record: Mapping[str, Any], status: str) -> str:
    if status not in ("failed", "damaged"):
        return ""
    why = record.get("why") or "no reason was stored"
    return f"{why if isinstance(why, str) else json.dumps(why, default=str)} (not in the fits)"


def _count_cell(value: Any) -> Cell:
    return figure(f"{value:.0f}" if finite(value) else "–", value)


def _value(row: Mapping[Any, Any], column: str, scale: float = 1.0) -> Cell:
    value = row.get(column)
    return figure(plus_minus(value, row.get(f"{column}_se"), scale), value)


def measurement_rows(panel: Panel) -> list[tuple[str, ...]]:
    """The points of a data set's charts as text, up to SHOWN_ROWS, for readers who cannot use the charts."""
    labels = {s.key: s.label for s in panel.series}
    place = {run: i for i, run in enumerate(sorted(set(panel.points["run_id"]), key=natural))}
    order = {s.key: i for i, s in enumerate(panel.series)}
    keys = panel.points.assign(series=panel.points["series"].map(order), run_id=panel.points["run_id"].map(place))
    rows = panel.points.loc[keys.sort_values(["series", "run_id", "step"]).index].head(SHOWN_ROWS)
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


def measurements_csv(table: pd.DataFrame) -> dict[str, str]:
    """Every measurement as CSV by data set, with the columns of `forgetting table --csv`.

    Empty if there are more than SHOWN_ROWS. Texts that a spreadsheet would take for a formula get an apostrophe.
    """
    if len(table) > SHOWN_ROWS:
        return {}
    safe = table.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [cell(value) if isinstance(value, str) else value for value in safe[column]]
    return {str(name): mine.to_csv(index=False) for name, mine in safe.groupby(table["dataset"], sort=False)}


@dataclass(frozen=True)
class Predicted:
    """The joint law's prediction for one series at one step, as the text of table cells."""

    name: str
    step: str
    finetune: tuple[str, str, str]
    forgetting: tuple[str, str, str]


def predict_words(panel: Panel) -> list[str]:
    """Arguments with which `forgetting predict` prints the numbers of `predictions`."""
    sizes = map(exact, _sizes(panel).values())
    params = [word for size in sizes for word in ("--params", size)]
    return ["--dataset", panel.name, *params, "--steps", exact(panel.points["step"].max())]


def _sizes(panel: Panel) -> dict[str, float]:
    """Trainable parameters of each rank by its label."""
    ranked = [s for s in panel.series if s.symbol == "circle"]
    sizes = {s.label: float(panel.of(s)["trainable_params"].median()) for s in ranked}
    return {label: size for label, size in sizes.items() if finite(size) and size > 0}


def predictions(panel: Panel) -> tuple[str, list[Predicted]]:
    """The bands' level, and the joint law's prediction for each rank at the last step, from `predict`."""
    sizes = _sizes(panel)
    if panel.joint is None or not sizes:
        return "", []
    step = float(panel.points["step"].max())
    try:
        rows = predict_rows(panel.joint, panel.name, {"step": [step]}, params=list(sizes.values()))
    except UsageError:  # fitted at a single rank, so it cannot predict the ranks that are still running
        return "", []
    outside = " (outside the measured range)"
    made = [
        Predicted(
            label + outside * row["extrapolated"],
            f"{step:.0f}",
            cells_of(row["finetune_loss"]),
            cells_of(row["forgetting_loss"]),
        )
        for label, row in zip(sizes, rows, strict=True)
    ]
    return level(panel.joint.confidence), made


def cells_of(found: Mapping[str, float]) -> tuple[str, str, str]:
    """A prediction's value, the band of the mean and the band of one new run, with as many digits as `predict`."""
    pairs = [(found["low"], found["high"]), (found["run_low"], found["run_high"])]
    mean, run = (span(low, high).replace("-", MINUS) if finite(low) and finite(high) else "–" for low, high in pairs)
    return digits(found["value"]), mean, run


def setup(config: StudyConfig, runs: Sequence[Mapping[str, Any]], rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Terms and descriptions of the setup: models, data, training, hardware, versions."""
    training, measure = config.training, config.measure
    model = config.model.source + (f" at {config.model.revision}" if config.model.revision else "")
    steps = config.measured_steps()
    facts = [
        ("Base model", model),
        *(("Quantised", note) for note in quantised_notes(config.model)),
        ("General text", _source(config.text)),
        *((f"Data set {name}", _source(data)) for name, data in config.datasets.items()),
        ("Methods", _methods(config)),
        ("Seeds", ", ".join(str(seed) for seed in config.seeds)),
        (
            "Training",
            f"{several(training.steps, 'update step')}, {several(training.batch_size, 'window')} of {config.context} "
            f"tokens a step, {training.optimizer}, learning rate {training.learning_rate:g}, {training.schedule} after "
            f"{several(training.warmup_steps, 'warm-up step')}",
        ),
        ("Measured", f"at step 0 and at {several(len(steps) - 1, 'step')} from {measure.start} to {steps[-1]}"),
    ]
    facts += tokens(rows)
    bases = dict.fromkeys(str(run["base"]) for run in runs if run.get("base"))
    if bases:
        facts.append(("Base revision", ", ".join(bases)))
    facts += [(name.replace("_", " ").capitalize(), text) for name, text in _union(runs, "hardware")]
    versions = ", ".join(f"{name} {text.replace(', ', ' and ')}" for name, text in _union(runs, "versions"))
    if versions:
        facts.append(("Versions", versions))
    times = sorted(
        str(run[key]).replace("T", " ").replace("+00:00", " UTC")
        for run in runs
        for key in ("started", "finished")
        if run.get(key)
    )
    if times:
        facts.append(("Run between", f"{times[0]} and {times[-1]}"))
    return facts


def tokens(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """How many tokens and documents were measured, as terms and descriptions."""
    found: dict[str, list[str]] = {}
    for dataset, mine in rows.groupby("dataset", sort=False):
        parts = (("General text measured", "text"), (f"Held-out {dataset} measured", "finetune"))
        for label, part in parts:
            size, documents = mine[f"{part}_tokens"].max(), mine[f"{part}_documents"].max()
            if finite(size):
                of = f" of {several(documents, 'document')}" if finite(documents) else ""
                found.setdefault(label, []).append(f"{several(size, 'token')}{of}")
    return [(label, "; ".join(dict.fromkeys(values))) for label, values in found.items()]


def _source(data: Any) -> str:
    parts = [data.source, data.subset, data.split, data.revision]
    return ", ".join(part for part in parts if part)


def _methods(config: StudyConfig) -> str:
    """The methods as text; methods that differ only in rank are listed together."""
    families: dict[str, list[str]] = {}
    for method in config.methods:
        rest = ", ".join(f"{key} {value}" for key, value in method.options.items() if key != "rank")
        family = method_name(method.name) + (f" ({rest})" if rest else "")
        rank = method.options.get("rank")
        ranks = rank if isinstance(rank, list | tuple) else [] if rank is None else [rank]
        families.setdefault(family, []).extend(str(r) for r in ranks)
    return "; ".join(family + (f", rank {', '.join(ranks)}" if ranks else "") for family, ranks in families.items())


def _union(runs: Iterable[Mapping[str, Any]], key: str) -> list[tuple[str, str]]:
    """Names and values of a mapping in the run records; all values if runs differ."""
    found: dict[str, list[str]] = {}
    for run in runs:
        holder = run.get(key)
        for name, value in holder.items() if isinstance(holder, Mapping) else ():
            found.setdefault(str(name), []).append(str(value))
    return [(name, ", ".join(dict.fromkeys(values))) for name, values in found.items()]


def notices(runs: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Each notice of the runs once, with the number of runs that gave it."""
    tally: dict[str, int] = {}
    for run in runs:
        given = run.get("notices")
        for notice in given if isinstance(given, list | tuple) else ():
            tally[str(notice)] = tally.get(str(notice), 0) + 1
    return list(tally.items())
