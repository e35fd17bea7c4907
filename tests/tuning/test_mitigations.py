"""Mitigations with adapters and full fine-tuning: each follows its formula, and at weight zero does nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GPTNeoXConfig

from forgetting.config.schema import ModelConfig, RunConfig, StudyConfig, validate
from forgetting.data.windows import Windows, training_order
from forgetting.errors import ForgettingError
from forgetting.models.loading import load_base
from forgetting.store.table import fitted_rows
from forgetting.studies.engines import Local
from forgetting.studies.inputs import StudyInputs
from forgetting.studies.study import study
from forgetting.tuning.grid import expand_runs
from forgetting.tuning.methods import METHODS, Context
from forgetting.tuning.mitigations import MITIGATIONS, Course, Situation, parse_together, plan_course
from forgetting.tuning.mitigations.base_pass import BasePass, copy_held, own_positions
from forgetting.tuning.mitigations.divergence import divergence
from forgetting.tuning.mitigations.ewc import diagonal_fisher
from forgetting.tuning.mitigations.flow import Weighting, easy_weights
from forgetting.tuning.mitigations.freeze_layers import FreezeLayers
from forgetting.tuning.mitigations.l2sp import WeightPenalty
from forgetting.tuning.mitigations.replay import replayed
from forgetting.tuning.mitigations.weights import weight_changes

STEPS, BATCH = 8, 4
LOSSES = ["finetune_loss", "forgetting_loss", "data_loss_tuned", "agreement"]


def configure(tiny_model: Path, corpora: Path, **changes: Any) -> StudyConfig:
    fields = {
        "model": {"source": str(tiny_model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"chat": {"source": str(corpora / "chat.jsonl"), "heldout": 0.2}},
        "methods": [{"name": "lora", "rank": 4}],
        "context": 16,
        "training": {"steps": STEPS, "batch_size": BATCH, "warmup_steps": 1, "learning_rate": 1e-2},
        "measure": {"start": 4, "every": 4},
    }
    return validate({**fields, **changes}, where="test")


def rows(corpora: Path) -> list[dict[str, Any]]:
    """One row per mitigation; a new one is one file and one row here."""
    text = {"source": str(corpora / "train.jsonl")}
    return [
        {"name": "replay", "fraction": 0.25, "text": text},
        {"name": "kl", "weight": 50.0, "on": "both", "text": text},
        {"name": "l2sp", "weight": 5.0},
        {"name": "ewc", "weight": 500.0, "text": text, "windows": 16},
        {"name": "budget", "budget": 0.05, "text": text},
        {"name": "token_masking", "threshold": 28.0},
        {"name": "flow", "temperature": 0.02},
        {"name": "learning_rate", "factor": 0.2},
        {"name": "freeze_layers", "layers": 1},
        {"name": "weight_decay", "value": 5.0},
        {"name": "dropout", "rate": 0.5},
        {"name": "interpolation", "alphas": [0.0, 0.5, 1.0]},
    ]


def last(table: pd.DataFrame, name: str, method: str = "lora") -> pd.Series:
    """The trained model's row in a mitigation's run, or in the plain run for an empty name."""
    rows = table[(table["label"] == method) & (table["mitigation"].str.split().str[0].fillna("") == name)]
    return rows[(rows["step"] == STEPS) & rows["alpha"].isna()].iloc[0]


@pytest.fixture(scope="module")
def studied(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every mitigation and the plain run, with LoRA and, if supported, full fine-tuning."""
    together = rows(corpora)
    plain = [{"name": "lora", "rank": 4}, {"name": "full"}]
    methods = [
        *plain,
        {**plain[0], "mitigations": together},
        {**plain[1], "mitigations": [row for row in together if row["name"] != "dropout"]},
    ]
    config = configure(tiny_model, corpora, methods=methods)
    return study(config, tmp_path_factory.mktemp("mitigations") / "s", engine=Local(1))


def test_every_mitigation_has_a_row(corpora: Path) -> None:
    assert [row["name"] for row in rows(corpora)] == list(MITIGATIONS)


