"""Costs of a training step: ours, a bare loop, transformers' Trainer and TRL's SFTTrainer.

    python bench/train.py [--models miniature large] [--steps 12] [--rounds 5] [--threads 1]

Two models, LoRA of rank 32 on all linear layers, AdamW: the miniature, with 12 windows of its `instructions` per step;
and a random Llama of width 256 with 4 layers and a vocabulary of 128,256, with 8 windows of 256 tokens. All
implementations train on the same batches, in turn, in one process. A round is `--steps` steps of each, and the time of
a step is the median of all steps except the first two of each round. Memory is the kernel's peak minus that before the
first step, in a separate process for each implementation. Prints the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, LAYERS, VOCABULARY, CONTEXT = 256, 4, 128_256, 256
RATE, RANK, WARM = 7e-4, 32, 2
LABELS = {
    "bare": "bare loop",
    "trainer": "transformers.Trainer",
    "sft": "TRL's SFTTrainer",
    "ours": "a step of a study's run",
}


def miniature():
    """The miniature as loaded, and the windows of its first set."""
    from forgetting.config.files import load_preset
    from forgetting.data.documents import load_corpus
    from forgetting.data.tokenizing import tokenize
    from forgetting.models.loading import load_base

    config = load_preset("miniature")
    base = load_base(config.model)
    return base.model, tokenize(load_corpus(config.datasets["instructions"]), base.tokenizer, config.context), 12


def large():
    """A random model with a large vocabulary and few layers, and random tokens."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from forgetting.data.windows import Windows

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, **sizes
    )
    count = 64
    predicted = np.ones(count * CONTEXT, bool)
    predicted[::CONTEXT] = False
    windows = Windows(
        np.random.default_rng(0).integers(2, VOCABULARY, count * CONTEXT).astype(np.int32),
        predicted,
        np.arange(count + 1, dtype=np.int64) * CONTEXT,
        np.arange(count, dtype=np.int32),
        tuple(f"d{i}" for i in range(count)),
    )
    return LlamaForCausalLM(config), windows, 8


MODELS = {"miniature": miniature, "large": large}


class Way:
    """One implementation of training: its own model, and the same batches as the others."""

    def __init__(self, model_name: str, steps: int) -> None:
        from peft import LoraConfig, get_peft_model

        model, self.windows, self.size = MODELS[model_name]()
        import torch

        torch.manual_seed(0)
        lora = LoraConfig(r=RANK, lora_alpha=16, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(model, lora)
        self.steps = steps
        self.order = [i % len(self.windows) for i in range(steps * self.size)]

    def batches(self):
        """The batch of each step."""
        from forgetting.tuning.trainer import TrainingWindows, collate

        rows = TrainingWindows(self.windows, self.order)
        for start in range(0, len(rows), self.size):
            batch = collate([rows[i] for i in range(start, start + self.size)], 1)
            batch.pop("window")
            yield batch

    def train(self) -> tuple[list[float], float]:
        """Train; returns the seconds of each step, and the last loss."""
        raise NotImplementedError


class Bare(Way):
    """`model(**batch).loss.backward()` and the optimiser's step, and nothing else."""

    def train(self):
        import torch

        self.model.train()
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], RATE, weight_decay=0.0)
        marks, loss = [time.perf_counter()], 0.0
        for batch in self.batches():
            out = self.model(**batch)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = float(out.loss.detach())
            marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)], loss


class Timed(Way):
    """A Trainer, timed from the end of one step to the end of the next, so that everything in between counts."""

    def trainer(self, folder: str):
        raise NotImplementedError

    def arguments(self, cls, folder: str):
        return cls(
            output_dir=folder,
            max_steps=self.steps,
            per_device_train_batch_size=self.size,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            weight_decay=0.0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
        )

    def rows(self):
        """One row per window, as in `datasets`, in training order."""
        chosen = [(self.windows.window(i)[0], self.windows.labels(i)) for i in self.order]
        return [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in chosen]

    def collator(self):
        """Padded on the right."""
        from forgetting.tuning.trainer import collate

        def collated(rows):
            batch = collate([{**row, "window": 0} for row in rows], 1)
            batch.pop("window")
            return batch

        return collated

    def train(self):
        from transformers import TrainerCallback

        marks = []

        class Clock(TrainerCallback):
            def on_train_begin(self, *_args, **_kwargs):
                marks.append(time.perf_counter())

            def on_step_end(self, *_args, **_kwargs):
                marks.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(folder)
            trainer.add_callback(Clock())
            loss = trainer.train().training_loss
        return [after - before for before, after in itertools.pairwise(marks)], loss


