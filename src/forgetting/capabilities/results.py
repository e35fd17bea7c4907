"""From paired rows to what a reader is told of a suite: accuracy, agreement, transitions, refusals, slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..measuring.estimate import Mean, clustered_mean, holm
from . import transitions as t
from .judges import Agreement, Judge, Rules, agreement
from .netloss import NetLoss, net_loss
from .replies import answer_of, runs_on
from .replies import target_only as _target_only

Rows = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
MIN_SLICE = 5
"""Items under which a category is not a slice of its own."""


@dataclass(frozen=True)
class Slice:
    """One category: accuracy before and after, and the exact McNemar p, raw and Holm-corrected over all slices.

    `lost` and `gained` are less the replies that run on, as in `Transitions`.
    """

    name: str
    n: int
    base: float
    tuned: float
    change: Mean
    lost: int
    gained: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Answers:
    """A group of tasks under one filter.

    Attributes:
        name: what was asked.
        metric: lm-eval's metric that is an item's score.
        higher_is_better: whether it is; where not, scores are 1 - the metric, so that higher is better in all numbers.
        n: items.
        base, tuned: mean scores with clustered standard errors.
        change: tuned - base, with the paired standard error.
        right: the share that the tuned model has right; None where scores are not 0 or 1, as the next five.
        p: exact McNemar, of lost against gained.
        transitions: kept, lost, gained, ...
        forgetting, backward_transfer: less chance.
        lost_of_right: the share of what the base had right that is lost.
        net_loss: what was lost less what was gained, which `Evaluation.check` holds to a budget.
        agreement: the share of items with the base model's answer.
        target_only: whether the answers are log-likelihoods of the target alone: then the same answer means that both
            models, or neither, would give the target.
        slices: by category, those that changed most first.
    """

    name: str
    metric: str
    higher_is_better: bool
    n: int
    base: Mean
    tuned: Mean
    change: Mean
    agreement: t.Share
    target_only: bool
    right: t.Share | None
    p: float | None
    transitions: t.Transitions | None
    forgetting: t.Corrected | None
    backward_transfer: t.Corrected | None
    lost_of_right: t.Share | None
    slices: tuple[Slice, ...]
    net_loss: NetLoss


@dataclass(frozen=True)
class Refusals:
    """Judged replies to harmful prompts and harmless look-alikes.

    Attributes:
        judge: who judged.
        base, tuned: share of the harmful prompts refused.
        forgotten: of those the base refused, the share that the tuned model does not (the paper's 25 % and 50 %).
        gained: of those the base did not refuse, the share that the tuned model does.
        change: of the share refused, with its paired standard error.
        p: exact McNemar.
        over_base, over_tuned: share of the harmless prompts refused.
        over_change, over_p: of that.
        agreement: the share of harmful prompts with the same verdict.
        same_reply: the share of all prompts with the very same reply.
        slices: harmful prompts by category.
        judges: agreement between judges, where there are two.
        net_loss: harmful prompts that are answered now, less those that are refused now.
        over_net_loss: harmless prompts that are refused now, less those that are answered now.
    """

    judge: str
    base: t.Share
    tuned: t.Share
    forgotten: t.Share
    gained: t.Share
    change: Mean
    p: float
    over_base: t.Share
    over_tuned: t.Share
    over_change: Mean
    over_p: float
    agreement: t.Share
    same_reply: t.Share
    slices: tuple[Slice, ...]
    judges: tuple[Agreement, ...]
    net_loss: NetLoss
    over_net_loss: NetLoss


def answers_of(rows: Rows) -> list[Answers]:
    """One result a group, filter and metric, in the order of the rows.

    Raises:
        UsageError: the models' answers to a task were scored by different metrics.
    """
    groups: dict[tuple[str, str, str, bool], list[Any]] = {}
    for pair in rows:
        one, other = (_scored_by(row) for row in pair)
        if one != other:
            raise UsageError(
                f"task {pair[0]['task']}: the base model's answers were scored by {one[0]}, the tuned model's by "
                f"{other[0]}; choose one with metric (--metric)"
            )
        groups.setdefault((pair[0]["group"], pair[0]["filter"], *one), []).append(pair)
    made = []
    for (group, chosen, metric, higher), found in groups.items():
        alike = [key for key in groups if key[0] == group]
        parts = [group]
        parts += [chosen] if len({key[1] for key in alike}) > 1 else []
        parts += [metric] if len({key[2:] for key in alike}) > 1 else []
        made.append(_answers(", ".join(parts), metric, higher, found))
    return made


def _scored_by(row: Mapping[str, Any]) -> tuple[str, bool]:
    return str(row["metric"]), row.get("higher_is_better") is not False


def _paired(rows: Rows, before: Sequence[float], after: Sequence[float], same: Sequence[bool]) -> t.Paired:
    clusters = [one["cluster"] or f"\0{i}" for i, (one, _) in enumerate(rows)]
    on = [[runs_on(pair[side]) for pair in rows] for side in (0, 1)]
    options = [one["options"] for one, _ in rows]
    return t.Paired.of(before, after, same, options, np.asarray(clusters), *on)


def _answers(name: str, metric: str, higher_is_better: bool, rows: Rows) -> Answers:
    before, after = ([pair[side]["score"] for pair in rows] for side in (0, 1))
    pairs = _paired(rows, before, after, [answer_of(one) == answer_of(other) for one, other in rows])
    everything = np.ones(len(pairs), bool)
    counted = t.transitions(pairs) if pairs.binary else None
    chance = t.corrected(pairs) if pairs.binary and not (pairs.options == 1).any() else (None, None)
    right = pairs.before == 1
    return Answers(
        name=name,
        metric=metric,
        higher_is_better=higher_is_better,
        n=len(pairs),
        base=clustered_mean(pairs.before, pairs.clusters),
        tuned=clustered_mean(pairs.after, pairs.clusters),
        change=t.difference(pairs),
        agreement=t.share(pairs.same, everything, pairs.clusters),
        target_only=all(_target_only(one) for one, _ in rows),
        right=t.share(pairs.after == 1, everything, pairs.clusters) if pairs.binary else None,
        p=None if counted is None else t.mcnemar(counted.lost, counted.gained),
        transitions=counted,
        forgetting=chance[0],
        backward_transfer=chance[1],
        lost_of_right=t.share(pairs.lost, right, pairs.clusters) if pairs.binary else None,
        slices=slices_of(pairs, np.asarray([one["category"] for one, _ in rows])),
        net_loss=net_loss(pairs),
    )


def slices_of(pairs: t.Paired, categories: NDArray[Any]) -> tuple[Slice, ...]:
    """The categories with at least MIN_SLICE items, those that lost most first; none where there is only one."""
    names = [c for c in np.unique(categories) if (categories == c).sum() >= MIN_SLICE]
    if len(names) < 2:
        return ()
    found = []
    for name in names:
        part = pairs.take(categories == name)
        lost, gained = int(part.lost.sum()), int(part.gained.sum())
        p = t.mcnemar(lost, gained) if part.binary else math.nan
        found.append((str(name), part, lost, gained, p))
    corrected = holm([1.0 if math.isnan(p) else p for *_, p in found])
    made = [
        Slice(
            name, len(part), float(part.before.mean()), float(part.after.mean()), t.difference(part), lost, gained, p, h
        )
        for (name, part, lost, gained, p), h in zip(found, corrected, strict=True)
    ]
    return tuple(sorted(made, key=lambda s: s.change.value))


def refusals_of(rows: Rows, judge: Judge | None = None) -> Refusals:
    """What became of refusals, by a judge; where it has no verdict, by the rules.

    Raises:
        UsageError: there are no harmful or no harmless prompts.
    """
    rules, chosen = Rules(), judge or Rules()

    def verdicts(side: int) -> NDArray[np.bool_]:
        mine = [pair[side] for pair in rows]
        fallback = rules.verdicts(mine)
        own = chosen.verdicts(mine)
        return np.asarray([f if o is None else o for o, f in zip(own, fallback, strict=True)], bool)

    before, after = verdicts(0), verdicts(1)
    harmful = np.asarray([one["expect"] == "refuse" for one, _ in rows])
    if harmful.all() or not harmful.any():
        raise UsageError("safety: needs harmful prompts and harmless ones, got one kind only")
    same = [one["reply_key"] == other["reply_key"] for one, other in rows]
    pairs = _paired(rows, before.tolist(), after.tolist(), same)
    bad, good = pairs.take(harmful), pairs.take(~harmful)
    counted, over = t.transitions(bad), t.transitions(good)
    others = () if judge is None else (agreement(rules, judge, [row for pair in rows for row in pair]),)

    def of(hits: NDArray[Any], among: NDArray[Any]) -> t.Share:
        return t.share(hits, among, pairs.clusters)

    return Refusals(
        judge=chosen.name,
        base=of(before, harmful),
        tuned=of(after, harmful),
        forgotten=of(~after, harmful & before),
        gained=of(after, harmful & ~before),
        change=t.difference(bad),
        p=t.mcnemar(counted.lost, counted.gained),
        over_base=of(before, ~harmful),
        over_tuned=of(after, ~harmful),
        over_change=t.difference(good),
        over_p=t.mcnemar(over.lost, over.gained),
        agreement=of(before == after, harmful),
        same_reply=of(pairs.same, np.ones(len(pairs), bool)),
        slices=slices_of(bad, np.asarray([one["category"] for one, _ in rows])[harmful]),
        judges=others,
        net_loss=net_loss(bad),
        over_net_loss=net_loss(_answered(good)),
    )


def _answered(prompts: t.Paired) -> t.Paired:
    """Prompts that are right where they are not refused."""
    return t.Paired.of(1 - prompts.before, 1 - prompts.after, prompts.same, clusters=prompts.clusters)
