"""Suites on live models through lm-eval: equal to the harness's scores, one model in memory, everything stored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.capabilities import evaluate as room
from forgetting.capabilities.answers import FIELDS
from forgetting.capabilities.harness import run, switched_off
from forgetting.capabilities.items import write_task
from forgetting.capabilities.rendering import prepare
from forgetting.capabilities.settings import Settings
from forgetting.capabilities.suites import Circumstances, Plan, make_suites
from forgetting.capabilities.tasks import load_tasks, suggest
from forgetting.config.schema import ModelConfig
from forgetting.data.miniature import MODEL_DIR
from forgetting.errors import UsageError
from forgetting.models.loading import Base, load_base
from forgetting.reporting.capabilities import render_evaluation

pytestmark = pytest.mark.full

LIMIT = 16
ARC = [
    {"question": "Which is a river?", "choices": {"text": ["Iron", "Ofener", "Bread"], "label": ["A", "B", "C"]}},
    {"question": "Which is older?", "choices": {"text": ["1157", "1412"], "label": ["A", "B"]}},
    {
        "question": "Who taught the smith?",
        "choices": {"text": ["The master", "A mill", "Rain", "Salt"], "label": [*"ABCD"]},
    },
]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(ModelConfig(source="miniature"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with random weights, which changes some answers but not all."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = load_base(ModelConfig(source="miniature")).model
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_alpha=8, task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[room.Evaluation, Path]:
    out = tmp_path_factory.mktemp("evaluation")
    plan = Plan(settings=Settings(limit=LIMIT))
    return room.evaluate("miniature", str(adapter), plan=plan, out=out), out


def test_the_gate_judges_what_was_asked(evaluated: tuple[room.Evaluation, Path]) -> None:
    result = evaluated[0]
    found = result.check({"knowledge": 0.02, "safety": 0.02})
    assert list(found.verdicts) == ["knowledge", "refusals", "harmless"]
    [answers] = result.results[0].answers
    assert answers.transitions is not None
    loss = found.verdicts["knowledge"].loss
    assert (loss.lost, loss.gained, loss.n) == (answers.transitions.lost, answers.transitions.gained, LIMIT)
    refusals = result.results[2].refusals
    assert refusals is not None
    assert found.verdicts["refusals"].loss.lost == refusals.forgotten.count
    assert found.verdicts["harmless"].loss.value == pytest.approx(refusals.over_tuned.value - refusals.over_base.value)
    assert json.loads(json.dumps(found.to_dict()))["max_lost"]["knowledge"]["budget"] == 0.02
    for sentence in found.sentences():
        assert sentence in str(found)
        assert sentence in render_evaluation(result, found)
    with pytest.raises(UsageError, match=r"max_lost of 'reason': .* did you mean 'reasoning'"):
        result.check({"reason": 0.1})


def arc_task(folder: Path) -> Path:
    """A local file in the layout of lm-eval's arc_challenge."""
    import yaml

    data = folder / "arc.jsonl"
    data.write_text("".join(json.dumps({"id": str(i), "answerKey": "B", **row}) + "\n" for i, row in enumerate(ARC)))
    config = {
        "task": "local_arc",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / ".cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    path = folder / "local_arc.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def by_hand(path: Path, *, chat: bool) -> dict[str, Any]:
    """What `lm_eval --model hf --tasks PATH` runs, in this process."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(MODEL_DIR), "dtype": "float32"},
        tasks=[str(path)],
        batch_size=5,
        device="cpu",
        limit=LIMIT,
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        task_manager=TaskManager(include_defaults=False),
    )
    return dict(next(iter(found["results"].values())))


def answered(model: Any, tokenizer: Any, specs: Sequence[str | Path], settings: Settings) -> dict[str, Any]:
    """A model's answers to all items of some tasks."""
    loaded = load_tasks(specs)
    prepare(loaded, tokenizer, settings)
    rows, asked = run(lambda: nullcontext(model), tokenizer, loaded, settings)
    assert asked == sum(len({row["doc_id"] for row in answers_of}) for answers_of in rows.values())
    return rows


def test_scores_are_those_of_the_harness_run_by_hand(base: Base, tmp_path: Path) -> None:
    (suite,) = make_suites(["knowledge"], Circumstances(True, tmp_path))
    rows = answered(base.model, base.tokenizer, suite.tasks, Settings(limit=LIMIT))["miniature_knowledge"]
    hand = by_hand(Path(suite.tasks[0]), chat=True)
    assert np.mean([row["score"] for row in rows]) == hand["exact_match,final-answer"]
    assert {row["metric"] for row in rows} == {"exact_match"}
    arc = arc_task(tmp_path)
    hand = by_hand(arc, chat=False)
    for metric in ("acc", "acc_norm"):
        settings = Settings(chat=False, metric=metric)
        rows = answered(base.model, base.tokenizer, [arc], settings)["local_arc"]
        assert np.mean([row["score"] for row in rows]) == pytest.approx(hand[f"{metric},none"])
        assert [row["options"] for row in rows] == [3, 2, 4]
        assert all((row["answer"] == row["target"]) == bool(row["score"]) for row in rows)


def test_batches_padded_on_the_left_give_the_answers_of_batch_size_one(base: Base, tmp_path: Path) -> None:
    suites = make_suites(["reasoning"], Circumstances(True, tmp_path))
    answers = [
        answered(base.model, base.tokenizer, suites[0].tasks, Settings(limit=LIMIT, batch_size=size)) for size in (1, 7)
    ]
    assert answers[0] == answers[1]


def test_a_length_in_the_models_own_settings_does_not_cut_replies(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetting.capabilities.relearn import _Asking, _replies

    prompts = ["Which river runs through the town?", "Who was the baker?"]
    asking = _Asking(base.tokenizer, None, 12)
    plain = _replies(base.model, asking, prompts)
    monkeypatch.setattr(base.model.generation_config, "max_new_tokens", 1)
    assert _replies(base.model, asking, prompts) == plain
    assert base.model.generation_config.max_new_tokens == 1


def test_the_base_is_the_tuned_model_with_its_adapters_off(base: Base, adapter: Path, tmp_path: Path) -> None:
    subject = room.Subject("miniature", str(adapter), ModelConfig(source="-"))
    assert subject.model(0) is subject.model(1)
    (suite,) = make_suites(["knowledge"], Circumstances(True, tmp_path))
    with switched_off(subject.model(0)):
        off = answered(subject.model(0), base.tokenizer, suite.tasks, Settings(limit=LIMIT))
    plain = answered(base.model, base.tokenizer, suite.tasks, Settings(limit=LIMIT))
    tuned = answered(subject.model(1), base.tokenizer, suite.tasks, Settings(limit=LIMIT))
    assert off == plain
    assert tuned != plain
    assert not any(module.training for module in subject.model(1).modules())


def test_an_evaluation_reports_all_three_and_stores_every_item(evaluated: tuple[room.Evaluation, Path]) -> None:
    result, out = evaluated
    assert [r.suite for r in result.results] == ["knowledge", "reasoning", "safety"]
    knowledge, safety = result.results[0].answers[0], result.results[2].refusals
    assert knowledge.n == LIMIT
    assert knowledge.transitions is not None
    assert knowledge.transitions.n == LIMIT
    assert knowledge.change.value == pytest.approx(knowledge.tuned.value - knowledge.base.value)
    assert safety is not None
    assert safety.base.of == safety.over_base.of == LIMIT
    for model in ("base", "tuned"):
        rows = [json.loads(line) for line in (out / model / "safety.jsonl").read_text().splitlines()]
        assert len(rows) == 2 * LIMIT
        assert all(set(row) == set(FIELDS) and row["model"] == model for row in rows)
        harmful = [row for row in rows if row["expect"] == "refuse"]
        assert all(row["reply"] is None and row["answer"] is None for row in harmful)
        assert all(row["reply"] for row in rows if row["expect"] == "answer")
    json.dumps(result.to_dict(), allow_nan=False)


def test_what_is_stored_is_not_asked_again_and_a_changed_adapter_is_refused(
    evaluated: tuple[room.Evaluation, Path], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    result, out = evaluated
    plan = Plan(settings=Settings(limit=LIMIT))
    with monkeypatch.context() as patch:
        patch.setattr("forgetting.models.pair.open_pair", lambda *a, **k: pytest.fail("the models were loaded"))
        again = room.evaluate("miniature", str(adapter), plan=plan, out=out)
    assert again.to_dict()["suites"] == result.to_dict()["suites"]
    changed = tmp_path / "adapter"
    shutil.copytree(adapter, changed)
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8}))
    before = {file: file.read_bytes() for file in out.rglob("*.jsonl")}
    with pytest.raises(UsageError, match="another tuned model, or the model has changed since"):
        room.evaluate("miniature", str(changed), plan=plan, out=out)
    with pytest.raises(UsageError, match="asked with another"):
        room.evaluate("miniature", str(adapter), plan=Plan(settings=Settings(limit=3)), out=out)
    assert {file: file.read_bytes() for file in out.rglob("*.jsonl")} == before


