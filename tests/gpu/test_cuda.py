"""Tests that need a GPU; skipped without one. Run with `pytest tests/gpu`."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

import forgetting
from forgetting.data.windows import Windows
from forgetting.measuring import heads, kernels, passes
from forgetting.measuring.base_targets import base_side
from forgetting.measuring.comparison import compare
from forgetting.measuring.losses import token_losses
from forgetting.models import products, split_lora
from forgetting.tuning import fused_loss
from forgetting.tuning.folded_lora import _SplitLora
from small_study import fields, numbers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
DEVICE = "cuda"
V = 9_001
"""More than a tile, and not a multiple of one."""


def make_windows(count: int = 12, length: int = 64) -> Windows:
    predicted = np.ones(count * length, bool)
    predicted[::length] = False
    return Windows(
        np.random.default_rng(0).integers(2, V, count * length).astype(np.int32),
        predicted,
        np.arange(count + 1, dtype=np.int64) * length,
        np.arange(count, dtype=np.int32),
        tuple(f"d{i}" for i in range(count)),
    )


def make_model(dtype: torch.dtype, *, vocabulary: int = V) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.4)
    return model.to(DEVICE, dtype).eval()


def adapted(model: Any, *, identity: bool) -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=identity)).eval()


def side(model: Any, windows: Windows, folder: Path | None) -> Any:
    how: dict[str, Any] = {"key": "test", "rows": None, "with_rows": True, "batch_tokens": 256}
    return base_side(model, windows, cache_dir=folder, **how)


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert (found.double() - exact).abs().max() < 1e-5 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("scale", "softcap", "with_bias"), [(1.0, None, False), (0.25, None, True), (1.0, 5.0, False)])
def test_products_equal_float64(dtype: torch.dtype, scale: float, softcap: float | None, with_bias: bool) -> None:
    """16-bit weights are multiplied as they are, as precisely as float64 on the same numbers allows."""
    torch.manual_seed(0)
    weight = torch.randn(V, 256, device=DEVICE).to(dtype)
    bias = torch.randn(V, device=DEVICE).to(dtype) if with_bias else None
    hidden = torch.randn(70, 256, device=DEVICE).to(dtype)
    head = heads.LinearHead(weight, bias, scale, softcap)
    assert products.widens(weight) == (dtype != torch.float32)
    exact = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    exact = exact * scale if softcap is None else softcap * torch.tanh(exact * scale / softcap)
    found = torch.cat([tile.clone() for _, tile in head.tiles(hidden, V)], 1)
    assert found.dtype == torch.float32
    close(found, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("triton", [True, False])
def test_kernels_equal_float64(dtype: torch.dtype, triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if not triton:
        monkeypatch.setattr(kernels, "_fold_on", lambda _device: None)
    elif importlib.util.find_spec("triton"):
        assert kernels._fold_on(torch.device(DEVICE, 0)) is not None
    weight = (torch.randn(V, 64, device=DEVICE) * 0.7).to(dtype)
    hidden = torch.randn(33, 64, device=DEVICE).to(dtype)
    weight[5] = weight[8_500]  # a tie over tiles
    tokens = torch.randint(0, V, (33,), device=DEVICE)
    head = heads.LinearHead(weight, None, 1.0, None)
    z = hidden.double() @ weight.double().T
    log_p = torch.log_softmax(z, 1)
    found = kernels.describe(head, hidden, tokens, V, with_mean_row=True)
    close(found.nll, -log_p.gather(1, tokens[:, None])[:, 0])
    close(found.top_nll, -log_p.amax(1))
    close(found.entropy, -(log_p.exp() * log_p).sum(1))
    assert found.mean_row is not None
    close(found.mean_row, log_p.exp() @ weight.double())
    picked = kernels.pick(head, hidden, torch.stack([tokens, found.argmax]), V)
    close(picked.nll[0], -log_p.gather(1, tokens[:, None])[:, 0])
    close(picked.lse, z.logsumexp(1))
    assert bool(picked.top[1].all())
    assert torch.equal(picked.nll[1], found.top_nll)
    assert torch.equal(picked.nll[0], found.nll)


def lora_layer(rank: int) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=rank, target_modules=["0"], init_lora_weights=False, use_rslora=True)
    (layer,) = inject_adapter_in_model(config, torch.nn.Sequential(torch.nn.Linear(384, 640))).to(DEVICE)
    layer.base_layer.bfloat16()
    return layer


@pytest.mark.parametrize("rank", [1, 16, 100])
def test_lora_over_bfloat16_equals_pefts_layer(rank: int) -> None:
    """Equal to the last bit except for the few results that lie at a boundary between two bfloat16 numbers."""
    layer = lora_layer(rank).eval()
    x = torch.randn(3, 700, 384, device=DEVICE).bfloat16()
    with torch.no_grad():
        by_peft = layer(x)
        with split_lora.evaluating(layer):
            assert "forward" in vars(layer)
            split = layer(x)
    assert float((split == by_peft).float().mean()) > 0.99
    assert float((split - by_peft).float().norm()) < 2**-10 * float(by_peft.float().norm())


@pytest.mark.parametrize("rank", [1, 16, 100])
def test_training_lora_over_bfloat16_equals_float64(rank: int) -> None:
    layer = lora_layer(rank).train()
    x = torch.randn(700, 384, device=DEVICE).bfloat16().requires_grad_()
    outward = torch.randn(700, 640, device=DEVICE).bfloat16()
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    y = _SplitLora.apply(x, layer.base_layer.weight, layer.base_layer.bias, a, b, scale)
    found = torch.autograd.grad(y, [x, a, b], outward)
    slope, flat = outward.double(), x.detach().double()
    to_low = scale * slope @ b.double()
    exact = [slope @ layer.base_layer.weight.double() + to_low @ a.double(), to_low.T @ flat]
    exact.append(scale * slope.T @ (flat @ a.double().T))
    for gradient, truth, tolerance in zip(found, exact, [2**-8, 2**-14, 2**-14], strict=True):
        assert float((gradient.double() - truth).norm()) < tolerance * float(truth.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_untrained_adapter_has_forgotten_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    windows, model = make_windows(), adapted(make_model(dtype), identity=True)
    found = compare(model, model, windows, *(both := side(model, windows, tmp_path)), batch_tokens=256)
    assert np.array_equal(found.target_nll, -both[0].log_prob)
    assert found.agrees.all()
    assert np.abs(found.kl).max() < 2e-6


@pytest.mark.parametrize("cached", [True, False])
def test_the_numbers_of_a_gpu_are_those_of_a_cpu(cached: bool, tmp_path: Path) -> None:
    windows, model = make_windows(), adapted(make_model(torch.float32), identity=False)
    found = compare(model, model, windows, *side(model, windows, tmp_path if cached else None), batch_tokens=256)
    model = model.cpu()
    expected = compare(model, model, windows, *side(model, windows, None), batch_tokens=256)
    for name in ("data_nll", "target_nll", "kl", "soft_nll"):
        assert np.abs(getattr(found, name) - getattr(expected, name)).max() < 2e-4
    assert (found.agrees == expected.agrees).mean() > 0.99


def test_base_beside_equals_expected_rows(tmp_path: Path) -> None:
    windows, model = make_windows(), adapted(make_model(torch.bfloat16), identity=False)
    targets, rows = side(model, windows, tmp_path)
    one = compare(model, model, windows, targets, rows, batch_tokens=256)
    other = compare(model, model, windows, targets, None, batch_tokens=256)
    assert one.kl.mean() > 1e-4
    # tensor cores round a sum of products towards zero: relative to the logits, and KL is large here
    assert (np.abs(one.kl - other.kl) < 1e-5 * (1 + other.kl)).all()


def test_losses_are_collected_on_the_device() -> None:
    found = passes.Collected(5, x=torch.float32, y=torch.bool)
    found.put(np.array([3, 1]), x=torch.tensor([2.0, 4.0], device=DEVICE, dtype=torch.float64))
    assert found.kept["x"].device.type == DEVICE
    assert found.arrays()["x"].tolist() == [0.0, 4.0, 0.0, 2.0, 0.0]
    assert found.arrays()["y"].tolist() == [False] * 5


def test_out_of_memory_halves_the_batches(caplog: pytest.LogCaptureFixture) -> None:
    windows, model = make_windows(64, 64), make_model(torch.float32)
    small = token_losses(model, windows, None, batch_tokens=64)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 60 * 2**20) / total)
    try:
        with caplog.at_level(logging.WARNING):
            found = token_losses(model, windows, None, batch_tokens=2**20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: measuring again with batches" in caplog.text
    assert np.abs(found.data_nll - small.data_nll).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_fused_loss_is_the_models_own(dtype: torch.dtype) -> None:
    model = adapted(make_model(dtype), identity=False).train()
    ids = torch.randint(0, V, (4, 64), device=DEVICE)
    labels = ids.clone()
    labels[:, :20] = -100
    fused = fused_loss.find(model)
    assert fused is not None
    losses, gradients = [], []
    for with_fused in (False, True):
        model.zero_grad()
        if with_fused:
            with fused.acting():
                loss = model(input_ids=ids, labels=labels).loss
        else:
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None]))
    bound = 1e-5 if dtype == torch.float32 else 5e-3
    assert losses[1] == pytest.approx(losses[0], rel=bound)
    assert (gradients[1] - gradients[0]).norm() < 10 * bound * gradients[0].norm()


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny model that is not the identity."""
    folder = tmp_path_factory.mktemp("adapter")
    adapted(LlamaForCausalLM.from_pretrained(tiny_model), identity=False).save_pretrained(folder)
    return folder


