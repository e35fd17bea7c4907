"""The names of an adapter's weights as the installed PEFT and transformers know them.

In files that PEFT did not save, weights have their names from training, which contain names of wrappers and of the
adapter. Adapters of models that also read images may have names from older versions of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..display.numbers import few, several
from ..errors import UsageError
from . import transformers_internals, weights
from .peft_internals import PREFIX

PART = r"(?:lora_|ia3_|hada_|lokr_|trainable_tokens_)\w*"
"""Names of an adapter's own parameters or modules in a layer, for LoRA, (IA)³, LoHa, LoKr and trained tokens.

Other methods may save weights under the adapter's name (Shadow), or share weights between layers.
"""
PATTERNS = ("rank_pattern", "alpha_pattern")
"""Fields of adapter_config.json with values for modules, by patterns of their names."""


def read_as(found: Collection[str], given: Mapping[str, Any], model: Any, whose: str) -> dict[str, str]:
    """Map each name in an adapter's file to the name under which its weight is read.

    Args:
        found: the names in the file.
        given: its adapter_config.json.
        model: the base model.
        whose: the adapter, for messages.

    Raises:
        UsageError: the names contain those of several adapters.
    """
    named = re.compile(rf"(?P<part>\.{PART})\.(?P<name>(?!(?:weight|bias)$)[^.]+)(?=\.(?:weight|bias)$|$)")
    saved = re.compile(r"\.modules_to_save\.(?P<name>[^.]+)\.")
    adapters = sorted(
        {match["name"] for name in found for match in (named.search(name) or saved.search(name),) if match}
    )
    if len(adapters) > 1:
        raise UsageError(
            f"{whose}: its file contains the weights of {several(len(adapters), 'adapter')} "
            f"({few(adapters, weights.SHOWN)}); save the one to measure separately"
        )

    def cleaned(name: str) -> str:
        if "." not in name:
            return name  # the weights of a prompt
        name = saved.sub(".", named.sub(r"\g<part>", weights.clean(name)))
        return name if name.startswith("base_model.") else PREFIX + name

    plain = _distinct({name: cleaned(name) for name in found})
    moved = _in_model(plain.values(), given, model)
    return _distinct({name: moved.get(new, new) for name, new in plain.items()})


def _distinct(names: dict[str, str]) -> dict[str, str]:
    """The new names; the old ones if two weights would get the same name."""
    return names if len(set(names.values())) == len(names) else {name: name for name in names}


def _in_model(names: Iterable[str], given: Mapping[str, Any], model: Any) -> dict[str, str]:
    """New names for weights whose module the model has under another name, as transformers renames a model's weights.

    Returns:
        Empty if all modules are present, if one is missing under its new name, too, or if a pattern in
        adapter_config.json would then apply to other modules.
    """
    present = {name for name, _ in model.named_modules()}
    modules = {name: _module(name) for name in names if name.startswith(PREFIX)}
    lost = {name: module for name, module in modules.items() if module not in present}
    if not lost:
        return {}
    rename = transformers_internals.renaming(model)
    renamed = {module: rename(f"{module}.weight").removesuffix(".weight") for module in set(lost.values())}
    patterns = [pattern for field in PATTERNS for pattern in given.get(field) or ()]
    for module, new in renamed.items():
        if new not in present or any(_applies(pattern, module) != _applies(pattern, new) for pattern in patterns):
            return {}
    return {name: name.replace(f"{PREFIX}{module}", f"{PREFIX}{renamed[module]}", 1) for name, module in lost.items()}


def _module(name: str) -> str:
    """The base model's module that an adapter's weight belongs to."""
    inside = re.split(rf"\.(?={PART}(?:\.|$))", name.removeprefix(PREFIX), maxsplit=1)[0]
    return inside if inside != name.removeprefix(PREFIX) else inside.rpartition(".")[0]


def _applies(pattern: str, module: str) -> bool:
    """Whether PEFT uses a pattern's value for a module."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