@pytest.mark.full
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", sorted(MITIGATIONS))
def test_mitigation_contract(name: str, method: str, studied: Any) -> None:
    table = studied.table
    assert not studied.failed
    if (name, method) == ("dropout", "full"):
        return
    rows = table[(table["label"] == method) & table["mitigation"].str.startswith(name)]
    start = rows[rows["step"] == 0].iloc[0]
    assert start["forgetting"] == 0.0, "it starts at the base model"
    with_it, without = last(table, name, method), last(table, "", method)
    assert with_it["finetune_loss"] != start["finetune_loss"], "it trains"
    if name == "interpolation":
        assert with_it[LOSSES].tolist() == without[LOSSES].tolist(), "training is the plain run's"
    else:
        assert with_it["finetune_loss"] != without["finetune_loss"]
    assert with_it["peak_memory"] > 1, "its cost in memory is reported"
    if name in ("kl", "l2sp", "ewc", "learning_rate"):
        assert with_it["forgetting"] < without["forgetting"], "it holds forgetting back"


@pytest.mark.full
def test_costs_and_what_was_done_are_recorded(studied: Any) -> None:
    records = {run.id: run.read() for run in studied.folder.runs()}
    done = {r["mitigation"].split()[0]: r for r in records.values() if r["mitigation"] and r["label"] == "lora"}
    assert done["ewc"]["mitigated"]["prepare_seconds"] > 0
    assert done["replay"]["mitigated"]["replay"]["windows"] == STEPS
    assert 0.3 < done["token_masking"]["mitigated"]["token_masking"]["kept"] < 1
    assert done["kl"]["mitigated"]["kl"]["frozen_copy"] is False
    full = next(r for r in records.values() if r["label"] == "full" and r["mitigation"].startswith("kl"))
    assert full["mitigated"]["kl"]["frozen_copy"] is True
    assert all(r["peak_memory"] > 1 for r in records.values())
    plain = next(r for r in records.values() if not r["mitigation"] and r["label"] == "lora")
    assert plain["mitigated"] == {}


@pytest.mark.full
@pytest.mark.parametrize("method", [{"name": "lora", "rank": 4, "dropout": 0.1}, {"name": "full"}, {"name": "pissa"}])
def test_weight_zero_equals_plain_training(
    method: dict[str, Any], tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    kl = {"name": "kl", "on": "both", "text": {"source": str(corpora / "train.jsonl")}}
    weightless = [{**each, "weight": 0} for each in (kl, {**kl, "direction": "reverse"}, {"name": "l2sp"})]
    # accumulated: terms are added once an update step, at the end of it
    training = {"steps": STEPS, "batch_size": BATCH, "micro_batch_size": 2, "warmup_steps": 1, "learning_rate": 1e-2}
    config = configure(tiny_model, corpora, methods=[method, {**method, "mitigations": weightless}], training=training)
    table = study(config, tmp_path / "s", engine=Local(1)).table
    losses = {name: rows[LOSSES].to_numpy() for name, rows in table.groupby("mitigation")}
    assert len(losses) == 1 + len(weightless)
    for name, rows in losses.items():
        if name.startswith("kl"):  # all logits are made for it: the model's own loss, which differs by rounding
            np.testing.assert_allclose(rows, losses[""], rtol=1e-5, atol=1e-6)
        else:
            assert rows.tolist() == losses[""].tolist(), name
    assert (table.loc[table["step"] > 0, "forgetting"] != 0).all()


# options, and a change of them; {0} and {1} are two general texts
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "replay", "fraction": 0.25, "text": 0}, {"fraction": 0.5}),
    ({"name": "replay", "fraction": 0.25, "text": 0}, {"text": 1}),
    ({"name": "replay", "fraction": 0.25, "text": 0}, {"text": None, "generated": True}),
    ({"name": "kl", "text": 0}, {"weight": 3.0}),
    ({"name": "kl", "text": 0}, {"text": 1}),
    ({"name": "kl", "text": 0}, {"on": "both"}),
    ({"name": "kl", "text": 0, "on": "both"}, {"on": "task", "text": None}),
    ({"name": "kl", "text": 0, "weight": 3.0}, {"direction": "reverse"}),
    ({"name": "kl", "text": 0}, {"windows": 2}),
    ({"name": "l2sp"}, {"weight": 3.0}),
    ({"name": "ewc", "text": 0, "windows": 8, "weight": 100.0}, {"weight": 300.0}),
    ({"name": "ewc", "text": 0, "windows": 8, "weight": 100.0}, {"windows": 4}),
    ({"name": "ewc", "text": 0, "windows": 8, "weight": 100.0}, {"text": 1}),
    ({"name": "budget", "text": 0}, {"text": 1}),
    ({"name": "budget", "text": 0}, {"windows": 2}),
    ({"name": "token_masking", "threshold": 28.0}, {"threshold": 26.0}),
    ({"name": "flow"}, {"temperature": 0.02}),
    ({"name": "learning_rate"}, {"factor": 0.2}),
    ({"name": "weight_decay"}, {"value": 3.0}),
    ({"name": "dropout"}, {"rate": 0.3}),
]


