"""How messages, tables and reports describe a quantised base model."""

from __future__ import annotations

from .schema import ModelConfig

NAMES = {4: "NF4", 8: "LLM.int8()"}
"""The format to which bitsandbytes quantises the weights, by number of bits."""


def quantised(bits: int) -> str:
    """How a base model is quantised, in words."""
    return f"quantised to {bits} bits ({NAMES[bits]}, bitsandbytes)"


def quantised_notes(model: ModelConfig) -> list[str]:
    """What a study on quantised weights measures forgetting against, in words; empty for other studies."""
    if model.bits is None:
        return []
    if model.reference == "full":
        against = "in full precision: step 0 is the forgetting from quantising alone, and later steps include it"
    else:
        against = "as quantised: forgetting from quantising alone is not included (model.reference: full would)"
    return [f"the base model is {quantised(model.bits)}, and forgetting is measured against it {against}"]
