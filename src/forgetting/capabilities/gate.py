"""Verdicts on the net loss of answers: within a budget, over it, or undecided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..display.numbers import several
from ..display.tables import Shown
from ..errors import UsageError, did_you_mean
from ..measuring.verdict import HOPELESS, LEAST, check_confidence, exit_code_of
from .netloss import POWER, NetLoss, detectable

if TYPE_CHECKING:
    from .results import Answers, Refusals

HIDDEN = 0.02
"""With a budget of 0: if nothing was lost, the verdict is `within` only if the upper bound is at most this."""
REFUSALS, HARMLESS = "refusals", "harmless"
"""Names of the two groups of a judged suite: refusals of harmful prompts, and answers to harmless ones."""


@dataclass(frozen=True)
class LossVerdict:
    """The net loss of a group of items compared with a budget.

    Attributes:
        verdict: `over` if the lower bound is above the budget, `within` if the upper bound is not; `undecided`
            otherwise, and with fewer than LEAST independent items. As the upper bound is rarely 0 or less, a budget
            of 0 is also met if there is no net loss and the upper bound is at most HIDDEN.
        loss: the net loss.
        budget: the allowed net share lost.
        confidence: confidence of all verdicts together.
        low, high: the one-sided bounds of the net share lost.
        detectable: the smallest net share lost for which the verdict, with as many items, would be `over` in 80 % of
            cases; None if there is none.
        items_needed: about how many items would decide if they were lost and gained at the same rates; None if the
            verdict is decided or the number is unknown.
    """

    verdict: Literal["within", "over", "undecided"]
    loss: NetLoss
    budget: float
    confidence: float
    low: float
    high: float
    detectable: float | None
    items_needed: int | None = None

    @property
    def blind(self) -> bool:
        """Whether there are too few items: fewer than LEAST, or an interval wider than the budget and 2 * HIDDEN."""
        return self.loss.independent < LEAST or not self.high - self.low <= max(self.budget, 2 * HIDDEN)

    def exit_code(self, *, strict: bool = False, allow_undecided: bool = False) -> int:
        """See `Verdict.exit_code`."""
        return exit_code_of(self.verdict, self.blind, strict=strict, allow_undecided=allow_undecided)

    def sentence(self) -> str:
        """The verdict in words, with the smallest loss that the items could detect."""
        loss, budget = self.loss, points(self.budget)
        counts = f"{loss.lost:g} lost and {loss.gained:g} gained of {several(loss.n, 'item')}"
        net = f"{counts}, {_net(loss.value)} points"
        match self.verdict:
            case "within" if self.high < 0:
                said = f"within budget: {net}, at least {points(-self.high)}; budget {budget}"
            case "within" if self.budget == 0:
                said = f"within budget: {net}; a loss of up to {points(self.high)} points may be undetected; budget 0"
            case "within":
                most = points(self.high) if loss.value >= 0 else f"a {_net(self.high)}"
                said = f"within budget: {net}, at most {most}; budget {budget}"
            case "over":
                said = f"over budget: {net}, at least {points(self.low)}; budget {budget}"
            case _:
                span = f"{points(self.low)} to {points(self.high)}"
                if self.low < 0:
                    span = f"between a {_net(self.low)} and a {_net(self.high)} points"
                said = f"undecided: {net}, {span}; budget {budget}; {self._more()}"
        return f"{said}; {self._power()}"

    def _power(self) -> str:
        """The smallest detectable loss, in words."""
        if self.detectable is None:
            return f"no loss would be called over in {100 * POWER:.0f} % of cases"
        return f"a loss of {points(self.detectable)} points would be called over in {100 * POWER:.0f} % of cases"

    def _more(self) -> str:
        """What would decide an undecided verdict, in words."""
        loss = self.loss
        if loss.independent < LEAST:
            alike = "" if loss.independent == loss.n else f", which count as {loss.independent}"
            return f"{several(loss.n, 'item')}{alike}: too few; give at least {LEAST} that share no passage"
        needed = self.items_needed
        if needed is None:
            return "the net loss is so close to the budget that more items may not decide"
        return f"about {several(max(1, needed - loss.n), 'more item')} like these would decide"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; shares."""
        return {
            "verdict": self.verdict,
            "budget": self.budget,
            "confidence": self.confidence,
            "n": self.loss.n,
            "independent_items": self.loss.independent,
            "lost": self.loss.lost,
            "gained": self.loss.gained,
            "net_loss": self.loss.value,
            "net_loss_low": self.low,
            "net_loss_high": self.high,
            "detectable": self.detectable,
            "items_needed": self.items_needed,
        }


