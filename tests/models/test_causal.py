"""Which models are left-to-right language models, found by running them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import experts
from forgetting.config.schema import ModelConfig
from forgetting.errors import UsageError
from forgetting.models import causal, skeleton
from forgetting.models.bitsandbytes_internals import rounded_by_token
from forgetting.models.causal import check_causal
from forgetting.models.loading import load_base
from forgetting.models.pair import open_pair
from forgetting.models.sources import find

B: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT: dict[str, Any] = {**B, "intermediate_size": 48, "max_position_embeddings": 64}
D: dict[str, Any] = {"vocab_size": 60, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}
BOTH_WAYS = {
    "bert": lambda: tf.BertLMHeadModel(tf.BertConfig(**BERT)),
    "roberta": lambda: tf.RobertaForCausalLM(tf.RobertaConfig(**BERT)),
    "xlnet": lambda: tf.XLNetLMHeadModel(tf.XLNetConfig(vocab_size=60, d_model=32, n_layer=2, n_head=4, d_inner=48)),
    "masked": lambda: tf.BertForMaskedLM(tf.BertConfig(**BERT)),
}
ONE_WAY = {
    "bert-as-decoder": lambda: tf.BertLMHeadModel(tf.BertConfig(**BERT, is_decoder=True)),
    "bart-decoder": lambda: tf.BartForCausalLM(tf.BartConfig(**D, decoder_ffn_dim=48, max_position_embeddings=64)),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(**BERT, num_key_value_heads=2, num_local_experts=4, sliding_window=4)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=12)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*BOTH_WAYS, *ONE_WAY])
def test_a_model_that_looks_ahead_is_refused(name: str, dtype: torch.dtype) -> None:
    if name == "mixtral":
        experts.skip_where_they_do_not_run()
    torch.manual_seed(0)
    model = (BOTH_WAYS | ONE_WAY)[name]().to(dtype)
    if name in ONE_WAY:
        check_causal(model, "m")
        return
    with pytest.raises(UsageError, match=r"m: .* is not a left-to-right language model"):
        check_causal(model, "m")


def test_models_without_logits_at_each_position_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tf.BertForSequenceClassification(tf.BertConfig(**BERT))
    with pytest.raises(UsageError, match=r"m: .*cannot be run|not give logits"):
        check_causal(model, "m")


def test_a_model_that_draws_random_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ONE_WAY["gpt2"]()
    head = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: head(hidden + torch.randn_like(hidden)))
    with pytest.raises(UsageError, match="draws random numbers"):
        check_causal(model, "m")


def test_live_models_are_checked_too() -> None:
    from forgetting.config.schema import ModelConfig
    from forgetting.models.loading import Placement

    torch.manual_seed(0)
    good, bad = ONE_WAY["gpt2"](), BOTH_WAYS["xlnet"]()
    for base, tuned, which in ((good, bad, "tuned"), (bad, good, "base")):
        with pytest.raises(UsageError, match=f"the {which} model: .*left-to-right"):
            open_pair(base, tuned, settings=ModelConfig(source="-"), placement=Placement())


def test_weights_that_are_not_finite_are_left_to_the_loader() -> None:
    model = ONE_WAY["gpt2"]()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    check_causal(model, "m")


def test_eight_bits_are_asked_without_what_tokens_share() -> None:
    """LLM.int8 keeps a feature in 16 bits if any token is large there, so later tokens affect earlier ones."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(32, 32, has_fp16_weights=False, threshold=6.0)
    with rounded_by_token(torch.nn.Sequential(layer)):
        assert layer.state.threshold == 0.0
    assert layer.state.threshold == 6.0


def test_a_model_that_also_reads_images_is_measured_on_text(tiny_model: Path, tmp_path: Path) -> None:
    """LLaVA has no causal class in transformers; of text it computes what its language model computes."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    text = tf.AutoConfig.from_pretrained(tiny_model).to_dict()
    shutil.copytree(tiny_model, tmp_path / "model")
    whole = tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=26)
    )
    inner = tf.LlamaForCausalLM.from_pretrained(tiny_model)
    whole.model.language_model.load_state_dict(inner.model.state_dict())
    whole.lm_head.load_state_dict(inner.lm_head.state_dict())
    whole.save_pretrained(tmp_path / "model")
    config = ModelConfig(source=str(tmp_path / "model"))
    found = load_base(config).model
    assert isinstance(found, tf.LlavaForConditionalGeneration)
    tokens = causal.plain_tokens(found)
    torch.testing.assert_close(causal.probe(found, tokens), causal.probe(inner.eval(), tokens))
    assert type(skeleton.skeleton(config, find(config.source)).model) is type(found)
