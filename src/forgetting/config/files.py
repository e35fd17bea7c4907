"""Where a configuration comes from: shipped presets, a user's YAML file, and flags that override them.

Every error names the file (with the line, if it is not valid YAML), the preset or the flags, and says what came and
what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError, did_you_mean
from .arguments import path_of
from .schema import StudyConfig, validate

OWN_FIELDS: dict[str, Any] = {
    "methods": [{"name": "lora", "rank": 8}],
    "training": {"batch_size": 16},
    "measure": {"start": 20, "every": 20, "text_tokens": 100_000, "heldout_tokens": 50_000},
}
"""Defaults of a study given by flags alone: it measures on a sample of the text, to give a first answer quickly."""

NAMES = (("source", "miniature"), ("probe", "miniature"), ("probe", "default"))
"""Fields and values that are names, even if a file or folder has the same name."""
PATH_FIELDS = ("source", "probe", "harmful", "harmless")
"""Fields of a section that may contain a path."""


def presets() -> list[str]:
    """Names of the shipped configurations."""
    folder = resources.files("forgetting") / "config" / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str) -> StudyConfig:
    """A shipped configuration by name.

    Raises:
        UsageError: no preset has that name.
    """
    return validate(preset_fields(name), where=f"preset {name}")


def preset_fields(name: str) -> dict[str, Any]:
    """A preset's YAML as a plain mapping, so that it can be overridden before validation."""
    if name not in presets():
        raise UsageError(f"preset: no preset '{name}'; {did_you_mean(name, presets())}")
    text = (resources.files("forgetting") / "config" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, where=f"preset {name}")


def read_fields(path: Path) -> dict[str, Any]:
    """A user's YAML file as a plain mapping, with paths as written.

    Raises:
        UsageError: the file is missing, unreadable, or not a YAML mapping; names the file, and the line if known.
    """
    if path.is_dir():
        raise UsageError(f"{path}: a directory, not a configuration file; to resume a study use --out {path}")
    if not path.exists():
        raise UsageError(
            f"{path}: no such configuration file; create it, or choose a preset with --preset ({', '.join(presets())})"
        )
    return parse_yaml(files.read_text(path, limit=files.MAX_CONFIG), where=str(path))


def parse_yaml(text: str, *, where: str) -> dict[str, Any]:
    """Safely loaded YAML that must be a mapping; errors begin with `where`."""
    fields = files.parse_yaml(text, where)
    if not isinstance(fields, dict):
        raise UsageError(
            f"{where}: needs a mapping of fields, got {type(fields).__name__}; see `forgetting study --help`"
        )
    return fields


