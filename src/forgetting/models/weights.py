"""Whether the weights of a model's files are those that its configuration asks for: names, shapes, all of them used.

A library that loads weights fills what it does not find with random numbers and leaves out what it has no place for,
with a warning. Measured, such a model gives numbers that look right. It is refused here, with the names; what is left
out for a reason (buffers, towers for images, heads for other tasks beside the language model's) is not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .sources import INDEX, WEIGHTS

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "base_model.model": "PEFT",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Names that wrappers put before or into those of a model's weights, and whose they are."""
_FRONT = r"^(?:(?:_orig_mod|module|base_model\.model|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
_INSIDE = r"\.(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
RENAMING = {_FRONT: "", _INSIDE: "."}
"""Patterns that take these names out, in the form of transformers' `key_mapping`."""

_BUFFER = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|_extra_state|num_batches_tracked|[kv]_scale)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.(bias|causal_mask)$")
_NOT_TEXT = re.compile(
    r"vision|visual|image|audio|speech|video|multi_?modal|^mm_|projector|connector|resampler|aligner|abstractor|"
    r"talker|token2wav|code2wav|vq_?model|^mtp|v_head|value_head|medusa|eagle",
    re.IGNORECASE,
)
"""Parts beside the language model, which text never runs through: towers of other senses, heads that guess ahead."""
SHOWN = 3


def names(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a model in a folder, from headers alone.

    Raises:
        UsageError: a damaged index or file.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {str(name): folder / str(file) for name, file in found.items()}
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UsageError(f"{index}: damaged") from None
    path = folder / WEIGHTS
    return dict.fromkeys(shapes(path), path) if path.is_file() else {}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, from its header.

    Raises:
        UsageError: a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: damaged weights: {reason}") from None


def clean(name: str) -> str:
    """A weight's name without those of wrappers."""
    return re.sub(_INSIDE, ".", re.sub(_FRONT, "", name))


def wrapped_in(found: Iterable[str]) -> str | None:
    """The wrapper whose name is in those of a model's weights; None of none, or where two weights would be one."""
    found = list(found)
    cleaned = [clean(name) for name in found]
    changed = next((name for name, new in zip(found, cleaned, strict=True) if name != new), None)
    if changed is None or len(set(cleaned)) < len(cleaned):
        return None
    return next(wrapper for wrapper in WRAPPERS if f".{wrapper}." in f".{changed}")


def check_fit(name: str, model: Any, info: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    """Refuse a model whose weights are not all its own.

    Args:
        name: the model, for messages.
        model: as loaded.
        info: what transformers says of the loading (`output_loading_info`).
        files: `names` of the weights that were loaded.

    Returns:
        Notices of parts that were left out.

    Raises:
        UsageError: weights that are missing, of another shape, or have no place in the model.
    """
    faults = []
    if missing := sorted(info["missing_keys"]):
        hint = _head_hint(model, missing)
        faults.append(f"{some(missing)} {'is' if len(missing) == 1 else 'are'} missing from the files{hint}")
    mismatched = sorted((str(key), list(stored), list(wanted)) for key, stored, wanted in info["mismatched_keys"])
    if mismatched:
        key, stored, wanted = mismatched[0]
        more = f" ({len(mismatched)} weights)" if len(mismatched) > 1 else ""
        faults.append(f"{key} is {stored} in the files and {wanted} by config.json{more}")
    unused, parts = _sorted_out(model, sorted(info["unexpected_keys"]), files)
    if unused:
        layers = _layers_hint(model, unused)
        faults.append(f"{some(unused)} of the files {'has' if len(unused) == 1 else 'have'} no place in it{layers}")
    faults += [str(message).strip().splitlines()[0] for message in info.get("error_msgs") or ()]
    if faults:
        raise UsageError(
            f"{name}: its weights do not fit the {type(model).__name__} of its config.json: {'; '.join(faults)}"
        )
    return [f"{name}: {part} ({count} weights) is no part of the text model and is left out" for part, count in parts]


def some(found: list[str]) -> str:
    """The first few of many names, and how many there are."""
    rest = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + rest


def _head_hint(model: Any, missing: list[str]) -> str:
    head = model.get_output_embeddings()
    named = [name for name, parameter in model.named_parameters() if head is not None and parameter is head.weight]
    return " (with tie_word_embeddings false, a head of its own is needed)" if set(named) & set(missing) else ""


def _layers_hint(model: Any, unused: list[str]) -> str:
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    held = {int(part) for name in unused for part in name.split(".") if part.isdigit()}
    if layers is None or not held or max(held) < layers:
        return ""
    return f" (config.json says num_hidden_layers {layers}, the files have {max(held) + 1})"


def _sorted_out(
    model: Any, unexpected: list[str], files: Mapping[str, Path]
) -> tuple[list[str], list[tuple[str, int]]]:
    """Of weights without a place in the model: those that it should have used, and the parts that text never uses."""
    present = {name for name, _ in model.named_modules()}
    unused, parts = [], Counter[str]()
    for key in unexpected:
        if _is_buffer(key, files):
            continue
        words = key.split(".")
        depth = next(i for i in range(len(words)) if ".".join(words[: i + 1]) not in present)
        inside_a_layer = any(word.isdigit() for word in words[:depth])
        if not inside_a_layer and _NOT_TEXT.search(words[depth]):
            parts[".".join(words[: depth + 1])] += 1
        elif not _guesses_ahead(model, words, depth):
            unused.append(key)
    return unused, sorted(parts.items())


def _is_buffer(key: str, files: Mapping[str, Path]) -> bool:
    """Whether a weight is a table that older versions of a model stored: rotary frequencies, causal masks."""
    if _BUFFER.search(key):
        return True
    return bool(_MASK.search(key)) and key in files and len(shapes(files[key]).get(key, ())) > 2


def _guesses_ahead(model: Any, words: list[str], depth: int) -> bool:
    """Whether a weight is of the layers for multi-token prediction that stand after a model's own (DeepSeek-V3)."""
    config = model.config.get_text_config()
    ahead = getattr(config, "num_nextn_predict_layers", None) or 0
    own = getattr(config, "num_hidden_layers", 0)
    return words[depth].isdigit() and own <= int(words[depth]) < own + ahead
