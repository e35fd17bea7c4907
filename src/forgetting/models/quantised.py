"""Weights that are quantised: by bitsandbytes when a model is loaded (`model.bits`), or in its files already.

4 bits are NF4 with doubly quantised scales (QLoRA: Dettmers et al. 2023, arXiv:2305.14314), 8 bits are LLM.int8()
(Dettmers et al. 2022, arXiv:2208.07339). Imports torch only where it is called.
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
"""Neighbouring weights that share a scale in 4 bits."""
BASE_FILE = "quantised_base.json"
"""Beside an adapter that a study trained on a base model quantised on loading: how it was loaded."""


def method_of(config: Any) -> str | None:
    """The way in which the weights of a model are quantised, by its configuration of transformers; or None."""
    found = _asked(config)
    method = _field(found, "quant_method")
    if method is None:
        return "bitsandbytes" if _bits_in(found) else None
    return str(getattr(method, "value", method))


def bits_of(config: Any) -> int | None:
    """4 or 8 where bitsandbytes quantised a model's weights, by its configuration of transformers; else None."""
    return _bits_in(_asked(config)) if method_of(config) == "bitsandbytes" else None


def check_stored(name: str, config: Any, tensors: Iterable[str]) -> None:
    """Refuse a model whose config.json says that bitsandbytes quantised its weights where its files hold plain ones.

    Args:
        name: the model, for messages.
        config: its configuration of transformers.
        tensors: names of its files' tensors.

    Raises:
        UsageError: it is one: transformers would load it and fail at its first layer.
    """
    bits = bits_of(config)
    if bits is not None and not any(".quant_state." in t or t.endswith((".absmax", ".SCB")) for t in tensors):
        raise UsageError(
            f"{name}: its config.json says that bitsandbytes quantised its weights to {bits} bits, and its files hold "
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
    """Refuse to quantise what cannot be.

    Args:
        name: the model, for messages.
        config: its configuration of transformers.
        bits: that were asked for.

    Raises:
        UsageError: bitsandbytes is missing, or the weights are quantised already, in another way.
    """
    stored = method_of(config)
    if stored is not None and bits_of(config) != bits:
        there = bits_of(config)
        how = f"to {there} bits by bitsandbytes" if there else f"by {stored}"
        raise UsageError(
            f"{name}: bits {bits} (model.bits, --bits): its weights are quantised {how} already; leave out bits"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{name}: bits {bits} (model.bits, --bits) needs bitsandbytes, which is not installed; pip install {EXTRA}"
        )


def options(bits: Literal[4, 8], compute: Any) -> Any:
    """What transformers takes to quantise.

    Args:
        bits: 4 or 8.
        compute: dtype of torch in which matrix products of 4-bit weights are computed.
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
    """A model that bitsandbytes quantised, as it is trained under adapters: frozen, all other weights in float32.

    Base model and tuned model are both measured so: an adapter that is still zero then changes no number.

    Raises:
        UsageError: bitsandbytes cannot compute with it.
    """
    from peft import prepare_model_for_kbit_training

    from . import bitsandbytes_internals

    # it would say in every pass that 8 bits compute in float16, which is how they are (docs/methods.md)
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    check_widths(model, name)
    bitsandbytes_internals.keep_layout(model)
    # gradient checkpointing is the trainer's, of the kind that needs no gradients of the inputs
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def check_widths(model: Any, name: str) -> None:
    """Refuse 4-bit layers on a CPU whose rows are no whole blocks: bitsandbytes silently computes wrong numbers there.

    Seen with bitsandbytes 0.50.2 and layers of 48 and 96 inputs, whose weights came back wrong by their own size.

    Raises:
        UsageError: names such a layer.
    """
    if model.device.type != "cpu" or bits_of(model.config) != 4:
        return
    for layer, module in model.named_modules():
        if hasattr(module, "quant_state") and module.in_features % BLOCK:
            raise UsageError(
                f"{name}: bits 4 on a CPU needs layers whose inputs are a multiple of {BLOCK}, and {layer} has "
                f"{module.in_features}; use a GPU, or bits 8"
            )


def numbers(parameter: Any) -> int:
    """How many numbers a parameter holds: packed 4-bit weights hold two a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel()) if state is None else math.prod(state.shape)


def dtype_name(model: Any) -> str:
    """The dtype of a model's weights in words: `float32`, or `bfloat16-4bit` of bfloat16 weights in 4 bits."""
    bits = bits_of(getattr(model, "config", None))
    if bits is None:
        return str(next(model.parameters()).dtype).removeprefix("torch.")
    # what is not quantised is in float32 for training; the configuration keeps the dtype that was loaded
    return f"{model.config.dtype}-{bits}bit".removeprefix("torch.")


def note_base(folder: Path, model: Any) -> None:
    """Have a saved adapter say how the base model was quantised that it was trained on: PEFT has no field for that."""
    found = {"bits": bits_of(model.config), "dtype": dtype_name(model)}
    write_atomically(folder / BASE_FILE, json.dumps(found) + "\n")


def other_base(folder: Path, model: Any) -> list[str]:
    """A notice where an adapter says that it was trained on a base model quantised otherwise.

    Args:
        folder: of the adapter.
        model: the base model that it is measured against.

    Raises:
        UsageError: its file of that cannot be read.
    """
    file = folder / BASE_FILE
    if not file.exists():
        return []
    bits = bounds.read_config(file).get("bits")
    if bits not in NAMES or bits == bits_of(model.config):
        return []
    return [
        f"the adapter was trained on a base model {quantised(bits)}; here it is put on one in {dtype_name(model)} and "
        f"compared with that, which is not the model that was trained: bits {bits} (--bits {bits}) measures that one"
    ]
