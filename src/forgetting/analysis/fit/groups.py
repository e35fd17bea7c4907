"""Fits one law separately to each group of a table, such as each model's curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forgetting.analysis.fit import show
from forgetting.analysis.fit.data import column_names
from forgetting.analysis.fit.result import Fit
from forgetting.analysis.laws.base import Law
from forgetting.analysis.selection import cell_at, is_blank, part_of, row_numbers, rows_left_out
from forgetting.display.numbers import plain, several
from forgetting.display.tables import Result, Shown
from forgetting.errors import ForgettingError, UsageError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

MOST_NOTES = 8
"""Most different warnings that are printed; the rest are only counted."""


@dataclass(frozen=True)
class Group:
    """One group and its fit.

    Attributes:
        cells: the group's values of the grouping columns.
        rows: number of rows.
        fit: the fit; None if the group could not be fitted.
        reason: why the group could not be fitted; else empty.
    """

    cells: tuple[str, ...]
    rows: int
    fit: Fit | None
    reason: str = ""


@dataclass(frozen=True)
class GroupedFits(Result):
    """Fits of one law to several groups.

    Attributes:
        law: the fitted law.
        by: the grouping columns.
        groups: the groups, table by table; in ascending order if all their cells are numbers, else in the order of
            their first rows.
        left_out: one line per table with rows that belong to no group.
    """

    law: Law
    by: tuple[str, ...]
    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = ()

    @property
    def fits(self) -> dict[str, dict[str, Fit]]:
        """Fits by group (`model=a, task=b`) and law, as `predict` and `save_fits` accept them."""
        return {g.fit.label: {g.fit.law: g.fit} for g in self.groups if g.fit is not None}

    def to_frame(self) -> pd.DataFrame:
        """One row per group: number of rows, estimates with intervals, R2 and RMSE by output, number of warnings."""
        import pandas as pd

        return pd.DataFrame([self._numbers(g) for g in self.groups])

    def _numbers(self, group: Group) -> dict[str, Any]:
        row: dict[str, Any] = dict(zip(self.by, group.cells, strict=True)) | {"n_points": group.rows}
        fit = group.fit
        for name in self.law.names:
            estimate = None if fit is None else fit.parameters[name]
            for suffix in ("", "_low", "_high"):
                end = suffix.removeprefix("_") or "value"
                row[name + suffix] = float("nan") if estimate is None else getattr(estimate, end)
        for output in self.law.outputs:
            row[f"r2_{output}"] = float("nan") if fit is None else fit.r2.get(output, float("nan"))
            row[f"rmse_{output}"] = float("nan") if fit is None else _rmse(fit, output)
        return row | {"warnings": 0 if fit is None else len(fit.warnings), "reason": group.reason}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: each group's fit without its draws, and the groups that could not be fitted."""
        fits, failed = [], []
        for group in self.groups:
            named = {"group": dict(zip(self.by, group.cells, strict=True))}
            if group.fit is None:
                failed.append(named | {"law": self.law.name, "n_points": group.rows, "reason": group.reason})
            else:
                fits.append(named | {k: v for k, v in group.fit.to_dict().items() if k != "draws"})
        return {"by": list(self.by), "fits": plain(fits), "failed": failed, "left_out": list(self.left_out)}

    def shown(self) -> list[Shown]:
        """One row per group, and each warning with the number of groups that have it."""
        fitted = [g.fit for g in self.groups if g.fit is not None]
        heading = [f"{self.law.title}, by {', '.join(self.by)}", str(self.law.formula)]
        heading += [f"read as: {self.law.reading}"] if self.law.reading else []
        heading.append(f"source: {self.law.source}")
        heading.append(
            f"{len(fitted)} of {several(len(self.groups), 'group')} fitted, {fitted[0].objective}" if fitted else ""
        )
        if fitted:
            alone = "treating every row as independent" if fitted[0].diagnostics.get("iid") else "resampling whole runs"
            heading.append(f"in brackets: {fitted[0].confidence:.0%} interval, {alone}")
        many = len(self.law.outputs) > 1
        quality = [f"{what} {o}" if many else what for o in self.law.outputs for what in ("R2", "RMSE")]
        columns = [*self.by, "rows", *self.law.names, *quality, "warnings"]
        failed = any(g.fit is None for g in self.groups)
        rows = [[*self._cells(g), *([g.reason] if failed else [])] for g in self.groups]
        columns += ["not fitted because"] if failed else []
        counts = Counter(text for fit in fitted for text in dict.fromkeys(fit.warnings)).most_common()
        notes = [f"warning, {count} group{'s' * (count > 1)}: {text}" for text, count in counts[:MOST_NOTES]]
        if len(counts) > MOST_NOTES:
            notes.append(f"{several(len(counts) - MOST_NOTES, 'more warning')} in the fits themselves (--json)")
        return [Shown(heading, columns, rows, [f"warning: {text}" for text in self.left_out] + notes)]

    def _cells(self, group: Group) -> list[str]:
        fit, out = group.fit, [*group.cells, str(group.rows)]
        if fit is None:
            return out + ["-"] * (len(self.law.names) + 2 * len(self.law.outputs) + 1)
        scales = {p.name for p in self.law.parameters if p.log}
        for name, estimate in fit.parameters.items():
            ends = show.ends(estimate)
            out.append(show.value(estimate, scale=name in scales) + (f" [{ends}]" if ends != "-" else ""))
        for output in self.law.outputs:
            out += [show.number(fit.r2.get(output, float("nan"))), show.number(_rmse(fit, output))]
        return [*out, str(len(fit.warnings))]


