"""LoRA over bfloat16 weights by bfloat16 products: as exact as PEFT's float32; on a CPU here, on a GPU in tests/gpu."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from forgetting.models import products, split_lora
from forgetting.models.adapters import as_base, undisturbed

CONFIG = LlamaConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
)
IDS = torch.arange(60).reshape(3, 20)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU is treated as a GPU whose products have float32 results."""
    monkeypatch.setattr(split_lora, "_agrees", split_lora._agrees.__wrapped__)
    monkeypatch.setattr(products, "widens", lambda like: like.dtype == torch.bfloat16)


def adapted(**options: Any) -> Any:
    torch.manual_seed(0)
    lora = LoraConfig(**{"r": 3, "target_modules": "all-linear", "init_lora_weights": False, **options})
    return get_peft_model(LlamaForCausalLM(CONFIG).bfloat16(), lora).eval()


def replaced(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_products_of_parts_equal_float32() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 30).bfloat16(), torch.randn(30, 7) * 1e-3
    exact = x.double() @ y.double()
    for found in (
        products.summed(products.wide(x, products.halves(y))),
        products.summed(products.wide(products.halves(y.T, 0), x.T), 0).T,
    ):
        assert float((found - exact).norm() / exact.norm()) < 2**-16


def test_a_layer_is_as_exact_as_pefts() -> None:
    """Against float64: the base layer's output rounded to bfloat16, plus the change, rounded to bfloat16."""
    torch.manual_seed(0)
    layer = adapted(r=8).base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(500, 32).bfloat16()
    with torch.no_grad():
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        exact = layer.base_layer(x).double() + layer.scaling["default"] * (x.double() @ a.T @ b.T)
        by_peft = layer(x)
        with split_lora.evaluating(layer):
            assert replaced(layer) == 1
            split = layer(x)
    assert torch.equal(by_peft, exact.bfloat16())
    assert float((split == by_peft).float().mean()) > 0.99  # the others lie at a rounding boundary
    assert float((split.double() - exact).norm()) < 1.001 * float((by_peft.double() - exact).norm())


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.1}, {"r": 40, "use_rslora": True}])
def test_undisturbed_passes_use_it(options: dict[str, Any]) -> None:
    model = adapted(**options).train()
    model.eval()
    with torch.no_grad():
        by_peft = logits(model)
        with as_base(model):
            base = logits(model)
    model.train()
    with undisturbed(model):
        assert replaced(model) == 14
        split = logits(model)
        with as_base(model):
            assert torch.equal(logits(model), base)
        for layer in model.modules():
            if "forward" in vars(layer):
                layer.scaling["default"] *= 0.5
        halved = logits(model)
    assert replaced(model) == 0
    assert torch.allclose(split, by_peft, atol=0.05)
    assert not torch.allclose(halved, by_peft, atol=0.05)
    with torch.no_grad():
        assert torch.allclose(halved, logits(model.eval()), atol=0.05)


def test_an_untrained_adapter_changes_nothing() -> None:
    model = adapted(init_lora_weights=True)
    with undisturbed(model):
        assert replaced(model) == 14
        found = logits(model)
        with as_base(model):
            assert torch.equal(found, logits(model))


def test_other_layers_are_left_to_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """DoRA, biases, 16-bit adapters, float32 weights, hooks inside; and every layer, should the products be wrong."""
    for options in ({"use_dora": True}, {"lora_bias": True}):
        with split_lora.evaluating(model := adapted(**options)):
            assert replaced(model) == 0, options
    for model in (adapted().bfloat16(), adapted().float()):
        with split_lora.evaluating(model):
            assert replaced(model) == 0
    model = adapted()
    model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].register_forward_hook(lambda *_: None)
    with split_lora.evaluating(model):
        assert replaced(model) == 13
    found = split_lora.factors
    monkeypatch.setattr(split_lora, "factors", lambda parts: [1.01 * part for part in found(parts)])
    with split_lora.evaluating(model := adapted()):
        assert replaced(model) == 0
