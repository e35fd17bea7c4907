"""Checks that the weights in a model's files match its configuration: names, shapes, and all of them used.

A library that loads weights fills missing ones with random numbers and ignores those that fit nowhere, with only a
warning. Measuring such a model gives numbers that look right. It is refused here, with the names. Weights that are left
out for a good reason are allowed: buffers, image encoders, heads for tasks other than language modelling.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..display.numbers import few, several
from ..errors import UsageError
from . import failures, sources, transformers_internals
from .sources import INDEX, WEIGHTS

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "base_model.model": "PEFT",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Names that wrappers insert into the names of a model's weights, and which wrapper it is."""
_FRONT = r"^(?:(?:_orig_mod|module|base_model\.model|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
_INSIDE = r"\.(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
RENAMING = {_FRONT: "", _INSIDE: "."}
"""Patterns that remove these names, in the form of transformers' `key_mapping`."""

_BUFFER = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|_extra_state|num_batches_tracked|[kv]_scale)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.(bias|causal_mask)$")
_NOT_TEXT = re.compile(
    r"vision|visual|image|audio|speech|video|multi_?modal|^mm_|projector|connector|resampler|aligner|abstractor|"
    r"talker|token2wav|code2wav|vq_?model|^mtp|v_head|value_head|medusa|eagle",
    re.IGNORECASE,
)
"""Parts outside the language model that text never uses: encoders for other inputs, multi-token prediction heads."""
PLAIN = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are plain numbers."""
CHOICES = "vblora_logits"
"""Part of the names of weights that PEFT sets to minus infinity for vectors that a VB-LoRA adapter does not use."""
LFS = b"version https://git-lfs"
SHOWN = 3
"""How many names of weights a message lists."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file, from its header: its shape, and its dtype in safetensors' notation."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Its bytes; the first number in a dtype's name is its bits."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * int(bits[0] if bits else 8) // 8


def of_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of a model in a folder, from headers only; of two sets, the one that transformers reads.

    Raises:
        UsageError: a damaged index or file.
    """
    if (folder / WEIGHTS).is_file():
        return of_file(folder / WEIGHTS)
    index = folder / INDEX
    if not index.is_file():
        return {}
    files = sources.shards(index, str(index))
    if lacking := sorted(file for file in files if not (folder / file).is_file()):
        raise UsageError(f"{index}: names {lacking[0]}, which does not exist")
    return {name: tensor for file in sorted(files) for name, tensor in of_file(folder / file).items()}


def check_one_set(folder: Path, name: str) -> None:
    """Refuse a folder with two sets of weights that differ: one file, and the files of an index.

    transformers loads the one file, and some other programs load the files of the index.

    Args:
        folder: the model's folder.
        name: the model, for messages.

    Raises:
        UsageError: they differ; a damaged index or file.
    """
    from safetensors import safe_open

    single, index = folder / WEIGHTS, folder / INDEX
    if not (single.is_file() and index.is_file()):
        return
    files = sources.shards(index, str(index)) - {WEIGHTS}
    if not files or not all((folder / file).is_file() for file in files):
        return  # no second set; transformers does not read this index either
    names = {clean(tensor): tensor for tensor in of_file(single)}
    others = [(tensor, file) for file in sorted(files) for tensor in of_file(folder / file)]
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(folder / file, "pt")) for file in (WEIGHTS, *files)}
        differs = sorted(names) != sorted(clean(tensor) for tensor, _ in others) or not all(
            opened[WEIGHTS].get_tensor(names[clean(tensor)]).equal(opened[file].get_tensor(tensor))
            for tensor, file in others
        )
    if differs:
        raise UsageError(
            f"{name}: contains two sets of weights that differ, {WEIGHTS} and the files of {INDEX}; move one of them "
            "elsewhere"
        )


def of_file(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, from its header.

    Raises:
        UsageError: a damaged file, or a Git LFS pointer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as start:
            if start.read(len(LFS)) == LFS:
                raise UsageError(f"{path}: a Git LFS pointer instead of the weights; fetch them with `git lfs pull`")
        with safe_open(path, "np") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
            return {name: Stored(tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: damaged weights: {failures.first_line(error)}") from None


def clean(name: str) -> str:
    """A weight's name without the names of wrappers."""
    return re.sub(_INSIDE, ".", re.sub(_FRONT, "", name))


