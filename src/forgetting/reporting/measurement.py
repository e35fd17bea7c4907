"""A measurement as one self-contained HTML page: the numbers, and where the model forgot, token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from ..display.numbers import finite, fixed, p_value, several
from ..measuring.quantities import SHARE, SHOWN
from .tokens import token_text

if TYPE_CHECKING:
    from ..measuring.measurement import Measurement
    from ..measuring.profile import Profile
    from ..measuring.task import Improvement
    from ..measuring.where import Group, Passage, Where

SHADES = 8
"""Number of colour shades for a token's loss change."""
FULL = 4.0
"""Loss change, in nats, from which a token has the darkest shade."""


def render(profile: Profile, task: Improvement | None = None) -> str:
    """The HTML page; equal measurements give equal text. With several texts it begins with a forest plot.

    The base model's own answers, if they were measured, are shown as further texts.
    """
    measured = [(name, one, profile.p_holm[name]) for name, one in profile.measurements.items()]
    if profile.probes is not None:
        corrected = profile.probes.p_holm
        measured += [(f"own answers: {name}", one, corrected[name]) for name, one in profile.answers.items()]
    texts = [_text(name, one.to_dict(), one.where(), one.tokenizer) for name, one, _ in measured]
    forest = _forest(measured) if len(texts) > 1 else None
    notices = profile.notices if forest else ()
    return (
        environment()
        .get_template("measurement.html")
        .render(
            first=texts[0]["row"],
            texts=texts,
            forest=forest,
            task=task,
            notices=notices,
            full=FULL,
            probes=profile.probes is not None,
        )
    )


def _text(name: str, row: Mapping[str, Any], where: Where, tokenizer: Any) -> dict[str, Any]:
    """The values of one text for the template.

    Args:
        name: name of the text.
        row: the measurement's flat row.
        where: the measurement's breakdowns.
        tokenizer: shows tokens as text; None shows their ids.
    """
    groups = [*where.by_position, *where.by_frequency]
    widest = max((abs(group.change.value) for group in groups), default=1.0) or 1.0
    zero = 50.0 if any(group.change.value < 0 for group in groups) else 0.0
    bars = [bars_of(groups, widest, zero) for groups in (where.by_position, where.by_frequency)]
    return {
        "name": name,
        "row": row,
        "lower": _lower(row["forgetting"]),
        "quantities": [(one.label, number(row[one.name]), number(row[one.se])) for one in SHOWN],
        "noise": noise_rows(row),
        "charts": [
            ("By position in the window", "by the number of tokens before the predicted one", bars[0]),
            ("By how common the true token is", "by how many times the token occurs in the text", bars[1]),
        ],
        "zero": zero,
        "documents": [(g.label, number(g.change.value), g.change.n_tokens) for g in where.by_document],
        "tokens": [
            (token_text(token, tokenizer), number(m.value), number(m.se), m.n_tokens) for token, m in where.by_token
        ],
        "passages": [
            {"document": p.document, "mean": number(p.mean), "tokens": _tokens(p, tokenizer)} for p in where.passages
        ],
    }


def _lower(forgetting: float | None) -> str:
    """How much lower, or higher, the log-probability of the expected tokens is: `lower by 0.1`."""
    value = number(forgetting)
    return f"higher by {value.lstrip('-−')}" if value.startswith(("-", "−")) else f"lower by {value}"


def _forest(measured: Sequence[tuple[str, Measurement, float]]) -> dict[str, Any]:
    """The forest plot's rows: each text's forgetting with its 95 % interval, placed in per cent of the plot's width.

    Args:
        measured: name, measurement and Holm-corrected p of each text.
    """
    means = [one.forgetting for _, one, _ in measured]
    ends = [end for mean in means for end in (mean.value, *mean.interval()) if math.isfinite(end)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.04 * (high - low) or 1.0
    low, high = low - room, high + room

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for name, one, p in measured:
        mean = one.forgetting
        start, stop = mean.interval()
        known = math.isfinite(stop - start)
        rows.append(
            {
                "name": name,
                "at": place(mean.value),
                "interval": (place(start), round(place(stop) - place(start), 2)) if known else None,
                "text": f"{number(mean.value)} [{number(start)}, {number(stop)}]" if known else number(mean.value),
                "p": p_value(p),
                "agreement": f"{100 * one.means['agreement'].value:.1f} %",
                "tokens": mean.n_tokens,
            }
        )
    return {"zero": place(0.0), "rows": rows}


def noise_rows(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The quantities of the measured noise floors: name, value and interval; empty if none was measured."""
    found = []
    for which, how in (("dtype", f"the base in {row.get('noise_floor_other_dtype')}"), ("batch", "other batch size")):
        for one in SHOWN:
            column = f"noise_floor_{which}" + ("" if one.name == "forgetting" else f"_{one.name}")
            if finite(row.get(column)):
                form = ".4f" if one.unit == SHARE else ".1e"
                ends = [row[f"{column}_{end}"] for end in ("low", "high")]
                span = " to ".join(f"{end:{form}}" for end in ends) if all(map(finite, ends)) else "unknown"
                found.append((f"{one.title}, {how}", f"{row[column]:{form}}", span))
    return found


def environment() -> jinja2.Environment:
    """Jinja for the templates beside this file, with escaping on and undefined names as errors."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["several"] = several
    return made


def number(value: float | None) -> str:
    """A number as text; `unknown` if it is missing or not finite."""
    return fixed(value) if value is not None and finite(value) else "unknown"


def bars_of(groups: list[Group], widest: float, zero: float) -> list[dict[str, Any]]:
    """Bars that start at zero change, with whiskers of one standard error, in per cent of the chart's width."""

    def place(value: float) -> float:
        return round(zero + (95 - zero) * max(-1.0, min(1.05, value / widest)), 2)

    bars = []
    for group in groups:
        value, se = group.change.value, group.change.se
        ends = sorted((zero, place(value)))
        low, high = (value, value) if math.isnan(se) else (place(value - se), place(value + se))
        whisker = None if math.isnan(se) else (low, round(high - low, 2))
        bars.append(
            {
                "label": group.label,
                "left": ends[0],
                "width": round(ends[1] - ends[0], 2),
                "whisker": whisker,
                "text": f"{value:+.4f} ± {number(se)}",
                "tokens": group.change.n_tokens,
            }
        )
    return bars


def _tokens(passage: Passage, tokenizer: Any) -> list[dict[str, Any]]:
    """Each token's text, shade (positive: its loss rose; negative: it fell; 0: unchanged) and hover text."""
    shown = []
    pieces = _pieces([int(token) for token in passage.token_ids], tokenizer)
    for text, change, expected in zip(pieces, passage.change, passage.expected, strict=True):
        if np.isnan(change):
            shown.append({"text": text, "shade": 0, "hint": "not predicted"})
            continue
        shade = round(math.sqrt(min(abs(float(change)) / FULL, 1.0)) * SHADES)
        hint = f"{float(change):+.3f} nats; the base model's top token: {token_text(int(expected), tokenizer)!r}"
        shown.append({"text": text, "shade": shade if change > 0 else -shade, "hint": hint})
    return shown


def _pieces(tokens: list[int], tokenizer: Any) -> list[str]:
    """The text that each token adds to those before it; alone, a token may lose a space or part of a character."""
    if tokenizer is None:
        return [token_text(token, None) for token in tokens]
    pieces, before = [], ""
    for i in range(len(tokens)):
        whole = str(tokenizer.decode(tokens[: i + 1])).rstrip("\ufffd")  # an unfinished character
        pieces.append(whole[len(before) :])
        before = whole if len(whole) > len(before) else before
    return pieces
