"""The tiled kernels and every listed architecture against slow obvious twins."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import transformers as tf

from forgetting.data.windows import Windows
from forgetting.measuring import heads
from forgetting.measuring.base_targets import base_targets
from forgetting.measuring.losses import token_losses

V = 97


def make_windows(lengths, *, vocabulary=V, seed=0, documents=None):
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    predicted = np.ones(total, bool)
    predicted[offsets[:-1]] = False
    docs = np.arange(len(lengths)) if documents is None else np.asarray(documents)
    return Windows(
        rng.integers(0, vocabulary, total).astype(np.int32),
        predicted,
        offsets,
        docs.astype(np.int32),
        tuple(f"doc{i}" for i in range(int(docs.max()) + 1)),
    )


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": V, "max_position_embeddings": 128, "pad_token_id": 0}  # fmt: skip
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "llama-tied": lambda: tf.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**SMALL),
    "qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "gemma3": lambda: tf.Gemma3TextConfig(**SMALL, head_dim=8, query_pre_attn_scalar=8),
    "gemma3-capped": lambda: tf.Gemma3TextConfig(**SMALL, head_dim=8, final_logit_softcapping=2.0),
    "mistral": lambda: tf.MistralConfig(**SMALL, head_dim=8),
    "phi": lambda: tf.PhiConfig(**SMALL),
    "phi3": lambda: tf.Phi3Config(**SMALL),
    "gpt2": lambda: tf.GPT2Config(vocab_size=V, n_positions=128, n_embd=32, n_layer=2, n_head=4),
    "gptj": lambda: tf.GPTJConfig(vocab_size=V, n_positions=128, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "olmo": lambda: tf.OlmoConfig(**SMALL),
    "olmo2": lambda: tf.Olmo2Config(**SMALL),
    "mamba": lambda: tf.MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4),
    "cohere": lambda: tf.CohereConfig(**SMALL, logit_scale=0.5),
    "cohere2": lambda: tf.Cohere2Config(**SMALL, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**SMALL, logits_scaling=4.0),
    "opt": lambda: tf.OPTConfig(
        vocab_size=V, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
}


def make_model(name, seed=0):
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    config._attn_implementation = "eager"
    model = tf.AutoModelForCausalLM.from_config(config)
    module = model.get_output_embeddings()
    with torch.no_grad():
        spread = model.eval()(input_ids=torch.arange(20)[None]).logits.std()
        module.weight.mul_(2 / spread)  # far from uniform, so that soft-capping and the running maximum have work
        if getattr(module, "bias", None) is not None:
            module.bias.normal_()
    return model.eval()


@torch.no_grad()
def twin(model, windows):
    """The slow twin: one window at a time, full logits in float64, one position at a time."""
    rows = []
    for w in range(len(windows)):
        ids, predicted = windows.window(w)
        logits = model(input_ids=torch.tensor(ids.astype(np.int64))[None], use_cache=False).logits[0].double()
        for t in np.flatnonzero(predicted):
            log_p = torch.log_softmax(logits[t - 1], -1)
            rows.append((int(ids[t]), log_p))
    return rows


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.full if i % 4 else ()) for i, n in enumerate(CONFIGS)]
)
def test_every_architecture_agrees_with_its_twin(name, caplog, monkeypatch):
    monkeypatch.setattr(heads, "TILE_ROWS", 40)
    monkeypatch.setattr(heads, "CHUNK_POSITIONS", 7)
    windows = make_windows([9, 17, 2, 30, 30, 5])
    base, tuned = make_model(name, 0), make_model(name, 1)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        targets = base_targets(base, windows, key="k", cache_dir=None, batch_tokens=64)
        losses = token_losses(tuned, windows, targets, batch_tokens=64)
    assert "full logits" not in caplog.text
    before, after = twin(base, windows), twin(tuned, windows)
    argmax = [int(p.argmax()) for _, p in before]
    assert targets.argmax.tolist() == argmax
    check(targets.log_prob, [float(p.max()) for _, p in before])
    check(targets.entropy, [float(-(p.exp() * p).sum()) for _, p in before])
    check(targets.data_log_prob, [float(p[token]) for token, p in before])
    check(losses.data_nll, [float(-p[token]) for token, p in after])
    check(losses.target_nll, [float(-p[a]) for a, (_, p) in zip(argmax, after, strict=True)])
    assert losses.agrees.tolist() == [int(p.argmax()) == a for a, (_, p) in zip(argmax, after, strict=True)]


def check(got, expected, rel=1e-6, least=0.0):
    """Means to 1e-6 relative, and single tokens to float32 rounding of the logits they come from."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    assert abs(np.mean(got, dtype=np.float64) - expected.mean()) <= rel * abs(expected.mean()) + least
