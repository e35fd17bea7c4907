"""User-defined tasks: metrics, answers, groups; and errors in one line before any model is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.capabilities import harness, metrics
from forgetting.capabilities.evaluate import Evaluation, evaluate
from forgetting.capabilities.replies import OTHER, answer_of
from forgetting.capabilities.results import Answers, answers_of
from forgetting.capabilities.settings import Settings
from forgetting.capabilities.suites import Plan
from forgetting.errors import ForgettingError, UsageError
from forgetting.reporting.capabilities import render_evaluation

pytestmark = pytest.mark.full

WORDS = ("river", "town", "guild", "baker", "smith", "north")


def write(path: Path, config: dict[str, Any], python: str = "") -> Path:
    """A task's YAML; a value of the form `!function x.y` is written without quotes."""
    path.parent.mkdir(exist_ok=True, parents=True)
    text = yaml.safe_dump(config, sort_keys=False)
    path.write_text(text.replace("'!function ", "!function ").replace(".f'", ".f"))
    if python:
        path.with_name("utils.py").write_text(python)
    return path


def task(folder: Path, rows: list[dict[str, Any]] | None = None, **changed: Any) -> dict[str, Any]:
    """A task of two options over rows of the fields q, opts and gold."""
    folder.mkdir(exist_ok=True, parents=True)
    data = folder / "items.jsonl"
    items = rows or [{"q": f"the {w}", "opts": ["bread", "iron"], "gold": i % 2} for i, w in enumerate(WORDS)]
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": "opts",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return {name: value for name, value in (config | changed).items() if value is not None}


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights, which gives other answers."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("other") / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def ask(base: Path, tuned: Path, *suites: Path | str, include: tuple[str, ...] = (), **settings: Any) -> Evaluation:
    plan = Plan(tuple(map(str, suites)), Settings(chat=False, **settings), max_generated=4, include=include)
    return evaluate(str(base), str(tuned), plan=plan)


def only(result: Evaluation) -> Answers:
    (suite,) = result.results
    (found,) = suite.answers
    return found


class Certain:
    """In place of lm-eval's wrapper: log-likelihoods, 0 for half of the items, as of a model that is certain."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [((0.0, True) if r.doc_id % 2 else (-3.0 - r.doc_id, False)) for r in requests]


LAMBADA: dict[str, Any] = {
    "output_type": "loglikelihood",
    "doc_to_choice": None,
    "doc_to_target": " {{opts[0]}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}


@pytest.mark.parametrize("listed", [True, False])
def test_the_metric_is_one_for_all_items_in_lambadas_order(
    listed: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log-likelihood of 0.0 lies between 0 and 1, and is no score."""
    config = LAMBADA if listed else {**LAMBADA, "metric_list": None}
    suite = write(tmp_path / "mine.yaml", task(tmp_path, **config))
    monkeypatch.setattr(harness, "as_lm", lambda *_: Certain())
    result = ask(tiny_model, tiny_model, suite)
    found = only(result)
    assert (found.metric, found.base.value, found.tuned.value) == ("acc", 0.5, 0.5)
    assert {one["metric"] for one, _ in result.rows["mine"]} == {"acc"}
    assert result.to_dict()["suites"]["mine"]["answers"][0]["metric"] == "acc"
    assert "scored by acc" in render_evaluation(result)


