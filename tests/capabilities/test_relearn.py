"""The relearning probe asks as the evaluation did, without a model here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from forgetting.capabilities import api, relearn
from forgetting.capabilities.evaluate import Evaluation
from forgetting.capabilities.relearn import _Asking
from forgetting.capabilities.transitions import wilson
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


def test_items_of_one_passage_count_once_in_the_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten questions per passage, all lost and all returned, an interval is as wide as that of the passages."""
    same = {"expect": None, "filter": relearn.FINAL, "target": ["yes"], "answer": "no", "options": 0}
    base = [
        {**same, "prompt": f"p{i}", "reply": "yes", "score": 1.0, "cluster": f"passage {i // 10}"} for i in range(200)
    ]
    pairs = [(row, {**row, "reply": "no", "score": 0.0}) for row in base]
    for name, made in (("_copy", None), ("_train", None)):
        monkeypatch.setattr(relearn, name, lambda *_, made=made: made)
    monkeypatch.setattr(relearn, "_replies", lambda model, asking, prompts: ["yes"] * len(prompts))
    found = relearn._probe("mine", pairs, None, 2, _Asking(None, None, 64))
    halves = [{row["cluster"] for row in base if relearn.in_probe_half(row) == half} for half in (True, False)]
    assert not halves[0] & halves[1]
    passages = len(halves[1])
    assert found.returned.count == found.scored > 3 * passages
    assert found.returned.low == wilson(passages, passages).low
