"""How flags extend a stored study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .files import deep_merge, file_fields, resolve_sources
from .schema import StudyConfig, validate


def with_more(
    study: Path, flags: Mapping[str, Any], *, method: str | None = None, ranks: Sequence[int] | None = None
) -> StudyConfig:
    """A stored study's configuration with more runs: data sets, seeds and ranks are added, other fields are replaced.

    Args:
        study: its folder.
        flags: fields given by flag, except methods.
        method: name or label of the method to extend; None means the study's first one, if ranks are given.
        ranks: ranks to add to the method.

    Raises:
        UsageError: not a study folder, a wrong field, or fewer steps than before.
    """
    fields, where = file_fields(study)
    given = resolve_sources(flags, Path.cwd())
    before, after = (part.get("training", {}).get("steps") for part in (fields, given))
    if isinstance(before, int) and isinstance(after, int) and after < before:
        raise UsageError(
            f"{study}: training.steps: the study has {before}, got {after}; "
            "stored runs cannot be shortened: start another study in a new folder with --out"
        )
    added = {"datasets": given.pop("datasets", {}), "seeds": given.pop("seeds", [])}
    merged = deep_merge(fields, given)
    known = {data["source"] for data in fields["datasets"].values()}
    new = {name: data for name, data in added["datasets"].items() if data["source"] not in known}
    merged["datasets"] = deep_merge(fields["datasets"], new)
    merged["seeds"] = list(dict.fromkeys([*fields.get("seeds", [0]), *added["seeds"]]))
    merged["methods"] = _with_ranks(fields["methods"], method, list(dict.fromkeys(ranks or [])))
    return validate(merged, where=where)


def _with_ranks(methods: Sequence[Mapping[str, Any]], name: str | None, ranks: list[int]) -> list[dict[str, Any]]:
    """The methods, with ranks added to one of them, or with a new method."""
    found: list[dict[str, Any]] = [dict(one) for one in methods]
    if name is None and not ranks:
        return found
    entry = next((one for one in found if name is None or name in (one.get("label"), one["name"])), None)
    if entry is None:
        return [*found, {"name": name, **({"rank": ranks if len(ranks) > 1 else ranks[0]} if ranks else {})}]
    if not ranks:
        return found
    if "rank" not in entry:  # keep the entry, so that the run of the default rank stays in the study
        return [*found, {**entry, "rank": ranks}]
    there = entry["rank"] if isinstance(entry["rank"], list) else [entry["rank"]]
    entry["rank"] = list(dict.fromkeys([*there, *ranks]))
    return found
