"""Axolotl: `plugins: [forgetting.integrations.axolotl.ForgettingPlugin]` measures forgetting during training."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from ..measuring.callback import ForgettingCallback

PREFIX = "forgetting_"


class ForgettingArgs(BaseModel):
    """Fields for Axolotl's YAML file: arguments of `ForgettingCallback`, each with `forgetting_` before its name."""

    forgetting_text: str | None = Field(
        default=None, description="general text: a file, a folder or a Hub id; default: the WikiText-103 test set"
    )
    forgetting_texts: dict[str, str] | None = Field(default=None, description="further general texts by name")
    forgetting_every: int | None = Field(
        default=None, ge=1, description="steps between measurements; default: measure after 1, 2, 4, 8, ... steps"
    )
    forgetting_budget: float | None = Field(
        default=None, description="nats/token above which training stops; the last measured model within it is restored"
    )
    forgetting_context: int | None = Field(default=None, ge=8, description="tokens per window; default: 512")
    forgetting_batch_tokens: int | None = Field(
        default=None, ge=1, description="tokens per forward pass when measuring"
    )


class ForgettingPlugin(BasePlugin):
    """Adds one callback to Axolotl's trainer; see https://docs.axolotl.ai/docs/custom_integrations.html."""

    def get_input_args(self) -> str:
        """The dotted name of the class with our fields, which Axolotl imports."""
        return f"{__name__}.{ForgettingArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[ForgettingCallback]:
        """The callback with the arguments in the YAML file.

        Args:
            cfg: Axolotl's configuration; a missing field is None.
            trainer: Axolotl's trainer; not used.

        Raises:
            UsageError: an invalid argument, such as a budget that is not positive.
        """
        given = {name: cfg[name] for name in ForgettingArgs.model_fields if cfg.get(name) is not None}
        arguments = {name.removeprefix(PREFIX): value for name, value in given.items()}
        if "texts" in arguments:
            arguments["texts"] = dict(arguments["texts"])
        return [ForgettingCallback(arguments.pop("text", None), **arguments)]