class Plain(Timed):
    """transformers.Trainer with its defaults."""

    def trainer(self, folder: str):
        from transformers import Trainer, TrainingArguments

        arguments = self.arguments(TrainingArguments, folder)
        return Trainer(model=self.model, args=arguments, train_dataset=self.rows(), data_collator=self.collator())


class Sft(Timed):
    """TRL's SFTTrainer with its defaults, on tokenised rows."""

    def trainer(self, folder: str):
        from datasets import Dataset
        from transformers import PreTrainedTokenizerFast
        from trl import SFTConfig, SFTTrainer

        from forgetting.config.files import load_preset
        from forgetting.models.loading import load_tokenizer

        arguments = self.arguments(SFTConfig, folder)
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
        tokenizer: PreTrainedTokenizerFast = load_tokenizer(load_preset("miniature").model)
        return SFTTrainer(
            model=self.model,
            args=arguments,
            train_dataset=Dataset.from_list(self.rows()),
            data_collator=self.collator(),
            processing_class=tokenizer,
        )


class Ours(Timed):
    """The trainer of a study's run."""

    def trainer(self, folder: str):
        import numpy as np

        from forgetting.config.files import preset_fields
        from forgetting.config.schema import validate
        from forgetting.tuning.grid import expand_runs
        from forgetting.tuning.methods import METHODS
        from forgetting.tuning.mitigations import Course
        from forgetting.tuning.trainer import CheckedTrainer, make_trainer

        fields = preset_fields("miniature")
        whole = {"batch_size": self.size, "micro_batch_size": None}  # as in the other implementations
        fields["training"] |= {"steps": self.steps, **whole, "warmup_steps": 0, "learning_rate": RATE}
        fields["measure"] |= {"start": 1}
        run = expand_runs(validate(fields, where="bench"))[0]
        course = Course(self.windows, np.array(self.order), np.ones(len(self.windows)))
        return make_trainer(CheckedTrainer, self.model, METHODS.parse(run.method), run, course, [], Path(folder), 1)


WAYS = {"bare": Bare, "trainer": Plain, "sft": Sft, "ours": Ours}


def memory(model: str, way: str, steps: int) -> dict[str, float]:
    """Peak memory of training minus that before, in MB; in this process."""
    made = WAYS[way](model, steps)
    status = Path("/proc/self/status")

    def read(name: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = read("VmRSS")
    made.train()
    return {"extra_mb": (read("VmHWM") - before) / 1024}


def main() -> None:
    """Time all implementations in turn, read their memory, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    logging.disable(logging.WARNING)
    if given.memory:
        print(json.dumps(memory(given.models[0], given.ways[0], given.steps)))
        return
    for model in given.models:
        table(model, given)


def table(model: str, given: argparse.Namespace) -> None:
    """Time all implementations in turn on one model, and print the table."""
    ways = {way: WAYS[way](model, given.steps) for way in given.ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way, made in ways.items():
            seconds, _loss = made.train()
            times[way] += seconds[WARM:]
    found = {way: statistics.median(seconds) * 1000 for way, seconds in times.items()}
    print(f"\n{model}: {given.rounds} rounds of {given.steps} steps, {given.threads} thread(s)\n")
    print("| way | ms a step | x bare loop | extra memory, MB |\n|---|---:|---:|---:|")
    for way, ms in found.items():
        ratio = ms / found[given.ways[0]]
        print(
            f"| {LABELS[way]} | {ms:,.1f} | {ratio:.2f} | {in_process(model, way, given)['extra_mb']:,.0f} |",
            flush=True,
        )


def in_process(model: str, way: str, given: argparse.Namespace) -> dict[str, float]:
    """`memory` of a few steps in a separate process."""
    command = [sys.executable, __file__, "--memory", "--models", model, "--ways", way]
    limits = ["--steps", "4", "--threads", str(given.threads)]
    run = subprocess.run([*command, *limits], capture_output=True, text=True, check=False, env=os.environ)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
