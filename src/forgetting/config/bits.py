"""What quantised base models are called in messages, tables and reports."""

from __future__ import annotations

from .schema import ModelConfig

NAMES = {4: "NF4", 8: "LLM.int8()"}
"""By bits, what bitsandbytes makes of the weights."""


def quantised(bits: int) -> str:
    """How a base model is quantised, in words."""
    return f"quantised to {bits} bits ({NAMES[bits]}, bitsandbytes)"


def quantised_notes(model: ModelConfig) -> list[str]:
    """What the forgetting of a study on quantised weights is measured against, in words; none on others."""
    if model.bits is None:
        return []
    if model.reference == "full":
        against = "in full precision: step 0 is what quantising alone cost, and later steps hold that"
    else:
        against = "as it is: what quantising alone cost is not in it (model.reference: full)"
    return [f"the base model is {quantised(model.bits)}, and forgetting is measured against it {against}"]
