"""The noise floor: an interval that covers a real copy in another dtype, for forgetting, KL and agreement."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import forgetting
from forgetting.data.windows import Windows
from forgetting.measuring import noise
from forgetting.measuring.base_targets import base_side
from forgetting.measuring.comparison import compare
from forgetting.measuring.quantities import BY_NAME


def random_text(documents: int = 24, tokens: int = 48, seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    predicted = np.tile(np.arange(tokens) > 0, documents)
    return Windows(
        rng.integers(6, 27, documents * tokens, dtype=np.int32),
        predicted,
        np.arange(documents + 1, dtype=np.int64) * tokens,
        np.arange(documents, dtype=np.int32),
        tuple(map(str, range(documents))),
    )


def random_model(seed: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=27,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,  # the default is so small that no token is likelier than another
    )
    return LlamaForCausalLM(config).eval()


def real_copy(base: torch.nn.Module, windows: Windows) -> dict[str, float]:
    """The result of measuring a bfloat16 copy of the base model on the whole text."""
    other = copy.deepcopy(base).to(torch.bfloat16)
    how = {"batch_tokens": 512, "rows": None}
    targets, expected = base_side(base, windows, key="x", cache_dir=None, with_rows=True, **how)
    found = compare(base, other, windows, targets, expected, **how).per_token(targets)
    return {name: float(np.mean(BY_NAME[name].values(found), dtype=np.float64)) for name in noise.NAMES}


@pytest.mark.slow
def test_the_interval_covers_a_real_copy(monkeypatch):
    monkeypatch.setattr(noise, "FIRST_TOKENS", 500)  # of 1,128: another sample each time
    windows, tries = random_text(), 20
    held = dict.fromkeys(noise.NAMES, 0)
    for seed in range(tries):
        base = random_model(seed)
        found = noise.noise_floor(base, windows, batch_tokens=512, seed=seed, rows=None)
        real = real_copy(base, windows)
        assert found.dtype is not None
        assert found.roundings == 4
        for name in noise.NAMES:
            held[name] += found.dtype[name].holds(real[name])
        assert found.batch["forgetting"].holds(0) or abs(found.batch["forgetting"].value) < 1e-6
    assert min(held.values()) >= 18, held


def test_the_interval_is_welchs_over_copies_and_documents():
    documents = np.repeat(np.arange(5), 3)
    one = np.repeat([0.0, 1.0, 2.0, 3.0, 4.0], 3)
    alone = noise._floor([one], documents, share=False)
    se = math.sqrt(2.5 / 5)
    assert alone.value == pytest.approx(2)
    assert alone.high - 2 == pytest.approx(2.776445 * se)  # t of 4 degrees
    both = noise._floor([one, one + 0.2], documents, share=False)
    parts = (se**2, 0.02 * 1.5)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 1)
    from scipy.stats import t

    assert both.high - 2.1 == pytest.approx(t.ppf(0.975, freedom) * math.sqrt(sum(parts)))
    assert math.isnan(noise._floor([one], np.zeros(15), share=False).low)
    shares = noise._floor([np.repeat([1.0, 1.0, 1.0, 1.0, 0.9], 3)], documents, share=True)
    assert shares.high == 1
    assert noise._floor([np.ones(1000)], np.arange(1000) // 10, share=True).low == pytest.approx(1 - 0.0037)


def test_random_rounding_takes_either_neighbour_and_is_right_on_average():
    exact = torch.full((20_000,), 1 + 0.25 / 128)
    rounded = noise._rounded(exact, torch.Generator().manual_seed(0))
    assert set(rounded.tolist()) == {1.0, 1 + 1 / 128}
    assert float(rounded.mean()) == pytest.approx(float(exact[0]), abs=1e-4)
    assert torch.equal(noise._rounded(-rounded, torch.Generator().manual_seed(1)), -rounded)


def test_measure_reports_forgetting_within_the_noise(tiny_model, corpora, tmp_path):
    from transformers import AutoModelForCausalLM

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(half)
    how = {"text": str(corpora / "general.jsonl"), "context": 32, "cache_dir": None}
    found = forgetting.measure(str(tiny_model), str(half), noise_floor=True, **how)
    row = found.to_dict()
    for name in ("noise_floor_dtype", "noise_floor_dtype_kl", "noise_floor_dtype_agreement"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["noise_floor_roundings"] == 4
    assert any("within the noise floor" in notice for notice in found.notices)
    assert "noise floor, KL divergence" in str(found)
