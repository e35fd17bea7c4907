"""A law given by name, as a formula over a table's columns, or as an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forgetting.analysis.laws import LAWS, FormulaLaw, Law
from forgetting.config.arguments import wrong_type
from forgetting.errors import UsageError


def choose_law(
    law: str | Law,
    columns: Sequence[str],
    *,
    start: Mapping[str, float | tuple[float, float]] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Law:
    """Return the law that an argument names or is.

    Args:
        law: a name in `LAWS`, a formula such as `loss = E + A/N**alpha`, or a law.
        columns: the table's columns; names in a formula that are among them are variables.
        start: for a formula: by parameter, a value or a region to draw starting values from.
        bounds: for a formula: by parameter, its lowest and highest value.

    Raises:
        UsageError: an unknown law, a formula that cannot be read, or starts and bounds for a law that has its own.
    """
    if not isinstance(law, str | Law):
        raise wrong_type("law", law, "a law's name, a formula, a law")
    if isinstance(law, str) and "=" in law:
        return FormulaLaw(law, columns, start=start, bounds=bounds)
    if start or bounds:
        name = law if isinstance(law, str) else law.name
        raise UsageError(f"start and bounds are only for formulas; law '{name}' has its own")
    if not isinstance(law, str):
        return law
    if not law.isidentifier() and law not in LAWS:
        raise UsageError(f"unknown law '{law}'; a formula must name its output: 'loss = {law}'")
    return LAWS.find(law)