def wrapped_in(found: Iterable[str]) -> str | None:
    """The wrapper whose name is in the weights' names; None without one, or if two weights would get one name."""
    found = list(found)
    cleaned = [clean(name) for name in found]
    changed = next((name for name, new in zip(found, cleaned, strict=True) if name != new), None)
    if changed is None or len(set(cleaned)) < len(cleaned):
        return None
    return next(wrapper for wrapper in WRAPPERS if f".{wrapper}." in f".{changed}")


def check_fit(
    name: str, model: Any, info: Mapping[str, Any], stored: Mapping[str, Stored], *, method: str | None
) -> list[str]:
    """Refuse a model if its weights do not all come from its files.

    Args:
        name: the model, for messages.
        model: the loaded model.
        info: transformers' report of the loading (`output_loading_info`).
        stored: the tensors of the files that were loaded.
        method: how they are quantised, according to its config.json; None if it does not say.

    Returns:
        Notices: parts that were left out, and a separate head although config.json says that it is tied.

    Raises:
        UsageError: weights are missing, have another shape, or fit nowhere in the model.
    """
    faults = []
    if missing := sorted(info["missing_keys"]):
        hint = _head_hint(model, missing)
        faults.append(f"{few(missing, SHOWN)} {'is' if len(missing) == 1 else 'are'} missing from the files{hint}")
    mismatched = sorted((str(key), list(held), list(wanted)) for key, held, wanted in info["mismatched_keys"])
    if mismatched:
        key, held, wanted = mismatched[0]
        more = f" ({len(mismatched)} weights)" if len(mismatched) > 1 else ""
        faults.append(f"{key} is {held} in the files and {wanted} by config.json{more}")
    unused, parts = _sorted_out(model, sorted(info["unexpected_keys"]), stored)
    if unused:
        layers = _layers_hint(model, unused)
        have = "has" if len(unused) == 1 else "have"
        faults.append(f"{few(unused, SHOWN)} of the files {have} no place in it{layers}")
    if not _unpacks(method) and (packed := _packed(model, stored)):
        faults.append(
            f"{few(packed, SHOWN)}: stored as {stored[packed[0]].dtype}, like quantised weights, but "
            + ("config.json has no quantization_config" if method is None else f"transformers cannot read {method}")
        )
    elif unscaled := _unscaled(stored):
        kind = stored[unscaled[0]].dtype
        faults.append(
            f"{few(unscaled, SHOWN)}: stored as {kind}, but the files do not have the scales of these weights"
        )
    faults += [str(message).strip().splitlines()[0] for message in info.get("error_msgs") or ()]
    if faults:
        raise UsageError(
            f"{name}: its weights do not fit the {type(model).__name__} of its config.json: {'; '.join(faults)}"
        )
    notices = [
        f"{name}: left out {part} ({several(count, 'weight')}), which is not part of the text model"
        for part, count in parts
    ]
    if _has_a_head_of_its_own(model):
        notices.append(
            f"{name}: its config.json says tie_word_embeddings true, but its files have a head that differs from the "
            "embeddings, and this head is measured; a program that follows config.json runs another model"
        )
    return notices


