"""Costs of measuring in the default study, and by the usual implementation. Prints a table (docs/benchmarks.md).

    python bench/study_measuring.py [STUDY]

Times one measured step of the preset `miniature` (both losses, on the preset's number of tokens, one thread), ours and
the usual one: both the base model and the tuned model compute full logits and log-probabilities over the whole text at
every measured step. Given a finished study, it also prints the time that it really spent.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from forgetting.config.files import load_preset
from forgetting.data.documents import load_corpus, split_heldout
from forgetting.data.tokenizing import tokenize
from forgetting.data.windows import Windows
from forgetting.measuring.base_targets import base_targets
from forgetting.models.loading import load_base
from forgetting.store.table import load_table
from forgetting.tuning.run import measure_losses

ROUNDS = 5


def make():
    """The preset, the miniature with an adapter of rank 32, and the data of a run on `instructions`."""
    config = load_preset("miniature")
    base = load_base(config.model)
    text = tokenize(load_corpus(config.text), base.tokenizer, config.context).sample(config.measure.text_tokens)
    dataset = config.datasets["instructions"]
    _, heldout = (
        tokenize(p, base.tokenizer, config.context) for p in split_heldout(load_corpus(dataset), dataset.heldout)
    )
    with tempfile.TemporaryDirectory() as cache:
        targets = base_targets(base.model, text, key="bench", cache_dir=Path(cache), batch_tokens=1024)
    model = get_peft_model(base.model, LoraConfig(r=32, target_modules="all-linear", init_lora_weights=False))
    return config, model.eval(), (heldout.sample(config.measure.heldout_tokens), text, targets)


def batches(windows: Windows):
    """Eight windows at a time, padded on the right: ids, attention mask, and which positions are predicted."""
    pad = torch.nn.utils.rnn.pad_sequence
    for start in range(0, len(windows), 8):
        rows = [windows.window(i) for i in range(start, min(start + 8, len(windows)))]
        ids = [torch.from_numpy(row.astype("int64")) for row, _ in rows]
        predicted = pad([torch.from_numpy(flags.copy()) for _, flags in rows], batch_first=True)
        yield pad(ids, batch_first=True), pad([torch.ones_like(row) for row in ids], batch_first=True), predicted


def log_probs(model, ids, mask):
    """Full log-probabilities of the next token."""
    return torch.log_softmax(model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float(), -1)[:, :-1]


def usual_way(model, heldout: Windows, text: Windows) -> float:
    """L_ft, and L_f from both models' full log-probabilities; returns L_f."""
    for ids, mask, _ in batches(heldout):
        log_probs(model, ids, mask).gather(-1, ids[:, 1:, None])
    total, count = 0.0, 0
    for ids, mask, predicted in batches(text):
        with model.disable_adapter():
            target = log_probs(model, ids, mask).argmax(-1, keepdim=True)
        losses = -log_probs(model, ids, mask).gather(-1, target)[..., 0][predicted[:, 1:]]
        total, count = total + float(losses.double().sum()), count + len(losses)
    return total / count


def timed(work) -> tuple[float, float]:
    """Processor seconds of the fastest round, and the result of the work."""
    found, times = work(), []
    for _ in range(ROUNDS):
        began = time.process_time()
        found = work()
        times.append(time.process_time() - began)
    return min(times), found


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    config, model, (heldout, text, targets) = make()
    ours, row = timed(lambda: measure_losses(model, heldout, text, targets, config.measure.batch_tokens))
    usual, loss = timed(lambda: usual_way(model, heldout, text))
    steps = len(config.measured_steps())
    tokens = f"{text.n_predicted:,} + {heldout.n_predicted:,} tokens"
    print(f"one measured step, {tokens}, processor seconds of one thread:")
    print(f"  ours       {ours:6.2f}   forgetting loss {row['forgetting_loss'].value:.6f}")
    print(f"  usual way  {usual:6.2f}   forgetting loss {loss:.6f}   {usual / ours:.2f} x")
    count = 12 * steps
    print(f"twelve runs of {steps} measured steps: {count * ours:.0f} s ours, {count * usual:.0f} s the usual way")
    if len(sys.argv) > 1:
        last = load_table(Path(sys.argv[1])).sort_values("step").groupby("run_id").last()
        spent, trained = last["measure_seconds"].sum(), last["train_seconds"].sum()
        error = last["forgetting_se"] / last["forgetting"]
        print(f"{sys.argv[1]}: measured {spent:.0f} s, trained {trained:.0f} s: {spent / trained:.1%}")
        print(
            f"  standard error of the excess forgetting at the last step: {error.min():.1%} to {error.max():.1%} of it"
        )


if __name__ == "__main__":
    main()
