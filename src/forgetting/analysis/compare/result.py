"""The comparisons of all data sets, as an object and as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from forgetting.analysis.compare.beyond import Beyond, beyond
from forgetting.analysis.compare.contest import Contender, Contest, contest
from forgetting.analysis.compare.pareto import Point
from forgetting.analysis.compare.plane import own_looks, plane
from forgetting.analysis.compare.reference import Reference, reference_of
from forgetting.analysis.compare.show import beyond_shown, contender_row, contest_shown
from forgetting.analysis.compare.source import Axis, NotComparedError, choose_axis, read_source
from forgetting.analysis.compare.words import flat_words, line_words, reach, sentence
from forgetting.analysis.fit import Fit
from forgetting.analysis.table_files import Table
from forgetting.config.arguments import checked
from forgetting.display.charts import plotly_figure
from forgetting.display.numbers import plain
from forgetting.display.tables import Result, Shown
from forgetting.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FORMAT = 1


@dataclass(frozen=True)
class Comparison(Result):
    """The comparison of a study or table.

    Attributes:
        reference: the label of the runs that all others are compared with, or the filters that selected them.
        contests: the comparison by data set.
        beyond: Appendix B's rows by data set; empty if no law could be tested on another method.
        without: data sets in which nothing could be compared -> why.
    """

    reference: str
    contests: dict[str, Contest]
    beyond: dict[str, list[Beyond]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes null."""
        out = {
            "format": FORMAT,
            "reference": self.reference,
            "datasets": {name: _contest_dict(c) for name, c in self.contests.items()},
            "beyond_the_reference": {name: [asdict(row) for row in rows] for name, rows in self.beyond.items()},
            "not_compared": self.without,
        }
        return {key: plain(value) for key, value in out.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per contender: the verdict, savings with intervals, Holm's p, and the price."""
        import pandas as pd

        return pd.DataFrame([contender_row(one, c) for c in self.contests.values() for one in c.contenders])

    def shown(self) -> list[Shown]:
        """Savings, prices, frontier and Appendix B of every data set."""
        parts = [part for c in self.contests.values() for part in contest_shown(c)]
        parts += [Shown([f"{name}: nothing compared: {why}"]) for name, why in self.without.items()]
        if self.beyond:
            parts.append(beyond_shown(self.reference, self.beyond))
        return parts

    @checked
    def figure(self, dataset: str | None = None) -> go.Figure:
        """The trade-off plane of a data set, as in the report: every curve, and the Pareto frontier.

        Args:
            dataset: its name; needed if several were compared.

        Raises:
            UsageError: no such data set, or several and none given.
        """
        if dataset is None and len(self.contests) > 1:
            raise UsageError(f"figure: several data sets; give dataset=, one of {', '.join(self.contests)}")
        chosen = next(iter(self.contests), "") if dataset is None else dataset
        if chosen not in self.contests:
            why = self.without.get(chosen)
            raise UsageError(f"figure: nothing compared on '{chosen}'; {why or did_you_mean(chosen, self.contests)}")
        looks, names = own_looks(self.contests[chosen])
        chart, hover = plane(self.contests[chosen], looks)
        return plotly_figure(chart, hover=hover, names=names)


def compare_tables(
    tables: Mapping[str, Table],
    reference: str | Sequence[str] | Mapping[str, Any] | None = None,
    *,
    by: str | None = None,
    direction: str | None = None,
    confidence: float = 0.95,
    start: float = 0.0,
    fits: Mapping[str, Mapping[str, Fit]] | None = None,
) -> Comparison:
    """Compare the runs within each data set.

    Args:
        tables: rows by data set.
        reference: the runs that all others are compared with; see `reference_of`.
        by: the column to hold equal; default `test_accuracy` if the table has it, else `finetune_loss`.
        direction: whether `lower` or `higher` is better, for a column where this is unknown.
        confidence: nominal coverage of each interval.
        start: first step that counts; earlier ones are left out.
        fits: fitted laws by data set and name, for Appendix B; None to fit them.

    Raises:
        UsageError: a mistake in a table or argument, or nothing to compare in any data set.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence: got {confidence:g}; give a number between 0 and 1, such as 0.95")
    chooses = reference_of(reference, tables)
    contests, others, without = {}, {}, {}
    for name, table in tables.items():
        axis = choose_axis(table, by, direction)
        chosen = chooses.rows(table) if chooses.where else ()
        try:
            source = read_source(table, name, axis, start=start, chosen=chosen)
            contests[name] = contest(source, chooses, confidence)
        except NotComparedError as error:
            without[name] = str(error)
            continue
        if rows := _beyond(source.table, axis, chooses, start, None if fits is None else fits.get(name, {})):
            others[name] = rows
    if not contests:
        raise UsageError(*without.values())
    return Comparison(str(chooses), contests, others, without)


def _beyond(
    table: Table, axis: Axis, reference: Reference, start: float, fits: Mapping[str, Fit] | None
) -> list[Beyond]:
    """Appendix B's rows; empty if the table lacks a column that the laws need."""
    needed = ("forgetting_loss", "finetune_loss", "step", "trainable_params")
    if axis.column != "finetune_loss" or any(name not in table for name in needed):
        return []
    return beyond(table, reference, start, fits)


def _contest_dict(c: Contest) -> dict[str, Any]:
    front = [p for p in c.points if p.front]
    return {
        "equal": c.axis.column,
        "better": "higher" if c.axis.higher else "lower",
        "confidence": c.confidence,
        "reference_curves": [str(key) for key in sorted(c.references)],
        "reference_line": None
        if c.trend is None or c.pooled is None
        else {"form": c.pooled.form, **asdict(c.trend), "says": line_words(c), "no_line": flat_words(c)},
        "contenders": [_contender_dict(one, c) for one in c.contenders],
        "pooled_reference": None
        if c.pooled is None
        else {"form": c.pooled.form, "why": c.pooled.why, "errors_on_ranks_left_out": c.pooled.errors},
        "pareto_frontier": [_point_dict(p) for p in front],
        "notes": c.notes,
    }


def _contender_dict(c: Contender, contest_: Contest) -> dict[str, Any]:
    far = reach(c, contest_)
    return {
        "name": str(c.key),
        **_key_dict(c),
        "verdict": c.verdict,
        "says": sentence(c, contest_) + (f"; {far}" if far else ""),
        **{k: v for k, v in asdict(c).items() if k not in ("key", "verdict", "low", "high")},
        "compared_from": c.high,
        "compared_to": c.low,
    }


def _key_dict(c: Contender | Point) -> dict[str, Any]:
    key = c.key
    rank = key.rank if key.rank >= 0 else None
    return {"label": key.label, "mitigation": key.mitigation, "rank": rank, "variant": key.variant}


def _point_dict(p: Point) -> dict[str, Any]:
    return {"name": str(p.key), **_key_dict(p), **{k: v for k, v in asdict(p).items() if k not in ("key", "front")}}
