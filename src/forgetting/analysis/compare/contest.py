"""The comparison on one data set: every contender against the reference at equal fine-tuning loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from forgetting.analysis.compare.estimate import NAN, Estimate, blocks, difference, student, welch
from forgetting.analysis.compare.pareto import Point, frontier
from forgetting.analysis.compare.path import Path, path, window
from forgetting.analysis.compare.pooled import Pooled, pool
from forgetting.analysis.compare.price import Price, price
from forgetting.analysis.compare.reference import Reference
from forgetting.analysis.compare.source import Axis, Key, NotComparedError, Source
from forgetting.analysis.compare.trend import Trend
from forgetting.errors import did_you_mean
from forgetting.measuring.estimate import holm

NEAR = 0.05  # share of the reference's loss range: a contender closer than this has reached the reference's best
MOST = 0.8  # share of the compared range of losses that another curve must cover to help estimate the spread
SAVES, COSTS, NONE, CORRECTED = "saves", "costs", "no evidence", "not after correction"
UNKNOWN, NEVER, BEYOND = "no interval", "never reaches", "beyond the reference"
NO_LINE = "no line"
VERDICTS = (SAVES, COSTS, NONE, CORRECTED, UNKNOWN, NEVER, BEYOND, NO_LINE)
FLAT = "the reference is not a line"


@dataclass(frozen=True)
class Contender:
    """One method, rank and mitigation against the reference.

    Attributes:
        key: which one.
        verdict: one of VERDICTS.
        against: name of the reference curve or curves that it is compared with.
        saving: nats/token saved at equal fine-tuning loss, averaged over the losses that both pass through.
        final: nats/token saved at the contender's last measurement, if the reference passes through that loss.
        over_ranks: the saving against one curve through all reference ranks; value NaN if there are none to pool, or if
            that curve explains nothing.
        raw: if the reference is not a line: how much less the contender forgot than the reference's mean, at their last
            measurements, not at an equal loss, with the interval for one more reference curve.
        raw_axis: the contender's value minus the reference's mean, at their last measurements, in the column that is
            otherwise held equal.
        adjusted_p: Holm's p, over all contenders of the data set with an interval.
        low, high: best and worst of the losses compared, as in the table; NaN if there are none.
        covered: share of the contender's range of losses that was compared.
        best, reference_best: the best loss of each, as in the table; of several runs, the best one's.
        reaches_last: whether some run reaches the reference's best, up to NEAR of the reference's range.
        price: cost of reaching the best loss that all compared runs have; None if there is none.
        seeds: seeds of its runs.
    """

    key: Key
    verdict: str
    against: str
    saving: Estimate
    final: Estimate
    over_ranks: Estimate
    raw: Estimate
    raw_axis: float
    adjusted_p: float
    low: float
    high: float
    covered: float
    best: float
    reference_best: float
    reaches_last: bool
    price: Price | None
    seeds: tuple[str, ...]


@dataclass(frozen=True)
class Contest:
    """All contenders of one data set, best first.

    Attributes:
        dataset: its name.
        axis: what is held equal.
        reference: the name of the reference: its label, or the filters that chose it.
        references: its curves.
        confidence: nominal coverage of each interval.
        contenders: sorted by saving, largest first.
        pooled: the curve through all ranks of the reference; None if it has only one curve.
        runs: ids of the runs of every curve.
        points: every curve's points, marked if on the Pareto frontier.
        notes: what was left out, and what a reader must know.
    """

    dataset: str
    axis: Axis
    reference: str
    references: frozenset[Key]
    confidence: float
    contenders: list[Contender]
    pooled: Pooled | None
    runs: dict[Key, tuple[str, ...]]
    points: list[Point]
    notes: list[str]

    @property
    def trend(self) -> Trend | None:
        """How well the line through the reference explains its forgetting; None if the reference has one curve."""
        return None if self.pooled is None else self.pooled.trend

    @property
    def flat(self) -> bool:
        """Whether the reference is not a line, so that nothing can be ranked against it."""
        return self.trend is not None and not self.trend.explains


def contest(source: Source, reference: str | Reference, confidence: float = 0.95) -> Contest:
    """Compare every other curve of a data set with the reference's plain runs.

    Args:
        source: runs of one data set.
        reference: the reference's label, or a `Reference`; if that has filters, `source` must be read with them.
        confidence: nominal coverage of each interval.

    Raises:
        NotComparedError: no run with this label, no plain run of it, or nothing to compare it with.
    """
    chooses = Reference(reference) if isinstance(reference, str) else reference
    if chooses.label and chooses.label not in source.labels:
        known = did_you_mean(chooses.label, source.labels)
        raise NotComparedError(f"'{source.name}' has no finished run of '{chooses.label}'; {known}")
    curves = {key: [path(run) for run in runs] for key, runs in source.curves.items()}
    mine = {key: paths for key, paths in curves.items() if chooses.holds(key, source.curves[key])}
    others = {key: paths for key, paths in curves.items() if key not in mine}
    if not mine:
        kept = "only runs with a mitigation" if not chooses.where else "no finished run that it selects"
        raise NotComparedError(f"'{source.name}': no plain run of '{chooses}', {kept}")
    if not others:
        raise NotComparedError(
            f"'{source.name}': only plain runs of '{chooses}'; a comparison needs another label or a mitigation"
        )
    judge = _Judge(source.axis, mine, curves, confidence, str(chooses))
    made = [judge(key, paths) for key, paths in others.items()]
    adjusted = holm([c.saving.p for c in made])
    made = [_decide(c, p, confidence) for c, p in zip(made, adjusted, strict=True)]
    made.sort(key=lambda c: (math.isnan(c.saving.value), -c.saving.value if c.saving.value == c.saving.value else 0.0))
    return Contest(
        source.name,
        source.axis,
        str(chooses),
        frozenset(mine),
        confidence,
        made,
        judge.pooled,
        {key: tuple(run.run_id for run in runs) for key, runs in source.curves.items()},
        frontier(source.curves, source.axis),
        source.notes + _notes(made, mine, judge.pooled, confidence),
    )


def _decide(c: Contender, adjusted: float, confidence: float) -> Contender:
    """The contender with its adjusted p, and with a verdict if it has none yet."""
    alpha, saving = 1 - confidence, c.saving
    if c.verdict:
        return replace(c, adjusted_p=adjusted)
    if not saving.known:
        verdict = UNKNOWN
    elif saving.low <= 0 <= saving.high:
        verdict = NONE
    elif adjusted > alpha:
        verdict = CORRECTED
    else:
        verdict = SAVES if saving.value > 0 else COSTS
    return replace(c, verdict=verdict, adjusted_p=adjusted)


class _Judge:
    """Compares one contender after another with the reference's curves."""

    def __init__(
        self,
        axis: Axis,
        reference: Mapping[Key, list[Path]],
        curves: Mapping[Key, list[Path]],
        confidence: float,
        name: str,
    ) -> None:
        self.axis, self.reference, self.curves, self.confidence = axis, reference, curves, confidence
        sign = -1.0 if axis.higher else 1.0
        self.pooled = pool(reference, confidence, sign) if len(reference) > 1 else None
        self.flat = self.pooled is not None and not self.pooled.trend.explains
        self.name = name

    def __call__(self, key: Key, paths: list[Path]) -> Contender:
        own = self._own_curve(key)
        every = [p for paths in self.reference.values() for p in paths]
        empty = Estimate(NAN, why="nothing to pool: the reference has one curve")
        over = self._over_ranks(paths)[0] if self.pooled else empty
        raw, apart = Estimate(NAN), NAN
        if own is not None:
            compared, against = self.reference[own], str(own)
            saving, span = self._matched(paths, compared)
            final = self._final(paths, compared)
        else:
            compared, against = every, f"all {len(self.reference)} curves of {self.name}"
            saving, span = self._over_ranks(paths)
            assert self.pooled is not None
            final = self.pooled.at_points([(p.run.x[-1], p.run.y[-1]) for p in paths], self.confidence)
            if self.flat:
                final, span = saving, None
                raw, apart = self._raw(paths)
        made = self._contender(key, paths, compared, against, saving, final, over, span)
        return replace(made, raw=raw, raw_axis=apart, verdict=made.verdict or (NO_LINE if apart == apart else ""))

    def _raw(self, paths: Sequence[Path]) -> tuple[Estimate, float]:
        """The differences from the mean of the reference's curves at the last measurements, in forgetting and axis."""
        ends = [np.mean([(p.run.x[-1], p.run.y[-1]) for p in mine], axis=0) for mine in self.reference.values()]
        x, y = np.array(ends).T
        own = np.array([p.run.y[-1] for p in paths])
        value = float(y.mean() - own.mean())
        apart = self.axis.shown(float(np.mean([p.run.x[-1] for p in paths]) - x.mean()))
        parts = [(float(y.var(ddof=1)) * (1 + 1 / y.size), y.size - 1.0)]
        if own.size > 1:
            parts.append((float(own.var(ddof=1)) / own.size, own.size - 1.0))
        se, freedom = welch(parts)
        return student(value, se, freedom, self.confidence, own.size, "one more curve"), apart

    def _own_curve(self, key: Key) -> Key | None:
        """The reference curve of a contender's rank, if it has several points, or the only one; None for all curves."""
        fit = [k for k, paths in self.reference.items() if k.rank == key.rank and key.rank >= 0]
        if len(self.reference) == 1:
            return next(iter(self.reference))
        curves = [k for k in fit if all(p.x.size > 1 for p in self.reference[k])]
        return curves[0] if len(curves) == 1 else None

    def _matched(self, paths: Sequence[Path], compared: Sequence[Path]) -> tuple[Estimate, tuple[float, float] | None]:
        span = window([*paths, *compared])
        if span is None and all(p.x.size == 1 for p in paths):
            points, there = [p.low for p in paths], self._final(paths, compared)
            return there, (min(points), max(points)) if math.isfinite(there.value) else None
        if span is None:
            return Estimate(NAN, runs=len(paths), why="no fine-tuning loss is reached by all compared runs"), None
        alone = self._paired(paths, compared, lambda p: p.mean(*span))
        return self._from_all_curves(alone, paths, compared, span) or alone, span

    def _from_all_curves(
        self, alone: Estimate, paths: Sequence[Path], compared: Sequence[Path], span: tuple[float, float]
    ) -> Estimate | None:
        """The paired saving, with the spread estimated from all curves that have these seeds and cover these losses."""
        if alone.scheme != "paired":
            return None
        seeds = [p.run.seed for p in paths if p.run.seed in {q.run.seed for q in compared}]
        rows: list[list[float]] = []
        two: dict[Key, int] = {}
        for key, mine in self.curves.items():
            own = {p.run.seed: p for p in mine if p.run.seed in seeds}
            common = window(list(own.values())) if len(own) == len(seeds) else None
            if common is None or mine[0].run.interpolated:
                continue
            # a curve that ends a little earlier still shows how runs scatter; blocks remove its level
            low, high = max(common[0], span[0]), min(common[1], span[1])
            if high - low >= MOST * (span[1] - span[0]):
                two[key] = len(rows)
                rows.append([own[seed].mean(low, high) for seed in seeds])
        keys = compared[0].run.key, paths[0].run.key
        if any(key not in two for key in keys):
            return None
        return blocks(np.array(rows), two[keys[0]], two[keys[1]], self.confidence)

    def _paired(self, paths: Sequence[Path], compared: Sequence[Path], mean: Callable[[Path], float]) -> Estimate:
        both = [{p.run.seed: mean(p) for p in side} for side in (compared, paths)]
        return difference(both[0], both[1], self.confidence)

    def _final(self, paths: Sequence[Path], compared: Sequence[Path]) -> Estimate:
        """The saving at each run's last measurement, against the reference run of its seed, or else against all."""
        ref, con = {}, {}
        by_seed = {p.run.seed: [p] for p in compared}
        for p in paths:
            x, y = float(p.run.x[-1]), float(p.run.y[-1])
            there = [q.mean(x, x) for q in by_seed.get(p.run.seed, compared) if q.low <= x <= q.high]
            if there:
                ref[p.run.seed], con[p.run.seed] = sum(there) / len(there), y
        if not con:
            return Estimate(NAN, why="the reference does not pass through its last fine-tuning loss")
        if not all(p.run.seed in by_seed for p in paths):
            value = sum(ref[s] - con[s] for s in con) / len(con)
            return Estimate(value, runs=len(con), why="no interval at one point for runs with different seeds")
        return difference(ref, con, self.confidence)

    def _over_ranks(self, paths: Sequence[Path]) -> tuple[Estimate, tuple[float, float] | None]:
        pooled = self.pooled
        assert pooled is not None
        if self.flat:
            return Estimate(NAN, runs=len(paths), why=FLAT), None
        own = window(paths)
        if own is None:
            points = [(float(p.run.x[-1]), float(p.run.y[-1])) for p in paths]
            inside = [x for x, _ in points if pooled.low <= x <= pooled.high]
            return pooled.at_points(points, self.confidence), (min(inside), max(inside)) if inside else None
        low, high = max(own[0], pooled.low), min(own[1], pooled.high)
        if low > high:
            return Estimate(NAN, runs=len(paths), why="no fine-tuning loss is reached by both"), None
        return pooled.saving(paths, low, high, self.confidence), (low, high)

    def _contender(
        self,
        key: Key,
        paths: list[Path],
        compared: Sequence[Path],
        against: str,
        saving: Estimate,
        final: Estimate,
        over: Estimate,
        span: tuple[float, float] | None,
    ) -> Contender:
        best, reference_best = min(p.low for p in paths), min(p.low for p in compared)
        verdict = ""
        if math.isnan(saving.value) and best > max(p.high for p in compared):
            verdict = NEVER
        elif math.isnan(saving.value) and max(p.high for p in paths) < reference_best:
            verdict = BEYOND
        width = max(p.high for p in paths) - best
        shown = self.axis.shown
        low, high = span or (NAN, NAN)
        return Contender(
            key=key,
            verdict=verdict,
            against=against,
            saving=saving,
            final=final,
            over_ranks=over,
            raw=Estimate(NAN),
            raw_axis=NAN,
            adjusted_p=NAN,
            low=shown(low),
            high=shown(high),
            covered=(high - low) / width if width > 0 else (1.0 if span else NAN),
            best=shown(best),
            reference_best=shown(reference_best),
            reaches_last=best <= reference_best + NEAR * (max(p.high for p in compared) - reference_best),
            price=price(low, shown(low), paths, compared) if span else None,
            seeds=tuple(p.run.seed for p in paths),
        )


def _notes(
    made: Sequence[Contender], reference: Mapping[Key, list[Path]], pooled: Pooled | None, confidence: float
) -> list[str]:
    """Notes on the intervals."""
    notes = []
    tested = sum(c.saving.known for c in made)
    if tested > 1:
        notes.append(f"{tested} contenders were tested: a finding holds after Holm's correction over all of them")
    unknown = [c for c in made if not c.saving.known and c.saving.why != FLAT]
    if unknown:
        reasons = dict.fromkeys(c.saving.why for c in unknown)
        notes.append(f"{len(unknown)} of {len(made)} have no interval: " + "; ".join(reasons))
    few = [c for c in made if c.saving.scheme == "paired" and c.saving.runs == 2]
    if few:
        wider = float(special.stdtrit(1, 0.5 + confidence / 2) / special.ndtri(0.5 + confidence / 2))
        notes.append(f"two seeds give an interval {wider:.0f} times as wide as many seeds would: run 3 or more")
    if pooled is not None:
        notes.append(f"curve through all {len(reference)} reference curves: {pooled.form} ({pooled.why})")
    return notes