@pytest.mark.slow
def test_every_option_changes_the_result(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    texts = [corpora / "train.jsonl", shortened(corpora / "train.jsonl", tmp_path / "short.jsonl")]

    def resolved(options: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in options.items() if value is not None}
        return kept | ({"text": {"source": str(texts[kept["text"]])}} if "text" in kept else {})

    requested = [resolved(options) for pair in CHANGES for options in (pair[0], {**pair[0], **pair[1]})]
    distinct = [options for i, options in enumerate(requested) if options not in requested[:i]]
    methods = [{"name": "lora", "rank": 4, "mitigations": distinct}]
    config = configure(tiny_model, corpora, methods=methods)
    table = study(config, tmp_path / "s", engine=Local(1)).table
    ends = table[table["step"] == STEPS].set_index("run_id")["finetune_loss"]
    losses = [float(ends[run.run_id()]) for run in expand_runs(config)]
    for number, (options, change) in enumerate(CHANGES):
        one, other = (losses[distinct.index(requested[2 * number + side])] for side in (0, 1))
        assert one != other, (options, change)
    tested = {(options["name"], key) for options, change in CHANGES for key in change}
    every = {(name, key) for name, kind in MITIGATIONS.items() for key in kind.model_fields}
    own = {("interpolation", "alphas"), ("freeze_layers", "layers"), ("budget", "budget"), ("budget", "tokens")}
    assert every - tested == own, "those have tests of their own"


def test_budget_steers_to_its_budget_by_a_sample_of_the_measured_text(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    options = {"name": "budget", "budget": 0.07, "tokens": 100, "text": {"source": str(corpora / "train.jsonl")}}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [options]}])
    at, _, _ = situation(config, tmp_path)
    (mitigation,) = parse_together(at.run)
    term: Any = mitigation.term(at)
    assert term.steering.budget == 0.07
    assert term.steering.steps == STEPS
    assert term.sample[0].n_predicted < 120 < term.whole[0].n_predicted
    assert set(term.sample[0].document_ids) <= set(term.whole[0].document_ids)
    assert not mitigation.lengthens()
    term.load(json.loads(json.dumps(term.state())))


def shortened(source: Path, path: Path) -> Path:
    path.write_text("".join(source.read_text().splitlines(keepends=True)[:20]))
    return path


# ---- replay


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.25, 1 / 3, 0.9])
def test_replayed_share_is_the_share_asked_for_at_every_point_of_the_run(fraction: float) -> None:
    chosen = replayed(2688, fraction)
    counts = np.cumsum(chosen)
    asked = np.arange(1, 2689) * fraction
    assert np.abs(counts - asked).max() <= 0.5 + 1e-9
    assert abs(chosen.mean() - fraction) <= 0.5 / 2688


def situation(config: StudyConfig, tmp_path: Path, index: int = 0) -> tuple[Situation, Course, Context]:
    inputs = StudyInputs(config)
    run = list(inputs.runs.values())[index]
    base = inputs.base()
    train, _ = inputs.dataset(run.dataset_name)
    order = training_order(len(train), STEPS * BATCH, run.seed)
    at = Situation(run, base, inputs.general, tmp_path / "cache")
    return at, Course(train, order, np.ones(len(train))), inputs.context(run)


def planned(config: StudyConfig, tmp_path: Path) -> tuple[Course, Course, Situation]:
    at, plain, _ = situation(config, tmp_path)
    course, _ = plan_course(parse_together(at.run), plain, at)
    return plain, course, at