def test_the_same_answer_of_a_log_likelihood_is_that_of_its_target(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write(tmp_path / "mine.yaml", task(tmp_path, **LAMBADA))
    calls = []

    class Wobbling(Certain):
        """The same answers, with log-likelihoods that differ in their last digits; of item 1, another answer."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            calls.append(1)
            found = [(value - 1e-6 * len(calls), greedy) for value, greedy in super().loglikelihood(requests)]
            return found if len(calls) == 1 else [found[0], (-2.0, False), *found[2:]]

    monkeypatch.setattr(harness, "as_lm", lambda *_: Wobbling())
    result = ask(tiny_model, tiny_model, suite)
    found = only(result)
    assert (found.agreement.count, found.agreement.of, found.target_only) == (5, 6, True)
    assert found.transitions is not None
    assert (found.transitions.lost, found.transitions.kept, found.transitions.unchanged) == (1, 2, 3)
    assert [other["answer"] for _, other in result.rows["mine"]] == [OTHER, OTHER, OTHER, " bread", OTHER, " bread"]
    old = {"options": 0, "reply": None, "expect": None}
    assert answer_of({**old, "answer": "(-3.25, False)"}) == answer_of({**old, "answer": OTHER})
    assert answer_of({**old, "answer": "(-1e-05, True)"}) == answer_of({**old, "answer": " bread"})


@pytest.mark.parametrize("higher", [True, False])
def test_metrics_where_lower_is_better_are_supported(
    higher: bool, tiny_model: Path, other: Path, tmp_path: Path
) -> None:
    """A larger error of the tuned model is a loss, not a gain."""
    python = "def f(doc, results):\n    wrong = float(results[0][0] < results[1][0])\n    return {'error': wrong}\n"
    metric = {"metric": "error", "aggregation": "mean", "higher_is_better": higher}
    config = task(tmp_path, metric_list=[metric], process_results="!function utils.f")
    result = ask(tiny_model, other, write(tmp_path / "mine.yaml", config, python))
    found, errors = only(result), [[], []]
    for pair in result.rows["mine"]:
        for side, row in enumerate(pair):
            bread, iron = (value for ((value, _),) in row["responses"])
            errors[side].append(float(bread < iron))
    assert sum(errors[0]) != sum(errors[1])
    change = (sum(errors[1]) - sum(errors[0])) / 6
    assert found.change.value == pytest.approx(change if higher else -change)
    assert found.base.value == pytest.approx(sum(errors[0]) / 6 if higher else 1 - sum(errors[0]) / 6)
    assert (found.metric, found.higher_is_better) == ("error", higher)
    assert found.transitions is not None
    assert (found.transitions.lost > found.transitions.gained) == (found.change.value < 0)
    assert ("1 − error" in render_evaluation(result)) == (not higher)


def test_the_metric_that_is_asked_for_must_be_one_of_single_items(tiny_model: Path, tmp_path: Path) -> None:
    suite = write(tmp_path / "mine.yaml", task(tmp_path, **LAMBADA))
    with pytest.raises(UsageError, match=r"metric 'perplexity' of task mine: it is not computed per item"):
        ask(tiny_model, tiny_model, suite, metric="perplexity")
    with pytest.raises(UsageError, match=r"task mine: no metric 'ac'; did you mean 'acc'"):
        ask(tiny_model, tiny_model, suite, metric="ac")
    f1 = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    with pytest.raises(UsageError, match=r"no metric per item between 0 and 1 \(it has f1\)"):
        ask(tiny_model, tiny_model, write(tmp_path / "mine.yaml", task(tmp_path, metric_list=f1)))


def test_the_value_of_every_item_decides_and_not_the_first() -> None:
    class Task:
        def aggregation(self) -> dict[str, Any]:
            return {"bleu_max": sum, "bleu_acc": sum}

        def higher_is_better(self) -> dict[str, Any]:
            return {}

    samples = [
        {"doc_id": i, "metrics": ["bleu_max", "bleu_acc"], "bleu_max": value, "bleu_acc": 1}
        for i, value in enumerate((0.0, 1.0, 34.2))
    ]
    assert metrics.choose("x", Task(), samples, None) == metrics.Metric("bleu_acc", higher_is_better=True)
    with pytest.raises(UsageError, match=r"the value of item 2 is 34\.2"):
        metrics.choose("x", Task(), samples, "bleu_max")
    assert metrics.choose("x", Task(), samples[:2], None) == metrics.Metric("bleu_max", higher_is_better=True)
    samples[1]["metrics"] = ["bleu_acc"]
    with pytest.raises(UsageError, match="the value of item 1 is nothing"):
        metrics.choose("x", Task(), samples[:2], "bleu_max")


def stored(score: float, answer: str, **fields: Any) -> dict[str, Any]:
    row = {"group": "g", "task": "t", "filter": "none", "metric": "exact_match", "options": 0, "category": "c"}
    row |= {"cluster": "", "expect": None, "target": ["Paris"], "answer": answer, "reply": answer, "score": score}
    return row | fields


def test_models_scored_by_different_metrics_are_not_compared() -> None:
    rows = [(stored(1, "Paris"), stored(1, "Paris", metric="f1"))]
    with pytest.raises(
        UsageError, match=r"scored by exact_match, the tuned model's by f1; choose one with metric \(--metric\)"
    ):
        answers_of(rows)
    mixed = [(stored(1, "x"), stored(1, "x")), *[(stored(1, "x", task="u", metric="acc"),) * 2]]
    assert [(a.name, a.metric) for a in answers_of(mixed)] == [("g, exact_match", "exact_match"), ("g, acc", "acc")]


def test_replies_that_begin_with_the_right_answer_and_run_on_are_not_lost() -> None:
    right, on, wrong = stored(1, "Paris"), stored(0, "Paris. The capital of France"), stored(0, "Lyon")
    pairs = [(right, right), (right, on), (right, on), (right, wrong), (on, right), (wrong, right), (wrong, on)]
    (found,) = answers_of(pairs)
    t = found.transitions
    assert t is not None
    assert (t.kept, t.lost, t.runs_on, t.gained, t.ran_on, t.changed, t.n) == (1, 1, 2, 1, 1, 1, 7)
    assert found.lost_of_right is not None
    assert (found.lost_of_right.count, found.lost_of_right.of) == (1, 4)
    assert found.forgetting is not None
    assert found.forgetting.raw == pytest.approx(1 / 7)
    assert found.change.value == pytest.approx(-1 / 7)
    assert found.p == 1


def test_running_on_is_shown_in_the_table_the_page_and_the_json(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from forgetting.cli.printing import print_shown

    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({"prompt": f"the {w}", "answer": "Paris"}) + "\n" for w in WORDS))
    replies = iter(["Paris", "Paris. The capital of France"])

    class Talking:
        def generate_until(self, requests: list[Any]) -> list[str]:
            return [next(replies)] * len(requests)

    monkeypatch.setattr(harness, "as_lm", lambda *_: Talking())
    result = ask(tiny_model, tiny_model, mine)
    counts = result.to_dict()["suites"]["mine"]["answers"][0]["transitions"]
    assert (counts["runs_on"], counts["lost"]) == (6, 0)
    page = render_evaluation(result)
    assert "6 right but running on" in page
    assert "right, but it runs on" in page
    print_shown(result.shown())
    output = capsys.readouterr().out
    assert "runs on" in output
    assert "exact_match" in output
    assert "6 replies begin with the right answer and run on" in output


@pytest.mark.full
@pytest.mark.slow
def test_a_group_file_finds_its_tasks_beside_it_and_along_the_include_path(
    tiny_model: Path, other: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here / "one.yaml", task(here / "one", task="one"))
    write(there / "two.yaml", task(there / "two", task="two"))
    group = write(here / "both.yaml", {"group": "both", "task": ["one", "two"]})
    with pytest.raises(UsageError, match=r"names the task 'two', which is neither lm-eval's nor in .*--include-path"):
        ask(tiny_model, other, group)
    result = ask(tiny_model, other, group, include=(str(there),))
    assert (only(result).name, only(result).n) == ("both", 12)
    by_name = ask(tiny_model, other, "two", include=(str(there),))
    assert only(by_name).n == 6
    inside = write(here / "inside.yaml", {"group": "inside", "task": [task(here / "one", task="alone"), "one"]})
    assert only(ask(tiny_model, other, inside)).n == 12
    with pytest.raises(UsageError, match="no such folder"):
        ask(tiny_model, other, "two", include=(str(tmp_path / "gone"),))


def test_a_saved_head_on_a_tied_base_is_the_one_that_answers(tiny_model: Path, tmp_path: Path) -> None:
    """The head that was saved with the adapter answers; lm-eval's wrapper would tie it to the embedding."""
    import torch
    from peft import LoraConfig, get_peft_model

    from forgetting.config.schema import ModelConfig
    from forgetting.models.loading import load_base

    torch.manual_seed(0)
    loaded = load_base(ModelConfig(source=str(tiny_model)))
    tuned = get_peft_model(
        loaded.model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    )
    for name, parameter in tuned.named_parameters():
        if "lm_head" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(tmp_path / "adapter")
    suite = write(tmp_path / "mine.yaml", task(tmp_path))
    result = ask(tiny_model, tmp_path / "adapter", suite)
    for one, changed in result.rows["mine"]:
        expected = []
        for option in ("bread", "iron"):
            ids = loaded.tokenizer(f"{one['prompt']} {option}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                expected.append(float(tuned(ids).logits.log_softmax(-1)[0, -2, ids[0, -1]]))
        assert [value for ((value, _),) in changed["responses"]] == pytest.approx(expected, abs=1e-4)
        assert one["responses"] != changed["responses"]
    plain = ask(tiny_model, tiny_model, suite)
    assert [one["responses"] for one, _ in result.rows["mine"]] == [one["responses"] for one, _ in plain.rows["mine"]]


ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_target": "q", "metric_list": None}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("rolling", ROLLING, r"task mine: measures the loss on running text.*forgetting measure"),
    ("field", {"doc_to_text": "{{question}}"}, r"a template uses a field that the item lacks: 'question' is undefined"),
    ("syntax", {"doc_to_text": "{{q"}, r"a template is malformed"),
    ("no text", {"doc_to_text": None}, r"no field 'doc_to_text'"),
    ("no target", {"doc_to_target": None}, r"no field 'doc_to_target'"),
    ("unknown field", {"doc_to_txt": "q"}, r"no field 'doc_to_txt'; did you mean 'doc_to_text'"),
    ("type", {"output_type": "multiple"}, r"invalid output_type 'multiple'"),
    ("number", {"doc_to_text": 5}, r"no item's target is one of its options \(item 0: 5"),
    ("split", {"test_split": "train"}, r"train"),
    ("no split", {"test_split": None}, r"must have valid or test docs"),
    ("data", {"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, r"gone\.jsonl.*current folder"),
    ("aggregation", {"metric_list": [{"metric": "acc", "aggregation": "meen"}]}, r"no such aggregation; use mean"),
    ("metric list", {"metric_list": [{"aggregation": "mean"}]}, r"metric_list\[0\]: got .* with `metric`"),
    ("metrics", {"metric_list": "acc"}, r"metric_list: got 'acc'; give a list of metrics"),
    ("better", {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": "yes"}]}, "true or false"),
    ("filter", {"filter_list": [{"name": "x", "filter": [{"function": "nothing"}]}]}, "Unknown filter 'nothing'"),
    ("filters", {"filter_list": [{"name": "x"}]}, r"filter_list\[0\]: got .*`function`"),
    ("metric", {"metric_list": [{"metric": "nothing_x"}]}, "a metric is unknown to lm-eval"),
    ("delimiter", {"target_delimiter": 5}, "target_delimiter: got 5; give a string"),
    ("until", {"generation_kwargs": {"until": 5}}, "generation_kwargs.until: got 5"),
    ("tokens", {"generation_kwargs": {"max_gen_toks": "x"}}, "generation_kwargs.max_gen_toks: got 'x'"),
    ("dataset name", {"dataset_path": 7}, "dataset_path: got 7; give a string"),
    ("no dataset", {"dataset_path": None}, "no field 'dataset_path'"),
    ("shots", {"num_fewshot": 50}, "it has fewer examples than `num_fewshot`"),
    ("python", {"doc_to_text": "!function gone.f"}, r"Cannot import module 'gone'"),
    ("function", {"doc_to_text": "!function utils.g"}, "g"),
    ("raises", {"doc_to_text": "!function utils.f"}, r"no field or name 'nothing' \(utils\.py, line 2\)"),
    ("choices", {"doc_to_choice": "{{opts[0]}}"}, "a template gives text instead of a list or a number"),
    ("gold", {"doc_to_target": "{{q}}"}, "no item's target is one of its options"),
    ("include", {"include": "gone.yaml"}, r"gone\.yaml: no such file"),
    ("task", {"task": ["a", "b"]}, r"task: got a list"),
    ("no task", {"task": None}, r"task: got nothing"),
    ("fewshot", {"num_fewshot": "three"}, "num_fewshot: got 'three'; give a number of examples"),
    ("kwargs", {"dataset_kwargs": {"data_files": 5}}, "cannot load it"),
    (
        "dataset",
        {"dataset_path": "nobody-9/nothing-9", "dataset_kwargs": None},
        "cannot be loaded: .*--suite mine.jsonl",
    ),
    ("images", {"doc_to_image": "q"}, "pictures or sound"),
    ("code", {"unsafe_code": True}, "runs code written by the models"),
]


@pytest.mark.parametrize(("config", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_task_is_one_line_before_any_model_is_asked(
    config: dict[str, Any], says: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = "def f(doc):\n    return doc['nothing']\n"
    suite = write(tmp_path / "mine.yaml", task(tmp_path, **config), python)
    good = write(tmp_path / "good.yaml", task(tmp_path / "good", task="good"))
    monkeypatch.setattr("forgetting.models.pair.open_pair", lambda *_, **__: pytest.fail("the models were loaded"))
    with pytest.raises(ForgettingError, match=says) as caught:
        ask(tiny_model, tiny_model, good, suite)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "got nothing"),
        ("- a\n- b\n", "got a list"),
        ("task: [a\n", r"line 2: not YAML"),
        ("\ttask: a", "not YAML"),
        ("task: a\ntask: !!python/object:os.system {}\n", "not YAML|constructor"),
        ("task: \x00", "not YAML"),
        ("group: g\n", "a group needs the list of its tasks"),
        ("group: g\ntask: []\n", "a group without tasks"),
        ("group: g\ntask: [5]\n", "cannot load it"),
        ("include: mine.yaml\ntask: a\n", "cannot load it"),
    ],
)
def test_a_file_that_is_not_a_task_gives_a_one_line_error(
    text: str, says: str, tiny_model: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        ask(tiny_model, tiny_model, suite)
    assert "\n" not in str(caught.value)
    suite.write_bytes(b"task: \xff\xfe\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        ask(tiny_model, tiny_model, suite)


def test_a_column_named_as_one_of_ours_is_the_tasks_own(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    rows = [
        {"q": f"the {w}", "opts": ["bread", "iron"], "gold": 0, "expect": i, "prompt": w} for i, w in enumerate(WORDS)
    ]
    result = ask(tiny_model, other, write(tmp_path / "mine.yaml", task(tmp_path, rows)))
    assert only(result).n == 6
    assert {one["expect"] for one, _ in result.rows["mine"]} == {None}


def test_the_field_of_the_passage_must_be_there(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    rows = [{"q": f"the {w}", "opts": ["bread", "iron"], "gold": 0, "page": i // 3} for i, w in enumerate(WORDS)]
    suite = write(tmp_path / "mine.yaml", task(tmp_path, rows))
    assert only(ask(tiny_model, other, suite, cluster_by="page")).base.n_documents == 2
    with pytest.raises(UsageError, match=r"the items of task mine have no field 'pag'; did you mean 'page'"):
        ask(tiny_model, other, suite, cluster_by="pag")


def test_an_item_is_not_among_its_own_examples(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({"prompt": f"the {w}", "answer": "bread"}) + "\n" for w in WORDS[:4]))
    seen: list[Any] = []

    class Silent:
        def generate_until(self, requests: list[Any]) -> list[str]:
            seen.extend(requests)
            return ["x"] * len(requests)

    monkeypatch.setattr(harness, "as_lm", lambda *_: Silent())
    ask(tiny_model, tiny_model, mine, fewshot=3)
    for request in seen:
        assert request.args[0].count(request.doc["prompt"]) == 1
        assert request.args[0].count("bread") == 3


def test_changed_python_of_process_docs_is_not_taken_from_a_cache(
    tiny_model: Path, other: Path, tmp_path: Path
) -> None:
    """In one process and within a second, as in a notebook."""
    config = task(tmp_path, process_docs="!function utils.f")
    displayed = []
    for word in ("the", "old"):
        python = (
            f"def one(doc):\n    return {{'q': '{word} ' + doc['q']}}\n\n\ndef f(docs):\n    return docs.map(one)\n"
        )
        result = ask(tiny_model, other, write(tmp_path / "mine.yaml", config, python))
        displayed.append(result.rows["mine"][0][0]["prompt"])
    assert displayed == ["the the river", "old the river"]
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_later_item_that_fails_is_named(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"q": f"the {w}", "opts": ["bread", "iron"], "gold": 0, "n": i} for i, w in enumerate(WORDS)]
    suite = write(tmp_path / "mine.yaml", task(tmp_path, rows, doc_to_text="{{ 12 // (n - 4) }} is"))
    with pytest.raises(UsageError, match=r"task mine, item 4: cannot be rendered: .*zero"):
        ask(tiny_model, tiny_model, suite)
    python = "def f(doc, results):\n    return {'acc': 1 / (doc['n'] - 3) ** 2}\n"
    suite = write(tmp_path / "mine.yaml", task(tmp_path, rows, process_results="!function utils.f"), python)
    with pytest.raises(UsageError, match=r"task mine, item 3: cannot be scored: .*zero.*\(utils\.py, line 2\)"):
        ask(tiny_model, tiny_model, suite)


def test_a_chat_template_that_raises_gives_a_one_line_error(tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    suite = write(tmp_path / "mine.yaml", task(tmp_path))
    for template in ("{{ raise_exception('no') }}", "{{ messages[9]['content'] + 1 }}", "{% for", "{{ 1 / 0 }}"):
        (base / "chat_template.jinja").write_text(template)
        with pytest.raises(UsageError, match=r"chat template: it cannot render.*--no-chat") as caught:
            evaluate(str(base), str(base), plan=Plan((str(suite),)))
        assert "\n" not in str(caught.value)


def test_outputs_that_are_not_finite_are_no_answers(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    model.save_pretrained(folder)
    with pytest.raises(ForgettingError, match=r"item 0: the model's log-likelihood is nan"):
        ask(tiny_model, folder, write(tmp_path / "mine.yaml", task(tmp_path)))
