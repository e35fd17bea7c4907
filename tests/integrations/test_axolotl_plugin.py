"""The Axolotl plugin with a stand-in for Axolotl: its arguments are merged, and its callback is created."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from forgetting import ForgettingCallback

PLUGIN = "forgetting.integrations.axolotl"


class Config(dict[str, Any]):
    """Like Axolotl's DictDefault: missing keys are None."""

    def __missing__(self, key: str) -> None:
        return None


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    base = types.ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    return importlib.import_module(PLUGIN)


def test_arguments_are_merged_as_axolotl_does(plugin: types.ModuleType) -> None:
    module, name = plugin.ForgettingPlugin().get_input_args().rsplit(".", 1)
    args = getattr(importlib.import_module(module), name)
    merged = type("AxolotlInputConfig", (type("Base", (BaseModel,), {}), args), {})
    assert merged(forgetting_every=5).forgetting_every == 5
    assert all(field.startswith("forgetting_") for field in args.model_fields)
    with pytest.raises(ValidationError, match="forgetting_every"):
        merged(forgetting_every=0)


def test_the_callback_is_as_the_file_says(plugin: types.ModuleType, corpora: Path) -> None:
    text = str(corpora / "general.jsonl")
    config = Config(forgetting_text=text, forgetting_every=5, forgetting_budget=0.1, forgetting_texts={"more": text})
    (made,) = plugin.ForgettingPlugin().add_callbacks_post_trainer(config, None)
    assert isinstance(made, ForgettingCallback)
    assert (made.every, made.budget, made.text.source, list(made.texts)) == (5, 0.1, text, ["more"])