def test_replay_keeps_the_order_of_the_task_and_sees_the_share_in_its_batches(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    replay = {"name": "replay", "fraction": 0.25, "text": {"source": str(corpora / "train.jsonl")}}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [replay]}])
    plain, course, at = planned(config, tmp_path)
    general = course.order >= len(plain.windows)
    assert general.mean() == 0.25
    assert general.reshape(STEPS, BATCH).sum(1).tolist() == [1] * STEPS
    assert course.order[~general].tolist() == plain.order[: (~general).sum()].tolist()
    ids = [course.windows.window(int(i))[0].tolist() for i in course.order[general]]
    mixed, _ = StudyInputs(
        configure(tiny_model, corpora, datasets={"x": {"source": str(corpora / "train.jsonl"), "heldout": 0.01}})
    ).dataset("x")
    known = {tuple(mixed.window(i)[0].tolist()) for i in range(len(mixed))}
    assert sum(tuple(row) in known for row in ids) >= len(ids) - 1  # except for the one document held out here
    assert at.facts["replay"]["tokens"] == sum(map(len, ids))


def test_generated_replay_is_sampled_from_the_base_model_seeded_and_cached(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    replay = {"name": "replay", "fraction": 0.5, "generated": True}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [replay]}], seeds=[0, 1])
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    plain, course, at = planned(config, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before), "training draws the same numbers as without it"
    _, again, _ = planned(config, tmp_path)
    _, elsewhere, _ = planned(config, tmp_path / "elsewhere")
    assert course.windows.fingerprint() == again.windows.fingerprint() == elsewhere.windows.fingerprint()
    at, _, _ = situation(config, tmp_path, index=1)
    other, _ = plan_course(parse_together(at.run), plain, at)
    assert other.windows.fingerprint() != course.windows.fingerprint()
    written = [course.windows.window(i) for i in range(len(plain.windows), len(course.windows))]
    assert len(written) == STEPS * BATCH // 2
    for ids, predicted in written:
        assert ids[0] == 2, "begins with the end-of-text token"
        assert 2 <= len(ids) <= 16
        assert predicted.tolist() == [False] + [True] * (len(ids) - 1)
        assert 2 not in ids[1:-1], "nothing after its end"


def test_generated_replay_ignores_the_models_own_generation_settings(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    """A repetition penalty, as Qwen's instruct models have, would not sample from the model's distribution."""
    replay = {"name": "replay", "fraction": 0.5, "generated": True}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [replay]}])
    _, course, _ = planned(config, tmp_path / "a")
    at, plain, _ = situation(config, tmp_path / "b")
    at.base.model.generation_config.repetition_penalty = 2.0
    with_penalty, _ = plan_course(parse_together(at.run), plain, at)
    assert with_penalty.windows.fingerprint() == course.windows.fingerprint()
    assert at.base.model.generation_config.repetition_penalty == 2.0


@pytest.mark.full
def test_a_text_that_changed_since_a_run_started_stops_it(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    text = tmp_path / "general.jsonl"
    text.write_text((corpora / "train.jsonl").read_text())
    replay = {"name": "replay", "fraction": 0.25, "text": {"source": str(text)}}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [replay]}])
    folder = study(config, tmp_path / "s", engine=Local(1)).folder
    folder.runs()[0].update(status="running")
    shortened(corpora / "train.jsonl", text)
    with pytest.raises(ForgettingError, match="the text of replay changed since this run started"):
        study(config, tmp_path / "s", engine=Local(1))


# ---- kl


def test_divergences_equal_the_slow_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    base, tuned = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([[-100, 1, 2, -100, 3], [-100, -100, 4, 5, 6]])
    directions: tuple[Literal["forward"], Literal["reverse"]] = ("forward", "reverse")
    for direction in directions:
        expected = 0.0
        for b in range(2):
            for t in range(1, 5):
                if labels[b, t] != -100:
                    p, q = base[b, t - 1].double().softmax(-1), tuned[b, t - 1].double().softmax(-1)
                    p, q = (p, q) if direction == "forward" else (q, p)
                    expected += float((p * (p / q).log()).sum())
        assert float(divergence(base, tuned, labels, direction)) == pytest.approx(expected, rel=1e-6)


def started(config: Any, folder: Path) -> tuple[Any, BasePass, Any, torch.Tensor, torch.Tensor]:
    """A prepared run, its base pass, its model, token ids, and the base model's logits of them."""
    at, _, context = situation(config, folder)
    ids = torch.arange(7, 23).reshape(2, 8)
    with torch.no_grad():
        expected = at.base.model(input_ids=ids).logits
    base = BasePass(at)
    model = METHODS.parse(at.run.method).prepare(at.base.model, context)
    base.start(model)
    return at.run, base, model, ids, expected


