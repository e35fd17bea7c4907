"""Adapters on the head, and adapters that act only in the whole PeftModel, against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_measure_comparison import RESOLUTION, soft_twin
from test_measure_kernels import V, check, make_model, make_windows, twin

from forgetting.measuring import heads, passes
from forgetting.measuring.base_targets import base_side
from forgetting.measuring.comparison import compare
from forgetting.models import adapters

WINDOWS = make_windows([9, 7, 2, 20])
ON_THE_HEAD = {
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved-with-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "lora": {"target_modules": ["q_proj", "lm_head"]},
    "dora": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 50, 96]}},
    "tokens-of-embedding": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 50, 96]},
}


def adapted(base, **options):
    torch.manual_seed(0)
    model = get_peft_model(make_model(base), LoraConfig(r=2, init_lora_weights=False, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return model.eval()


CASES = [(kind, base, False) for kind in ON_THE_HEAD for base in ("llama", "llama-tied")]
CASES += [("saved", "gemma2", False), ("lora", "gemma2", False), ("saved", "llama-tied", True)]


@pytest.mark.full
@pytest.mark.parametrize(("kind", "base", "cached"), CASES)
def test_the_base_side_goes_through_the_base_head(kind, base, cached, tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "TILE_ROWS", 40)
    monkeypatch.setattr(heads, "CHUNK_POSITIONS", 7)
    monkeypatch.setattr(heads, "CALL_LOGITS", 5 * V)
    model = adapted(base, **ON_THE_HEAD[kind])
    kept = {"key": "k", "cache_dir": tmp_path if cached else None, "batch_tokens": 64, "rows": None, "with_rows": True}
    sides = [base_side(model, WINDOWS, **kept) for _ in range(1 + cached)]
    targets, expected = sides[-1]
    got = compare(model, model, WINDOWS, targets, expected, batch_tokens=64)
    plain = make_model(base)
    kl, soft = soft_twin(plain, model, WINDOWS)
    check(got.kl, kl, least=RESOLUTION)
    check(got.soft_nll, soft)
    check(targets.log_prob, [float(p.max()) for _, p in twin(plain, WINDOWS)])
    check(got.target_nll, [float(-p[a]) for a, (_, p) in zip(targets.argmax, twin(model, WINDOWS), strict=True)])
    assert float(kl.mean()) > 1e-3


def test_a_head_of_the_base_stays_one_when_the_adapter_is_back():
    """A wrapper that cannot be looked into is always called with the adapter disabled."""
    model = adapted("llama", **ON_THE_HEAD["lora"])
    hidden = torch.randn(3, 32)
    with torch.no_grad(), adapters.as_base(model):
        want = model.get_base_model().lm_head(hidden)
        run = passes._of_the_base(model, heads.CalledHead(model.get_base_model().lm_head, V, 1.0, None))
    ((_, tile),) = run.tiles(hidden, V)
    assert torch.equal(tile, want)
    assert not torch.equal(model.get_base_model().lm_head(hidden), want)
    with adapters.as_base(model):
        next(run.tiles(hidden, V))
        assert torch.equal(model.get_base_model().lm_head(hidden), want)


@torch.no_grad()
def test_alora_acts_from_its_invocation_on():
    """aLoRA acts after the last invocation in a window, which only the whole PeftModel finds."""
    token = int(WINDOWS.window(1)[0][5])
    model = adapted(
        "llama", target_modules=["q_proj", "v_proj"], alora_invocation_tokens=[token], task_type="CAUSAL_LM"
    )
    assert adapters.needs_whole_forward(model) == "invocation tokens"
    targets, expected = base_side(model, WINDOWS, key="k", cache_dir=None, batch_tokens=64, rows=None, with_rows=True)
    got = compare(model, model, WINDOWS, targets, expected, batch_tokens=64)
    kl, _ = soft_twin(make_model("llama"), model, WINDOWS)
    check(got.kl, kl, least=RESOLUTION)
    assert kl.max() > 1e-3
    assert np.count_nonzero(kl < 1e-9) > 5


def test_heads_that_cut_their_vocabulary_differently(monkeypatch):
    from forgetting.measuring import kernels

    torch.manual_seed(0)
    monkeypatch.setattr(heads, "TILE_ROWS", 40)
    one, other = torch.randn(V, 8), torch.randn(V, 8)
    states = torch.randn(2, 11, 8)
    linear = [heads.LinearHead(w, None, 1.0, None) for w in (one, other)]
    called = heads.CalledHead(lambda hidden: hidden @ other.T, V, 1.0, None)
    for rows in (V, 80, 79):
        want = kernels.divergence(*linear, *states, rows)
        torch.testing.assert_close(kernels.divergence(linear[0], called, *states, rows), want)
        torch.testing.assert_close(
            kernels.divergence(called, linear[0], *states, rows), kernels.divergence(*linear[::-1], *states, rows)
        )
