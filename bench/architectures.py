"""Every causal architecture of transformers, tiny and random, with plain and awkward adapters, against a plain loop.

    python bench/architectures.py [--only WORD ...] [--all-adapters] [--json FILE]

For each architecture, a model and adapters for it are created and saved, and each adapter is measured against the model
from its files, as by `forgetting measure`. The plain loop loads both models itself, runs each window alone through the
whole model, and takes log-softmax of the full logits in float64. A row is `equal` (all means within 1e-6), `refused`
(with the reason) or `OFF`. It prints the table of docs/measuring.md; the exit code is 1 if any row is `OFF`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import nn

from forgetting.errors import ForgettingError, UsageError

V = 96
TOLERANCE = 1e-6
ARCHITECTURES = (
    *("afmoe", "apertus", "arcee", "bamba", "bitnet", "bloom", "biogpt", "codegen", "cohere", "cohere2"),
    *("ctrl", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe"),
    *("exaone4", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4"),
    *("glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite"),
    *("granitemoe", "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jamba"),
    *("jetmoe", "lfm2", "llama", "mamba", "mamba2", "minimax", "ministral", "mistral", "mixtral"),
    *("modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "openai-gpt", "opt"),
    *("persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"),
    *("recurrent_gemma", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm", "xlstm"),
    *("bert", "roberta", "electra", "xlnet", "bart", "mbart", "pegasus", "t5", "megatron-bert"),
)
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size", "d_inner", "d_ff"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_attention_groups"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 128),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_local_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k", "moe_topk", "moe_top_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "attention_hidden_size", "lru_width"), 32),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_head_dim", "attention_head_dim", "kv_channels", "rotary_dim", "time_step_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **{"head_dim": 8, "vocab_size": V, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "state_size": 4},
    **{"ssm_state_size": 4, "mamba_d_state": 4, "conv_kernel": 4, "n_groups": 1, "mamba_n_groups": 1, "chunk_size": 8},
    **{"sliding_window": 8, "attention_window_size": 8, "local_attention": 8, "window_size": 8, "zero_expert_num": 1},
    **{"num_dense_layers": 1, "d_kv": 8, "qk_dim": 8, "v_dim": 8, "n_shared_experts": 1, "mamba_d_ssm": 64},
}
"""Values that are set for these fields, if a configuration has them."""
SPECIAL: dict[str, dict[str, Any]] = {
    "xlnet": {"max_position_embeddings": None},
    "falcon": {"head_dim": None},
    "deepseek_v2": {"head_dim": None, "num_key_value_heads": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {"head_dim": None, "num_key_value_heads": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "nemotron": {"num_key_value_heads": 2},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_ctx": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "phimoe": {"num_experts_per_tok": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "xlstm": {
        "num_blocks": 2,
        "num_heads": 4,
        "mode": "inference",
        "chunkwise_kernel": "chunkwise--native_autograd",
        **dict.fromkeys(("v_head_dim", "qk_head_dim", "qk_dim", "v_dim")),
    },
}
ADAPTERS = ("lora", "dora", "ia3", "head", "tokens", "lora-on-head")
AWKWARD = ADAPTERS[1:]


def config_of(name: str) -> Any:
    """A small configuration of an architecture."""
    from transformers import AutoConfig

    plain = AutoConfig.for_model(name)
    chosen = {key: value for key, value in SMALL.items() if isinstance(getattr(plain, key, None), int)}
    chosen |= {key: value for key, value in SMALL.items() if key == "head_dim" and hasattr(plain, key)}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    given = {**chosen, **ids, **SPECIAL.get(name, {})}
    return AutoConfig.for_model(name, **{key: value for key, value in given.items() if value is not None})


def save_model(name: str, folder: Path) -> None:
    """Save a random model of the architecture, with logits far from uniform, and a tokenizer for it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = config_of(name)
    kind = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    model = kind.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.3 / max(float(parameter.std()), 1e-3))
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        if not getattr(config, "is_encoder_decoder", False):
            head = model.get_output_embeddings()
            spread = model(input_ids=torch.arange(3, 19)[None], use_cache=False).logits.std()
            head.weight.mul_(2 / max(float(spread), 1e-3))
    model.save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0", unk_token="w0", eos_token="w2").save_pretrained(
        folder
    )


def adapter_of(kind: str, model: Any) -> Any:
    """The configuration of an adapter of this kind for a model.

    Raises:
        LookupError: the model has no module that it could adapt.
    """
    from peft import IA3Config, LoraConfig
    from transformers.pytorch_utils import Conv1D

    names = {id(module): name for name, module in model.named_modules()}
    head = names.get(id(model.get_output_embeddings()), "")
    linear = sorted(
        {
            name.split(".")[-1]
            for name, module in model.named_modules()
            if name != head
            and isinstance(module, nn.Linear | Conv1D)
            and not name.split(".")[-1].isdigit()
            and "out_proj" not in name
            and module.weight.shape[-1] >= 16
        }
    )
    linear = [name for name in linear if name not in ("gate", "router")]
    if not linear and kind in ("lora", "dora", "ia3"):
        raise LookupError("no linear layer")
    plain = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    if kind == "lora":
        return LoraConfig(**plain, target_modules=linear)
    if kind == "dora":
        return LoraConfig(**plain, target_modules=linear, use_dora=True)
    if kind == "ia3":
        return IA3Config(target_modules=linear, feedforward_modules=[], task_type="CAUSAL_LM", init_ia3_weights=False)
    if kind == "head":
        return LoraConfig(**plain, target_modules=linear or [head], modules_to_save=[head.split(".")[-1]])
    if kind == "tokens":
        return LoraConfig(**plain, target_modules=linear, trainable_token_indices=[5, 17, 40])
    return LoraConfig(**plain, target_modules=[*linear, head.split(".")[-1]])