@pytest.mark.parametrize(("method", "copied"), [("lora", False), ("full", True), ("pissa", True), ("ia3", False)])
def test_the_base_pass_is_the_base_model_whatever_was_trained(
    method: str, copied: bool, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    config = configure(tiny_model, corpora, methods=[{"name": method}])
    _, base, model, ids, expected = started(config, tmp_path)
    assert base.copied is copied
    flags = [p.requires_grad for p in model.parameters()]
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    torch.testing.assert_close(base.logits(model, ids, None), expected, rtol=1e-5, atol=1e-5)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.training
    assert not torch.allclose(own_positions(model(input_ids=ids).logits, ids), expected, atol=1e-3)


def test_kl_on_the_task_leaves_out_the_virtual_tokens_of_a_prompt(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    prompt = {"name": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}}
    kl = {"name": "kl", "on": "task", "weight": 3.0}
    config = configure(tiny_model, corpora, methods=[{**prompt, "mitigations": [kl]}])
    at, _, context = situation(config, tmp_path)
    term: Any = parse_together(at.run)[0].term(at)
    ids = torch.arange(7, 23).reshape(2, 8)
    base = at.base.model(input_ids=ids).logits
    model: Any = METHODS.parse(at.run.method).prepare(at.base.model, context)
    term.start(model)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    logits = model(input_ids=ids).logits
    expected = 3 * divergence(base, logits[:, 2:], ids, "forward") / 14
    torch.testing.assert_close(term.on_batch(model, batch, logits, 14), expected)


def test_the_base_pass_is_the_base_model_when_its_biases_train_beside_an_adapter(
    models: dict[str, Path], corpora: Path, tmp_path: Path
) -> None:
    """With the adapter off, the base model's own biases stay as trained."""
    lora = {"name": "peft", "config": {"peft_type": "LORA", "target_modules": ["c_attn"], "bias": "all"}}
    data = {"x": {"source": str(corpora / "train.jsonl"), "heldout": 0.2}}
    config = configure(models["gpt2"], corpora, methods=[lora], datasets=data)
    run, base, model, ids, expected = started(config, tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    assert base.copied
    torch.testing.assert_close(base.logits(model, ids, None), expected)
    assert copy_held(run, model, 7) == 7


# ---- l2sp and ewc


def test_ewc_knows_the_importance_of_a_tied_head(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    """The Fisher information of a tied weight is stored under its first name, that of the embeddings."""
    ewc = {"name": "ewc", "text": {"source": str(corpora / "train.jsonl")}, "windows": 2}
    lora = {"name": "lora", "rank": 2, "alpha": 2, "target_modules": ["lm_head"], "mitigations": [ewc]}
    at, _, context = situation(configure(tiny_model, corpora, methods=[lora]), tmp_path)
    term: Any = parse_together(at.run)[0].term(at)
    model: Any = METHODS.parse(at.run.method).prepare(at.base.model, context)
    term.start(model)
    a, b = (model.get_parameter(f"base_model.model.lm_head.lora_{x}.default.weight") for x in "AB")
    torch.nn.init.ones_(b)
    term.on_step(model, 0)
    twin = b.detach().clone().requires_grad_()
    (0.5 * (term.importance["model.embed_tokens.weight"] * (2**0.5 * twin @ a.detach()) ** 2).sum()).backward()
    torch.testing.assert_close(b.grad, twin.grad)


def test_penalties_have_the_gradient_of_their_formula(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "rank": 2, "alpha": 3}])
    at, _, context = situation(config, tmp_path)
    before = {name: p.detach().clone() for name, p in at.base.model.named_parameters()}
    model = METHODS.parse(at.run.method).prepare(at.base.model, context)
    generator = torch.Generator().manual_seed(1)
    importance = {name: torch.rand(p.shape, generator=generator) for name, p in before.items()}
    term = WeightPenalty("ewc", 0.7, importance)
    term.start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    term.on_step(model, 0)
    inner = model.base_model.model
    total = torch.zeros((), dtype=torch.float64)
    twins = {}
    for block in range(2):
        for path in ("self_attn.q_proj", "mlp.down_proj"):
            layer = inner.get_submodule(f"model.layers.{block}.{path}")
            a, b = (layer.get_submodule(f"lora_{x}").default.weight for x in "AB")
            twins[a], twins[b] = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
            change = 3 / 2**0.5 * twins[b] @ twins[a]
            total = total + 0.7 * (importance[f"model.layers.{block}.{path}.weight"].double() * change**2).sum()
    total.backward()
    for parameter, twin in twins.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), twin.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "full", "top_layers", "loha", "lokr", "pissa"])
