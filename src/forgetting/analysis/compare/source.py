"""The runs to compare, from a study or table, each with its path through (fine-tuning loss, forgetting)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from forgetting.analysis.compare.runs import labels_of_rows, with_runs
from forgetting.analysis.laws.base import SIZES, Array, incomputable
from forgetting.analysis.selection import (
    DONE,
    GAP,
    as_number,
    cell_at,
    is_blank,
    is_missing,
    row_numbers,
    rows_left_out,
    status_of,
    with_column,
    without_status,
)
from forgetting.analysis.table_files import Table
from forgetting.analysis.tables import rows
from forgetting.display.numbers import few, several
from forgetting.display.paths import shortener
from forgetting.errors import UsageError, did_you_mean
from forgetting.store.columns import UNASKED

INTERPOLATION = "interpolation"
DIRECTIONS = ("lower", "higher")
FORGOTTEN = ("forgetting", "forgetting_loss", "soft_forgetting_loss", "kl", "agreement")
"""Columns that measure forgetting; holding them equal would compare them with themselves."""


class NotComparedError(UsageError):
    """Nothing can be compared in a data set, although its table has no mistake."""


@dataclass(frozen=True)
class Axis:
    """The quantity that is held equal between runs.

    Attributes:
        column: the table's column.
        higher: whether a higher value is better, as for an accuracy.
        name: its name for readers.
    """

    column: str
    higher: bool
    name: str

    def shown(self, value: float) -> float:
        """A value as in the table, from one oriented so that lower is better."""
        return -value if self.higher else value


AXES = {
    "finetune_loss": Axis("finetune_loss", False, "fine-tuning loss"),
    "test_accuracy": Axis("test_accuracy", True, "test accuracy"),
}


@dataclass(frozen=True)
class Run:
    """One run of one data set.

    Attributes:
        key: (label, mitigation, rank, variant); runs with the same key and different seeds are replicates.
        seed: the seed as text; empty if unknown.
        run_id: its name in messages.
        x: [n] fine-tuning loss (or minus the accuracy, so that lower is better), in training order.
        y: [n] forgetting, nats/token.
        step: [n] update steps.
        seconds: [n] training time so far in seconds, NaN if unknown.
        alpha: [n] share of the tuned weights in an interpolation with the base model; 1 during training.
        params: trainable parameters, NaN if unknown.
        memory: peak memory in MiB, NaN if unknown.
        interpolated: whether the points are weights interpolated between the base model and the tuned one.
        chosen: whether filters selected it for the reference.
    """

    key: Key
    seed: str
    run_id: str
    x: Array
    y: Array
    step: Array
    seconds: Array
    alpha: Array
    params: float
    memory: float
    interpolated: bool = False
    chosen: bool = False


@dataclass(frozen=True, order=True)
class Key:
    """A curve: a method, its mitigation, and its rank.

    Attributes:
        label: the method's label in the study.
        mitigation: the mitigations with their options; empty for none.
        rank: the rank; -1 if there is none.
        variant: what distinguishes the curve from others with the same label, mitigation and rank; may be empty.
        shown: the mitigation as shown to readers, with short paths.
    """

    label: str
    mitigation: str = ""
    rank: float = -1.0
    variant: str = ""
    shown: str = field(default="", compare=False)

    def __str__(self) -> str:
        """`lora rank 8 + replay fraction=0.1`."""
        rank = f" rank {self.rank:g}" if self.rank >= 0 else ""
        variant = f" ({self.variant})" if self.variant else ""
        mitigation = self.shown or self.mitigation
        return f"{self.label}{rank}{variant}" + (f" + {mitigation}" if mitigation else "")


@dataclass(frozen=True)
class Source:
    """All runs of one data set.

    Attributes:
        name: the data set.
        axis: what is held equal.
        curves: runs by key, in key order; runs of one key have different seeds.
        notes: what was left out, and why.
        table: all rows, with a column `run_id`, and with status GAP if they lack a required number.
    """

    name: str
    axis: Axis
    curves: dict[Key, list[Run]]
    notes: list[str]
    table: Table = field(repr=False)

    @property
    def labels(self) -> list[str]:
        """The labels of the curves."""
        return list(dict.fromkeys(key.label for key in self.curves))


def choose_axis(table: Table, by: str | None, direction: str | None) -> Axis:
    """The column to hold equal: `by`, else `test_accuracy` if the table has it (PEFT's results), else `finetune_loss`.

    Raises:
        UsageError: no such column, it measures forgetting, or its better direction is unknown or given wrongly.
    """
    column = by or ("test_accuracy" if "test_accuracy" in table else "finetune_loss")
    if column not in table:
        raise UsageError(f"the table has no column '{column}' to hold equal; {did_you_mean(column, table)}")
    if column in FORGOTTEN:
        raise UsageError(
            f"by (--by) {column}: this column measures forgetting; hold another column equal, such as finetune_loss"
        )
    if direction is not None and direction not in DIRECTIONS:
        raise UsageError(f"direction '{direction}'; {did_you_mean(direction, DIRECTIONS)}")
    known = AXES.get(column)
    if known is None and direction is None:
        raise UsageError(
            f"it is not known whether higher or lower {column} is better; give direction (--direction) higher or lower"
        )
    if known is None:
        return Axis(column, direction == "higher", column.replace("_", " "))
    if direction is not None and known.higher != (direction == "higher"):
        raise UsageError(f"direction {direction}: for {column}, {DIRECTIONS[known.higher]} is better")
    return known


def read_source(table: Table, name: str, axis: Axis, *, start: float = 0.0, chosen: Sequence[bool] = ()) -> Source:
    """Read the finished runs of one data set, each from `start` on, without the row of the base model.

    Args:
        table: columns by name, one entry per measurement.
        name: the data set.
        axis: what is held equal.
        start: first step that counts.
        chosen: [n] whether each row belongs to the reference, if filters select it; empty if a label does.

    Raises:
        NotComparedError: there is no finished run.
        UsageError: a column is missing, a cell is not a finite number, or a measurement is repeated.
    """
    forgot = "forgetting" if "forgetting" in table else "forgetting_loss"
    for column in (axis.column, forgot):
        if column not in table:
            known = did_you_mean(column, table)
            raise UsageError(f"'{name}' has no column '{column}', which a comparison needs; {known}")
    if not {"label", "method"} & set(table):
        raise UsageError(f"'{name}' has no column 'label' or 'method' to distinguish runs; it has {few(table)}")
    unstated = without_status(table.get("status", ()))
    table, gaps = _without_gaps(_Reader(table, name, axis, forgot), start)
    _Reader(table, name, axis, forgot).refuse_steps()
    table, named = with_runs(table, name)
    reader = _Reader(table, name, axis, forgot, chosen)
    members: dict[str, list[int]] = {}
    left: dict[str, str] = {}
    reader.refuse_blank_runs()
    for i in range(rows(table)):
        run_id = reader.run_id(i)
        status = reader.status(i)
        if status == GAP:
            continue
        if status == DONE:
            members.setdefault(run_id, []).append(i)
        else:
            left[run_id] = status
    said = {UNASKED: "as the configuration no longer asks for them"}
    notes = (
        named
        + unstated
        + gaps
        + [
            f"left out, {said.get(status, status)}: {few(sorted(r for r in left if left[r] == status))}"
            for status in _causes(left)
        ]
    )
    runs = [run for run_id, at in members.items() for run in reader.runs(run_id, at, start)]
    short = sorted(set(members) - {run.run_id for run in runs})
    if short:
        notes.append(f"left out, because they have no measurement after the start: {few(short)}")
    if not runs:
        raise NotComparedError(f"'{name}' has no finished run to compare" + (f" ({notes[0]})" if notes else ""))
    told, unseeded = _without_seeds(runs)
    return Source(name, axis, _grouped(told), notes + unseeded, table)


def _without_gaps(reader: _Reader, start: float) -> tuple[Table, list[str]]:
    """The table with GAP as the status of rows that lack a required number, and a note on these rows."""
    gaps: dict[int, str] = {}
    for i in range(rows(reader.table)):
        counts = reader.counts(i, start) or 0 < reader.number("alpha", i) < 1
        if reader.status(i) == DONE and counts and (column := reader.gap(i)):
            gaps[i] = column
    if not gaps:
        return reader.table, []
    first, column = next(iter(gaps.items()))
    named = cell_at(reader.numbers[first], column, reader.table[column][first])
    states = [GAP if i in gaps else reader.status(i) for i in range(rows(reader.table))]
    note = rows_left_out(several(len(gaps), "row"), len(gaps), GAP, named)
    return with_column(reader.table, "status", states), [note]


def _without_seeds(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Treat runs of one rank without seeds as replicates that are not paired with other runs; a note says so.

    If each counted as a rank of its own, the scatter within one rank would look like that between ranks.
    """
    found: dict[tuple[Key, bool], list[Run]] = {}
    for run in runs:
        found.setdefault((run.key, run.chosen), []).append(run)
    out, replicates = [], False
    for (key, _), mine in found.items():
        sizes = {run.params for run in mine if math.isfinite(run.params)}
        if len(mine) == 1 or key.rank < 0 or any(run.seed for run in mine):
            out += mine
            continue
        for run in mine:
            size = f"{key.variant}, {run.params:,.0f} parameters".removeprefix(", ") if len(sizes) > 1 else key.variant
            out.append(replace(run, seed=run.run_id, key=replace(key, variant=size)))
        replicates = True
    said = (
        "no seeds are known: treating runs with the same label, mitigation and rank as replicates, not paired by seed"
    )
    return out, [said] if replicates else []


def _grouped(runs: Sequence[Run]) -> dict[Key, list[Run]]:
    """Runs by key. If runs of one key share a seed, they are not replicates, and each is a curve of its own."""
    found: dict[Key, list[Run]] = {}
    for run in runs:
        found.setdefault(run.key, []).append(run)
    out: dict[Key, list[Run]] = {}
    for key, mine in _apart(found).items():
        if len({run.seed for run in mine}) == len(mine):
            out[key] = mine
            continue
        for run in mine:
            out[replace(key, variant=run.run_id)] = [run]
    return dict(sorted(out.items()))


def _apart(found: Mapping[Key, list[Run]]) -> dict[Key, list[Run]]:
    """Runs of one key, split into two curves if only some of them belong to the reference."""
    out: dict[Key, list[Run]] = {}
    for key, mine in found.items():
        inside, outside = [run for run in mine if run.chosen], [run for run in mine if not run.chosen]
        if inside and outside:
            variant = f"{key.variant}, not in the reference".removeprefix(", ")
            out |= {key: inside, replace(key, variant=variant): outside}
        else:
            out[key] = mine
    return out


class _Reader:
    """Reads the cells of a table as numbers and texts; its errors name row and column."""

    def __init__(self, table: Table, name: str, axis: Axis, forgot: str, chosen: Sequence[bool] = ()) -> None:
        self.table, self.name, self.axis, self.forgot, self.chosen = table, name, axis, forgot, chosen
        self.numbers, self.labels = row_numbers(table), labels_of_rows(table)
        self.short = shortener(dict.fromkeys(map(str, table.get("mitigation", ()))))

    def text(self, column: str, i: int) -> str:
        cell = self.table[column][i] if column in self.table else None
        return "" if is_blank(cell) else str(cell)

    def number(self, column: str, i: int) -> float:
        """A cell as a number; NaN if it is none."""
        cell = self.table[column][i] if column in self.table else math.nan
        try:
            return math.nan if isinstance(cell, bool) else float(cell)
        except (TypeError, ValueError, OverflowError):
            return math.nan

    def needed(self, column: str, i: int) -> float:
        value = self.number(column, i)
        if not math.isfinite(value):
            came, run = self.table[column][i], self.text("run_id", i)
            where = self.row(i) + (f" (run {run})" if run else "")
            raise UsageError(f"{where}, column '{column}': {came!s:.60} where a finite number is needed")
        return self.sized(column, i)

    def sized(self, column: str, i: int) -> float:
        """A cell as a number, NaN if it is none; refused if it is too large or small to compute with."""
        value = self.number(column, i)
        if math.isfinite(value) and incomputable(np.array(value)):
            raise UsageError(f"{self.row(i)}, column '{column}': {value:g} where {SIZES}")
        return value

    def refuse_steps(self) -> None:
        """Refuse a step of a finished run that is neither blank nor a number to compute with."""
        for i in range(rows(self.table)) if "step" in self.table else ():
            if self.status(i) == DONE and not is_missing(self.table["step"][i]):
                self.needed("step", i)

    def status(self, i: int) -> str:
        """The status of the row's run; `done` if the table does not say."""
        return status_of(self.table["status"][i]) if "status" in self.table else DONE

    def gap(self, i: int) -> str:
        """The first required column whose cell says that there is no number; empty if there is none."""
        return next((name for name in (self.axis.column, self.forgot) if is_missing(self.table[name][i])), "")

    def refuse_blank_runs(self) -> None:
        """Refuse rows without a run if other rows name theirs."""
        blank = [i for i in range(rows(self.table)) if not self.text("run_id", i).strip() and self.status(i) != GAP]
        if "run_id" in self.table and blank and len(blank) < rows(self.table):
            raise UsageError(f"{self.row(blank[0])}, column 'run_id': blank; name the run of every row")

    def run_id(self, i: int) -> str:
        return self.text("run_id", i) or f"row {self.numbers[i] + 1}"

    def row(self, i: int) -> str:
        """A row for messages: `'news', row 3`."""
        return f"'{self.name}', row {self.numbers[i] + 1}"

    def key(self, i: int, mitigation: str) -> Key:
        rank = self.number("rank", i)
        variant, shown = self.text("variant", i), self.short(mitigation)
        return Key(self.labels[i], mitigation, rank if math.isfinite(rank) else -1.0, variant, shown)

    def runs(self, run_id: str, at: Sequence[int], start: float) -> list[Run]:
        """One run's curves: its training, and its interpolated weights, if any."""
        alpha = {i: self.alpha(i) for i in at}
        trained = [i for i in at if alpha[i] == 1.0 and self.counts(i, start)]
        trained.sort(key=lambda i: self.number("step", i))
        self._refuse_duplicates(run_id, trained)
        mixed = sorted((i for i in at if 0 < alpha[i] < 1), key=lambda i: alpha[i])
        if len({alpha[i] for i in mixed}) < len(mixed):
            raise UsageError(f"'{self.name}': run {run_id} has several measurements at one alpha")
        self._refuse_two_runs(run_id, [*trained, *mixed])
        mitigation = self.text("mitigation", at[0])
        found = []
        if trained and not (mixed and INTERPOLATION in mitigation):
            found.append(self._run(run_id, trained, mitigation))
        if mixed:
            name = mitigation if INTERPOLATION in mitigation else f"{mitigation} + {INTERPOLATION}".removeprefix(" + ")
            found.append(self._run(run_id, [*mixed, *trained[-1:]], name, interpolated=True))
        return found

    def _refuse_two_runs(self, run_id: str, at: Sequence[int]) -> None:
        """Refuse rows of one run with two labels, mitigations, ranks, ... or seeds, which one run cannot have."""
        for column in ("label", "method", "mitigation", "rank", "variant", "seed"):
            texts = {
                text if (number := as_number(text)) is None else number: text
                for i in at
                for text in [self.text(column, i)]
            }
            if len(texts) > 1:
                named = " and ".join(f"'{text}'" for text in list(texts.values())[:2])
                raise UsageError(
                    f"'{self.name}': run {run_id} has rows with {column} {named}; give each run a name of its own in "
                    "the column 'run_id'"
                )

    def alpha(self, i: int) -> float:
        """Share of the tuned weights in an interpolation with the base model; 1 if the row is none."""
        alpha = self.number("alpha", i)
        if "alpha" not in self.table or is_missing(self.table["alpha"][i]):
            return 1.0
        if not 0 <= alpha <= 1:
            raise UsageError(
                f"{self.row(i)}, column 'alpha': {self.table['alpha'][i]!s:.60} where a share of the tuned weights "
                "from 0 to 1 is needed; if the column is something else, give it another name"
            )
        return alpha

    def counts(self, i: int, start: float) -> bool:
        """Whether a row's step is after 0 and from `start` on, or unknown."""
        step = self.number("step", i)
        return math.isnan(step) or (step > 0 and step >= start)

    def _refuse_duplicates(self, run_id: str, at: Sequence[int]) -> None:
        steps = [self.number("step", i) for i in at]
        if len(set(steps)) < len(steps) or (len(at) > 1 and any(map(math.isnan, steps))):
            raise UsageError(f"'{self.name}': run {run_id} has several measurements at one step, or without a step")

    def _run(self, run_id: str, at: Sequence[int], mitigation: str, *, interpolated: bool = False) -> Run:
        sign = -1.0 if self.axis.higher else 1.0
        return Run(
            key=self.key(at[0], mitigation),
            seed=self.text("seed", at[0]),
            run_id=run_id,
            x=np.array([sign * self.needed(self.axis.column, i) for i in at]),
            y=np.array([self.needed(self.forgot, i) for i in at]),
            step=np.array([self.sized("step", i) for i in at]),
            seconds=np.array([self.sized("train_seconds", i) for i in at]),
            alpha=np.array([self.alpha(i) for i in at]),
            params=self.sized("trainable_params", at[-1]),
            memory=self.sized("peak_memory", at[-1]),
            interpolated=interpolated,
            chosen=bool(self.chosen) and all(self.chosen[i] for i in at),
        )


def _causes(left: Mapping[str, str]) -> list[str]:
    return sorted(set(left.values()))
