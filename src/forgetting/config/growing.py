"""How flags extend a stored study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .files import deep_merge, file_fields, resolve_sources
from .schema import StudyConfig, validate


def with_more(
    study: Path,
    flags: Mapping[str, Any],
    *,
    default_rank: Callable[[str], int | None],
    method: str | None = None,
    ranks: Sequence[int] | None = None,
) -> StudyConfig:
    """A stored study's configuration with more runs: data sets, seeds and ranks are added, other fields are replaced.

    Args:
        study: its folder.
        flags: fields given by flag, except methods.
        default_rank: the rank of a method, by its name, if none is configured; None if it has no rank.
        method: name or label of the method to extend; None means the study's first one with a rank, if ranks are given.
        ranks: ranks to add to the method.

    Raises:
        UsageError: not a study folder, a wrong field, or fewer steps than before.
    """
    fields, where = file_fields(study)
    validate(fields, where=where)  # study.yaml may have been edited
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
    merged["methods"] = _with_ranks(fields["methods"], method, list(dict.fromkeys(ranks or [])), default_rank)
    return validate(merged, where=where)


def _with_ranks(
    methods: Sequence[Mapping[str, Any]], name: str | None, ranks: list[int], default_rank: Callable[[str], int | None]
) -> list[dict[str, Any]]:
    """The methods, with ranks added to one of them, or with a new method."""
    found: list[dict[str, Any]] = [dict(one) for one in methods]
    if name is None and not ranks:
        return found

    def of(one: Mapping[str, Any]) -> list[Any]:
        rank = one.get("rank", default_rank(one["name"]))
        return list(rank) if isinstance(rank, list) else [] if rank is None else [rank]

    if name is None:
        entry = next((one for one in found if of(one)), found[0])
    else:
        named = [one for one in found if name in (one.get("label"), one["name"])]
        if not named:
            return [*found, {"name": name, **({"rank": ranks if len(ranks) > 1 else ranks[0]} if ranks else {})}]
        entry = named[0]
    like = {**entry, "rank": None}
    there = {rank for one in found if {**one, "rank": None} == like for rank in of(one)}
    if new := [rank for rank in ranks if rank not in there]:
        entry["rank"] = [*of(entry), *new]
    return found