def save_adapter(kind: str, base: Path, folder: Path) -> None:
    """Save an adapter of a model, with random weights, by PEFT alone."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    own = {id(parameter) for parameter in model.parameters()}
    tuned = get_peft_model(model, adapter_of(kind, model))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if id(parameter) not in own:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tuned.save_pretrained(folder)


def windows_of() -> Any:
    """A short text of three documents."""
    from forgetting.data.windows import Windows

    rng = np.random.default_rng(0)
    lengths = (24, 24, 9, 17)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    predicted = np.ones(sum(lengths), bool)
    predicted[offsets[:-1]] = False
    ids = rng.integers(3, V, sum(lengths)).astype(np.int32)
    return Windows(ids, predicted, offsets, np.array([0, 0, 1, 2], np.int32), ("a", "b", "c"))


@torch.no_grad()
def plain_loop(base: Path, adapter: Path, windows: Any) -> dict[str, float]:
    """The means, computed in the most obvious way."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    one = AutoModelForCausalLM.from_pretrained(base).eval()
    other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    rows = []
    for w in range(len(windows)):
        ids = torch.from_numpy(windows.window(w)[0].astype(np.int64))[None]
        p, q = (torch.log_softmax(m(input_ids=ids, use_cache=False).logits[0, :-1].double(), -1) for m in (one, other))
        top, true = p.argmax(-1), ids[0, 1:]
        at = torch.arange(len(top))
        rows.append(
            {
                "forgetting": p[at, top] - q[at, top],
                "forgetting_loss": -q[at, top],
                "forgetting_floor": -p[at, top],
                "kl": (p.exp() * (p - q)).sum(-1),
                "soft_forgetting_loss": -(p.exp() * q).sum(-1),
                "agreement": (q.argmax(-1) == top).double(),
                "data_loss_base": -p[at, true],
                "data_loss_tuned": -q[at, true],
            }
        )
    return {name: float(torch.cat([row[name] for row in rows]).mean()) for name in rows[0]}


def compared(base: Path, adapter: Path, windows: Any) -> tuple[str, str]:
    """`equal`, `refused` or `OFF`, and a remark."""
    from forgetting import measure

    try:
        found = measure(str(base), str(adapter), text=windows, cache_dir=None).to_dict()
    except UsageError as error:
        return "refused", str(error).splitlines()[0].replace(str(adapter), "ADAPTER").replace(str(base), "MODEL")
    except ForgettingError as error:
        return "OFF", str(error)
    expected = plain_loop(base, adapter, windows)
    off = {
        name: found[name] - value
        for name, value in expected.items()
        if abs(found[name] - value) > TOLERANCE * max(1, abs(value))
    }
    if off:
        return "OFF", ", ".join(f"{name} by {value:.2e}" for name, value in off.items())
    changed = f"forgetting {expected['forgetting']:.3f}, KL {expected['kl']:.3f}"
    return "equal", changed


def rows_of(name: str, kinds: tuple[str, ...], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per adapter; a single one if the model cannot be created or is refused."""
    base = folder / name
    try:
        save_model(name, base)
    except Exception as error:  # whatever PEFT or transformers raise is shown in the table
        yield {
            "model": name,
            "adapter": "",
            "result": "not made",
            "note": f"{type(error).__name__}: {str(error)[:150]}",
        }
        return
    windows = windows_of()
    for kind in kinds:
        began = time.perf_counter()
        adapter = folder / f"{name}-{kind}"
        try:
            save_adapter(kind, base, adapter)
        except Exception as error:
            from forgetting import measure

            try:
                measure(str(base), str(base), text=windows, cache_dir=None)
                note = f"PEFT cannot make it: {str(error).splitlines()[0][:120]}"
                yield {"model": name, "adapter": kind, "result": "not made", "note": note}
            except UsageError as refused:
                note = str(refused).splitlines()[0].replace(str(base), "MODEL")
                yield {"model": name, "adapter": "any", "result": "refused", "note": note}
                return
            continue
        result, note = compared(base, adapter, windows)
        yield {"model": name, "adapter": kind, "result": result, "note": note, "seconds": time.perf_counter() - began}


TITLES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "ia3": "IA3",
    "head": "head saved",
    "tokens": "tokens trained",
    "lora-on-head": "LoRA on the head",
}


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/measuring.md: one row for all architectures with the same results."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        kinds = [row["adapter"]] if row["adapter"] in ADAPTERS else ADAPTERS
        word = row["result"] if row["result"] != "not made" else "PEFT has none"
        found.setdefault(row["model"], {}).update(dict.fromkeys(kinds, word))
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, results in found.items():
        alike.setdefault(tuple(results.get(kind, "") for kind in ADAPTERS), []).append(name)
    lines = ["| architectures | " + " | ".join(TITLES.values()) + " |", "|---" * (1 + len(TITLES)) + "|"]
    lines += [f"| {', '.join(names)} | {' | '.join(results)} |" for results, names in alike.items()]
    return "\n".join(lines)


def main() -> int:
    """Run all, print the table, and return the exit code."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", nargs="*", default=ARCHITECTURES)
    ask.add_argument("--all-adapters", action="store_true", help="each awkward adapter on each, not one of them")
    ask.add_argument("--json", type=Path)
    asked = ask.parse_args()
    rows = []
    for i, name in enumerate(asked.only):
        kinds = ADAPTERS if asked.all_adapters else ("lora", AWKWARD[i % len(AWKWARD)])
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(name, kinds, Path(folder)):
                rows.append(row)
                print(f"{row['model']:20} {row['adapter']:13} {row['result']:9} {row['note'][:160]}", flush=True)
    print(table(rows))
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["result"] == "OFF" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
