"""Predicted memory of a run: counted without values, it equals what the real run allocates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from forgetting.config.schema import ModelConfig, RunConfig
from forgetting.models.loading import base_source, count_parameters, load_base
from forgetting.models.skeleton import Skeleton, skeleton
from forgetting.tuning import footprint, pass_memory
from forgetting.tuning.grid import expand_runs
from forgetting.tuning.methods import METHODS
from short_study import configure

OPTIONS: dict[str, dict[str, Any]] = {
    "peft": {"config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}},
    "corda": {"calibration": {"source": "miniature:encyclopedia"}},
    "boft": {"block_size": 4},
}


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Skeleton:
    config = ModelConfig(source=str(tiny_model))
    return skeleton(config, base_source(config))


def planned(tiny_model: Path, corpora: Path, method: dict[str, Any], **training: Any) -> RunConfig:
    fields = {"steps": 8, "batch_size": 4, "warmup_steps": 1, "optimizer": "adamw", **training}
    (run,) = expand_runs(configure(tiny_model, corpora, methods=[method], training=fields))
    return run


def taken(run: RunConfig, base: Skeleton) -> footprint.Footprint:
    measure = run.measure.model_copy(update={"batch_tokens": 16})
    run = run.model_copy(update={"measure": measure})
    return footprint.footprint(run, base, footprint.passes_of(run, 1, None, "cpu"))


def test_tensors_are_counted_until_they_are_freed() -> None:
    live = pass_memory.LiveBytes(())
    with live:
        first = torch.zeros(1000)
        view = first[:10]
        assert live.now == 4000
        second = first * 2
        del first
        assert live.now == 8000  # the view keeps it alive
        del view
        assert live.now == 4000
        del second
    assert (live.now, live.peak) == (0, 8000)


def test_a_pass_without_values_needs_the_memory_of_a_real_pass(tiny_model: Path, base: Skeleton) -> None:
    """The slow twin: the real model, with its tensors counted as they are created."""
    model = load_base(ModelConfig(source=str(tiny_model))).model.requires_grad_(True)
    ids = torch.zeros(3, 16, dtype=torch.int64)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids)}
    with pass_memory.LiveBytes([*model.parameters(), *model.buffers()]) as live:
        model.train()(**batch).loss.backward()
    how = {"checkpointing": False, "accumulated": False, "all_logits": True, "on_gpu": False}
    found = pass_memory.training_bytes(base.copied(), 3, 16, **how)
    assert found == pytest.approx(live.peak, rel=0.05)


@pytest.mark.full
def test_checkpointing_and_the_fused_loss_need_less_memory(base: Skeleton) -> None:
    def peak(**how: bool) -> int:
        given = {"checkpointing": False, "accumulated": False, "all_logits": False, "on_gpu": False, **how}
        return pass_memory.training_bytes(base.copied(), 16, 64, **given)

    plain = peak()
    assert peak(checkpointing=True) < 0.8 * plain
    assert peak(all_logits=True) >= plain
    gradients = sum(p.numel() * 4 for p in base.model.parameters())
    assert peak(accumulated=True) <= plain + gradients


def test_lora_over_bfloat16_needs_less_memory_on_a_gpu() -> None:
    """PEFT's float32 copies of what a layer reads are not kept for the backward pass."""
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4)

    def peak(*, on_gpu: bool) -> int:
        with torch.device("meta"):
            model = LlamaForCausalLM(config).bfloat16()
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"), low_cpu_mem_usage=True)
        how = {"all_logits": False, "checkpointing": False, "accumulated": False, "on_gpu": on_gpu}
        return pass_memory.training_bytes(model, 8, 64, **how)

    assert peak(on_gpu=True) < 0.8 * peak(on_gpu=False)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("bias", "boft")])
def test_each_method_can_be_applied_to_a_model_without_values(
    tiny_model: Path, corpora: Path, base: Skeleton, name: str
) -> None:
    run = planned(tiny_model, corpora, {"name": name, **OPTIONS.get(name, {})})
    found = taken(run, base)
    assert found.counted is (name not in ("loha", "lokr"))  # in their passes PEFT reads the value of a tensor
    assert found.gradients == 4 * found.trained
    assert found.optimiser == 2 * found.gradients
    if name in ("corda", "eva", "pissa", "olora", "mica"):  # they look at weights or data: LoRA of the same shapes
        expected = footprint.prepared(planned(tiny_model, corpora, {"name": "lora"}), base)
    else:
        model = load_base(ModelConfig(source=str(tiny_model))).model
        expected = METHODS.parse(run.method).prepare(model, footprint.context_of(run))
    if name != "mica":  # half of its LoRA is frozen
        assert found.trained == count_parameters(expected, trainable=True)


def test_the_parts_in_closed_form(tiny_model: Path, corpora: Path, base: Skeleton) -> None:
    full = taken(planned(tiny_model, corpora, {"name": "full"}, optimizer="adafactor"), base)
    shapes = [p.shape for p in base.model.parameters()]
    assert (
        full.weights == base.bytes == sum(4 * s.numel() for s in shapes) + 2 * 4 * 8
    )  # and 8 frequencies of positions, twice
    assert full.gradients == 4 * sum(s.numel() for s in shapes)
    assert full.optimiser == sum(4 * (sum(s) if len(s) == 2 else s.numel()) for s in shapes)
    lora = taken(planned(tiny_model, corpora, {"name": "lora", "rank": 4}), base)
    assert lora.weights == base.bytes + 4 * lora.trained
    assert lora.total == lora.parameters + lora.passes


@pytest.mark.full
def test_memory_of_mitigations(tiny_model: Path, corpora: Path, base: Skeleton) -> None:
    def of(method: str, mitigation: dict[str, Any] | None) -> footprint.Footprint:
        entry = {"name": method, **({"mitigations": [mitigation]} if mitigation else {})}
        return taken(planned(tiny_model, corpora, entry, batch_size=64, micro_batch_size=16), base)

    text = {"source": str(corpora / "train.jsonl")}
    assert of("full", {"name": "kl", "text": text}).held == base.bytes  # a frozen copy
    assert of("lora", {"name": "kl", "text": text}).held == 0  # adapters are switched off
    assert of("lora", {"name": "kl", "on": "task"}).passes > of("lora", None).passes
    assert of("lora", {"name": "flow"}).passes > of("lora", None).passes
    assert of("full", {"name": "l2sp"}).held == of("full", None).gradients
    numbers = sum(p.numel() for p in base.model.parameters())
    assert of("full", {"name": "ewc", "text": text}).held == 2 * 4 * numbers
    assert of("lora", {"name": "freeze_layers", "layers": 1}).trained == of("lora", None).trained / 2


def test_a_model_that_reads_its_values_is_counted_by_the_formula(
    tiny_model: Path, corpora: Path, base: Skeleton, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x

    kind = type(base.model.model.norm)
    monkeypatch.setattr(kind, "forward", looks)
    found = taken(planned(tiny_model, corpora, {"name": "lora"}), base)
    assert not found.counted
    # 17 numbers of 4 bytes for each of 32 that go into each of 2 layers, for 4 windows of 16 tokens
    activations = 17 * 4 * 32 * 2 * 4 * 16
    assert found.passes == footprint.CPU_BUFFERS + round(footprint.GAPS * activations)
