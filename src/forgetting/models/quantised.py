"""Quantised weights: quantised by bitsandbytes on loading (`model.bits`), or already in the files.

4 bits are NF4 with double quantisation (QLoRA: Dettmers et al. 2023, arXiv:2305.14314), 8 bits are LLM.int8()
(Dettmers et al. 2022, arXiv:2208.07339). torch is imported only when a function needs it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ..config.bits import NAMES, quantised
from ..errors import UsageError
from ..files import write_atomically
from . import bounds

EXTRA = "'forgetting[quantized]'"
BLOCK = 64
"""Number of neighbouring weights that share a scale in 4 bits."""
BASE_FILE = "quantised_base.json"
"""File next to an adapter that a study trained on a base model quantised on loading: how the base was loaded."""


def method_of(config: Any) -> str | None:
    """How a model's weights are quantised, according to its transformers configuration; or None."""
    found = _asked(config)
    method = _field(found, "quant_method")
    if method is None:
        return "bitsandbytes" if _bits_in(found) else None
    return str(getattr(method, "value", method))


def bits_of(config: Any) -> int | None:
    """4 or 8 if bitsandbytes quantised the weights, according to the transformers configuration; else None."""
    return _bits_in(_asked(config)) if method_of(config) == "bitsandbytes" else None


def check_stored(name: str, config: Any, tensors: Iterable[str]) -> None:
    """Refuse a model whose config.json says that bitsandbytes quantised the weights, although its files are plain.

    Args:
        name: the model, for messages.
        config: its transformers configuration.
        tensors: names of the tensors in its files.

    Raises:
        UsageError: it is one; transformers would load it and fail at its first layer.
    """
    bits = bits_of(config)
    if bits is not None and not any(".quant_state." in t or t.endswith((".absmax", ".SCB")) for t in tensors):
        raise UsageError(
            f"{name}: its config.json says that bitsandbytes quantised its weights to {bits} bits, but its files hold "
            f"no quantised weights; remove quantization_config from config.json, and use --bits {bits} (model.bits) to "
            "quantise them on loading"
        )


def _asked(config: Any) -> Any:
    found = getattr(config, "quantization_config", None)
    inner = getattr(config, "get_text_config", lambda: None)()
    return found or getattr(inner, "quantization_config", None)


def _bits_in(found: Any) -> int | None:
    return 4 if _field(found, "load_in_4bit") else 8 if _field(found, "load_in_8bit") else None


def _field(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else getattr(found, name, None)


def check(name: str, config: Any, bits: int) -> None:
    """Refuse to quantise weights that cannot be quantised.

    Args:
        name: the model, for messages.
        config: its transformers configuration.
        bits: the requested bits.

    Raises:
        UsageError: bitsandbytes is missing, or the weights are already quantised in another way.
    """
    stored = method_of(config)
    if stored is not None and bits_of(config) != bits:
        there = bits_of(config)
        how = f"to {there} bits by bitsandbytes" if there else f"by {stored}"
        raise UsageError(
            f"{name}: bits {bits} (model.bits, --bits): its weights are already quantised {how}; leave out bits"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{name}: bits {bits} (model.bits, --bits) needs bitsandbytes, which is not installed; pip install {EXTRA}"
        )


def options(bits: Literal[4, 8], compute: Any) -> Any:
    """The quantisation arguments for transformers.

    Args:
        bits: 4 or 8.
        compute: torch dtype in which matrix products of 4-bit weights are computed.
    """
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def prepared(model: Any, name: str) -> Any:
    """A model quantised by bitsandbytes, prepared for training adapters: frozen, all other weights in float32.

    The base model and the tuned model are both measured like this, so an adapter that is still zero changes no number.

    Raises:
        UsageError: bitsandbytes cannot compute with it.
    """
    from peft import prepare_model_for_kbit_training

    from . import bitsandbytes_internals

    # silence a warning in every pass that 8 bits compute in float16, which is expected (docs/methods.md)
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    check_widths(model, name)
    bitsandbytes_internals.keep_layout(model)
    # the trainer does gradient checkpointing, and its kind needs no gradients of the inputs
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def check_widths(model: Any, name: str) -> None:
    """Refuse 4-bit layers on a CPU whose rows are not whole blocks; bitsandbytes silently computes wrong numbers there.

    Seen with bitsandbytes 0.50.2 and layers of 48 and 96 inputs, whose errors were as large as the weights.

    Raises:
        UsageError: names such a layer.
    """
    if model.device.type != "cpu" or bits_of(model.config) != 4:
        return
    for layer, module in model.named_modules():
        if hasattr(module, "quant_state") and module.in_features % BLOCK:
            raise UsageError(
                f"{name}: bits 4 on a CPU needs layers whose inputs are a multiple of {BLOCK}, but {layer} has "
                f"{module.in_features}; use a GPU, or bits 8"
            )


def numbers(parameter: Any) -> int:
    """How many numbers a parameter holds; packed 4-bit weights hold two per byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel()) if state is None else math.prod(state.shape)


def dtype_name(model: Any) -> str:
    """The dtype of a model's weights in words: `float32`, or `bfloat16-4bit` for bfloat16 weights in 4 bits."""
    bits = bits_of(getattr(model, "config", None))
    if bits is None:
        return str(next(model.parameters()).dtype).removeprefix("torch.")
    # unquantised weights are in float32 for training; the configuration has the dtype that was loaded
    return f"{model.config.dtype}-{bits}bit".removeprefix("torch.")


def note_base(folder: Path, model: Any) -> None:
    """Record next to a saved adapter how its base model was quantised in training; PEFT has no field for that."""
    found = {"bits": bits_of(model.config), "dtype": dtype_name(model)}
    write_atomically(folder / BASE_FILE, json.dumps(found) + "\n")


def other_base(folder: Path, model: Any) -> list[str]:
    """A notice if an adapter was trained on a base model that was quantised differently.

    Args:
        folder: the adapter's folder.
        model: the base model that it is measured against.

    Raises:
        UsageError: the record in the adapter's folder cannot be read.
    """
    file = folder / BASE_FILE
    if not file.exists():
        return []
    bits = bounds.read_config(file).get("bits")
    if bits not in NAMES or bits == bits_of(model.config):
        return []
    return [
        f"the adapter was trained on a base model {quantised(bits)}, but is measured here on one in "
        f"{dtype_name(model)}, which is not the model that was trained; bits {bits} (--bits {bits}) measures that one"
    ]
