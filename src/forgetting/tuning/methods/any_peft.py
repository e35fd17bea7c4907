"""Any other method of the installed PEFT, through its own configuration; there is no code for it here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ...errors import UsageError, did_you_mean
from ...models import bounds
from ...models.adapter_fields import check_fields
from .base import Context, Method
from .targets import adapt, refused

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

ON_QUANTISED = ("LORA", "IA3", "LN_TUNING", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
"""PEFT types that neither change nor read the base model's weights, or that have layers for bitsandbytes weights."""
OURS = {"inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "task_type"}
"""Fields of a PEFT configuration that the run sets itself."""


class Peft(Method):
    """The PEFT method that `config` describes: its `peft_type` and any of its fields. P = what PEFT makes trainable.

    It need not start at the base model (prompt tuning does not): forgetting is always measured against the base model
    without the adapter. Methods that must read data first are refused by PEFT, or start untrained; use them under
    their own names here.
    """

    name: ClassVar[str] = "peft"
    references: ClassVar[tuple[str, ...]] = ("mangrulkar2022peft",)
    start: ClassVar[Literal["exactly", "rounding", "else"]] = "else"

    config: dict[str, Any] = Field(description="`peft_type` and the fields of that configuration, as PEFT names them")

    @field_validator("config")
    @classmethod
    def _has_a_type(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("peft_type"), str):
            raise ValueError("needs peft_type, for example {peft_type: HRA, r: 8}")
        return value

    def peft_config(self) -> PeftConfig:
        """The configuration as a PEFT object.

        Raises:
            UsageError: no such type or field, or a value that PEFT or this package refuses.
        """
        from ...models.peft_internals import config_types

        kinds = config_types()
        kind = self.config["peft_type"].upper()
        if kind not in kinds:
            raise UsageError(f"methods.peft.config.peft_type: got '{kind}'; {did_you_mean(kind, sorted(kinds))}")
        known = {field.name for field in dataclasses.fields(kinds[kind]) if field.init} - OURS - {"peft_type"}
        given = {key: value for key, value in self.config.items() if key != "peft_type"}
        for key in given:
            if key in OURS:
                raise UsageError(f"methods.peft.config.{key}: set by the run; leave it out")
            if key not in known:
                meant = did_you_mean(key, sorted(known))
                raise UsageError(f"methods.peft.config.{key}: {kind} has no such field; {meant}")
        bounds.check_adapter(given, "methods.peft.config")
        check_fields({**given, "peft_type": kind}, "methods.peft.config")
        made: PeftConfig = refused(lambda: kinds[kind](task_type="CAUSAL_LM", **given), "methods.peft.config")
        return made

    def check_quantised(self, how: str, bits: int | None, fit: Sequence[str]) -> None:
        """Refuse types that read quantised weights as plain numbers; see `Method.check_quantised`."""
        kind, init = self.config["peft_type"].upper(), self.config.get("init_lora_weights", True)
        if kind not in ON_QUANTISED:
            raise UsageError(
                f"methods.peft.config.peft_type: {kind} does not work with {how}; use one of {', '.join(ON_QUANTISED)}"
            )
        if self.config.get("use_dora") and bits == 8:
            raise UsageError(f"methods.peft.config.use_dora: does not work with {how}; leave it out")
        if init not in (True, False, "gaussian"):
            raise UsageError(
                f"methods.peft.config.init_lora_weights: {init} does not work with {how}: it starts from the base "
                "model's weights, which are quantised; leave it out"
            )

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse an unknown type or field, and a pattern that would take too long to match."""
        self.peft_config()
        bounds.check_patterns(self.config, [name for name, _ in model.named_modules()], "methods.peft.config")

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Let PEFT make the model trainable; see `Method.prepare`."""
        return adapt(model, self.peft_config(), "methods.peft.config")
