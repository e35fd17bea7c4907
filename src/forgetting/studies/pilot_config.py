"""A pilot's configuration: which studies it accepts, its candidate ranks and steps, and the plan's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..config.files import preset_fields
from ..config.schema import MethodConfig, StudyConfig, validate
from ..display.commands import command
from ..errors import UsageError
from ..files import write_atomically
from ..store import growth
from ..tuning.methods import METHODS

RANKS = (8, 16, 32, 64)
"""Default candidate ranks."""
PLAN = "plan.yaml"


def miniature_flags(source: str | None = None) -> dict[str, Any]:
    """Fields of a pilot of the miniature: one data set, the preset's first or `source`, and early measurements."""
    name, first = next(iter(preset_fields("miniature")["datasets"].items()))
    chosen = {name: first} if source is None else {source.rpartition(":")[2]: {**first, "source": source}}
    return {"name": "miniature-pilot", "datasets": chosen, "measure": {"start": 12, "every": 8}}


def check(config: StudyConfig) -> None:
    """Refuse a study that a pilot cannot plan.

    Raises:
        UsageError: names the field, what came and what is allowed.
    """
    if len(config.datasets) > 1:
        raise UsageError(f"datasets: {', '.join(config.datasets)}; a pilot plans for only one; give one (--train)")
    if len(config.methods) > 1 or config.methods[0].mitigations:
        raise UsageError("methods: a pilot uses one method without mitigations")
    if config.training.schedule != "constant":
        raise UsageError(
            f"training.schedule: {config.training.schedule}; a pilot lengthens runs, which needs schedule constant"
        )
    if config.capabilities is not None:
        raise UsageError("capabilities: not in a pilot; leave the section out")


def method_of(config: StudyConfig) -> tuple[MethodConfig, list[int]]:
    """The method without its rank, and its ranks.

    Raises:
        UsageError: the method has no rank.
    """
    method = config.methods[0]
    ranked = [name for name, kind in METHODS.items() if "rank" in kind.model_fields]
    if method.name in METHODS and method.name not in ranked:
        raise UsageError(f"methods: {method.name} has no rank to plan; those that have: {', '.join(ranked)}")
    rest = {name: value for name, value in method.model_dump(mode="json").items() if name != "rank"}
    return MethodConfig.model_validate(rest), ranks_of(config)


def ranks_of(config: StudyConfig) -> list[int]:
    """The configured ranks of the method; empty for its default."""
    rank = config.methods[0].options.get("rank")
    return list(rank) if isinstance(rank, list | tuple) else [] if rank is None else [rank]


def candidates(given: Sequence[int] | None, own: Sequence[int]) -> tuple[int, ...]:
    """The candidate ranks, ascending.

    Args:
        given: ranks given by the user, if any.
        own: ranks of the configuration, used if there are at least three.

    Raises:
        UsageError: fewer than three different ranks were given, or one below 1.
    """
    named = sorted(set(given)) if given else []
    if given and (len(named) < 3 or named[0] < 1):
        raise UsageError(
            f"ranks (--rank): got {', '.join(map(str, named))}; the law over ranks and steps needs at least "
            "three different ranks of 1 or more"
        )
    return tuple(named or (sorted(own) if len(set(own)) >= 3 else RANKS))


def last_steps(config: StudyConfig, most: int) -> tuple[int, ...]:
    """The measured steps at which runs may end, up to `most`.

    Raises:
        UsageError: fewer than three steps are measured.
    """
    longest = config.model_copy(update={"training": config.training.model_copy(update={"steps": most})})
    steps = longest.measured_steps()[1:]
    if len(steps) < 3:
        raise UsageError(
            f"training.steps: {most} (--steps), measured at {', '.join(map(str, steps))}; a law needs at least three "
            "measured steps: give more steps, or measure earlier or more often (--measure-start, --measure-every)"
        )
    return tuple(steps)


def as_stored(config: StudyConfig, stored: StudyConfig, method: MethodConfig, out: Path) -> StudyConfig:
    """The configuration with the name, ranks, seeds and steps of the stored one.

    Raises:
        UsageError: the folder holds another study.
    """
    if len(stored.methods) != 1 or method_of(stored)[0] != method:
        raise UsageError(growth.another(out, growth.differences(stored, config)))
    training = config.training.model_copy(update={"steps": stored.training.steps})
    made = config.model_copy(
        update={"name": stored.name, "methods": stored.methods, "seeds": stored.seeds, "training": training}
    )
    if not made.is_same(stored):  # checked here, as a pilot that has nothing left to run never calls `study`
        raise UsageError(growth.another(out, growth.differences(stored, made)))
    return made


def write_plan(config: StudyConfig, out: Path, rank: int, steps: int) -> str:
    """Write the recommended run as a study of its own, with a new seed; returns the command that runs it."""
    fields = config.model_dump(mode="json")
    fields["name"] = f"{config.name[:58]}-plan"
    fields["methods"][0]["rank"] = rank
    fields["seeds"] = [max(config.seeds) + 1]
    fields["training"] |= {"steps": steps, "warmup_steps": min(config.training.warmup_steps, steps - 1)}
    fields["measure"]["start"] = min(config.measure.start, steps)
    planned = validate(fields, where=PLAN)
    write_atomically(files.refuse_link(out / PLAN, out), planned.to_yaml(), parents=False)
    to = (out if out.name else out.resolve()).with_name(f"{out.name or out.resolve().name}-planned")
    return command("study", out / PLAN, "--out", to)
