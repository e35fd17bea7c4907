"""How the steps of a chain are written: `[NAME=]MODEL[@FIELD=VALUE,FIELD=VALUE]`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from ..errors import UsageError, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""The name of a step or text. A Hub id or path before an equals sign does not match."""
FIELDS = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "bits": ("4", "8"),
    "on": ("base", "before", "the name of an earlier step"),
    "revision": ("a commit, tag or branch of a Hub id",),
    "file": ("a .gguf file of a folder or Hub id",),
}
"""The fields that may follow a model, and what each allows."""
BASE, BEFORE = "base", "before"


@dataclass(frozen=True)
class Step:
    """One step of a chain, as requested.

    Attributes:
        name: its name in results.
        model: a folder, a Hub id, or a .gguf file; None means the model of the step before.
        dtype: dtype to load it in; None means that of the base model, or of the step before.
        bits: bits to quantise it to on loading.
        on: the model an adapter is applied to: `base`, `before`, or an earlier step's name; None follows its
            configuration.
        revision: revision of a Hub id.
        file: the .gguf file in a folder or repository.
    """

    name: str
    model: str | None
    dtype: str | None = None
    bits: int | None = None
    on: str | None = None
    revision: str | None = None
    file: str | None = None


def steps_of(given: Sequence[str | os.PathLike[str]]) -> list[Step]:
    """Parse the steps; each gets a unique name.

    Args:
        given: texts; a path object is always a path, whatever its name contains.

    Raises:
        UsageError: a field or value that is not allowed, a repeated name, or a missing model.
    """
    found = [_step(one) for one in given]
    named = [step.name for step, own in found if own]
    if twice := [name for name in named if named.count(name) > 1]:
        raise UsageError(f"steps: two steps are called '{twice[0]}'; give each its own name")
    if not found:
        raise UsageError("steps: give at least one step after the base model")
    if reserved := {BASE, BEFORE} & {*named}:
        raise UsageError(f"step '{min(reserved)}': this name has a meaning of its own in on=; choose another one")
    steps: list[Step] = []
    for step, own in found:
        taken = {one.name for one in steps} | (set() if own else {*named, BASE, BEFORE})
        steps.append(step if own else replace(step, name=_free(step, taken)))
        _check_on(steps)
    return steps


def _step(given: str | os.PathLike[str]) -> tuple[Step, bool]:
    """A step, and whether the user named it."""
    if not isinstance(given, str):
        text = os.fspath(given)
        return Step(_called(text), text), False
    model, options = _split(given)
    name, mark, rest = model.partition("=")
    own = bool(mark) and NAME.fullmatch(name) is not None and not _exists(model)
    model = rest if own else model
    fields = _fields(given, options)
    if not model and not {"dtype", "bits"} & {*fields}:
        raise UsageError(f"step '{given}': no model; give one, or @dtype= or @bits= to change the model before")
    if not model and (more := sorted({"on", "revision", "file"} & {*fields})):
        raise UsageError(f"step '{given}': {more[0]} needs a model in front of the @")
    bits = fields.pop("bits", None)
    called = name if own else _called(model, bits, fields.get("dtype"))
    return replace(Step(called, model or None), **fields, bits=None if bits is None else int(bits)), own


def _split(given: str) -> tuple[str, str | None]:
    """The part before the options, and the options; an existing path is a path, whatever its name contains."""
    model, mark, options = given.rpartition("@")
    if not mark or _exists(given) or _exists(given.partition("=")[2]):
        return given, None
    if "=" not in options:
        raise UsageError(f"step '{given}': after @, give FIELD=VALUE; fields: {', '.join(FIELDS)}")
    return model, options


def _fields(given: str, options: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in [] if options is None else options.split(","):
        field, mark, value = part.partition("=")
        field, value = field.strip(), value.strip()
        if field not in FIELDS:
            raise UsageError(f"step '{given}': no field '{field}'; {did_you_mean(field, FIELDS)}")
        if field in found:
            raise UsageError(f"step '{given}': {field} is given twice")
        allowed = FIELDS[field]
        if not mark or not value or (field in ("dtype", "bits") and value not in allowed):
            raise UsageError(f"step '{given}': {field} '{value}'; allowed: {', '.join(allowed)}")
        found[field] = value
    return found


def _check_on(steps: Sequence[Step]) -> None:
    """Check that the last step's `on` is a step before it."""
    *earlier, step = steps
    names = [BASE, BEFORE, *(one.name for one in earlier)]
    if step.on is not None and step.on not in names:
        raise UsageError(f"step '{step.name}': on={step.on}: no such step before it; {did_you_mean(step.on, names)}")


def _called(model: str, bits: str | None = None, dtype: str | None = None) -> str:
    """A default name for a step."""
    how = [f"{bits}bit" if bits else "", dtype or ""]
    return "-".join(part for part in (PurePath(model).name if model else "", *how) if part) or model


def _free(step: Step, taken: set[str]) -> str:
    """The step's name, made unique."""
    names = [step.name, *([] if step.model is None else [step.model]), *(f"{step.name}-{i}" for i in range(2, 1000))]
    return next(name for name in names if name not in taken)


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