def test_a_weight_change_equals_that_of_the_saved_weights(
    method: str, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    config = configure(tiny_model, corpora, methods=[{"name": method}])
    at, _, context = situation(config, tmp_path)
    before = {name: p.detach().clone() for name, p in at.base.model.named_parameters()}
    model = METHODS.parse(at.run.method).prepare(at.base.model, context)
    changes = weight_changes(model, "l2sp")
    assert all(float(change.delta().detach().abs().max()) < 1e-6 for change in changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    deltas = {change.name: change.delta().detach() for change in changes}
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    moved = {name for name, p in merged.named_parameters() if not torch.allclose(p, before[name], atol=1e-6)}
    assert moved == set(deltas)
    for name, delta in deltas.items():
        torch.testing.assert_close(merged.get_parameter(name) - before[name], delta, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_fisher_equals_the_exact_expectation_within_its_noise(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = np.asarray([7, 12, 9, 20, 15], np.int32)
    copies = 600
    windows = Windows(
        np.tile(ids, copies),
        np.tile([False, True, True, True, True], copies),
        np.arange(copies + 1, dtype=np.int64) * 5,
        np.arange(copies, dtype=np.int32),
        tuple(f"d{i}" for i in range(copies)),
    )
    found = diagonal_fisher(model, windows)["model.norm.weight"].double()
    weight = model.model.norm.weight
    exact = torch.zeros_like(weight, dtype=torch.float64)
    logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    for t in range(4):
        log_p = logits[t].log_softmax(-1)
        for token in range(len(log_p)):
            (gradient,) = torch.autograd.grad(log_p[token], weight, retain_graph=True)
            exact += log_p[token].exp().detach().double() * gradient.double() ** 2 / 4
    # each entry averages 600 squares: about 6 % of noise
    assert float((found.sum() / exact.sum() - 1).abs()) < 0.05
    assert float(((found - exact).abs() / exact).max()) < 0.4
    assert np.corrcoef(found.numpy(), exact.numpy())[0, 1] > 0.97
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.full
def test_ewc_of_weight_one_estimates_the_divergence_of_small_steps(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    """Moving one weight by e costs F e^2 / 2 nats/token of KL(base || tuned), to second order."""
    config = configure(tiny_model, corpora)
    at, course, _ = situation(config, tmp_path)
    model, windows = at.base.model, course.windows.select(np.arange(20).repeat(15))
    name, e = "model.norm.weight", 0.05
    estimate = 0.5 * e**2 * float(diagonal_fisher(model, windows)[name].sum())

    def log_p() -> torch.Tensor:
        found = []
        with torch.no_grad():
            for index in range(0, len(windows), 15):
                ids, predicted = windows.window(index)
                logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1]
                found.append(logits[predicted[1:]].double().log_softmax(-1))
        return torch.cat(found)

    base, total = log_p(), 0.0
    weight = model.get_parameter(name)
    for place in range(len(weight)):
        with torch.no_grad():
            weight[place] += e
            total += float((base.exp() * (base - log_p())).sum(1).mean())
            weight[place] -= e
    assert estimate == pytest.approx(total, rel=0.1)


# ---- token masking and flow


def slow_base_losses(config: ModelConfig, windows: Windows) -> list[list[float]]:
    model = load_base(config).model
    found = []
    for index in range(len(windows)):
        ids, predicted = windows.window(index)
        with torch.no_grad():
            log_p = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double().log_softmax(-1)
        found.append([-float(log_p[t - 1, ids[t]]) for t in range(len(ids)) if predicted[t]])
    return found


def test_masked_tokens_are_those_above_the_perplexity(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    masking = {"name": "token_masking", "threshold": 27.0}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [masking]}])
    plain, course, at = planned(config, tmp_path)
    losses = [loss for window in slow_base_losses(config.model, plain.windows) for loss in window]
    expected = [np.exp(loss) <= 27.0 for loss in losses]
    assert course.windows.predicted[plain.windows.predicted].tolist() == expected
    assert not course.windows.predicted[~plain.windows.predicted].any()
    assert at.facts["token_masking"]["kept"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert (course.windows.input_ids == plain.windows.input_ids).all()


def test_masking_every_token_of_a_batch_is_an_error(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    masking = {"name": "token_masking", "threshold": 1.5}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [masking]}])
    with pytest.raises(ForgettingError, match=r"threshold: 1.5 leaves no token in the batch of step 1 \(0.0% of all"):
        study(config, tmp_path / "s", engine=Local(1))


def test_flow_weights_windows_by_the_closed_form(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    config = configure(
        tiny_model, corpora, methods=[{"name": "lora", "mitigations": [{"name": "flow", "temperature": 0.5}]}]
    )
    plain, course, at = planned(config, tmp_path)
    means = np.asarray([np.mean(window) for window in slow_base_losses(config.model, plain.windows)])
    expected = np.exp(-means / (0.5 * np.median(means)))
    np.testing.assert_allclose(course.weights, expected / expected.mean(), rtol=1e-5)
    assert at.facts["flow"]["tau"] == pytest.approx(0.5 * np.median(means))
    assert easy_weights(np.asarray([1.0, 1.0, 1.0]), 2.0).tolist() == [1.0, 1.0, 1.0]


def test_weighting_makes_the_loss_the_weighted_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, generator=generator)
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 4, 5]])
    batch = {"input_ids": torch.zeros(2, 4), "labels": labels, "window": torch.tensor([1, 0])}
    log_p = logits.log_softmax(-1)
    sums = [-sum(float(log_p[b, t - 1, labels[b, t]]) for t in range(1, 4) if labels[b, t] >= 0) for b in range(2)]
    part = Weighting(np.asarray([0.25, 3.0])).on_batch(torch.nn.Identity(), batch, logits, 5)
    assert float(part) + sum(sums) / 5 == pytest.approx((3.0 * sums[0] + 0.25 * sums[1]) / 5, rel=1e-5)