def resolve_sources(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make a configuration's relative paths absolute if they exist under `folder`.

    Any other source is kept: it is a Hub id or a name such as `miniature`, or a path that gets a clear error later.
    """

    def found(source: Any) -> Any:
        if not isinstance(source, str) or not source or source.startswith("miniature:"):
            return source  # an empty path would be the folder itself
        try:
            path = (folder / Path(source).expanduser()).resolve()
            return str(path) if path.exists() else source
        except (OSError, ValueError, RuntimeError):  # too long, a null character, or `~` of an unknown user
            return source

    def absolute(section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        return {
            key: found(value) if key in PATH_FIELDS and (key, value) not in NAMES else value
            for key, value in section.items()
        }

    def within(part: Any) -> Any:
        """Resolve each text that an option contains."""
        if isinstance(part, list):
            return [within(item) for item in part]
        return absolute({key: within(value) for key, value in part.items()}) if isinstance(part, Mapping) else part

    resolved = dict(fields)
    if "methods" in resolved:
        resolved["methods"] = within(resolved["methods"])
    for key in ("model", "text", "capabilities"):
        if key in resolved:
            resolved[key] = absolute(resolved[key])
    for key in ("texts", "datasets"):
        if isinstance(sections := resolved.get(key), Mapping):
            resolved[key] = {name: absolute(section) for name, section in sections.items()}
    asked = resolved.get("capabilities")
    if isinstance(asked, Mapping) and isinstance(suites := asked.get("suites"), list | tuple):
        resolved["capabilities"] = {**asked, "suites": [found(one) if _is_file(one) else one for one in suites]}
    return resolved


def _is_file(suite: Any) -> bool:
    """Whether a suite is given as a file and not by its name, which a folder or file may also have."""
    return isinstance(suite, str) and Path(suite).suffix in (".jsonl", ".yaml", ".yml")


def study_config(given: Any) -> tuple[StudyConfig, Path | None]:
    """The study meant by a configuration, its fields, a YAML file, a study folder or a preset's name.

    Returns:
        The configuration, and the study folder if one was given.

    Raises:
        UsageError: none of these, or a wrong field.
    """
    if isinstance(given, StudyConfig):
        return given, None
    if isinstance(given, Mapping):
        return validate(resolve_sources(given, Path.cwd()), where="study"), None
    text = path_of("study", given, "a StudyConfig, its fields as a dictionary, a YAML file, a study folder, a preset")
    path = Path(text)
    if isinstance(given, str) and text in presets() and not path.exists():
        return load_preset(text), None
    fields, where = file_fields(path)
    return validate(fields, where=where), path if path.is_dir() else None


def with_flags(
    flags: Mapping[str, Any],
    file: Path | None,
    preset: str | None,
    *,
    method: str | None = None,
    ranks: Sequence[int] | None = None,
    default_rank: Callable[[str], int | None] = {"lora": 8}.get,
) -> StudyConfig:
    """The study from a file or preset plus flags; a flag overrides the same field of the file or preset.

    Args:
        flags: fields given by flag; if they include a model or data sets, no file or preset is needed.
        file: a YAML file or a study folder.
        preset: a preset's name.
        method: run only this method, by its name or label, with the file's options for it.
        ranks: ranks of that method, or of the first method that has a rank.
        default_rank: the rank of a method, by its name, if none is configured; None if it has no rank.

    Raises:
        UsageError: both a file and a preset, too few flags, ranks although no method has one, or a wrong field.
    """
    given = resolve_sources(flags, Path.cwd())
    if file is not None and preset is not None:
        raise UsageError("give a configuration file or --preset, not both")
    if file is not None:
        fields, where = file_fields(file)
    elif preset is not None or not ("datasets" in flags or "source" in flags.get("model", {})):
        name = preset or "miniature"
        fields, where = resolve_sources(preset_fields(name), Path.cwd()), f"preset {name}"
        if "batch_size" in flags.get("training", {}):  # a preset's micro-batches only fit its own batch size
            fields["training"].pop("micro_batch_size", None)
    else:
        fields, where = _own_fields(flags), "flags"
    if "datasets" in given:  # --train replaces the data sets of a file or preset
        fields = {key: value for key, value in fields.items() if key != "datasets"}
    if (method is not None or ranks) and isinstance(fields.get("methods"), list):
        chosen = _chosen_methods(fields["methods"], method, list(ranks or []), where, default_rank)
        fields = {**fields, "methods": chosen}
    return validate(deep_merge(fields, given), where=where)


def _chosen_methods(
    methods: list[Any], name: str | None, ranks: list[int], where: str, default_rank: Callable[[str], int | None]
) -> list[Any]:
    """All methods, or only the chosen one; `ranks` replace those of the first method that has any."""
    found = [dict(one) if isinstance(one, Mapping) else one for one in methods]
    entries = [one for one in found if isinstance(one, dict)]
    if name is not None:
        named = [one for one in entries if name in (one.get("label"), one.get("name"))]
        found = entries = named[:1] or [{"name": name, **({"rank": None} if ranks else {})}]
    if ranks:
        ranked = [one for one in entries if name is not None or "rank" in one or default_rank(str(one.get("name")))]
        first = next(iter(ranked), None)
        if first is None:
            raise UsageError(f"--rank: no method in {where} has a rank; choose one that does with --method")
        first["rank"] = ranks if len(ranks) > 1 else ranks[0]
    return found


def _own_fields(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a study given by flags alone."""
    needed = {
        "--model": "source" in flags.get("model", {}),
        "--train": "datasets" in flags,
        "--text": "source" in flags.get("text", {}),
    }
    if missing := [flag for flag, there in needed.items() if not there]:
        raise UsageError(f"{' and '.join(missing)}: missing; your own study needs --model, --train and --text")
    steps = flags.get("training", {}).get("steps")
    measure = OWN_FIELDS["measure"]
    unset = "start" not in flags.get("measure", {})
    if unset and type(steps) is int and 1 <= steps < measure["start"]:  # so few steps: measure five times
        measure = {**measure, "start": max(1, steps // 5), "every": max(1, steps // 5)}
    return {**OWN_FIELDS, "measure": measure, "name": "-".join(flags["datasets"])[:64]}


def file_fields(path: Path) -> tuple[dict[str, Any], str]:
    """The fields of a YAML file or study folder, with absolute sources, and the file's name for messages.

    Raises:
        UsageError: not a configuration file; a folder without study.yaml, or with a link in its place.
    """
    if path.is_dir():
        if not (path / "study.yaml").exists():
            raise UsageError(f"{path}: not a study folder (it has no study.yaml)")
        path = files.check_plain(files.refuse_link(path / "study.yaml", path))
    return resolve_sources(read_fields(path), path.parent), str(path)


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overridden by `override`: mappings are merged, lists and values replaced."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
