"""Reads the YAML file of an lm-eval task without running the functions that it names, and checks its fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import files
from ..errors import UsageError
from .explain import first_line

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "fewshot_split"),
        ((str,), "a string"),
    ),
    **dict.fromkeys(
        ("output_type", "description", "target_delimiter", "fewshot_delimiter", "gen_prefix", "use_prompt"),
        ((str,), "a string"),
    ),
    "doc_to_choice": ((str, list, dict), "a field, a template or a list"),
    "dataset_kwargs": ((dict,), "a mapping"),
    "generation_kwargs": ((dict,), "a mapping"),
    "fewshot_config": ((dict,), "a mapping"),
    "metric_list": ((list,), "a list of metrics"),
    "filter_list": ((list,), "a list of filters"),
    "num_fewshot": ((int,), "a number of examples"),
    "repeats": ((int,), "a number of times"),
}
"""Allowed types of a task's fields, and their description; for other fields lm-eval's own errors are clear."""
LEAST: dict[str, int] = {"num_fewshot": 0, "repeats": 1}
"""Lowest allowed values."""


class _Plain(yaml.SafeLoader):
    """A YAML loader that reads `!function` as text instead of importing it."""


_Plain.add_constructor("!function", lambda _, node: str(getattr(node, "value", "")))


def fields_of(path: Path) -> dict[str, Any]:
    """The fields of a task file, with functions as text.

    Raises:
        UsageError: not YAML, not a mapping with `task` or `group`, or a field of the wrong type; names file and field.
    """
    text = files.read_text(path, limit=files.MAX_CONFIG)
    try:
        found = yaml.load(text, Loader=_Plain)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or first_line(error)}") from None
    except (RecursionError, ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{path}: a value cannot be read: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: needs the fields of an lm-eval task, got {_kind(found)}")
    _check_kinds(found, path)
    if "include" in found:
        return found
    kind = "group" if "group" in found else "task"
    if not isinstance(found.get(kind), str) or not found[kind]:
        raise UsageError(
            f"{path}: {kind}: got {_kind(found.get(kind))}; an lm-eval task has a name under `task`, a group has one "
            "under `group`"
        )
    if kind == "group" and not isinstance(found.get("task"), list):
        raise UsageError(f"{path}: task: got {_kind(found.get('task'))}; a group needs the list of its tasks here")
    return found


def _check_kinds(found: Mapping[Any, Any], path: Path) -> None:
    for name, (kinds, words) in KINDS.items():
        value: Any = found.get(name)
        wrong = not isinstance(value, kinds) or isinstance(value, bool)
        if value is not None and (wrong or int(value if name in LEAST else 0) < LEAST.get(name, 0)):
            raise UsageError(f"{path}: {name}: got {value!r:.60}; give {words}")
    for number, metric in enumerate(found.get("metric_list") or []):
        if not isinstance(metric, dict) or not isinstance(metric.get("metric"), str):
            raise UsageError(f"{path}: metric_list[{number}]: got {metric!r:.60}; give a mapping with `metric`")
    for number, chosen in enumerate(found.get("filter_list") or []):
        parts = chosen.get("filter") if isinstance(chosen, dict) else None
        named = isinstance(parts, list) and all(isinstance(p, dict) and "function" in p for p in parts)
        if not named or not isinstance(chosen.get("name"), str):
            raise UsageError(
                f"{path}: filter_list[{number}]: got {chosen!r:.60}; give a mapping with `name` and `filter`, a list "
                "of mappings with `function`"
            )
    generation = found.get("generation_kwargs") or {}
    until, most = generation.get("until"), generation.get("max_gen_toks")
    texts = until if isinstance(until, list) else [until]
    if until is not None and not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{path}: generation_kwargs.until: got {until!r:.60}; give a string or a list of strings")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise UsageError(f"{path}: generation_kwargs.max_gen_toks: got {most!r:.60}; give a number of tokens")


def lacking(found: Mapping[str, Any]) -> list[str]:
    """Required fields that a task lacks; without them lm-eval fails with an error that does not name them."""
    if found.keys() & {"include", "use_prompt", "class", "group"}:
        return []
    needed = ["doc_to_text", "doc_to_target", *(["dataset_path"] if "custom_dataset" not in found else [])]
    return [name for name in needed if found.get(name) is None]


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
