"""LoRA with scale and sum inside the matrix product: PEFT's numbers, and the layers left to PEFT."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from forgetting.models import products, split_lora
from forgetting.models.adapters import as_base
from forgetting.tuning.folded_lora import FoldedLayers, merging_pays

CONFIG = LlamaConfig(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    attention_bias=True,
    pad_token_id=0,
)
IDS = torch.arange(60).reshape(3, 20)


def adapted(dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    lora = LoraConfig(**{"r": 3, "target_modules": "all-linear", "init_lora_weights": False, **options})
    return get_peft_model(LlamaForCausalLM(CONFIG).to(dtype), lora).to(dtype).train()


def loss_and_gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rank", [1, 24])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_numbers_equal_pefts(checkpointing: bool, rank: int) -> None:
    """For a small rank, and for one above the layers' width of 16, where the weights are summed first."""
    assert merging_pays(IDS.numel(), 16, 16, rank) is (rank == 24)
    model = adapted(torch.float32, r=rank)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    folded = FoldedLayers(model)
    assert len(folded.forwards) == 14
    expected = loss_and_gradients(model)
    with folded.acting():
        found = loss_and_gradients(model)
        with as_base(model), torch.no_grad():
            base = model(input_ids=IDS).logits
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 1e-5 * float(value.norm()), name
    with as_base(model), torch.no_grad():
        assert torch.equal(base, model(input_ids=IDS).logits)
    assert torch.equal(loss_and_gradients(model)["loss"], expected["loss"])


def test_bfloat16_is_as_accurate_as_pefts() -> None:
    """The same weights in float64 are the truth; several models, since the two ways round differently."""
    errors = []
    for seed in range(8):
        model = adapted(torch.bfloat16, seed)
        truth = loss_and_gradients(copy.deepcopy(model).double())
        folded = FoldedLayers(model)
        assert len(folded.forwards) == 14
        by_peft = loss_and_gradients(model)
        with folded.acting():
            by_folding = loss_and_gradients(model)
        errors.append([error(by_peft, truth), error(by_folding, truth)])
    pefts, folds = torch.tensor(errors).mean(dim=0).tolist()
    assert 0 < folds <= pefts


def error(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """Root mean square of the relative errors of loss and gradients."""
    parts = [(found[n].double() - t).norm() / t.norm() for n, t in truth.items()]
    return float(torch.stack(parts).square().mean().sqrt())


def test_merging_pays_where_it_takes_fewer_multiplications() -> None:
    """Multiplications counted product by product, for 4,096 tokens and a layer of 352 by 128."""

    def folded(n: int, o: int, i: int, r: int) -> int:
        forwards = n * i * o + n * i * r + n * r * o
        backwards = n * o * i + n * o * r + n * r * i + n * r * i + n * o * r
        return forwards + backwards

    def merged(n: int, o: int, i: int, r: int) -> int:
        return (o * r * i + n * i * o) + (o * r * i + n * o * i) + (n * o * i + r * o * i + o * i * r)

    for rank in (8, 16, 32, 64, 128):
        size = (4096, 352, 128, rank)
        assert merging_pays(*size) is (merged(*size) < folded(*size)), rank
    assert not merging_pays(4096, 4096, 4096, 64)


@pytest.mark.parametrize("rank", [1, 24])
def test_a_scale_or_an_active_adapter_that_changes_is_followed(rank: int) -> None:
    """As interpolation changes the scale after the last step."""
    model = adapted(r=rank)
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    folded = FoldedLayers(model)
    assert len(folded.forwards) == 14

    def logits() -> list[torch.Tensor]:
        with torch.no_grad():
            by_peft = model(input_ids=IDS).logits
            with folded.acting():
                return [by_peft, model(input_ids=IDS).logits]

    seen = [logits()]
    for layer, _ in folded.forwards:
        layer.scaling["default"] *= 0.5
    seen.append(logits())
    model.set_adapter("other")
    seen.append(logits())
    for by_peft, by_folding in seen:
        assert torch.allclose(by_peft, by_folding, atol=1e-5)
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-3)
    assert not torch.allclose(seen[1][0], seen[2][0], atol=1e-3)


def test_unsupported_layers_are_left_to_peft() -> None:
    assert FoldedLayers(LlamaForCausalLM(CONFIG)).forwards == []
    for options in ({"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}):
        assert FoldedLayers(adapted(**options)).forwards == [], options
    at_the_start = adapted(init_lora_weights=True)  # B is zero, and so is the gradient of A
    assert len(FoldedLayers(at_the_start).forwards) == 14


def test_a_float32_adapter_over_bfloat16_is_as_accurate_as_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By bfloat16 products with float32 results, as on a GPU."""
    monkeypatch.setattr(split_lora, "_agrees", split_lora._agrees.__wrapped__)
    monkeypatch.setattr(products, "widens", lambda like: like.dtype == torch.bfloat16)
    errors = []
    for seed in range(8):
        torch.manual_seed(seed)
        lora = LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(LlamaForCausalLM(CONFIG).bfloat16(), lora).train()
        truth = loss_and_gradients(copy.deepcopy(model).double())
        folded = FoldedLayers(model)
        assert len(folded.forwards) == 14
        by_peft = loss_and_gradients(model)
        with folded.acting():
            by_folding = loss_and_gradients(model)
        assert {name: value.dtype for name, value in by_folding.items()} == {
            n: value.dtype for n, value in by_peft.items()
        }
        errors.append([error(by_peft, truth), error(by_folding, truth)])
    pefts, splits = torch.tensor(errors).mean(dim=0).tolist()
    assert 0 < splits <= 1.02 * pefts
