"""Costs of measuring, compared with the usual implementations. Prints the table of docs/benchmarks.md.

    python bench/measure.py [--tokens 4096] [--rounds 2]

A random Llama (hidden 512, 8 layers, vocabulary 128,256) with a LoRA adapter that is not the identity. Each
implementation runs in its own process. Memory is the kernel's peak of the process minus that of the loaded model; time
is that of the fastest round, as wall and as processor time (which other programs disturb less). One process runs at a
time; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, LAYERS, VOCABULARY, CONTEXT = 512, 8, 128_256, 512
LARGE_VOCABULARY = 256_000
BATCH = 512
"""The default of `measure` on a CPU."""


def make(vocabulary: int):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=1376,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT,
    )
    model = LlamaForCausalLM(config)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    return adapted.eval()


def make_windows(tokens: int, vocabulary: int):
    import numpy as np

    from forgetting.data.windows import Windows

    count = tokens // CONTEXT
    predicted = np.ones(tokens, bool)
    predicted[::CONTEXT] = False
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens).astype(np.int32)
    return Windows(
        ids,
        predicted,
        np.arange(count + 1, dtype=np.int64) * CONTEXT,
        np.arange(count, dtype=np.int32),
        tuple(f"d{i}" for i in range(count)),
    )


# ---- the implementations; each takes (model, windows, cache folder) and returns its results


def forward(model, windows, _cache):
    """One bare forward pass of the tuned model with logits."""
    import torch

    ids = torch.from_numpy(windows.input_ids.astype("int64")).view(-1, CONTEXT)
    with torch.inference_mode():
        return {"logits": tuple(model(input_ids=ids, use_cache=False).logits.shape)}


def measure_hard(model, windows, cache):
    """Forgetting loss, floor, excess, agreement, both ground-truth losses; base targets from the cache."""
    from forgetting.measuring.base_targets import base_targets
    from forgetting.measuring.losses import token_losses

    targets = base_targets(model, windows, key="bench", cache_dir=cache, batch_tokens=BATCH)
    losses = token_losses(model, windows, targets, batch_tokens=BATCH)
    return {"forgetting_loss": float(losses.target_nll.mean(dtype=float))}


def measure_all(model, windows, cache):
    """Every quantity, including soft forgetting loss and KL; the base model's side from the cache."""
    from forgetting.measuring.base_targets import base_side
    from forgetting.measuring.comparison import compare

    side = base_side(model, windows, key="bench", cache_dir=cache, batch_tokens=BATCH, rows=None, with_rows=True)
    found = compare(model, model, windows, *side, batch_tokens=BATCH)
    return {"forgetting_loss": float(found.target_nll.mean(dtype=float)), "kl": float(found.kl.mean(dtype=float))}


def measure_beside(model, windows, cache):
    """Every quantity if the heads differ or are soft-capped: the base model runs along with the tuned one."""
    from forgetting.measuring.base_targets import base_targets
    from forgetting.measuring.comparison import compare

    targets = base_targets(model, windows, key="bench", cache_dir=cache, batch_tokens=BATCH)
    found = compare(model, model, windows, targets, None, batch_tokens=BATCH)
    return {"forgetting_loss": float(found.target_nll.mean(dtype=float)), "kl": float(found.kl.mean(dtype=float))}


def measure_cold(model, windows, _cache):
    """Every quantity with an empty cache: the base model's side is computed and cached on disk."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_all(model, windows, Path(folder))


def peft_loop(model, windows, _cache):
    """After PEFT's benchmark (method_comparison, with its pull request 3419): one batch, a loop over samples."""
    import torch

    ids = torch.from_numpy(windows.input_ids.astype("int64")).view(-1, CONTEXT)
    total = 0.0
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
        for sample, row in zip(logits, ids, strict=True):
            total += float(torch.nn.functional.cross_entropy(sample[:-1].float(), row[1:]))
    return {"data_loss_tuned": total / len(ids)}


def two_models(model, windows, _cache):
    """The usual implementation: both models' full logits and log-probabilities, then differences."""
    import torch

    ids = torch.from_numpy(windows.input_ids.astype("int64")).view(-1, CONTEXT)
    with torch.inference_mode():
        with model.disable_adapter():
            base = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1].float(), -1)
        tuned = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1].float(), -1)
        argmax = base.argmax(-1, keepdim=True)
        loss = -tuned.gather(-1, argmax).double().mean()
        kl = (base.exp() * (base - tuned)).sum(-1).double().mean()
    return {"forgetting_loss": float(loss), "kl": float(kl)}


