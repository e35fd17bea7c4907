"""A chain as one self-contained HTML page: a waterfall chart of its steps, and where each step forgot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..display.numbers import finite, p_value, signed
from .measurement import bars_of, environment, number
from .tokens import token_text

if TYPE_CHECKING:
    from ..measuring.chain_result import Chain


def render(chain: Chain) -> str:
    """The HTML page; equal chains give equal text."""
    row = chain.to_dict()
    after = [step.so_far.forgetting.value for step in chain.steps]
    ends = [0.0, *after]
    ends += [
        end
        for step, value in zip(chain.steps, after, strict=True)
        if finite(step.part.se)
        for end in (value - step.part.se, value + step.part.se)
    ]
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or 1.0
    low, high = low - room, high + room

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    steps = [_step(chain, i, row["steps"][i], [0.0, *after][i], place) for i in range(len(chain.steps))]
    return (
        environment()
        .get_template("chain.html")
        .render(chain=row, sentence=chain.sentence(), steps=steps, zero=place(0.0))
    )


def _step(chain: Chain, at: int, row: dict[str, Any], before: float, place: Any) -> dict[str, Any]:
    """One step's values for the template; `before` is the forgetting before it, in nats/token."""
    step = chain.steps[at]
    now, se = step.so_far.forgetting.value, step.part.se
    left, right = sorted((place(before), place(now)))
    said: dict[str, Any] = {
        **{name: row[name] for name in ("name", "kind", "model", "sha256", "notices")},
        "left": left,
        "width": round(right - left, 2),
        "back": now < before,
        "whisker": (place(now - se), round(place(now + se) - place(now - se), 2)) if finite(se) else None,
        "part": signed(step.part.value),
        "part_se": step.part.se_text,
        "so_far": number(now),
        "so_far_se": step.so_far.forgetting.se_text,
        "kl": number(step.so_far.means["kl"].value),
        "agreement": f"{100 * step.so_far.means['agreement'].value:.1f} %",
        "p": p_value(chain.p_holm[step.name]),
        "same": chain.same(at),
    }
    return said if said["same"] else said | _where(chain, at)


def _where(chain: Chain, at: int) -> dict[str, Any]:
    """Where one step forgot, for the template: by token frequency, and the tokens that changed most."""
    found = chain.where(at)
    tokenizer = chain.steps[at].so_far.tokenizer
    widest = max((abs(group.change.value) for group in found.by_frequency), default=1.0) or 1.0
    zero = 50.0 if any(group.change.value < 0 for group in found.by_frequency) else 0.0
    return {
        "zero": zero,
        "bars": bars_of(found.by_frequency, widest, zero),
        "tokens": [
            (token_text(token, tokenizer), number(m.value), number(m.se), m.n_tokens) for token, m in found.by_token
        ],
    }
