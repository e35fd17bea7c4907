"""Groups a study's rows into series: one per method, rank and mitigation, each with a colour and a symbol.

Ranks have a sequential, colour-blind-safe scale whose contrast with the page grows with rank, on the light and the
dark page. Methods without a rank have other colours and symbols.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from forgetting.display.charts import OTHERS, RANKS_DARK, RANKS_LIGHT, blend, rank_place
from forgetting.display.paths import shortener
from forgetting.measuring.quantities import STUDY, columns
from forgetting.reporting.resolution import NEEDED, resolution
from forgetting.store.axes import AXES

if TYPE_CHECKING:
    from forgetting.analysis.fit import Fit

METHOD_NAMES = {
    "lora": "LoRA", "dora": "DoRA", "mica": "MiCA", "pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "eva": "EVA",
    "vera": "VeRA", "loha": "LoHa", "lokr": "LoKr", "ia3": "IA³", "oft": "OFT", "boft": "BOFT", "osf": "OSF",
    "ln_tuning": "layer-norm tuning", "bias": "biases only", "full": "full fine-tuning",
}  # fmt: skip
"""Displayed names of methods that differ from their names in the code."""

NOT_OPTIONS = ("name", "rank", "label", "mitigations")
"""Fields of a run's method that do not count as options when series are told apart."""

NUMBERS = (
    "step",
    "rank",
    "seed",
    "trainable_params",
    *(axis.column for axis in AXES.values()),
    *columns(STUDY),
    "train_seconds",
    "measure_seconds",
    "finetune_tokens",
    "finetune_documents",
    "text_tokens",
    "text_documents",
)
TEXTS = ("dataset", "method", "label", "mitigation", "run_id", "status")
MEASURED = ("run_id", "status", "label", "mitigation", "step", "trainable_params", *(a.column for a in AXES.values()))
MEASURED += ("finetune_loss", "forgetting", "forgetting_se", "agreement", "agreement_se")
"""Columns of `Panel.measured`."""
Identity = tuple[str, float, str, str, str]
"""What the runs of one series share: method, rank (-1 if it has none), options as JSON, label, mitigation."""


@dataclass(frozen=True)
class Series:
    """The runs of one method, rank and mitigation, which are drawn in one colour.

    Attributes:
        key: a safe identifier, `s0`, `s1`, ...; the page's style sheet assigns its colours.
        label: displayed name, such as `LoRA rank 8`.
        rank: None if the method has none.
        symbol: Plotly's marker symbol.
        light, dark: colours on the light and the dark page.
        runs: ids of its runs.
    """

    key: str
    label: str
    rank: int | None
    symbol: str
    light: str
    dark: str
    runs: frozenset[str]


@dataclass(frozen=True)
class Panel:
    """One data set: its rows and fits.

    Attributes:
        key: a safe identifier for the page, `d0`, `d1`, ...
        name: the data set's name, untrusted text.
        points: what the charts show: measurements after step 0 of runs that did not fail, or means of them.
        measured: these measurements themselves, with at least the columns in MEASURED.
        base: rows of the same runs at step 0.
        failed: all rows of failed runs.
        series: series that have points here, in drawing order.
        linear, joint: the fits of the laws `linear` and `shifted_power`; None if not fitted.
        resolution: excess forgetting up to which a measurement cannot be distinguished from 0; None if unknown.
        along: by name, the fits of laws over an option of a mitigation, such as `replay`.
        averaged: whether `points` are means over runs (`aggregate.drawn`).
    """

    key: str
    name: str
    points: pd.DataFrame
    measured: pd.DataFrame
    base: pd.DataFrame
    failed: pd.DataFrame
    series: tuple[Series, ...]
    linear: Fit | None
    joint: Fit | None
    resolution: float | None = None
    along: Mapping[str, Fit] = field(default_factory=dict)
    averaged: bool = False
    _sorted: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def hoverable(self) -> pd.DataFrame:
        """All rows, in the order of the row numbers in the charts."""
        return pd.concat([self.points, self.base, self.failed], ignore_index=True)

    @property
    def bars(self) -> str:
        """A sentence on the error bars of the points."""
        if self.averaged:
            return "Bars are one standard error between runs; for a point of a single run, clustered by document."
        return "Bars are one standard error, clustered by document."

    def of(self, series: Series) -> pd.DataFrame:
        """The points of one series, sorted by run and step."""
        if series.key not in self._sorted:  # several charts and tables need them
            mine = self.points[self.points["series"] == series.key]
            self._sorted[series.key] = mine.sort_values(["run_id", "step"])
        return self._sorted[series.key]

    def last(self) -> pd.DataFrame:
        """The points at the last measured step that any run of this data set reached."""
        rows: pd.DataFrame = self.points[self.points["step"] == self.points["step"].max()]
        return rows


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with the report's columns, numbers as floats, texts as strings, and without interpolated weights."""
    if "alpha" in table.columns:  # weights interpolated after the last step are not measurements of the run
        table = table[~(table["alpha"] < 1).fillna(False).astype(bool)]
    rows = table.reindex(columns=[*TEXTS, *NUMBERS]).copy()
    for column in NUMBERS:
        rows[column] = pd.to_numeric(rows[column], errors="coerce").astype("float64")
    for column in TEXTS:
        if rows[column].dtype != "str" or rows[column].isna().any():
            rows[column] = rows[column].astype("object").where(rows[column].notna(), "").astype(str)
    return rows