def check_finite(parameters: Iterable[tuple[str, Any]], whose: str) -> None:
    """Refuse weights that are not finite: such a model gives no finite loss.

    Args:
        parameters: names and tensors.
        whose: whose weights they are, for messages: `the base model's`.

    Raises:
        UsageError: NaN or an infinity; names the tensor.
    """
    import torch

    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # torch cannot take the minimum of others
    for name, parameter in parameters:
        if parameter.is_meta or not parameter.numel() or parameter.dtype not in floats or CHOICES in name:
            continue
        ends = torch.stack(torch.aminmax(parameter.detach()))
        if not bool(ends.isfinite().all()):
            what = "NaN" if bool(ends.isnan().any()) else "infinities"
            raise UsageError(f"{whose} weights contain {what}: {name}")


def _head_hint(model: Any, missing: list[str]) -> str:
    head = model.get_output_embeddings()
    named = [name for name, parameter in model.named_parameters() if head is not None and parameter is head.weight]
    return " (with tie_word_embeddings false, the model needs its own head)" if set(named) & set(missing) else ""


def _has_a_head_of_its_own(model: Any) -> bool:
    """Whether the configuration ties the head to the embeddings, but both were stored and differ."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    says_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if head is None or not says_tied or not transformers_internals.ties_weights(model):
        return False
    return getattr(head, "weight", None) is not getattr(embeddings, "weight", None)


def _layers_hint(model: Any, unused: list[str]) -> str:
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    held = {int(part) for name in unused for part in name.split(".") if part.isdigit()}
    if layers is None or not held or max(held) < layers:
        return ""
    return f" (config.json says num_hidden_layers {layers}, the files have {max(held) + 1})"


def _packed(model: Any, stored: Mapping[str, Stored]) -> list[str]:
    """Weights stored as integers or in 8 bits, which encode numbers instead of being numbers."""
    floating = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    return sorted(name for name in floating & set(stored) if stored[name].dtype not in PLAIN)


def _unpacks(method: str | None) -> bool:
    """Whether transformers reads weights that are quantised in this way; it ignores methods that it does not know."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    return method is not None and any(str(known).startswith(method) for known in AUTO_QUANTIZER_MAPPING)


def _unscaled(stored: Mapping[str, Stored]) -> list[str]:
    """8-bit floating-point weights stored without a scale; transformers would read them without one."""
    scaled = {name.rpartition(".")[0] for name in stored if "scale" in name.rpartition(".")[2]}
    eight = (name for name, tensor in stored.items() if tensor.dtype.startswith("F8_E") and "scale" not in name)
    return sorted(name for name in eight if name.rpartition(".")[0] not in scaled)


def _sorted_out(
    model: Any, unexpected: list[str], stored: Mapping[str, Stored]
) -> tuple[list[str], list[tuple[str, int]]]:
    """Of weights that fit nowhere in the model: those that it should have used, and parts that text never uses."""
    present = {name for name, _ in model.named_modules()}
    unused, parts = [], Counter[str]()
    for key in unexpected:
        if _is_buffer(key, stored):
            continue
        words = key.split(".")
        depth = next(i for i in range(len(words)) if ".".join(words[: i + 1]) not in present)
        inside_a_layer = any(word.isdigit() for word in words[:depth])
        if not inside_a_layer and _NOT_TEXT.search(words[depth]):
            parts[".".join(words[: depth + 1])] += 1
        elif not _guesses_ahead(model, words, depth):
            unused.append(key)
    return unused, sorted(parts.items())


def _is_buffer(key: str, stored: Mapping[str, Stored]) -> bool:
    """Whether a weight is a table that older versions of a model stored: rotary frequencies, causal masks."""
    if _BUFFER.search(key):
        return True
    return bool(_MASK.search(key)) and key in stored and len(stored[key].shape) > 2


def _guesses_ahead(model: Any, words: list[str], depth: int) -> bool:
    """Whether a weight belongs to the multi-token prediction layers after a model's own layers (DeepSeek-V3)."""
    config = model.config.get_text_config()
    ahead = getattr(config, "num_nextn_predict_layers", None) or 0
    own = getattr(config, "num_hidden_layers", 0)
    return words[depth].isdigit() and own <= int(words[depth]) < own + ahead
