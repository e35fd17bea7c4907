"""The relearning probe asks as the evaluation did, without a model here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from forgetting.capabilities import api
from forgetting.capabilities.evaluate import Evaluation
from forgetting.capabilities.relearn import _Asking
from forgetting.errors import UsageError


def test_the_probe_asks_as_the_evaluation_did(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def probe(*_: Any, **how: Any) -> tuple[()]:
        seen.update(how)
        return ()

    monkeypatch.setattr(api.asking, "evaluate", lambda *_, **__: Evaluation("base", "tuned", (), (), None, {}))
    monkeypatch.setattr(api, "probe", probe)
    api.evaluate("base", "tuned", relearn=True, chat=False, max_new_tokens=7)
    assert (seen["plan"].settings.chat, seen["plan"].max_generated) == (False, 7)
    with pytest.raises(UsageError, match="does not work with fewshot"):
        api.evaluate("base", "tuned", relearn=True, fewshot=2)


def test_the_probe_uses_the_chat_template_only_if_the_evaluation_did() -> None:
    def render(messages: list[dict[str, str]], **_: Any) -> str:
        return f"<user>{messages[0]['content']}<model>"

    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=render)
    asked = [_Asking(tokenizer, chat, 64).prompt("p") for chat in (None, True, False)]
    assert asked == ["<user>p<model>", "<user>p<model>", "p"]
