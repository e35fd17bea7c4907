"""Soft losses and divergences, computed in both ways, against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_measure_kernels import CONFIGS, check, make_model, make_windows, twin

from forgetting.measuring import comparison, heads, kernels
from forgetting.measuring.base_targets import base_side
from forgetting.measuring.comparison import compare

WINDOWS = make_windows([9, 17, 2, 30, 30, 5])

RESOLUTION = 5e-7
"""nats: a divergence is a difference of float32 logits of about 10; below this it is rounding."""


def side_of(model, **options):
    return base_side(
        model,
        WINDOWS,
        **{"key": "k", "cache_dir": None, "batch_tokens": 64, "rows": None, "with_rows": True, **options},
    )


def soft_twin(base, tuned, windows=WINDOWS):
    """[N] KL and soft cross-entropy from whole float64 distributions."""
    pairs = [(b, t) for (_, b), (_, t) in zip(twin(base, windows), twin(tuned, windows), strict=True)]
    kl = [float((b.exp() * (b - t)).sum()) for b, t in pairs]
    soft = [float(-(b.exp() * t).sum()) for b, t in pairs]
    return np.array(kl), np.array(soft)


@pytest.mark.full
@pytest.mark.parametrize("same", [True, False], ids=["same-head", "other-head"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture(name, same, monkeypatch):
    monkeypatch.setattr(heads, "TILE_ROWS", 40)
    monkeypatch.setattr(heads, "CHUNK_POSITIONS", 7)
    base, tuned = make_model(name), make_model(name, 0 if same else 1)
    if same:
        with torch.no_grad():
            named = reversed(list(tuned.named_parameters()))
            last = next(p for n, p in named if any(part in n for part in ("norm", "ln_f", "down_proj")))
            last.add_(torch.randn_like(last) * 0.3)
    targets, expected = side_of(base)
    capped = getattr(base.config, "final_logit_softcapping", None) is not None
    assert (expected is None) == capped
    if same and not capped:
        monkeypatch.setattr(kernels, "divergence", lambda *a: pytest.fail("the slower way was taken"))
    got = compare(base, tuned, WINDOWS, targets, expected, batch_tokens=64)
    kl, soft = soft_twin(base, tuned)
    check(got.soft_nll, soft, least=RESOLUTION)
    check(got.kl, kl, least=RESOLUTION)
    check(got.target_nll, [float(-p[a]) for a, (_, p) in zip(targets.argmax, twin(tuned, WINDOWS), strict=True)])


def test_an_adapter_both_ways_and_from_the_cache(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(
        make_model("phi"), LoraConfig(r=4, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    )
    targets, expected = side_of(model, cache_dir=tmp_path)
    rows = compare(model, model, WINDOWS, targets, expected, batch_tokens=64)
    beside = compare(model, model, WINDOWS, targets, None, batch_tokens=64)
    cached = compare(model, model, WINDOWS, *side_of(model, cache_dir=tmp_path), batch_tokens=64)
    np.testing.assert_allclose(rows.kl, beside.kl, atol=3e-6)
    assert cached.kl.tobytes() == rows.kl.tobytes()
    kl, _ = soft_twin(make_model("phi"), model.eval())
    check(rows.kl, kl, least=RESOLUTION)


def test_kl_of_a_small_drift_is_not_lost_in_rounding():
    base, tuned = make_model("llama"), make_model("llama")
    with torch.no_grad():
        tuned.model.norm.weight.mul_(1.002)
    targets, expected = side_of(base)
    kl, _ = soft_twin(base, tuned)
    assert kl.mean() < 1e-5
    for rows in (expected, None):
        got = compare(base, tuned, WINDOWS, targets, rows, batch_tokens=64)
        assert got.kl.mean() == pytest.approx(kl.mean(), abs=3e-7)


def test_rounding_of_the_expected_rows_does_not_show_in_kl(monkeypatch):
    """With expected rows 0.1 % too small, KL is off by 0.1 % of the difference of the logits, not of the logits."""
    usual = kernels._plus_product
    monkeypatch.setattr(kernels, "_plus_product", lambda row, e, weight: usual(row, e, weight * 0.999))
    base, tuned = make_model("phi"), make_model("phi")  # a head with a bias
    with torch.no_grad():
        tuned.model.final_layernorm.weight.mul_(1.002)
    targets, expected = side_of(base)
    same = compare(base, base, WINDOWS, targets, expected, batch_tokens=64)
    assert np.abs(same.kl).max() < 1e-6
    kl, _ = soft_twin(base, tuned)
    got = compare(base, tuned, WINDOWS, targets, expected, batch_tokens=64)
    assert np.abs(got.kl - kl).max() < 0.002 * 0.001 * 30  # logits are at most about 30


def test_a_shared_part_of_the_vocabulary():
    windows = make_windows([20, 9], vocabulary=60)
    base, tuned = make_model("llama"), make_model("llama", 1)
    targets, expected = base_side(base, windows, key="k", cache_dir=None, batch_tokens=64, rows=60, with_rows=True)
    got = compare(base, tuned, windows, targets, expected, batch_tokens=64, rows=60)
    b, t = (np.array([p[:60].numpy() for _, p in twin(m, windows)]) for m in (base, tuned))
    b, t = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (b, t))
    check(got.kl, (np.exp(b) * (b - t)).sum(1), least=RESOLUTION)


def test_same_head_looks_at_everything():
    one = heads.LinearHead(torch.eye(3), None, 1.0, None)
    assert comparison.same_head(one, heads.LinearHead(torch.eye(3), None, 1.0, None))
    for other in (
        heads.LinearHead(torch.eye(3) * 2, None, 1.0, None),
        heads.LinearHead(torch.eye(3), torch.ones(3), 1.0, None),
        heads.LinearHead(torch.eye(3), None, 2.0, None),
        heads.LogitsHead(3),
    ):
        assert not comparison.same_head(one, other)
