"""The estimated memory of a run, compared with the measured memory.

    python bench/memory.py [--only NAME ...] [--steps 2]

Each setting is one run on a CPU in its own process, after a run of a tiny model has loaded the libraries. Printed are
the estimate (`tuning.footprint`) and the kernel's peak of resident memory minus what was resident before the model was
loaded: the table of docs/benchmarks.md. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 2**20
WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
VOCABULARY = 128_256
LORA = {"name": "lora", "rank": 8}
LONG = {"context": 128, "batch_size": 4, "micro_batch_size": 2}
SETTINGS = {
    "miniature, LoRA r 8": {"methods": [LORA]},
    "miniature, LoRA r 64": {"methods": [{**LORA, "rank": 64}]},
    "miniature, full": {"methods": [{"name": "full"}]},
    "wide, LoRA r 16": {"wide": {}, "methods": [{**LORA, "rank": 16}], **LONG},
    "wide, LoRA r 16, checkpointing": {"wide": {}, "methods": [{**LORA, "rank": 16}], "saving": True, **LONG},
    "wide, LoRA r 512": {"wide": {}, "methods": [{**LORA, "rank": 512}], **LONG},
    "wide, LoRA r 16 + kl": {
        "wide": {},
        "methods": [{**LORA, "rank": 16, "mitigations": [[{"name": "kl", "on": "task"}]]}],
        **LONG,
    },
    "wide, full, AdamW": {"wide": {}, "methods": [{"name": "full"}], **LONG},
    "wide, full, AdamW, one batch": {"wide": {}, "methods": [{"name": "full"}], **{**LONG, "batch_size": 2}},
    "wide, full, Adafactor": {"wide": {}, "methods": [{"name": "full"}], "optimizer": "adafactor", **LONG},
    "wide, top 1 layer": {"wide": {}, "methods": [{"name": "top_layers"}], **LONG},
    "wide, 4 bits, LoRA r 16": {"wide": {"bits": 4}, "methods": [{**LORA, "rank": 16}], **LONG},
    "wide, 8 bits, LoRA r 16": {"wide": {"bits": 8}, "methods": [{**LORA, "rank": 16}], **LONG},
    "wide, bfloat16, LoRA r 16": {"wide": {"dtype": "bfloat16"}, "methods": [{**LORA, "rank": 16}], **LONG},
}


def make_model(folder: Path, sizes: dict[str, int], vocabulary: int) -> None:
    """A random Llama with the miniature's tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from forgetting.data.miniature import MODEL_DIR

    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, eos_token_id=0, pad_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


def make_text(folder: Path, context: int) -> None:
    """Documents that fill their windows."""
    import numpy as np

    words = ["the", "river", "town", "year", "miller", "boat", "stone", "field", "winter", "bridge", "letter"]
    draw = np.random.default_rng(0)
    for name, count in (("train", 60), ("general", 12)):
        rows = [json.dumps({"text": " ".join(draw.choice(words, 3 * context))}) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))


def configuration(folder: Path, model: dict, setting: dict, steps: int):
    """A study of one run."""
    from forgetting.config.schema import validate

    context, size = setting.get("context", 128), setting.get("batch_size", 32)
    given = {
        "model": model,
        "text": {"source": str(folder / "general.jsonl"), "documents": "rows"},
        "datasets": {"d": {"source": str(folder / "train.jsonl"), "documents": "rows"}},
        "methods": setting["methods"],
        "context": context,
        "training": {
            "steps": steps,
            "batch_size": size,
            "micro_batch_size": setting.get("micro_batch_size", 8),
            "optimizer": setting.get("optimizer", "adamw"),
            "gradient_checkpointing": setting.get("saving", False),
        },
        "measure": {"start": 1, "every": steps, "batch_tokens": 256, "text_tokens": 256, "heldout_tokens": 256},
    }
    return validate(given, where="bench")


def run(config, folder: Path) -> None:
    """Execute the only run of a study in this process."""
    from forgetting.studies.engines import Local
    from forgetting.studies.study import study

    study(config, folder, engine=Local(1))


def measured(name: str, steps: int) -> None:
    """Print estimated and measured bytes of one setting."""
    import torch

    from forgetting.models import memory
    from forgetting.models.loading import base_source
    from forgetting.models.skeleton import skeleton
    from forgetting.tuning import footprint
    from forgetting.tuning.grid import expand_runs

    torch.set_num_threads(1)
    setting = SETTINGS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_text(folder, setting.get("context", 128))
        tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        make_model(folder / "tiny", tiny, 2560)
        if "wide" in setting:
            make_model(folder / "wide", WIDE, VOCABULARY)
        model = {"source": str(folder / "wide"), **setting["wide"]} if "wide" in setting else {"source": "miniature"}
        bits = model.get("bits")
        config = configuration(folder, model, setting, steps)
        (planned,) = expand_runs(config)
        base = skeleton(config.model, base_source(config.model))
        estimate = footprint.footprint(planned, base, footprint.passes_of(planned, 1, None, "cpu"))
        warm = {"source": str(folder / "tiny"), **({"bits": bits} if bits else {})}
        run(configuration(folder, warm, setting, steps), folder / "warm")
        gc.collect()
        device = torch.device("cpu")
        memory.reset_peak(device)
        before = memory.peak(device)
        memory.reset_peak = lambda _: None  # because the run resets the peak to measure training alone
        run(config, folder / "study")
        measured = (memory.peak(device) - before) * MIB
    print(json.dumps({"estimate": estimate.total, "parts": vars(estimate), "measured": measured}))


def main() -> None:
    """Run each setting in its own process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one")
    given = parser.parse_args()
    if given.one:
        measured(given.one, given.steps)
        return
    print("| run | weights | gradients | optimiser | copies | passes | estimated, MiB | measured, MiB | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in given.only or SETTINGS:
        command = [sys.executable, __file__, "--one", name, "--steps", str(given.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {name} | failed: {done.stderr.strip()[-300:]} |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        parts = [found["parts"][key] for key in ("weights", "gradients", "optimiser", "held", "passes")]
        cells = [f"{value / MIB:,.0f}" for value in (*parts, found["estimate"], found["measured"])]
        print(f"| {name} | {' | '.join(cells)} | {found['estimate'] / found['measured']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
