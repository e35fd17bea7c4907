"""Axolotl: `plugins: [forgetting.integrations.axolotl.ForgettingPlugin]` measures forgetting while it trains."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from ..measuring.callback import ForgettingCallback

PREFIX = "forgetting_"


class ForgettingArgs(BaseModel):
    """What Axolotl's YAML file may say: arguments of `ForgettingCallback`, each with `forgetting_` before it."""

    forgetting_text: str | None = Field(
        default=None, description="general text: a file, a folder or a Hub id; default the WikiText-103 test set"
    )
    forgetting_texts: dict[str, str] | None = Field(default=None, description="further general texts by name")
    forgetting_every: int | None = Field(
        default=None, ge=1, description="measure every so many steps; default after 1, 2, 4, 8, ..."
    )
    forgetting_budget: float | None = Field(
        default=None, description="nats/token above which training stops, and the last model inside is handed back"
    )
    forgetting_context: int | None = Field(default=None, ge=8, description="tokens a window; default 512")
    forgetting_batch_tokens: int | None = Field(default=None, ge=1, description="tokens a forward pass")


class ForgettingPlugin(BasePlugin):
    """https://docs.axolotl.ai/docs/custom_integrations.html: one callback, added to the trainer that Axolotl made."""

    def get_input_args(self) -> str:
        """The model of our fields, by its dotted name, as Axolotl imports it."""
        return f"{__name__}.{ForgettingArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[ForgettingCallback]:
        """The callback, as the YAML file says.

        Args:
            cfg: Axolotl's configuration; a field that is not there is None.
            trainer: the one that it made.

        Raises:
            UsageError: a budget or text that there cannot be.
        """
        given = {name: cfg[name] for name in ForgettingArgs.model_fields if cfg.get(name) is not None}
        arguments = {name.removeprefix(PREFIX): value for name, value in given.items()}
        if "texts" in arguments:
            arguments["texts"] = dict(arguments["texts"])
        return [ForgettingCallback(arguments.pop("text", None), **arguments)]
