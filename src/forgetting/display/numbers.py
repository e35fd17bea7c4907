"""Numbers as text: values with their errors, counts, times, intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

MINUS = "−"
NBSP = "\u00a0"  # keeps a value on one line with its error or unit


def finite(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """A number to `digits` significant digits, with a true minus sign; very large or small ones with a power of ten.

    Examples:
        >>> number(0.12345), number(-1.0), number(1.5e9), number(None)
        ('0.123', '−1.00', '1.50 × 10⁹', '–')
    """
    if not finite(value):
        return "–"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 6:
        text = f"{value:,.{max(digits - 1 - power, 0)}f}"
    else:
        raised = str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
        text = f"{value / 10**power:.{digits - 1}f} × 10{raised}"
    return text.replace("-", MINUS)


def fixed(value: float, decimals: int = 4) -> str:
    """A number with a fixed number of decimals; a nonzero one that would read as zero gets two significant digits.

    Examples:
        >>> fixed(0.25), fixed(-0.0000012), fixed(0.0)
        ('0.2500', '-1.2e-06', '0.0000')
    """
    text = f"{value:.{decimals}f}"
    if float(text) != 0:
        return text
    return f"{0.0:.{decimals}f}" if value == 0 else f"{value:.1e}"


def signed(value: float) -> str:
    """A number as from `fixed`, with its sign; zero has no sign.

    Examples:
        >>> signed(0.25), signed(-0.25), signed(0.0)
        ('+0.2500', '-0.2500', '0.0000')
    """
    return f"{'+' if value > 0 else ''}{fixed(value)}"


def p_value(p: float) -> str:
    """A p-value with three decimals.

    Examples:
        >>> p_value(0.02), p_value(1e-9), p_value(math.nan)
        ('0.020', '< 0.001', 'unknown')
    """
    if math.isnan(p):
        return "unknown"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def plus_minus(value: Any, error: Any, scale: float = 1.0, digits: int = 2) -> str:
    """`value ± error`, rounded to `digits` significant digits of the error; both are first multiplied by `scale`.

    An unknown error is left out, and the value then has three significant digits.

    Examples:
        >>> plus_minus(0.97281, 0.00412) == f"0.9728{NBSP}±{NBSP}0.0041"
        True
        >>> plus_minus(0.5, float("nan"))
        '0.500'
        >>> plus_minus(1.5e-9, 2e-10) == f"1.50 × 10⁻⁹{NBSP}±{NBSP}2.0 × 10⁻¹⁰"
        True
    """
    if not finite(value):
        return "–"
    if not finite(error) or error <= 0:
        return number(value * scale)
    value, error = value * scale, error * scale
    places = min(max(digits - 1 - math.floor(math.log10(error)), 0), 8)
    shown = (f"{value:.{places}f}", f"{error:.{places}f}")
    if float(shown[1]) == 0:  # an error that is not zero never reads as zero
        shown = (shown[0] if abs(value) >= 1e-4 else number(value), number(error, digits))
    return f"{NBSP}±{NBSP}".join(shown).replace("-", MINUS)


def count(value: Any) -> str:
    """A count with a suffix, such as `20.0 M`; in full below 10,000.

    Examples:
        >>> count(19_988_480), count(1234), count(float("nan"))
        ('20.0 M', '1,234', '–')
    """
    if not finite(value):
        return "–"
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{number(value / (1e3 if suffix == 'k' else size))} {suffix}"
    return f"{value:,.0f}"


def several(number: float, noun: str) -> str:
    """A count with its noun: `1 run`, `2 runs`, `1,200 steps`.

    Examples:
        >>> several(1, "run"), several(0, "row"), several(1200.4, "step")
        ('1 run', '0 rows', '1,200 steps')
    """
    text = f"{number:,.0f}"
    return f"{text} {noun}{'' if text == '1' else 's'}"


PLURAL = {"is": "are", "was": "were", "has": "have"}


def counted(number: int, noun: str, verb: str) -> str:
    """A count with its noun and the right form of a verb: `is`, `was` or `has`.

    Examples:
        >>> counted(1, "item", "was"), counted(2, "item", "was")
        ('1 item was', '2 items were')
    """
    return f"{several(number, noun)} {verb if number == 1 else PLURAL[verb]}"


def share_of(number: int, whole: int, noun: str, verb: str) -> str:
    """`2 of 6 rows` with the right form of a verb: `is`, `was` or `has`.

    Examples:
        >>> share_of(1, 6, "answer", "was"), share_of(2, 6, "row", "is")
        ('1 of 6 answers was', '2 of 6 rows are')
    """
    return f"{number:,} of {several(whole, noun)} {verb if number == 1 else PLURAL[verb]}"


def few(names: Iterable[str], most: int = 8) -> str:
    """The first few of many names, and how many more there are.

    Examples:
        >>> few("abc"), few("abc", 2)
        ('a, b, c', 'a, b and 1 more')
    """
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts checkpoint-100 and r128 after checkpoint-20 and r16.

    Examples:
        >>> sorted(["r128", "r16", "r4"], key=natural)
        ['r4', 'r16', 'r128']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def duration(seconds: Any) -> str:
    """Seconds as `42 s`, `3 min 20 s` or `2 h 05 min`."""
    if not finite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def level(confidence: float) -> str:
    """A confidence level in percent: `95 %`."""
    return f"{100 * confidence:g}{NBSP}%"


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """`low to high`, with enough digits to tell them apart; empty if the interval is unknown."""
    if not (finite(low) and finite(high)):
        return ""
    while number(low, digits) == number(high, digits) and digits < 7 and low != high:
        digits += 1
    return f"{number(low, digits)} to {number(high, digits)}"


def plain(value: Any) -> Any:
    """A result as plain data for JSON: dataclasses and numpy values are converted; NaN and infinities become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