def _rmse(fit: Fit, output: str) -> float:
    return float(fit.diagnostics.get("rmse", {}).get(output, float("nan")))


def fit_groups(
    law: Law, tables: Mapping[str, Any], by: str | Sequence[str], fit_one: Callable[..., Fit]
) -> GroupedFits:
    """Fit each group of one or several tables.

    Args:
        law: the law to fit.
        tables: tables by data set; if there are several, groups also differ by data set.
        by: one column or several; rows whose cells are equal as text are one group.
        fit_one: fits the rows of one group; its `label` is the group's name.

    Raises:
        UsageError: no column, an unknown one, or no row of a table has a value in all of them.
        ForgettingError: no group could be fitted; this is the first group's error.
    """
    by = [by] if isinstance(by, str) else by
    by = tuple(dict.fromkeys([*(["dataset"] if len(tables) > 1 else []), *by]))
    if not by:
        raise UsageError("by: give at least one column")
    groups: list[Group] = []
    first: ForgettingError | None = None
    left_out: list[str] = []
    for label, table in tables.items():
        parts, blank = _parts(table, by, label)
        left_out += blank
        for values, rows, part in parts:
            name = ", ".join(f"{column}={value}" for column, value in zip(by, values, strict=True))
            try:
                groups.append(Group(values, rows, fit_one(part, label=name)))
            except ForgettingError as error:
                first = first or error
                groups.append(Group(values, rows, None, str(error)))
    if first is not None and all(g.fit is None for g in groups):
        raise first
    return GroupedFits(law, by, tuple(groups), tuple(left_out))


def _parts(table: Any, by: Sequence[str], label: str) -> tuple[list[tuple[tuple[str, ...], int, Any]], list[str]]:
    """Cells, number of rows and rows of each group, and a sentence about rows that belong to no group."""
    present = column_names(table)
    cells = []
    for name in by:
        if name not in present:
            raise UsageError(f"table '{label}' has no column '{name}' to group by; {did_you_mean(name, present)}")
        cells.append([str(cell).strip() for cell in table[name]])
    places: dict[tuple[str, ...], list[int]] = {}
    left: list[int] = []
    for i, key in enumerate(zip(*cells, strict=True)):
        if any(is_blank(cell) for cell in key):
            left.append(i)
        else:
            places.setdefault(key, []).append(i)
    said = []
    if left:
        column, cell = next((name, t[left[0]]) for name, t in zip(by, cells, strict=True) if is_blank(t[left[0]]))
        named = cell_at(row_numbers(table)[left[0]], column, cell)
        if not places:
            raise UsageError(f"table '{label}' has no row that names its group ({named})")
        what = f"{several(len(left), 'row')} of '{label}'"
        said = [rows_left_out(what, len(left), "the group is not named", named)]
    frame = hasattr(table, "iloc")
    parts = [(key, len(at), table.iloc[at] if frame else part_of(table, at)) for key, at in _ordered(places).items()]
    return parts, said


def _ordered(places: dict[tuple[str, ...], list[int]]) -> dict[tuple[str, ...], list[int]]:
    """Groups in ascending order if all cells are numbers, such as ranks; otherwise in their given order."""
    try:
        return dict(sorted(places.items(), key=lambda item: [float(cell) for cell in item[0]]))
    except ValueError:
        return places