# ---- recipes


def test_recipes_change_what_they_name_and_nothing_else(tiny_model: Path, corpora: Path) -> None:
    from forgetting.tuning.mitigations import with_recipe

    def changed(mitigation: dict[str, Any], **method: Any) -> tuple[RunConfig, RunConfig]:
        entry = {"name": "lora", "rank": 4, **method, "mitigations": [mitigation]}
        (run,) = expand_runs(configure(tiny_model, corpora, methods=[entry]))
        return run, with_recipe(run, parse_together(run))

    run, new = changed({"name": "learning_rate", "factor": 0.25})
    assert new.training == run.training.model_copy(update={"learning_rate": 2.5e-3})
    run, new = changed({"name": "learning_rate", "factor": 0.25}, learning_rate=0.04)
    assert new.training == run.training
    assert new.method.options == {**run.method.options, "learning_rate": 0.01}
    run, new = changed({"name": "weight_decay", "value": 0.2})
    assert new.training == run.training.model_copy(update={"weight_decay": 0.2})
    run, new = changed({"name": "dropout", "rate": 0.3})
    assert new.method.options == {**run.method.options, "dropout": 0.3}
    assert (new.method.label, new.training) == (run.method.label, run.training)


@pytest.mark.full
def test_frozen_blocks_stay_the_base_models_also_after_resuming(studied: Any, tiny_model: Path) -> None:
    from safetensors.torch import load_file

    runs = {(r.read()["label"], r.read()["mitigation"].split(" ")[0]): r for r in studied.folder.runs()}
    adapter = load_file(runs["lora", "freeze_layers"].path / "adapter" / "adapter_model.safetensors")
    added = {name: float(weight.abs().max()) for name, weight in adapter.items() if "lora_B" in name}
    assert all((value == 0) == (".layers.0." in name) for name, value in added.items())
    full = load_file(runs["full", "freeze_layers"].path / "adapter" / "model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    same = {name for name in base if torch.equal(base[name], full[name])}
    assert same == {name for name in base if ".layers.0." in name or "embed" in name}
    plain, frozen = (runs["lora", name].read()["trainable_params"] for name in ("", "freeze_layers"))
    assert frozen == plain / 2


@pytest.mark.parametrize(
    ("config", "norm"),
    [
        (GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=9), "ln_f"),  # learned positions, a tied head
        (BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=9), "ln_f"),  # a norm of the embeddings
        (GPTNeoXConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=9),
         "final_layer_norm"),  # a head of its own, in transformers before 5.24 called embed_out
    ],
)  # fmt: skip
def test_freezing_blocks_freezes_all_embeddings_and_no_head(config: Any, norm: str) -> None:
    model = AutoModelForCausalLM.from_config(config).requires_grad_(True)
    FreezeLayers(layers=1).adapt(model)
    left = {name for name, p in model.named_parameters() if p.requires_grad and ".1." not in name}
    assert {name.split(".")[-2] for name in left} - {"lm_head", "embed_out"} == {norm}
    assert model.get_output_embeddings().weight.requires_grad == (config.model_type == "gpt_neox")