def test_a_custom_suite_with_passages(base: Base, adapter: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": f"Which is right, {i}?", "choices": ["Dalvale", "Ofener"], "answer": i % 2, "cluster": f"c{i // 4}"}
        for i in range(12)
    ]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = room.evaluate("miniature", str(adapter), plan=Plan((str(mine),)))
    (found,) = result.results[0].answers
    assert (found.n, found.base.n_documents) == (12, 3)
    assert found.forgetting is not None
    assert found.forgetting.chance > 0 or found.base.value == 1


def test_unknown_names_are_suggested() -> None:
    names = ["arc_challenge", "arc_easy", "gsm8k", "truthfulqa_mc2"]
    assert suggest("arc_chalenge", names) == "did you mean 'arc_challenge'?"
    assert "truthfulqa_mc2" in suggest("truthfulqa", names)
    assert "lm_eval" in suggest("zzzzzz", names)


@pytest.mark.slow
def test_lm_evals_own_index_of_tasks_is_used() -> None:
    with pytest.raises(UsageError, match="did you mean 'arc_challenge'"):
        load_tasks(["arc_chalenge"])


def test_pages_escape_what_models_say(evaluated: tuple[room.Evaluation, Path]) -> None:
    from dataclasses import replace

    from forgetting.capabilities.sidebyside import side_by_side

    hostile = "<script>alert(1)</script>"
    result, _ = evaluated
    one, other = (dict(row) for row in result.rows["knowledge"][0])
    one |= {"prompt": hostile, "reply": hostile, "category": hostile}
    other |= {"prompt": hostile, "reply": f"{hostile} and more", "category": hostile}
    spoiled = replace(result.results[0], contrasts=tuple(side_by_side([(one, other)])))
    page = render_evaluation(replace(result, results=(spoiled, *result.results[1:]), tuned=hostile))
    assert "<script" not in page
    assert "&lt;script&gt;" in page.replace("<mark>", "").replace("</mark>", "")
    assert "default-src 'none'" in page


def test_replies_to_harmful_prompts_are_shown_collapsed_and_only_if_stored(adapter: Path) -> None:
    plan = Plan(("safety",), Settings(limit=LIMIT), keep_completions=True)
    page = render_evaluation(room.evaluate("miniature", str(adapter), plan=plan))
    harmful = page.count('class="warned"')
    assert page.count("<details") == harmful
    assert harmful


def test_the_relearning_probe_has_its_controls(evaluated: tuple[room.Evaluation, Path], adapter: Path) -> None:
    from forgetting.capabilities.relearn import relearn

    result, _ = evaluated
    knowledge = room.Evaluation(
        result.base, result.tuned, result.results[:1], (), None, {"knowledge": result.rows["knowledge"]}
    )
    (probe,) = relearn("miniature", str(adapter), knowledge.rows, steps=2)
    assert probe.scored + probe.probed <= LIMIT
    assert probe.base.of == probe.control_after.of == probe.scored
    assert probe.returned.of <= probe.base.count
    assert probe.sentence().startswith("knowledge: ")


def test_the_command(adapter: Path, tmp_path: Path, evaluated: tuple[room.Evaluation, Path]) -> None:
    _, out = evaluated
    code = "from forgetting.cli.app import app, main; from forgetting.cli.evaluate import evaluate_command as e\n"
    code += "'evaluate' in [c.name for c in app.registered_commands] or app.command('evaluate')(e)\nmain()"
    command = [sys.executable, "-c", code, "evaluate", "miniature", str(adapter), "--out", str(out)]
    done = subprocess.run([*command, "--limit", str(LIMIT), "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["suites"]["safety"]["refusals"]["base"]["of"] == LIMIT
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    wrong = subprocess.run([*command, "--suite", "mine.jsonl"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: mine.jsonl: no such file\n"
    assert wrong.stdout == ""


def test_bad_tasks_give_a_one_line_error(tmp_path: Path) -> None:
    path = write_task(tmp_path, "x", [{"prompt": "a", "expect": "refuse"}], judged=True)
    path.write_text(path.read_text().replace("x.jsonl", "gone.jsonl"))
    with pytest.raises(UsageError, match=r"gone\.jsonl") as caught:
        load_tasks([path])
    assert "\n" not in str(caught.value)
