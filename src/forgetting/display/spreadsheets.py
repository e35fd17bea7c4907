"""Foreign text in CSV files that people open in a spreadsheet."""

from __future__ import annotations


def cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula.

    Examples:
        >>> cell("=1+1"), cell("lora")
        ("'=1+1", 'lora')
    """
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