def judge(loss: NetLoss, budget: float, confidence: float, *, of: int = 1) -> LossVerdict:
    """Compare the one-sided bounds of a net loss with the budget.

    Args:
        loss: net loss of a group of items.
        budget: the allowed net share lost.
        confidence: confidence of the upper bound; the lower bound has 1 - (1 - confidence) / of (Bonferroni).
        of: number of verdicts given together.

    Raises:
        UsageError: an invalid confidence or budget.
    """
    check_loss(budget, confidence)
    over = 1 - (1 - confidence) / of
    low, high = loss.bounds(budget, over, confidence)
    verdict: Literal["within", "over", "undecided"] = "undecided"
    if loss.independent < LEAST:
        pass
    elif low > budget:
        verdict = "over"
    elif high <= budget or (budget == 0 and loss.value <= 0 and high <= HIDDEN):
        verdict = "within"
    least = detectable(loss.gained / loss.n, loss.independent, budget, over)
    needed = _needed(loss, budget, confidence, over) if verdict == "undecided" else None
    return LossVerdict(verdict, loss, float(budget), confidence, low, high, least, needed)


def _needed(loss: NetLoss, budget: float, confidence: float, over: float) -> int | None:
    """About how many items would decide if they were lost and gained at the same rates; None if unknown."""
    if loss.independent < LEAST:
        return None
    clean = budget == 0 and loss.value <= 0

    def decided(times: float) -> bool:
        more = loss.repeated(times)
        if clean:
            return more.high(confidence) <= HIDDEN
        low, high = more.bounds(budget, over, confidence)
        return low > budget or high <= budget

    few, many = 1.0, 2.0
    while not decided(many):
        few, many = many, 2 * many
        if many > HOPELESS:
            return None
    while many > 1.03 * few:
        middle = math.sqrt(few * many)
        few, many = (few, middle) if decided(middle) else (middle, many)
    return math.ceil(many * loss.n)


def check_loss(budget: float, confidence: float, what: str = "max_lost") -> None:
    """Refuse an invalid confidence or budget.

    Raises:
        UsageError: a confidence outside (0.5, 1), or a budget that is not a share below 1.
    """
    check_confidence(confidence)
    if not 0 <= budget < 1:
        raise UsageError(f"{what} {budget:g}: must be a share of the items from 0 to below 1, for example 0.02")


def judged(
    losses: Mapping[tuple[str, str], NetLoss], budget: float | Mapping[str, float], confidence: float
) -> dict[str, LossVerdict]:
    """One verdict per group of items.

    Args:
        losses: net losses by suite and name of the group.
        budget: one budget for all groups, or budgets by the name of a group or suite; a group's own takes precedence.
        confidence: confidence of all verdicts together.

    Raises:
        UsageError: no group or suite has this name, or a number is invalid.
    """
    known = list(dict.fromkeys(name for key in losses for name in reversed(key)))
    if isinstance(budget, Mapping):
        if not budget:
            raise UsageError("max_lost: give a share for at least one suite")
        for name, share in budget.items():
            check_loss(share, confidence, f"max_lost of '{name}'")
            if name not in known:
                raise UsageError(
                    f"max_lost of '{name}': nothing was asked under that name; {did_you_mean(name, known)}"
                )
        asked = {key: budget.get(key[1], budget.get(key[0])) for key in losses if key[0] in budget or key[1] in budget}
    else:
        asked = dict.fromkeys(losses, budget)
    names = _unique(asked)
    return {
        names[key]: judge(losses[key], share, confidence, of=len(asked))
        for key, share in asked.items()
        if share is not None
    }


def _unique(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A unique name for each group: its own, prefixed with the suite's if several groups share it."""
    keys = list(keys)
    own = [name for _, name in keys]
    return {key: key[1] if own.count(key[1]) == 1 else ": ".join(key) for key in keys}


def losses_of(suite: str, answers: Sequence[Answers], refusals: Refusals | None) -> dict[tuple[str, str], NetLoss]:
    """Net losses of a suite's groups of items, by suite and name.

    A suite's only group has the suite's name. A judged suite has the groups `refusals` and `harmless`.
    """
    found = {(suite, suite if len(answers) == 1 else a.name): a.net_loss for a in answers}
    if refusals is not None:
        found |= {(suite, REFUSALS): refusals.net_loss, (suite, HARMLESS): refusals.over_net_loss}
    return found


def verdicts_shown(verdicts: Mapping[str, LossVerdict]) -> Shown:
    """The verdicts in words, one per line."""
    return Shown([f"{name}: {one.sentence()}" for name, one in verdicts.items()])


def _net(share: float) -> str:
    """A net share lost in words, without its unit; a negative one is a gain."""
    return f"net {'gain' if share < 0 else 'loss'} of {points(abs(share))}"


def points(share: float) -> str:
    """A share in percentage points.

    Examples:
        >>> points(0.0321), points(0.0), points(-0.004), points(0.0002)
        ('3.2', '0', '-0.4', '0.02')
    """
    value = 100 * share
    return "0" if value == 0 else f"{value:.1f}" if abs(value) >= 0.05 else f"{value:.1g}"
