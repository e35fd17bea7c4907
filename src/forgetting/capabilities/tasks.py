"""Loads lm-eval's tasks and groups by name or file, and checks them before any model is asked."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ForgettingError, UsageError, did_you_mean
from . import lm_eval_internals, metrics
from .console import console, quiet
from .explain import explained, first_line, where_raised
from .taskfile import fields_of, lacking

YAML = (".yaml", ".yml")
SIGNALLED = (130, 143)
"""Exit codes of the command if a signal stops it."""


def load_tasks(specs: Sequence[str | Path], include: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Load tasks into lm-eval's task dictionary; its entry `origin` has the name or file that each task came from.

    Args:
        specs: names of tasks and groups, and paths of their YAML files.
        include: folders in which tasks and groups are looked up by name, before lm-eval's own.

    Raises:
        UsageError: an unknown name (with a suggestion), a file that lm-eval cannot read, or a task whose items cannot
            be scored one by one.
        ForgettingError: a task's data cannot be loaded, for example without a network.
    """
    quiet()
    lm_eval_internals.check_all()
    for folder in include:
        if not Path(folder).expanduser().is_dir():
            raise UsageError(f"include path: {folder}: no such folder")
    manager = _manager(specs, [Path(folder).expanduser().resolve() for folder in include])
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}, "origin": {}}
    for spec in specs:
        one = _load(manager, spec)
        twice = set(one["tasks"]) & set(loaded["tasks"])
        if twice:
            raise UsageError(f"task {spec}: '{min(twice)}' occurs twice")
        if not one["tasks"]:
            raise UsageError(f"task {spec}: a group without tasks")
        for name, task in one["tasks"].items():
            _check(name, task)
        for part, content in one.items():
            loaded[part].update(content)
        loaded["origin"].update(dict.fromkeys(one["tasks"], spec.stem if isinstance(spec, Path) else spec))
    return loaded


def _manager(specs: Sequence[str | Path], include: Sequence[Path]) -> Any:
    """lm-eval's index of the tasks in `include` and in group files' folders; and of its own, if a name needs it."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    named = [spec for spec in specs if not isinstance(spec, Path)]
    groups = [members for spec in specs if isinstance(spec, Path) and (members := _members(spec)) is not None]
    folders = [*include, *(spec.parent for spec in specs if isinstance(spec, Path) and _members(spec) is not None)]
    wanted = [*named, *(name for members in groups for name in members)]
    with console():
        manager = TaskManager(include_path=[str(f) for f in dict.fromkeys(folders)], include_defaults=False)
    if _unknown(manager, wanted):
        sys.stderr.write("reading the list of lm-eval's tasks ...\n")
        with console():
            manager = TaskManager(include_path=[str(f) for f in dict.fromkeys(folders)], include_defaults=True)
    for name in named:
        if name not in manager.task_index:
            raise UsageError(f"task: lm-eval has no task '{name}'; {suggest(name, manager.all_tasks)}")
    missing = _unknown(manager, [name for members in groups for name in members])
    if missing:
        raise UsageError(
            f"group: it names the task '{missing[0]}', which is neither lm-eval's nor in {_listed(folders)}; "
            "give its folder with include_path (--include-path)"
        )
    return manager


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in dict.fromkeys(folders))


def _unknown(manager: Any, names: Sequence[str]) -> list[str]:
    """Names of tasks and groups, and of members of these groups, that are not in the index."""
    missing, waiting, seen = [], list(names), set()
    while waiting:
        if (name := waiting.pop(0)) in seen:
            continue
        seen.add(name)
        entry = manager.task_index.get(name)
        if entry is None:
            missing.append(name)
        elif isinstance(found := lm_eval_internals.entry_config(entry), dict) and "group" in found:
            waiting += _named(found.get("task"))
    return missing


def _named(members: Any) -> list[str]:
    """The tasks that a group's list refers to by name, without those that it defines itself."""
    found: list[str] = []
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str):
            found.append(member)
        elif isinstance(member, dict) and "group" in member:
            found += _named(member.get("task"))
        elif isinstance(member, dict) and isinstance(member.get("task"), str) and "doc_to_text" not in member:
            found.append(member["task"])
    return found


def _members(path: Path) -> list[str] | None:
    """The tasks that a group file refers to; None if it is not a group."""
    found = fields_of(path)
    return _named(found.get("task")) if "group" in found and "class" not in found else None