def method_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's method and its options, from its record or the configuration in it."""
    config = run.get("config")
    for holder in (run, config if isinstance(config, Mapping) else {}):
        method = holder.get("method")
        if isinstance(method, Mapping):
            return dict(method)
    return {}


def group(rows: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    """The study's series, ranked methods first, smaller ranks before larger ones.

    Args:
        rows: a tidy table.
        runs: the run records; their options distinguish methods with the same name and rank.
    """
    records = {str(run.get("run_id", "")): method_of(run) for run in runs}
    members: dict[Identity, set[str]] = {}
    first = rows.drop_duplicates("run_id")
    texts = (first[name] for name in ("run_id", "method", "label", "mitigation"))
    for run_id, method, label, mitigation, rank in zip(*texts, first["rank"], strict=True):
        options = {k: v for k, v in records.get(run_id, {}).items() if k not in NOT_OPTIONS}
        size = -1.0 if pd.isna(rank) else float(rank)
        text = json.dumps(options, sort_keys=True, default=str)
        members.setdefault((method, size, text, label or method, mitigation), set()).add(run_id)
    labels = _labels(members)
    main = _main_identities(members)
    ordered = sorted(members, key=lambda m: (m not in main, bool(m[4]), m))
    ranks = sorted({m[1] for m in main})
    series = []
    for number, identity in enumerate(ordered):
        if identity in main:
            place = rank_place(ranks.index(identity[1]), len(ranks))
            light, dark, symbol = blend(RANKS_LIGHT, place), blend(RANKS_DARK, place), "circle"
        else:
            light, dark, symbol = OTHERS[(number - len(main)) % len(OTHERS)]
        rank = int(identity[1]) if identity[1] >= 0 else None
        ids = frozenset(members[identity])
        series.append(Series(f"s{number}", labels[identity], rank, symbol, light, dark, ids))
    return tuple(series)


def _main_identities(members: Iterable[Identity]) -> set[Identity]:
    """The method and options with the most ranks, unmitigated if tied; they get the sequential colours."""
    families: dict[tuple[str, ...], set[Identity]] = {}
    for identity in members:
        if identity[1] >= 0:
            families.setdefault((identity[0], *identity[2:]), set()).add(identity)
    return max(families.values(), key=lambda f: (len(f), not max(f)[4], sorted(f)), default=set())


def _labels(members: Iterable[Identity]) -> dict[Identity, str]:
    """Displayed names: label, rank and mitigation, and the options that differ between methods with equal labels."""
    identities = list(members)
    short = shortener(identity[4] for identity in identities)
    labels = {}
    for identity in identities:
        name, rank, options, label, mitigation = identity
        text = METHOD_NAMES.get(name, name.replace("_", " ")) if label == name else label
        if rank >= 0:
            text += f" rank {rank:.0f}"
        own = json.loads(options)
        others = [json.loads(i[2]) for i in identities if (i[1], *i[3:]) == (rank, label, mitigation)]
        differing = sorted(k for k in own if any(other.get(k) != own[k] for other in others))
        if differing:
            text += " (" + ", ".join(f"{k}={own[k]}" for k in differing) + ")"
        labels[identity] = text + (f" + {short(mitigation)}" if mitigation else "")
    return labels


def panels(
    names: Iterable[str],
    rows: pd.DataFrame,
    series: Sequence[Series],
    fits: Mapping[str, Mapping[str, Fit]],
    measured: pd.DataFrame | None = None,
) -> tuple[Panel, ...]:
    """One panel per data set: first those of the configuration in its order, then any others in the table.

    Args:
        names: data sets of the configuration.
        rows: a tidy table of what is drawn.
        series: the study's series.
        fits: the laws by data set and name.
        measured: a tidy table of the measurements themselves, if `rows` are means of them.
    """
    measured = rows if measured is None else measured
    averaged = measured is not rows
    of_run = {run: s.key for s in series for run in s.runs}
    if "series" not in rows.columns:  # means over runs already have the column
        rows = rows.assign(series=rows["run_id"].map(of_run))
    found = []
    for number, name in enumerate(dict.fromkeys([*names, *rows["dataset"]])):
        mine, here = rows[rows["dataset"] == name], measured["dataset"] == name
        failed = mine["status"] == "failed"
        start = mine["step"] == 0
        points, base, bad = mine[~failed & ~start], mine[~failed & start], mine[failed]
        points = points.reset_index(drop=True)
        points["row"] = range(len(points))
        base = base.assign(row=range(len(points), len(points) + len(base)))
        bad = bad.assign(row=range(len(points) + len(base), len(mine)))
        counted = here & (measured["status"] != "failed") & (measured["step"] != 0)
        present = set(points["series"])
        own = fits.get(name, {})
        found.append(
            Panel(
                key=f"d{number}",
                name=name,
                points=points,
                measured=measured.loc[counted, list(MEASURED)] if averaged else points,
                base=base,
                failed=bad,
                series=tuple(s for s in series if s.key in present),
                linear=own.get("linear"),
                joint=own.get("shifted_power"),
                along={name: own[name] for name in AXES if name in own},
                resolution=resolution(measured.loc[here, list(NEEDED)]),
                averaged=averaged,
            )
        )
    return tuple(found)
