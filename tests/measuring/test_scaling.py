"""An adapter at other scales: equal to `measure` on the saved adapter, exact ends, the search, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel
from test_measure_command import call, save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

import forgetting
from forgetting.errors import UsageError
from forgetting.measuring.estimate import Mean
from forgetting.measuring.scale import _between
from forgetting.measuring.scaling import Point, Scaling
from forgetting.models.scaled_adapter import ScaledAdapter
from forgetting.models.sources import find
from forgetting.reporting.scaling import render

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "up_proj"], "use_rslora": True}


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(**LORA, rank_pattern={"up_proj": 2}, alpha_pattern={"up_proj": 3})
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"), config)


@pytest.fixture(scope="module")
def how(corpora: Path) -> dict[str, Any]:
    return {"text": str(corpora / "general.jsonl"), "context": 32, "cache_dir": None}


@pytest.fixture(scope="module")
def whole(tiny_model: Path, adapter: Path, how: dict[str, Any]) -> forgetting.Measurement:
    return forgetting.measure(str(tiny_model), str(adapter), **how)


@pytest.fixture(scope="module")
def found(
    tiny_model: Path, adapter: Path, corpora: Path, how: dict[str, Any], whole: forgetting.Measurement
) -> Scaling:
    budget = 0.3 * whole.forgetting.value
    return forgetting.scale(str(tiny_model), str(adapter), budget=budget, train=str(corpora / "train.jsonl"), **how)


def test_the_ends_are_exact(found: Scaling, whole: forgetting.Measurement) -> None:
    assert found.points[0].forgetting == Mean(0.0, 0.0, whole.forgetting.n_tokens, 12)
    assert found.points[-1].forgetting == whole.forgetting
    assert found.points[-1].cost is not None
    assert found.points[-1].cost.value == 0
    assert [point.scale for point in found.points if point.scale in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.25, 0.5, 0.75, 1]


def test_the_chosen_scale_meets_the_budget_as_it_was_measured(found: Scaling, whole: forgetting.Measurement) -> None:
    chosen, budget = found.chosen, found.budget
    assert chosen is not None
    assert budget is not None
    assert 0 < chosen.scale < 1
    assert found.judged(chosen).verdict == "within"
    over = next(point for point in found.points if point.scale > chosen.scale)
    assert found.judged(over).high > budget
    assert found.judged(chosen).high > 0.95 * budget or over.scale - chosen.scale < 0.02
    assert found.sentence().startswith(f"scale {chosen.scale:g} is within the budget {budget:g}: forgetting ")
    assert "nats/token on the task" in found.sentence()
    for cost, words in (
        (-0.0617, "on the task it is 0.0617 ± 0.0276 nats/token better than scale 1"),
        (0.05, "it costs 0.05"),
    ):
        points = tuple(replace(p, cost=Mean(cost, 0.0276, 900, 12)) if p == chosen else p for p in found.points)
        assert f"; {words}" in replace(found, points=points).sentence()
    assert found.to_dict()["scale"] == chosen.scale
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_a_scale_is_that_of_the_layers_set_by_hand(
    found: Scaling, tiny_model: Path, adapter: Path, how: dict[str, Any]
) -> None:
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    for module in live.modules():
        if hasattr(module, "lora_B"):
            module.scaling = {name: 0.5 * scaling for name, scaling in module.scaling.items()}
    by_hand = forgetting.measure(None, live, tokenizer=AutoTokenizer.from_pretrained(tiny_model), **how)
    point = next(point for point in found.points if point.scale == 0.5)
    assert point.forgetting.value == pytest.approx(by_hand.forgetting.value, abs=1e-6)
    assert point.forgetting.se == pytest.approx(by_hand.forgetting.se, abs=1e-6)


def test_measure_gives_the_numbers_of_what_is_written(
    found: Scaling, tiny_model: Path, adapter: Path, how: dict[str, Any], corpora: Path, tmp_path: Path
) -> None:
    (adapter / "README.md").write_text("This adapter forgets 0.999 nats/token.")
    found.write(tmp_path / "new" / "adapter")
    again = forgetting.measure(str(tiny_model), str(tmp_path / "new" / "adapter"), **how)
    assert found.chosen is not None
    assert again.forgetting == found.chosen.forgetting
    task = forgetting.measure(
        str(tiny_model), str(tmp_path / "new" / "adapter"), **{**how, "text": str(corpora / "train.jsonl")}
    )
    assert task.means["data_loss_tuned"] == found.chosen.task_loss
    config = [
        json.loads((folder / "adapter_config.json").read_text()) for folder in (adapter, tmp_path / "new/adapter")
    ]
    assert config[0] == config[1]
    card = (tmp_path / "new/adapter/README.md").read_text()
    assert f"multiplied by {found.chosen.scale:.6g}, made by `forgetting scale`" in card
    assert "0.999" not in card  # of the unscaled adapter's own
    with pytest.raises(UsageError, match="already exists; give a new folder"):
        found.write(tmp_path / "new" / "adapter")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LORA, rank_pattern={"up_proj": 2}),
        LoHaConfig(r=2, target_modules=["q_proj"]),
        LoKrConfig(r=2, target_modules=["q_proj"]),
        LoKrConfig(r=2, target_modules=["q_proj"], decompose_both=True, decompose_factor=4),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["lora", "loha", "lokr", "lokr of factors", "ia3"],
)
def test_half_the_scale_is_half_the_change_of_the_weights(config: Any, tiny_model: Path, tmp_path: Path) -> None:
    save_adapter(tiny_model, tmp_path / "one", config)
    ScaledAdapter.of(find(str(tmp_path / "one"))).write(tmp_path / "half", 0.5)

    def merged(folder: Path) -> dict[str, torch.Tensor]:
        live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
        return {name: tensor.detach().double() for name, tensor in live.merge_and_unload().named_parameters()}

    base = {n: p.detach().double() for n, p in AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters()}
    one, half = merged(tmp_path / "one"), merged(tmp_path / "half")
    moved = 0.0
    for name, tensor in one.items():
        start = base.get(name, torch.zeros_like(tensor))  # a bias that the base model lacks
        torch.testing.assert_close(half[name] - start, 0.5 * (tensor - start), atol=1e-6, rtol=1e-5)
        moved = max(moved, float((tensor - start).abs().max()))
    assert moved > 0.01


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LoraConfig(**LORA, use_dora=True), "LORA with use_dora: its effect is not linear in one factor"),
        (LoraConfig(**LORA, bias="lora_only"), "LORA with bias 'lora_only'"),
        (
            LoraConfig(r=2, target_modules=["embed_tokens"]),
            r"LORA: contains .*embed_tokens.base_layer.weight, which cannot",
        ),
        (LoraConfig(**LORA, modules_to_save=["norm"]), "LORA with modules_to_save"),
        (
            OFTConfig(target_modules=["q_proj"], oft_block_size=8),
            "OFT: its effect is not linear in a factor of its files",
        ),
    ],
    ids=["dora", "bias", "embedding", "modules to save", "oft"],
)
def test_what_has_no_scale_is_refused_by_name(config: Any, says: str, tiny_model: Path, tmp_path: Path) -> None:
    save_adapter(tiny_model, tmp_path / "adapter", config, scale=0.1)
    with pytest.raises(UsageError, match=says):
        forgetting.scale(str(tiny_model), str(tmp_path / "adapter"))


def test_a_full_model_and_an_invalid_budget_are_refused(tiny_model: Path, adapter: Path) -> None:
    with pytest.raises(UsageError, match=r"a full model; give an adapter"):
        forgetting.scale(str(tiny_model), str(tiny_model))
    with pytest.raises(UsageError, match="budget 0: must be a positive number"):
        forgetting.scale(str(tiny_model), str(adapter), budget=0)


def made(found: Scaling, values: list[float], budget: float | None, **more: Any) -> Scaling:
    """A result with this forgetting at scales between 0 and 1, each with a standard error of 0.001."""
    scales = np.linspace(0, 1, len(values))
    points = tuple(
        Point(float(s), Mean(value, 0.001 if s else 0.0, 100, 30)) for s, value in zip(scales, values, strict=True)
    )
    return replace(found, points=points, budget=budget, task_text=None, **more)


def test_answers_in_words(found: Scaling, tmp_path: Path) -> None:
    kept = made(found, [0, 0.01, 0.02], 0.1)
    assert kept.sentence().startswith(
        "the adapter is within the budget 0.1 without scaling: forgetting 0.0200 ± 0.0010 nats/token, at most"
    )
    never = made(found, [0, 0.2, 0.3], 0.1)
    assert never.sentence().startswith(
        "no scale except 0, the base model itself, is within the budget 0.1: at scale 0.5"
    )
    assert "forgetting is 0.2000 ± 0.0010 nats/token, at most " in never.sentence()
    with pytest.raises(UsageError, match=r"no scale except 0, the base model itself, is within the budget 0.1"):
        never.write(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    bent = made(found, [0, 0.2, 0.05, 0.3], 0.1, falls=(1 / 3, 2 / 3))
    assert bent.chosen is not None
    assert bent.chosen.scale == 0  # not the larger scale that is within the budget again
    assert bent.remarks()[0].startswith("forgetting does not always grow with the scale: it falls from scale 0.333")
    assert not bent.to_dict()["monotone"]
    assert made(found, [0, 0.1], None).chosen is None


def test_the_curve_goes_through_the_points_and_does_not_overshoot(found: Scaling) -> None:
    values, lows, highs = found.curve(np.asarray([point.scale for point in found.points]))
    assert values == pytest.approx([point.forgetting.value for point in found.points])
    assert lows == pytest.approx([point.forgetting.interval()[0] for point in found.points])
    between = found.curve(np.linspace(0, 1, 200))[0]
    if found.falls is None:
        assert (np.diff(between) >= -1e-12).all()
    assert (highs >= lows).all()


def test_the_search_stays_inside_its_bracket() -> None:
    for turn in range(6):
        assert 0.5 < _between(0.5, 0.75, 0.05, 0.2, 0.1, turn) < 0.75
    assert _between(0.5, 0.75, 0.05, 0.2, 0.1, 0) == pytest.approx(0.5 + 0.25 * 0.99 / 3, abs=1e-4)


def test_few_documents_choose_nothing(tiny_model: Path, adapter: Path) -> None:
    texts = ["the old town saw a bridge . " * 8, "a baker sold bread . " * 8]
    with pytest.raises(UsageError, match="2 documents have no reliable standard error, so no scale is chosen"):
        forgetting.scale(str(tiny_model), str(adapter), budget=0.1, text=texts, context=32, cache_dir=None)
    alone = forgetting.scale(str(tiny_model), str(adapter), text=texts[:1], context=32, cache_dir=None)
    assert alone.to_dict()["scales"][1]["forgetting_se"] is None
    assert math.isnan(alone.curve(np.linspace(0, 1, 3))[1][0])
    assert "unknown" in str(alone)
    assert "<polygon" not in render(alone)


def test_the_page_and_the_figure(found: Scaling) -> None:
    page = render(found)
    assert page.count("<circle") == len(found.points)
    assert page.count('class="chosen"') == 1
    assert 'class="budget"' in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    hostile = replace(found, tuned="<img src=x onerror=alert(1)>")
    assert "<img" not in render(hostile)
    assert "<img" not in str(hostile.figure().layout.title)
    assert render(found) == page
    assert '<div class="scroll"><svg' not in page  # the chart shrinks with the window
    assert "min-width" not in page
    assert page.count("</th>") == 4  # few columns, which a phone can show


@pytest.mark.full
def test_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: Path,
    adapter: Path,
    corpora: Path,
    found: Scaling,
) -> None:
    pair = ["scale", tiny_model, adapter, "--text", corpora / "general.jsonl", "--context", 32, "--no-cache"]
    code, out, _ = call(
        monkeypatch,
        capsys,
        *pair,
        "--budget",
        found.budget,
        "--write",
        tmp_path / "w",
        "--html",
        tmp_path / "p.html",
        "--json",
    )
    row = json.loads(out)
    assert found.chosen is not None
    assert (code, row["scale"], row["written"]) == (0, found.chosen.scale, str(tmp_path / "w"))
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    code, out, err = call(monkeypatch, capsys, *pair, "--budget", "1e-9", "--write", tmp_path / "x")
    assert code == 3
    assert out.startswith("no scale except 0, the base model itself, is within the budget 1e-09")
    assert err.endswith("nothing was written: only scale 0, the base model, is within the budget\n")
    assert not (tmp_path / "x").exists()
    for given, says in (
        (["--write", tmp_path / "y"], "--write: needs --budget, to find the scale"),
        (["--budget", "0.1", "--write", tmp_path / "w"], "already exists; give a new folder"),
        (["--train-field", "split=test"], "--train-field: needs --train"),
    ):
        code, out, err = call(monkeypatch, capsys, *pair, *given)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
