"""Load an adapter from its files onto a model, and check that every weight is used and none is missing.

PEFT skips weights that fit nowhere, and keeps random or zero values for weights that it does not find, silently or with
only a warning. Such an adapter changes nothing, or does not change what was trained.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..display.numbers import few
from ..errors import UsageError
from . import adapter_names, bounds, failures, sources, transformers_internals, weights
from .adapter_fields import check_fields
from .peft_internals import PREFIX
from .sources import Source

NAME = "default"
"""PEFT's name for an adapter that was loaded without a name."""
MORE_ROWS = 2**16
"""Vocabulary rows that an adapter may need in addition to eight times the base model's."""
TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
"""Tasks whose adapters change the layers of a language model and nothing else."""
MISPLACED = "PEFT cannot apply it to the base model"
MISFIT = "does not fit the base model; was it made for another one?"
_OF_SHAPES = re.compile(r"size mismatch|target.modules|not found in the base model|shape|no 'base_model", re.IGNORECASE)
"""What PEFT and PyTorch report if an adapter's modules or shapes do not match the model's."""


def adapter_config(source: Source, base: Source | None = None) -> Any | None:
    """The PEFT configuration of an adapter; None if the source is a full model.

    Args:
        source: where the adapter is.
        base: the base model, which an adapter may name.

    Raises:
        UsageError: both an adapter and a full model; a damaged or forbidden adapter_config.json; weights that are not
            safetensors; an adapter that cannot be measured on a language model.
        ForgettingError: the Hub could not be reached.
    """
    if not source.is_adapter():
        return None
    from peft import PeftConfig

    name = f"adapter '{source.name}'"
    folder = source.adapter()
    names = () if base is None else (base.name, str(base.local))
    given = bounds.read_config(folder / sources.ADAPTER_CONFIG)
    bounds.check_adapter(given, f"{name}: adapter_config.json", names)
    check_fields(given, f"{name}: adapter_config.json")
    with failures.explained(name, "adapter_config.json cannot be read"):
        config = PeftConfig.from_pretrained(str(folder))
        task = getattr(config.task_type, "value", config.task_type)
    if task not in TASKS:
        raise UsageError(f"{name}: made for the task {task}, not for causal language models (CAUSAL_LM)")
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and init.lower().startswith("pissa_niter"):
        raise UsageError(
            f"{name}: init_lora_weights='{init}' draws random numbers on every load, so each load gives a different "
            "model; save it with path_initial_model_for_weight_conversion, as PEFT's documentation on PiSSA shows"
        )
    return config


def _unknown_fields(name: str, given: Mapping[str, Any], config: Any) -> list[str]:
    """A notice about fields that the installed PEFT does not know and ignores.

    Args:
        name: the adapter, for messages.
        given: the fields of its file.
        config: the configuration as PEFT read it.
    """
    import peft

    known = {field.name for field in dataclasses.fields(config)}
    unknown = sorted(name for name, value in given.items() if name not in known and value)
    if not unknown:
        return []
    return [
        f"{name}: PEFT {peft.__version__} does not know and ignores {few(unknown, weights.SHOWN)} of "
        f"adapter_config.json (written by PEFT {given.get('peft_version', 'of an unknown version')})"
    ]


def attach(model: Any, source: Source) -> tuple[Any, list[str]]:
    """The model with an adapter applied, active and frozen, and notices.

    Raises:
        UsageError: the adapter does not fit the model.
        ForgettingError: the Hub could not be reached, or memory is too small.
    """
    from peft import PeftModel

    name = f"adapter '{source.name}'"
    folder = source.adapter()
    stored = {n: t.shape for n, t in weights.of_file(folder / sources.ADAPTER_WEIGHTS).items()}
    if not any(0 not in shape for shape in stored.values()):
        raise UsageError(
            f"{name}: {sources.ADAPTER_WEIGHTS} contains no weights; DeepSpeed ZeRO 3 and FSDP save it like this if "
            "sharded parameters are not gathered first"
        )
    given = bounds.read_config(folder / sources.ADAPTER_CONFIG)
    bounds.check_patterns(given, [module for module, _ in model.named_modules()], f"{name}: adapter_config.json")
    names = adapter_names.read_as(stored, given, model, name)
    rows = _rows(model, {names[key]: shape for key, shape in stored.items()})
    if rows is None:
        rows = _rows_of_tokens(given, model)
    there = model.get_input_embeddings().weight.shape[0]
    if rows is not None and rows > 8 * there + MORE_ROWS:
        raise UsageError(f"{name}: needs {rows:,} rows of the vocabulary; the base model has {there:,}")
    if rows is not None and rows != there:
        model.resize_token_embeddings(rows, mean_resizing=False)
    own = {id(parameter) for parameter in model.parameters()}
    with _readable(folder, names) as (readable, notice):
        with _fitting(name), transformers_internals.never_asking():
            tuned = PeftModel.from_pretrained(model, str(readable)).eval()
            faults = _faults(tuned, readable, own)
        if faults:
            raise UsageError(f"{name} {MISFIT} {'; '.join(faults)}")
    added = ((key, one) for key, one in tuned.named_parameters() if id(one) not in own)
    weights.check_finite(added, f"{name}: the tuned model's")
    unknown = _unknown_fields(name, given, tuned.peft_config[NAME])
    return tuned, [*unknown, *([f"{name}: {notice}"] if notice else [])]


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    """Turn PEFT's errors into one of ours, which says that the base model is wrong only if modules or shapes differ."""
    try:
        with failures.explained(name, MISPLACED):
            yield
    except UsageError as error:
        text = str(error)
        if not _OF_SHAPES.search(text):
            raise
        raise UsageError(text.replace(f"{name}: {MISPLACED}", f"{name}: {MISFIT}", 1)) from None


