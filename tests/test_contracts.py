"""What every variant must do. A new method is one file and one row here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel

from forgetting.base import count_parameters, load_tokenizer
from forgetting.config import MethodConfig, ModelConfig, TextConfig
from forgetting.errors import UsageError
from forgetting.methods import METHODS, Context, expand_grid, parse_method
from forgetting.text import load_corpus, tokenize


def lora_parameters(rank: int) -> Callable[[PreTrainedModel], int]:
    """r (in + out) over all linear layers but the head."""

    def count(model: PreTrainedModel) -> int:
        layers = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
        return sum(rank * (layer.in_features + layer.out_features) for layer in layers)

    return count


def all_parameters(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


# options, closed form of P
METHOD_ROWS: list[tuple[dict[str, Any], Callable[[PreTrainedModel], int]]] = [
    ({"name": "lora", "rank": 1}, lora_parameters(1)),
    ({"name": "lora", "rank": 16, "scaling": "classic", "dropout": 0.1}, lora_parameters(16)),
    ({"name": "full"}, all_parameters),
]
IDS = [" ".join(str(value) for value in options.values()) for options, _ in METHOD_ROWS]


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    return loaded.eval()


@pytest.fixture(scope="module")
def context(tiny_model: Path, corpora: Path) -> Context:
    tokenizer = load_tokenizer(ModelConfig(source=str(tiny_model)))
    train, measured = (
        tokenize(load_corpus(TextConfig(source=str(corpora / name))), tokenizer, 32)
        for name in ("train.jsonl", "general.jsonl")
    )
    return Context(seed=0, train=train, measured=measured, tokenizer=tokenizer, length=32)


def test_every_method_has_a_row() -> None:
    assert {options["name"] for options, _ in METHOD_ROWS} == set(METHODS)


@pytest.mark.parametrize(("options", "count"), METHOD_ROWS, ids=IDS)
def test_method_contract(
    options: dict[str, Any],
    count: Callable[[PreTrainedModel], int],
    model: PreTrainedModel,
    context: Context,
    tmp_path: Path,
) -> None:
    ids = torch.arange(7, 23).reshape(2, 8)
    with torch.no_grad():
        base_logits = model(input_ids=ids).logits
    expected, base = count(model), copy.deepcopy(model)
    (config,) = expand_grid(MethodConfig.model_validate(options))
    trained = parse_method(config).prepare(model, context)

    trained.eval()
    with torch.no_grad():
        assert torch.equal(trained(input_ids=ids).logits, base_logits), "step 0 is the base model"
    assert count_parameters(trained, trainable=True) == expected

    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = trained(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05, "it trains"

    trained.save_pretrained(tmp_path / "saved")
    assert list((tmp_path / "saved").glob("*.safetensors"))
    assert not list((tmp_path / "saved").glob("*.bin"))
    with torch.no_grad():
        tuned = trained(input_ids=ids).logits
        if (tmp_path / "saved" / "adapter_config.json").exists():
            from peft import PeftModel

            again = PeftModel.from_pretrained(base, tmp_path / "saved").eval()
        else:
            again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(again(input_ids=ids).logits, tuned), "reloads to the same numbers"


def test_lora_scaling_changes_what_an_adapter_adds(model: PreTrainedModel, context: Context) -> None:
    def scale(**options: Any) -> float:
        (config,) = expand_grid(MethodConfig.model_validate({"name": "lora", "alpha": 8, **options}))
        adapted = parse_method(config).prepare(copy.deepcopy(model), context)
        return float(next(m.scaling["default"] for m in adapted.modules() if isinstance(m, LoraLayer)))

    assert scale(rank=16, scaling="rank-stabilized") == pytest.approx(8 / 16**0.5)
    assert scale(rank=16, scaling="classic") == pytest.approx(8 / 16)


def test_lora_target_modules_choose_the_layers(model: PreTrainedModel, context: Context) -> None:
    (config,) = expand_grid(MethodConfig.model_validate({"name": "lora", "target_modules": ["q_proj"]}))
    adapted = parse_method(config).prepare(model, context)
    assert count_parameters(adapted, trainable=True) == 2 * 8 * (32 + 32)


def test_lora_on_modules_that_are_not_there_is_refused(model: PreTrainedModel, context: Context) -> None:
    (config,) = expand_grid(MethodConfig.model_validate({"name": "lora", "target_modules": ["query"]}))
    with pytest.raises(UsageError, match=r"methods.lora.target_modules: got \['query'\]; Target modules"):
        parse_method(config).prepare(model, context)