def _load(manager: Any, spec: str | Path) -> dict[str, Any]:
    """Load one task or group; errors of its YAML, Python and data become one line."""
    name = _group_name(manager, spec) if isinstance(spec, Path) and _members(spec) is not None else str(spec)
    try:
        with console(), as_it_is_now():
            found: dict[str, Any] = manager.load([name])
        return found
    except (MemoryError, ForgettingError):
        raise
    except FileNotFoundError as error:
        if type(error).__name__ == "DatasetNotFoundError":
            raise _no_data(spec, error) from None
        if error.filename:
            raise UsageError(f"task {spec}: {error.filename}: no such file") from None
        hint = "paths in `data_files` are relative to the current folder"
        raise UsageError(f"task {spec}: {first_line(error)} ({hint})") from None
    except ConnectionError as error:
        raise _no_data(spec, error) from None
    except (Exception, SystemExit) as error:  # a task's YAML and Python may raise anything
        if isinstance(error, SystemExit) and error.code in SIGNALLED:
            raise
        if type(error).__module__.startswith(("huggingface_hub", "requests", "httpx")):
            raise _no_data(spec, error) from None
        raise UsageError(f"task {spec}: lm-eval cannot load it: {_why(error, spec)}") from None


def _no_data(spec: str | Path, error: BaseException) -> ForgettingError:
    """The error of a task whose data set is neither stored nor reachable."""
    return ForgettingError(
        f"task {spec}: its data cannot be loaded: {first_line(error)}; without a network, give a file of your own "
        "items: --suite mine.jsonl"
    )


def _group_name(manager: Any, path: Path) -> str:
    """The name of a group file in the index, because lm-eval loads groups only by name, and tasks also by path."""
    name: str = fields_of(path)["group"]
    entry = manager.task_index.get(name)
    file = None if entry is None else lm_eval_internals.entry_file(entry)
    if file is None or Path(file).resolve() != path.resolve():
        other = "no file" if file is None else file
        raise UsageError(f"{path}: group: lm-eval takes '{name}' from {other}; give the group another name")
    return name


def _why(error: BaseException, spec: str | Path) -> str:
    """Why loading failed; names the field, if it is known."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if isinstance(error, TypeError) and unknown and "TaskConfig" in str(error):
        known = lm_eval_internals.config_fields()
        return f"no field '{unknown[1]}'; {did_you_mean(unknown[1], known).split(' (choices')[0]}"
    if isinstance(spec, Path) and (missing := lacking(fields_of(spec))):
        return f"no field '{missing[0]}'"
    return explained(error) + where_raised(error)


@contextlib.contextmanager
def as_it_is_now() -> Iterator[None]:
    """Run a task's Python files in their present state.

    Prevents two stale results: a `__pycache__`, which Python would use for a file changed within a second, and the
    cache of `datasets` for `process_docs`, which does not notice every change of a function.
    """
    import datasets

    before, caching = sys.dont_write_bytecode, datasets.is_caching_enabled()
    sys.dont_write_bytecode = True
    datasets.disable_caching()
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        if caching:
            datasets.enable_caching()


def suggest(name: str, names: Sequence[str]) -> str:
    """A suggestion of similar names; lm-eval has thousands of tasks, so the others are not listed."""
    found = did_you_mean(name, names)
    if found.startswith("did you mean"):
        return found.split(" (choices")[0]
    inside = [n for n in names if name.lower() in n.lower()][:5]
    return "similar: " + ", ".join(inside) if inside else "`lm_eval ls tasks` lists them"


def _check(name: str, task: Any) -> None:
    """Refuse a task that cannot be evaluated item by item.

    Raises:
        UsageError: a task with running text, pictures or sound, with code to run, or without scores of single items.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise UsageError(
            f"task {name}: measures the loss on running text (loglikelihood_rolling), so it has no items that are "
            "right or wrong; use `forgetting measure BASE TUNED --text` for that"
        )
    if lm_eval_internals.asks_beyond_text(task):
        raise UsageError(f"task {name}: asks about pictures or sound; only text is supported")
    if lm_eval_internals.runs_code(task):
        raise UsageError(
            f"task {name}: runs code written by the models, which is not allowed here; use the `lm_eval` command"
        )
    metrics.check(name, task)
