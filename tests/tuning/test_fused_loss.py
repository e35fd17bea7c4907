"""The loss without all logits: value and gradients of transformers' own, memory, and models that keep their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

import experts
from forgetting.studies.engines import Local
from forgetting.studies.study import study
from forgetting.tuning import fused_loss
from forgetting.tuning.mitigations import Term
from forgetting.tuning.trainer import CheckedTrainer
from short_study import configure

SIZES: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
EXPERTS = {"num_local_experts": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
KINDS: dict[str, tuple[Any, Any]] = {
    "untied": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "bias": (PhiForCausalLM, PhiConfig(**SIZES)),  # and dropout before the head's layers
    "softcap": (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5)),
    "multiplied": (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.3)),
    "divided": (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0)),
    "experts": (MixtralForCausalLM, MixtralConfig(**SIZES, **EXPERTS)),  # whose balance is added to the loss
}


def make(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    cls, config = KINDS[kind]
    model = cls(config).to(dtype).train()
    if kind == "bias":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def a_batch() -> dict[str, torch.Tensor]:
    """Three windows of 80 tokens, more than a tile: one without a label, one with a prompt."""
    ids = torch.randint(3, 60, (3, 80), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0], labels[1, :30] = -100, -100
    return {"input_ids": ids, "labels": labels}


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model: Any, batch: dict[str, Any], tolerance: float) -> None:
    found = fused_loss.find(model)
    assert found is not None
    expected, slopes = loss_and_gradients(model, batch)
    with found.acting():
        loss, gradients = loss_and_gradients(model, batch)
    assert loss.dtype == expected.dtype
    assert float(loss) == pytest.approx(float(expected), rel=tolerance, nan_ok=True)
    assert gradients.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert float((gradients[name] - slope).norm()) <= 10 * tolerance * float(slope.norm()) + 1e-12, name
    after, _ = loss_and_gradients(model, batch)
    torch.testing.assert_close(after, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_the_models_own_loss(kind: str) -> None:
    if kind == "experts":
        experts.skip_where_they_do_not_run()
    model = make(kind)
    assert_equal(model, a_batch(), 2e-6)
    assert_equal(model, {**a_batch(), "num_items_in_batch": torch.tensor(77)}, 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 2e-3)])
def test_in_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    for kind in ("tied", "softcap"):
        assert_equal(make(kind, dtype), a_batch(), tolerance)


def test_a_batch_without_labels_equals_transformers() -> None:
    batch = a_batch() | {"labels": torch.full((3, 80), -100)}
    assert_equal(make("tied"), batch, 0.0)  # the mean of nothing: not a number, and no gradient
    assert_equal(make("tied"), {**batch, "num_items_in_batch": torch.tensor(9)}, 0.0)


def test_adapters_and_trained_heads() -> None:
    for options in ({}, {"modules_to_save": ["lm_head"]}, {"lora_dropout": 0.3}):
        lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options)
        model = get_peft_model(make("untied"), lora).train()
        assert_equal(model, a_batch(), 2e-6)
        assert any("lm_head" in name for name in loss_and_gradients(model, a_batch())[1]) == (
            "modules_to_save" in options
        )


def test_a_large_logit_that_is_not_the_labels_overflows_nothing() -> None:
    hidden, weight = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[300.0, 0.0], [-300.0, 0.0]])
    loss = fused_loss.summed(hidden, weight, None, torch.tensor([1]), 1.0, None)
    loss.backward()
    assert float(loss.detach()) == 600.0
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[600.0, 0.0]]


def test_models_that_keep_their_own_loss() -> None:
    other = make("tied")
    other.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    assert fused_loss.find(other) is None
    on_the_head = get_peft_model(make("untied"), LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    assert fused_loss.find(on_the_head.train()) is None
    changed = make("untied")  # after its head, a change that the configuration does not mention
    changed.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + logits.sin())
    assert fused_loss.find(changed) is None


def test_verification_does_not_change_random_states_and_gradients() -> None:
    model = make("bias")
    before = torch.get_rng_state()
    assert fused_loss.find(model) is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "forward" not in vars(model.lm_head)


def test_a_term_reads_logits_only_if_it_adds_to_a_batch() -> None:
    class Adds(Term):
        def on_batch(self, model: Any, batch: Any, logits: Any, tokens: Any) -> Any:
            return logits.sum()

    assert not Term().reads_logits()
    assert Adds().reads_logits()


@pytest.mark.full
def test_a_study_trains_to_the_same_numbers_with_the_models_own_loss(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"steps": 8, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 1, "learning_rate": 1e-2}
    acted, own = [], CheckedTrainer._model_loss

    def counted(self: CheckedTrainer, *arguments: Any, **options: Any) -> Any:
        found = own(self, *arguments, **options)
        acted.append(self.fused is not None)
        return found

    monkeypatch.setattr(CheckedTrainer, "_model_loss", counted)
    config = configure(tiny_model, corpora, training=training)
    fused = study(config, tmp_path / "ours", engine=Local(1)).table
    assert acted == [True] * 16
    monkeypatch.setattr(fused_loss, "find", lambda *_: None)
    plain = study(config, tmp_path / "theirs", engine=Local(1)).table
    assert acted[16:] == [False] * 16
    for name in ("finetune_loss", "forgetting_loss"):
        np.testing.assert_allclose(fused[name], plain[name], rtol=1e-5)