PLACES = [{"device": "cuda"}, {"device": "cuda:0"}, {"device_map": "auto"}, {"device": "cuda", "dtype": "bfloat16"}]


@pytest.mark.parametrize("placed", PLACES)
def test_measure_on_each_placement(
    placed: dict[str, Any], tiny_model: Path, corpora: Path, saved: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"text": str(corpora / "general.jsonl"), "context": 32, "cache_dir": tmp_path}
    found = forgetting.measure(str(tiny_model), str(saved), **how, **placed)
    cpu = forgetting.measure(str(tiny_model), str(saved), **how, device="cpu")
    bound = 0.02 if "dtype" in placed else 1e-5
    assert found.forgetting.value == pytest.approx(cpu.forgetting.value, abs=bound)
    assert found.forgetting.value > 0


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", [4, 8])
def test_bits(bits: int, tmp_path: Path, tiny_model: Path, corpora: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    adapted(make_model(torch.bfloat16, vocabulary=27), identity=False).save_pretrained(adapter)
    make_model(torch.bfloat16, vocabulary=27).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((tiny_model / name).read_bytes())
    how: dict[str, Any] = {"text": str(corpora / "general.jsonl"), "cache_dir": None, "device": "cuda"}
    found = forgetting.measure(str(base), str(adapter), bits=bits, **how)
    plain = forgetting.measure(str(base), str(adapter), **how)
    assert found.forgetting.value == pytest.approx(plain.forgetting.value, rel=0.5)
    assert found.forgetting.value > 0


def configuration(folder: Path, tiny_model: Path, corpora: Path, device: str, **changes: Any) -> Path:
    given = fields(tiny_model, corpora, **changes)
    given["model"] |= {"device": device}
    path = folder / f"{device}.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "forgetting", "study", str(config), "--out", str(out), "--jobs", "1"]


def run(config: Path, out: Path) -> None:
    ended = subprocess.run(command(config, out), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def stop_after(config: Path, out: Path, count: int) -> None:
    """Start the study and stop it by a signal once it has this many rows."""
    study = subprocess.Popen(command(config, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and study.poll() is None:
        if sum(path.read_bytes().count(b"\n") for path in out.glob("runs/*/measurements.jsonl")) >= count:
            study.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    assert study.wait(timeout=120) in (0, 128 + signal.SIGTERM)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_study_on_a_gpu(dtype: str, tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    """Trained, stopped and resumed: rows equal those of an uninterrupted study; memory is the GPU's."""
    model = {"source": str(tiny_model), "dtype": dtype}
    training = {"steps": 60, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3}
    config = configuration(tmp_path, tiny_model, corpora, DEVICE, model=model, training=training)
    run(config, tmp_path / "whole")
    stop_after(config, tmp_path / "stopped", 5)
    run(config, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    (rows,) = numbers(tmp_path / "whole").values()
    assert rows[0]["step"] == 0
    assert rows[0]["forgetting"] == 0.0
    assert rows[-1]["finetune_loss"] < rows[0]["finetune_loss"]
    (path,) = (tmp_path / "whole").glob("runs/*/measurements.jsonl")
    peak = json.loads(path.read_text().splitlines()[-1])["peak_memory"]
    assert 0 < peak < torch.cuda.get_device_properties(0).total_memory / 2**20


def test_a_study_on_a_gpu_has_the_losses_of_a_cpu(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    for device in (DEVICE, "cpu"):
        model = {"source": str(tiny_model), "dtype": "float32"}
        methods = [{"name": "lora", "rank": 2}, {"name": "full"}]
        run(configuration(tmp_path, tiny_model, corpora, device, model=model, methods=methods), tmp_path / device)
    one, other = numbers(tmp_path / DEVICE), numbers(tmp_path / "cpu")
    for (_, found), (_, expected) in zip(sorted(one.items()), sorted(other.items()), strict=True):
        for a, b in zip(found, expected, strict=True):
            for name in ("finetune_loss", "forgetting_loss", "forgetting"):
                assert a[name] == pytest.approx(b[name], abs=2e-3)


SCRIPT = """
import json
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from forgetting import ForgettingCallback

model = AutoModelForCausalLM.from_pretrained({model!r})
tokenizer = AutoTokenizer.from_pretrained({model!r})
ids = [[6, 7, 8, 9, 10, 11, 12, 13]] * 16
measuring = ForgettingCallback({text!r}, every=2, context=32)
arguments = TrainingArguments({out!r}, max_steps=4, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[],
                              save_strategy="no")
rows = Dataset.from_dict({{"input_ids": ids, "labels": ids}})
Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[measuring]).train()
print("backend", torch.distributed.is_initialized() and torch.distributed.get_backend())
print("rows", json.dumps(measuring.rows))
"""


def test_ddp_on_nccl(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    """`torchrun` with one process on NCCL: the callback's numbers equal those without a launcher."""
    script = tmp_path / "train.py"
    places = {"model": str(tiny_model), "text": str(corpora / "general.jsonl"), "out": str(tmp_path / "out")}
    script.write_text(SCRIPT.format(**places))
    found = []
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", "29611"]):
        ended = subprocess.run(
            [sys.executable, *launcher, str(script)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"},
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        lines = dict(line.split(" ", 1) for line in ended.stdout.splitlines() if line.startswith(("rows ", "backend ")))
        found.append((lines["backend"], json.loads(lines["rows"])))
    assert "nccl" in found[1][0]
    assert [row["step"] for row in found[1][1]] == [0, 2, 4]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one["forgetting"] == pytest.approx(other["forgetting"], abs=1e-5)