WAYS = {
    f.__name__: f for f in (forward, measure_hard, measure_all, measure_beside, measure_cold, peft_loop, two_models)
}
LABELS = {
    "forward": "one bare forward pass with logits",
    "measure_hard": "measure: argmax quantities, cached base",
    "measure_all": "measure: all quantities, cached base",
    "measure_beside": "measure: all quantities, base model as well (heads differ)",
    "measure_cold": "measure: all quantities, nothing cached",
    "peft_loop": "PEFT's benchmark loop (ground-truth loss only)",
    "two_models": "two models, full log-softmax",
}


class Peak:
    """Peak resident memory minus that at the start, in MB, from the kernel's high-water mark."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_):
        self.extra = (self._status("VmHWM") - self.before) / 1024

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])


def run_way(name: str, tokens: int, vocabulary: int, rounds: int, cache: str) -> dict[str, object]:
    model, windows = make(vocabulary), make_windows(tokens, vocabulary)
    way = WAYS[name]
    small = make_windows(CONTEXT, vocabulary)
    way(model, small, Path(cache) / "warm")  # loads libraries and starts threads before memory is read
    with Peak() as peak:
        way(model, windows, Path(cache))
    times, processor, found = [], [], None
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        found = way(model, windows, Path(cache))
        times.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {
        "seconds": min(times, default=0.0),
        "processor": min(processor, default=0.0),
        "extra_mb": peak.extra,
        "found": found,
    }


def in_process(name: str, tokens: int, vocabulary: int, rounds: int, cache: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--way", name, "--tokens", str(tokens), "--vocabulary", str(vocabulary)]
    run = subprocess.run(
        [*command, "--rounds", str(rounds), "--cache", cache], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    return json.loads(run.stdout.splitlines()[-1])


def faster(one: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    """The smaller of two times, and the larger of two memories."""
    times = {unit: min(one[unit], other[unit]) for unit in ("seconds", "processor")}
    return {**one, **times, "extra_mb": max(one["extra_mb"], other["extra_mb"])}


def table(tokens: int, rounds: int) -> None:
    print(f"random Llama, hidden {WIDTH}, {LAYERS} layers, vocabulary {VOCABULARY:,}, {tokens:,} tokens, float32")
    print(f"{'way':<52}{'seconds':>9}{'x forward':>11}{'processor s':>13}{'x forward':>11}{'extra MB':>10}")
    with tempfile.TemporaryDirectory() as cache:
        results = {}
        in_process("measure_all", tokens, VOCABULARY, 0, cache)  # fills the cache, in its own process
        # all implementations twice, so that a machine that is slow for a minute does not distort ratios
        for name in (*WAYS, *WAYS):
            found = in_process(name, tokens, VOCABULARY, rounds, cache)
            results[name] = faster(results.get(name, found), found)
        for name, found in results.items():
            cells = f"{LABELS[name]:<52}"
            for unit, width in (("seconds", 9), ("processor", 13)):
                cells += f"{found[unit]:>{width}.2f}{found[unit] / results['forward'][unit]:>11.2f}"
            print(f"{cells}{found['extra_mb']:>10.0f}", flush=True)
        ours, theirs = results["measure_all"]["found"], results["two_models"]["found"]
        for name in ("forgetting_loss", "kl"):
            print(f"{name}: {ours[name]:.7f} tiled, {theirs[name]:.7f} from full log-probabilities")
        print("extra MB of all quantities, flat in tokens and vocabulary:")
        for more_tokens, vocabulary in ((4 * tokens, VOCABULARY), (tokens, LARGE_VOCABULARY)):
            in_process("measure_all", more_tokens, vocabulary, 0, cache)
            found = in_process("measure_all", more_tokens, vocabulary, 0, cache)
            print(f"  {more_tokens:>7,} tokens, vocabulary {vocabulary:>7,}: {found['extra_mb']:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="run one way in this process")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--cache", default="")
    given = parser.parse_args()
    if given.way is None:
        table(given.tokens, given.rounds)
        return
    import logging

    import torch

    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    print(json.dumps(run_way(given.way, given.tokens, given.vocabulary, given.rounds, given.cache)))


if __name__ == "__main__":
    main()