@contextmanager
def _readable(folder: Path, names: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """The folder, or a copy with weights under their new names; and a notice about the names, empty if unchanged."""
    from safetensors.torch import load_file, save_file

    changed = {name: new for name, new in names.items() if name != new}
    if not changed:
        yield folder, ""
        return
    path = folder / sources.ADAPTER_WEIGHTS
    example = min(changed)
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(folder / sources.ADAPTER_CONFIG, temporary)
        save_file({names[name]: tensor for name, tensor in load_file(path).items()}, Path(temporary) / path.name)
        yield Path(temporary), f"names of weights were repaired: {example} is read as {changed[example]}"


def _faults(tuned: Any, folder: Path, own: set[int]) -> list[str]:
    """Weights in an adapter's files that fit nowhere in the model, and adapter weights that the files lack.

    Compares what PEFT would save for the model with the files. If the names differ because another version wrote them,
    PEFT's own report of the loading decides.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    stored = set(weights.of_file(folder / sources.ADAPTER_WEIGHTS))
    least, most = (
        set(get_peft_model_state_dict(tuned, adapter_name=NAME, save_embedding_layers=whole)) for whole in (False, True)
    )
    missing, unexpected = sorted(least - stored), sorted(stored - most)
    if not missing and not unexpected:
        return []
    if not tuned.active_peft_config.is_prompt_learning:
        mapping = getattr(tuned.get_base_model(), "_checkpoint_conversion_mapping", {})
        tensors = load_peft_weights(str(folder), device="cpu", key_mapping=mapping)
        found = set_peft_model_state_dict(tuned, tensors, adapter_name=NAME)
        if not found.unexpected_keys and not _unfilled(tuned, set(found.missing_keys), own):
            return []
        unexpected = unexpected or sorted(found.unexpected_keys)
    faults = [f"{few(missing, weights.SHOWN)} of the adapter are not in the file"] if missing else []
    return [*faults, f"{few(unexpected, weights.SHOWN)} of the file fit nowhere in it"] if unexpected else faults


def _unfilled(tuned: Any, missing: set[str], own: set[int]) -> bool:
    """Whether an adapter's parameter still has its initial values."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(tuned.active_peft_config.peft_type) or NAME
    filled, named = set(), {}
    for name, parameter in tuned.named_parameters(remove_duplicate=False):
        if id(parameter) not in own and any(part in name for part in (prefix, "modules_to_save", "trainable_tokens")):
            named[id(parameter)] = name
            if name not in missing:
                filled.add(id(parameter))
    return bool(set(named) - filled)


def _rows(model: Any, stored: dict[str, tuple[int, ...]]) -> int | None:
    """Vocabulary rows in an adapter's files; they differ from the base model's if tokens were added or removed.

    Raises:
        UsageError: its embedding and head have different numbers of rows.
    """
    names = {id(module): name for name, module in model.named_modules()}
    whole = dict.fromkeys(
        ("weight", "base_layer.weight", "original_module.weight", "token_adapter.base_layer.weight"), 0
    )
    ends = [
        *_named(names, model.get_input_embeddings(), {**whole, "lora_embedding_A": 1}),
        *_named(names, model.get_output_embeddings(), {**whole, "lora_B.weight": 0}),
    ]
    found = {f"{PREFIX}{key}": stored[f"{PREFIX}{key}"][axis] for key, axis in ends if f"{PREFIX}{key}" in stored}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{key} {count}" for key, count in found.items())
        raise UsageError(f"an adapter's embedding and head have different numbers of rows: {listed}")
    return next(iter(found.values()), None)


def _named(names: dict[int, str], module: Any, ends: dict[str, int]) -> list[tuple[str, int]]:
    """Names of a module's weights that an adapter may contain, and for each the axis that counts tokens."""
    name = names.get(id(module))
    return [] if name is None else [(f"{name}.{end}", axis) for end, axis in ends.items()]


def _rows_of_tokens(given: Mapping[str, Any], model: Any) -> int | None:
    """Vocabulary rows that an adapter's trainable tokens need; None if the base model has enough."""
    tokens = given.get("trainable_token_indices") or given.get("token_indices") or []
    lists = list(tokens.values()) if isinstance(tokens, dict) else [tokens]
    needed = 1 + max((index for indices in lists for index in indices), default=-1)
    return needed if needed > model.get_input_embeddings().weight.shape[0] else None
