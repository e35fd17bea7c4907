"""Stored answers are asked again only for items of which the prompt shown to the model has changed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from forgetting.capabilities import harness
from forgetting.capabilities.answers import FIELDS
from forgetting.capabilities.evaluate import Evaluation, evaluate
from forgetting.capabilities.rendering import dated
from forgetting.capabilities.settings import Settings
from forgetting.capabilities.suites import Plan
from forgetting.config.schema import ModelConfig
from forgetting.errors import ForgettingError, UsageError

pytestmark = pytest.mark.full

N = 6
UTILS = (
    "def prompt(doc):\n    return 'the old town ' + doc['q']\n\n\ndef right(doc, results):\n    return {'acc': 1.0}\n"
)
TASK = """
task: towns
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: !function utils.prompt
doc_to_choice: "{{{{opts}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """A base model of which files may be changed."""
    return shutil.copytree(tiny_model, tmp_path / "base")


@pytest.fixture
def tuned(tiny_model: Path, tmp_path: Path) -> Path:
    """A model of the same kind with other weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path / "tuned")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that reach a live model."""
    seen: list[Any] = []
    ask = harness._ask

    def listen(model: Any, tokenizer: Any, settings: Any, kind: str, requests: list[Any]) -> list[Any]:
        seen.extend(requests)
        return ask(model, tokenizer, settings, kind, requests)

    monkeypatch.setattr(harness, "_ask", listen)
    return seen


def rows() -> list[dict[str, Any]]:
    words = ("river", "bread", "iron", "bridge", "boat", "guild")
    return [{"q": word, "opts": ["bread", "iron"], "gold": i % 2} for i, word in enumerate(words)]


def write_suite(folder: Path, items: list[dict[str, Any]], task: str = TASK) -> Path:
    folder.mkdir(exist_ok=True)
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "utils.py").write_text(UTILS)
    path = folder / "towns.yaml"
    path.write_text(task.format(data=data))
    return path


def ask(base: Path, tuned: Path, suite: Path, out: Path, **settings: Any) -> Evaluation:
    plan = Plan((str(suite),), Settings(**settings), max_generated=4)
    return evaluate(str(base), str(tuned), plan=plan, out=out)


def items_shown(requests: list[Any]) -> Counter[int]:
    """How many models were shown each item."""
    return Counter({doc: n // 2 for doc, n in Counter(request.doc_id for request in requests).items()})


def test_only_changed_items_are_asked_again(base: Path, tuned: Path, tmp_path: Path, shown: list[Any]) -> None:
    suite, out = write_suite(tmp_path / "suite", rows()), tmp_path / "out"
    first = ask(base, tuned, suite, out)
    assert items_shown(shown) == dict.fromkeys(range(N), 2)
    stored = {file: file.read_bytes() for file in out.rglob("*.jsonl")}
    shown.clear()

    again = ask(base, tuned, suite, out)
    assert shown == []
    assert again.to_dict()["suites"] == first.to_dict()["suites"]
    assert again.notices == ()
    assert {file: file.read_bytes() for file in out.rglob("*.jsonl")} == stored

    changed = rows()
    changed[4]["q"] = "smith"
    write_suite(tmp_path / "suite", [{"q": "baker", "opts": ["bread", "iron"], "gold": 0}, *changed])
    more = ask(base, tuned, suite, out)
    assert items_shown(shown) == {0: 2, 5: 2}
    assert more.results[0].n == N + 1
    assert sum("2 of 7 items are new or changed" in notice for notice in more.notices) == 2
    fresh = ask(base, tuned, suite, tmp_path / "fresh")
    assert more.to_dict()["suites"] == fresh.to_dict()["suites"]


@pytest.mark.full
@pytest.mark.parametrize("part", ["python", "include", "template", "tokenizer"])
def test_items_are_asked_again_only_if_what_the_model_is_shown_changes(
    part: str, base: Path, tuned: Path, tmp_path: Path, shown: list[Any]
) -> None:
    suite, out = write_suite(tmp_path / "suite", rows()), tmp_path / "out"
    if part == "include":
        shutil.copy(suite, suite.with_name("common.yaml"))
        suite.write_text("include: common.yaml\ntask: towns\n")
    ask(base, tuned, suite, out)
    shown.clear()
    if part == "python":
        suite.with_name("utils.py").write_text(UTILS.replace("old", "new"))
    elif part == "include":
        common = suite.with_name("common.yaml")
        common.write_text(common.read_text() + "target_delimiter: ' . '\ndescription: 'the north '\n")
    elif part == "template":
        file = base / "chat_template.jinja"
        file.write_text(file.read_text().replace("{% for", "<|system|>the guild{% for"))
    else:
        tokenizer = json.loads((base / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["bread"], vocabulary["iron"] = vocabulary["iron"], vocabulary["bread"]
        (base / "tokenizer.json").write_text(json.dumps(tokenizer))
        shutil.copy(base / "tokenizer.json", tuned)
    result = ask(base, tuned, suite, out)
    assert items_shown(shown) == dict.fromkeys(range(N), 2)
    assert result.to_dict()["suites"] == ask(base, tuned, suite, tmp_path / "fresh").to_dict()["suites"]


def test_a_changed_target_is_scored_again_without_asking(
    base: Path, tuned: Path, tmp_path: Path, shown: list[Any]
) -> None:
    suite, out = write_suite(tmp_path / "suite", rows()), tmp_path / "out"
    first = ask(base, tuned, suite, out).results[0].answers[0]
    shown.clear()
    write_suite(tmp_path / "suite", [{**item, "gold": 1 - item["gold"]} for item in rows()])
    second = ask(base, tuned, suite, out).results[0].answers[0]
    assert shown == []
    assert second.base.value == pytest.approx(1 - first.base.value)
    assert second.tuned.value == pytest.approx(1 - first.tuned.value)
    assert second.agreement == first.agreement
    own = suite.read_text() + "process_results: !function utils.right\n"
    suite.write_text(own)
    third = ask(base, tuned, suite, out).results[0].answers[0]
    assert shown == []
    assert third.base.value == third.tuned.value == 1


def test_answers_of_an_earlier_version_are_asked_again_with_a_notice(
    base: Path, tuned: Path, tmp_path: Path, shown: list[Any]
) -> None:
    suite, out = write_suite(tmp_path / "suite", rows()), tmp_path / "out"
    first = ask(base, tuned, suite, out)
    for model in ("base", "tuned"):
        file = out / model / "towns.jsonl"
        old = [json.loads(line) for line in file.read_text().splitlines()]
        for row in old:
            for name in ("request_hash", "responses", "higher_is_better"):
                del row[name]
        file.write_text("".join(json.dumps(row) + "\n" for row in old))
        meta = json.loads((out / model / "meta.json").read_text())
        meta["suites"]["towns"] |= {"content": "0123456789abcdef", "metric": None}
        (out / model / "meta.json").write_text(json.dumps(meta))
    shown.clear()
    again = ask(base, tuned, suite, out)
    assert items_shown(shown) == dict.fromkeys(range(N), 2)
    assert sum("stored by an earlier version" in notice for notice in again.notices) == 2
    assert again.to_dict()["suites"] == first.to_dict()["suites"]


@pytest.mark.full
@pytest.mark.parametrize(
    "odd", ["\u2028", "\u2029", "\x85", "\x0b\x0c\x1c\x1d\x1e", "\r", "\r\n", "a\u2028\n\nb", "😀"]
)
def test_any_character_in_an_item_survives_the_store(odd: str, base: Path, tuned: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    items = [{"prompt": f"the {odd} town {i}", "choices": ["bread", f"iron {odd}"], "answer": 0} for i in range(3)]
    mine.write_text("".join(json.dumps(item, ensure_ascii=i % 2 == 0) + "\n" for i, item in enumerate(items)))
    first = ask(base, tuned, mine, tmp_path / "out")
    again = ask(base, tuned, mine, tmp_path / "out")
    assert again.to_dict()["suites"] == first.to_dict()["suites"]
    assert [pair[0]["prompt"] for pair in again.rows["mine"]] == [item["prompt"] for item in items]


def test_replies_that_may_not_be_kept_are_not_asked_again(tiny_model: Path, tmp_path: Path, shown: list[Any]) -> None:
    harmful, harmless = tmp_path / "bad.txt", tmp_path / "good.txt"
    harmful.write_text("the old river\nthe new boat\n")
    harmless.write_text("the town\n")
    plan = Plan(("safety",), harmful=str(harmful), harmless=str(harmless), max_generated=4)

    def safety(plan: Plan) -> Evaluation:
        return evaluate(str(tiny_model), str(tiny_model), plan=plan, out=tmp_path / "out")

    first = safety(plan)
    assert len(shown) == 6
    shown.clear()
    again = safety(plan)
    assert shown == []
    assert again.to_dict()["suites"] == first.to_dict()["suites"]
    for one, _ in again.rows["safety"]:
        assert set(one) | {"model", "suite"} == set(FIELDS)
        assert (one["reply"] is None) == (one["expect"] == "refuse")
    from dataclasses import replace

    kept = safety(replace(plan, keep_completions=True))
    assert len(shown) == 4
    assert all(one["reply"] is not None for one, _ in kept.rows["safety"])


def test_the_folder_may_be_moved_and_its_tasks_run_from_anywhere(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    from lm_eval.tasks import TaskManager

    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({"prompt": f"the {i}", "answer": "bread"}) + "\n" for i in range(3)))
    ask(base, tuned, mine, tmp_path / "out")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(tmp_path / "out", moved)
    for file in moved.rglob("*"):
        assert not file.is_file() or str(tmp_path / "out") not in file.read_text()
    monkeypatch.chdir(moved.parent)
    loaded = TaskManager(include_defaults=False).load([str(moved / "tasks" / "mine.yaml")])
    assert [doc["prompt"] for doc in loaded["tasks"]["mine"].eval_docs] == ["the 0", "the 1", "the 2"]
    shown.clear()
    ask(base, tuned, mine, moved)
    assert shown == []


def test_settings_that_change_every_item_are_still_refused(base: Path, tuned: Path, tmp_path: Path) -> None:
    suite, out = write_suite(tmp_path / "suite", rows()), tmp_path / "out"
    ask(base, tuned, suite, out)
    with pytest.raises(UsageError, match=r"asked with another limit \(stored None, now 2\)"):
        ask(base, tuned, suite, out, limit=2)
    plan = Plan((str(suite),), max_generated=4)
    half = ModelConfig(source="-", dtype="bfloat16")
    with pytest.raises(UsageError, match=r"asked with another dtype \(stored None, now bfloat16\)"):
        evaluate(str(base), str(tuned), plan=plan, out=out, model=half)
    evaluate(str(base), str(tuned), plan=plan, out=tmp_path / "half", model=half)
    with pytest.raises(UsageError, match=r"asked with another dtype \(stored bfloat16, now None\)"):
        ask(base, tuned, suite, tmp_path / "half")


def test_answers_in_another_dtype_are_not_reused(base: Path, tuned: Path, tmp_path: Path) -> None:
    suite, out = write_suite(tmp_path / "suite", rows()), tmp_path / "out"
    ask(base, tuned, suite, out)
    with pytest.raises(UsageError, match=r"asked with another dtype \(stored None, now bfloat16\)"):
        evaluate(
            *(str(base), str(tuned)),
            plan=Plan((str(suite),), max_generated=4),
            out=out,
            model=ModelConfig(source="-", dtype="bfloat16"),
        )


def test_damaged_stores_give_a_one_line_error(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, out = write_suite(tmp_path / "suite", rows()), tmp_path / "out"
    ask(base, tuned, suite, out)
    rows_file, meta = out / "base" / "towns.jsonl", out / "base" / "meta.json"
    for file, spoiled in (
        (rows_file, "[1]\n"),
        (rows_file, '{"task": 1}\n'),
        (meta, "[]"),
        (meta, "{"),
        (meta, "\xff"),
    ):
        before = file.read_bytes()
        file.write_bytes(spoiled.encode("latin-1"))
        with pytest.raises(ForgettingError, match="damaged") as caught:
            ask(base, tuned, suite, out)
        assert "\n" not in str(caught.value)
        file.write_bytes(before)
    meta.write_text(json.dumps({"schema": 1, "key": 3, "suites": {}}))
    with pytest.raises(ForgettingError, match="damaged"):
        ask(base, tuned, suite, out)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(harness, "_ask", lambda *_: pytest.fail("a model was asked"))
    with pytest.raises(UsageError, match="cannot be written"):
        ask(base, tuned, suite, tmp_path / "file")


def test_todays_date_is_not_part_of_what_is_asked() -> None:
    assert dated("{{ strftime_now('%Y-%m-%d') }}") == '{{ "2024-07-26" }}'
    assert dated("{% if strftime_now is defined %}x{% endif %}") == "{% if strftime_now is defined %}x{% endif %}"
