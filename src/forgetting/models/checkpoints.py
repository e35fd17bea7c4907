"""Finds the checkpoints of a training run, and their steps, in what a trainer wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from . import attaching, bounds, loading, sources
from .sources import Source

STATE = "trainer_state.json"
"""Where transformers.Trainer keeps the step of a checkpoint."""
FOLDER = re.compile(r"checkpoint-\d+")
"""Names that a Trainer gives to its checkpoints' folders."""
_NUMBERED = re.compile(r"(?:(?:.*[-_])?(?:checkpoint|ckpt|step|iter)[-_]?)?(\d{1,12})", re.IGNORECASE)
"""Names that end in a step, unlike `adapter-2` or `lora-r16`."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run.

    Attributes:
        step: number of update steps.
        source: where it is.
    """

    step: int
    source: Source


def folders_of_checkpoints(name: str) -> list[str]:
    """The `checkpoint-N` folders in a local folder; empty for anything else.

    Raises:
        UsageError: a file, or a path without a folder.
    """
    folder = sources.local_folder(name)
    if folder is None:
        return []
    return [str(path) for path in folder.iterdir() if FOLDER.fullmatch(path.name) and path.is_dir()]


def is_only_checkpoints(name: str) -> bool:
    """Whether a local folder has checkpoints, and no model or adapter of its own.

    Raises:
        UsageError: a file, or a path without a folder.
    """
    if not folders_of_checkpoints(name):
        return False
    source = sources.find(name)
    return not source.has(sources.ADAPTER_CONFIG) and not source.holds_weights()


def find(given: Sequence[str], base: Source, *, code: bool = False) -> list[Checkpoint]:
    """The checkpoints in the order of their steps; loads none of them.

    Args:
        given: checkpoints, each an adapter or a full model, or folders of `checkpoint-N`.
        base: the base model.
        code: whether Python code that comes with them is allowed.

    Raises:
        UsageError: none is given; one is not a model, has no step, or has the same step as another.
        ForgettingError: the Hub cannot be reached.
    """
    names = [inside for one in given for inside in (folders_of_checkpoints(one) if is_only_checkpoints(one) else [one])]
    if not names:
        raise UsageError("checkpoints: give at least one, or the folder in which a trainer wrote them")
    found: dict[int, Checkpoint] = {}
    for name in names:
        source = sources.find(name, code=code)
        if attaching.adapter_config(source, base) is None:
            loading.check_whole(source)
        one = Checkpoint(step_of(source), source)
        if one.step in found:
            other = found[one.step].source.name
            raise UsageError(f"checkpoints: '{other}' and '{name}' both have step {one.step}; give those of one run")
        found[one.step] = one
    return [found[step] for step in sorted(found)]


def step_of(source: Source) -> int:
    """The step in trainer_state.json, or else at the end of the name.

    Raises:
        UsageError: neither has a step, or trainer_state.json is damaged.
    """
    state = None if source.local is None else source.local / STATE
    if state is not None and state.is_file():
        step = bounds.read_config(state).get("global_step")
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise UsageError(f"{state}: global_step {step!r:.40}: must be a whole number from 0 up")
        return step
    name = Path(source.name).resolve().name if source.local is not None else source.name.rsplit("/", 1)[-1]
    if (found := _NUMBERED.fullmatch(name)) is None:
        raise UsageError(
            f"checkpoint '{source.name}': its step is unknown: it has no {STATE}, and its name does not end in a step, "
            "such as checkpoint-100; several models in one call must be checkpoints of one run; measure unrelated ones "
            "one at a time"
        )
    return int(found[1])