def test_freezing_blocks_freezes_adapters_on_learned_positions() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=9))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["wpe", "c_fc"], fan_in_fan_out=True))
    FreezeLayers(layers=1).adapt(adapted)
    assert {name.split(".")[4] for name, p in adapted.named_parameters() if p.requires_grad} == {"1"}


# ---- interpolation


@pytest.mark.full
@pytest.mark.parametrize("method", ["lora", "full"])
def test_interpolation_runs_from_the_base_model_to_the_tuned_one(method: str, studied: Any) -> None:
    table = studied.table
    rows = table[(table["label"] == method) & table["mitigation"].str.startswith("interpolation")]
    assert rows[rows["alpha"].notna()]["step"].tolist() == [STEPS] * 3
    assert rows[rows["alpha"].notna()]["alpha"].tolist() == [0.0, 0.5, 1.0]
    start, end = rows[rows["step"] == 0].iloc[0], last(table, "interpolation", method)
    by_alpha = rows[rows["alpha"].notna()].set_index("alpha")
    for name in (*LOSSES, "forgetting"):
        assert by_alpha.loc[0.0, name] == pytest.approx(start[name], abs=1e-6), name
        assert by_alpha.loc[1.0, name] == pytest.approx(end[name], abs=1e-6), name
    assert start["forgetting"] < by_alpha.loc[0.5, "forgetting"] < end["forgetting"]


@pytest.mark.full
def test_interpolation_equals_the_slow_twin_and_leaves_the_trained_weights(
    studied: Any, tiny_model: Path, corpora: Path
) -> None:
    from peft import PeftModel

    from forgetting.measuring.losses import token_losses

    config = studied.folder.config()
    _, heldout = StudyInputs(config).dataset("chat")
    for run in studied.folder.runs():
        record = run.read()
        if not record["mitigation"].startswith("interpolation"):
            continue
        base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        if record["label"] == "lora":
            twin = PeftModel.from_pretrained(copy.deepcopy(base), run.path / "adapter").merge_and_unload()
        else:
            twin = AutoModelForCausalLM.from_pretrained(run.path / "adapter")
        with torch.no_grad():
            for name, parameter in twin.eval().named_parameters():
                parameter.copy_((parameter + base.get_parameter(name)) / 2)
        measured = next(row for row in run.measurements() if row["alpha"] == 0.5)
        loss = token_losses(twin, heldout, None, batch_tokens=512).data_nll.mean()
        assert measured["finetune_loss"] == pytest.approx(float(loss), abs=2e-6)


@pytest.mark.full
def test_laws_are_not_fitted_on_interpolated_rows(studied: Any) -> None:
    rows = fitted_rows(studied.table)
    assert set(rows["mitigation"]) == {""}
    mixed = studied.table.assign(mitigation="")
    assert fitted_rows(mixed)["alpha"].isna().all()
    assert len(fitted_rows(mixed)) == 2 * (1 + len(MITIGATIONS))


# ---- what is computed once


def test_shared_results_are_cached_and_their_time_counts_for_every_run(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    at, _, _ = situation(configure(tiny_model, corpora), tmp_path)
    calls = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.arange(3.0)}

    for expected in (1, 1):
        assert at.cached("thing", [1], compute)["x"].tolist() == [0.0, 1.0, 2.0]
        assert len(calls) == expected
    at.cached("thing", [2], compute)
    assert len(calls) == 2
    for file in (tmp_path / "cache").glob("thing-*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    assert at.cached("thing", [1], compute)["x"].tolist() == [0.0, 1.0, 2.0]
    assert len(calls) == 3
