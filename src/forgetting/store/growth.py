"""How a study may grow: what of its configuration may change in the same folder, and the history of changes.

More data sets, methods, mitigations and seeds mean more runs; finished runs are found by their ids, which are hashes of
everything that affects their numbers. Settings shared by all runs cannot change, because then one table would contain
numbers that cannot be compared.

history/NNN.yaml  each earlier study.yaml, in order
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import files
from ..config.schema import CapabilitiesConfig, StudyConfig, validate
from ..display.commands import command
from ..errors import ForgettingError, UsageError

GRID = ("datasets", "methods", "seeds", "capabilities")
"""Fields of a study whose values may change, each within its own rules."""
WIDER = ("suites", "datasets", "ranks", "seeds", "limit")
"""Fields of `capabilities` that may grow."""


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A configuration of plain JSON values as one value per path; lists of plain values stay lists."""
    inside: dict[str, Any] = {}
    if isinstance(value, Mapping) and value:
        inside = {f"{path}.{key}".lstrip("."): item for key, item in value.items()}
    elif isinstance(value, list) and value and all(isinstance(item, list | dict) for item in value):
        inside = {f"{path}[{number}]": item for number, item in enumerate(value)}
    return {k: v for key, item in inside.items() for k, v in flat(item, key).items()} or {path: value}


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Paths at which two configurations differ, apart from their trackers, with both values."""
    one, two = (flat(config.model_dump(mode="json", exclude={"tracking"})) for config in (old, new))
    return {key: (one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)}


def told(found: Mapping[str, tuple[Any, Any]]) -> str:
    """The first three differences in words."""
    shown = [f"{key}: there {_short(old)}, now {_short(new)}" for key, (old, new) in list(found.items())[:3]]
    return "; ".join(shown) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse(stored: StudyConfig, wanted: StudyConfig, path: Path) -> None:
    """Refuse a configuration that a study cannot grow into, as far as this is known without looking at its runs.

    Raises:
        UsageError: names what differs, with both values, why it cannot change, and what to do.
    """
    found = differences(stored, wanted)
    fixed = {key: pair for key, pair in found.items() if not _may_differ(key, stored, wanted)}
    if fixed:
        raise UsageError(another(path, fixed))
    why = _steps(stored, wanted) or _capabilities(stored.capabilities, wanted.capabilities)
    if why:
        raise UsageError(f"{path}: {why}; restore the old value, or choose another folder with out (--out)")


def another(path: Path, found: Mapping[str, tuple[Any, Any]]) -> str:
    """The error that a folder holds a study with another configuration, and what to do."""
    how = "choose another folder with out (--out)"
    if set(found) == {"name"}:
        how = f"to add runs to it, give the folder and what to add (`{command('study', path)} ...`), or {how}"
    if all(key.startswith("texts") for key in found):
        how = f"the weights at the measured steps are gone, so no other text can be measured there; {how}"
    return f"{path} holds a study of another configuration ({told(found)}); {how}"


def _may_differ(key: str, stored: StudyConfig, wanted: StudyConfig) -> bool:
    top, _, rest = key.partition(".")
    top = top.partition("[")[0]
    if top == "datasets":
        return not any(rest == name or rest.startswith(f"{name}.") for name in stored.datasets.keys() & wanted.datasets)
    return top in GRID or key == "training.steps"


def _steps(stored: StudyConfig, wanted: StudyConfig) -> str:
    """Why a study's runs cannot have another number of steps, in words; empty if they can."""
    before, now, schedule = stored.training.steps, wanted.training.steps, stored.training.schedule
    how = f"training.steps: there {before}, now {now}"
    if now < before:
        return f"{how}: a study's runs can only become longer; the measurements up to step {now} are in its table"
    if now > before and schedule != "constant":
        return (
            f"{how}: with schedule {schedule} the learning rate of every step depends on the number of steps, so "
            "no run can continue a shorter one"
        )
    return ""


def _capabilities(stored: CapabilitiesConfig | None, wanted: CapabilitiesConfig | None) -> str:
    """Why other capabilities cannot be asked for, in words; empty if they can."""
    if stored is None or wanted is None:
        return ""
    found = differences(stored, wanted)
    fixed = {f"capabilities.{key}": pair for key, pair in found.items() if key not in WIDER}
    if fixed:
        return f"{told(fixed)}: the stored answers belong to the old setting"
    if missing := [suite for suite in stored.suites if suite not in wanted.suites]:
        return f"capabilities.suites: there {list(stored.suites)}, now without {missing[0]}: suites can only be added"
    if wanted.limit is not None and (stored.limit is None or wanted.limit < stored.limit):
        return f"capabilities.limit: there {stored.limit}, now {wanted.limit}: items can only be added"
    return ""


class History:
    """The earlier configurations of a study."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self.folder = study / "history"

    def keep(self, text: str) -> None:
        """Keep a study.yaml that is about to be replaced, unless it is already the last one in the history."""
        stored = self._files()
        if stored and self._parts(stored[-1])[1] == text:
            return
        number = 1 + (int(stored[-1].stem) if stored else 0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        files.write_atomically(self.folder / f"{number:03d}.yaml", f"# until {since}\n{text}")

    def _files(self) -> list[Path]:
        files.refuse_link(self.folder, self.study)
        files.refuse_links(self.folder)
        found = [file for file in self.folder.glob("*.yaml") if file.stem.isdigit()]
        return sorted(found, key=lambda file: int(file.stem))

    @staticmethod
    def _parts(file: Path) -> tuple[str, str]:
        """When a configuration was replaced, and its text."""
        text = files.read_text(files.check_plain(file), limit=files.MAX_CONFIG)
        first, _, rest = text.partition("\n")
        return first.removeprefix("# until "), rest

    def earlier(self) -> Iterator[tuple[str, StudyConfig]]:
        """Each earlier configuration, oldest first, with when it was replaced; unreadable ones are left out."""
        from ..config.files import parse_yaml

        for file in self._files():
            try:
                when, text = self._parts(file)
                yield when, validate(parse_yaml(text, where=str(file)), where=str(file))
            except ForgettingError:
                continue


def grown(study: Path, now: StudyConfig) -> list[str]:
    """How a study grew, one line per change: when, which fields of its configuration changed, and both values."""
    earlier = list(History(study).earlier())
    configs = [*(config for _, config in earlier), now]
    lines = []
    for (when, before), after in zip(earlier, configs[1:], strict=True):
        found = differences(before, after)
        if found:
            changed = "; ".join(f"{key}: {_short(old)}, then {_short(new)}" for key, (old, new) in found.items())
            lines.append(f"{when.replace('T', ' ').replace('+00:00', ' UTC')}: {changed}")
    return lines
