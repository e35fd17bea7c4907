"""Costs of measuring and training on a GPU, compared with bare loops. Prints the tables of docs/benchmarks.md.

    python bench/gpu.py [--shapes 1B 8B] [--parts ceilings measure train callback bits resume]

Random bfloat16 models with the shapes of Llama-3.2-1B and Llama-3.1-8B, with LoRA of rank 16 on all linear layers; no
download. Times are medians of rounds, with the device synchronised; memory is torch's peak minus what was allocated
before. `--device cpu --shapes tiny` tests the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 2560, "tie_word_embeddings": True},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False},
}  # fmt: skip
CONTEXT, BATCH, RANK = 512, 8192, 16
TOKENS = {"tiny": 2048, "1B": 65_536, "8B": 16_384}
TRAINED = {"tiny": 2, "1B": 16, "8B": 8}
"""Windows of CONTEXT tokens per training step."""
MIB = 2**20


class Bench:
    """What all parts share."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device = torch.device(given.device)
        self.rounds = given.rounds
        self.peak_flops = 0.0

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def timed(self, call, rounds: int | None = None) -> tuple[float, float]:
        """Median seconds of `call`, after one call to warm up, and its extra memory in MiB."""
        call()
        self.free()
        self.synchronise()
        before = self.allocated(reset=True)
        call()
        extra = self.allocated() - before
        times = []
        for _ in range(rounds or self.rounds):
            self.synchronise()
            began = time.perf_counter()
            call()
            self.synchronise()
            times.append(time.perf_counter() - began)
        return statistics.median(times), extra

    def allocated(self, *, reset: bool = False) -> float:
        if self.device.type != "cuda":
            return float("nan")
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / MIB
        return torch.cuda.max_memory_allocated() / MIB

    def model(self, shape: str, *, adapted: bool = True):
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, rope_theta=500_000.0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(self.device):
                model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        if not adapted:
            return model.eval()
        lora = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, lora).to(self.device)


def windows(count: int, vocabulary: int, seed: int = 0):
    from forgetting.data.windows import Windows

    predicted = np.ones(count * CONTEXT, bool)
    predicted[::CONTEXT] = False
    return Windows(
        np.random.default_rng(seed).integers(2, vocabulary, count * CONTEXT).astype(np.int32),
        predicted,
        np.arange(count + 1, dtype=np.int64) * CONTEXT,
        np.arange(count, dtype=np.int32),
        tuple(f"d{i}" for i in range(count)),
    )


def adapted(model) -> None:
    """Make the adapter differ from the identity."""
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)


def ceilings(bench: Bench, _shape: str) -> None:
    """Measured limits of the GPU: a large bfloat16 matrix product, and a copy."""
    size = 8192 if bench.device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds, _ = bench.timed(lambda: a @ b, 20)
    bench.peak_flops = 2 * size**3 / seconds
    big = torch.empty(2**30 if bench.device.type == "cuda" else 2**20, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(big)
    copied, _ = bench.timed(lambda: other.copy_(big), 20)
    print(f"bfloat16 product {bench.peak_flops / 1e12:,.0f} TFLOP/s, copy {2 * big.numel() / copied / 1e12:.2f} TB/s")


def forward_flops(shape: str, tokens: int) -> float:
    """FLOPs of one forward pass with logits: 2 per weight and token, plus attention."""
    s = SHAPES[shape]
    width, layers = s["hidden_size"], s["num_hidden_layers"]
    head = s.get("head_dim", width // s["num_attention_heads"])
    keys = head * s["num_key_value_heads"]
    weights = layers * (
        2 * width * head * s["num_attention_heads"] + 2 * width * keys + 3 * width * s["intermediate_size"]
    )
    attention = layers * 2 * 2 * head * s["num_attention_heads"] * CONTEXT / 2
    return tokens * (2 * (weights + width * s["vocab_size"]) + attention)


def measure(bench: Bench, shape: str) -> None:
    """One pass of `measure` compared with a bare forward pass with logits."""
    from forgetting.measuring.base_targets import base_side, base_targets
    from forgetting.measuring.comparison import compare
    from forgetting.measuring.losses import token_losses

    model = bench.model(shape).eval()
    adapted(model)
    vocabulary = SHAPES[shape]["vocab_size"]
    text = windows(TOKENS[shape] // CONTEXT, vocabulary)
    ids = torch.from_numpy(text.input_ids.astype(np.int64)).view(-1, CONTEXT)
    rows = BATCH // CONTEXT

    def bare() -> None:
        for part in ids.split(rows):
            model(input_ids=part.to(bench.device), use_cache=False)

    def trunk() -> None:
        for part in ids.split(rows):
            model.get_base_model().model(input_ids=part.to(bench.device), use_cache=False)

    def two_models():
        loss = kl = 0.0
        for part in ids.split(rows // 4 or 1):
            part = part.to(bench.device)
            with model.disable_adapter():
                base = torch.log_softmax(model(input_ids=part, use_cache=False).logits[:, :-1].float(), -1)
            tuned = torch.log_softmax(model(input_ids=part, use_cache=False).logits[:, :-1].float(), -1)
            loss -= tuned.gather(-1, base.argmax(-1, keepdim=True)).double().sum()
            kl += (base.exp() * (base - tuned)).double().sum()
        return float(loss) / text.n_predicted, float(kl) / text.n_predicted

    print(f"\n{shape}: {len(text.input_ids):,} tokens, batches of {BATCH:,}\n")
    print("| way | s | x bare | tokens a second | share of peak | extra memory, MiB |\n|---|---:|---:|---:|---:|---:|")
    first = 0.0

    def show(label: str, call, rounds: int | None = None) -> None:
        nonlocal first
        seconds, extra = bench.timed(call, rounds)
        first = first or seconds
        share = forward_flops(shape, len(text.input_ids)) / seconds / bench.peak_flops if bench.peak_flops else 0.0
        rate = len(text.input_ids) / seconds
        print(
            f"| {label} | {seconds:.3f} | {seconds / first:.2f} | {rate:,.0f} | {share:.2f} | {extra:,.0f} |",
            flush=True,
        )

    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        how = {"key": "bench", "batch_tokens": BATCH}
        targets = base_targets(model, text, cache_dir=Path(folder), **how)
        side = base_side(model, text, cache_dir=Path(folder), rows=None, with_rows=True, **how)
        show("bare forward pass with logits", bare)
        show("the decoder alone", trunk)
        show("argmax quantities, base cached", lambda: token_losses(model, text, targets, batch_tokens=BATCH))
        show("all quantities, base cached", lambda: compare(model, model, text, *side, batch_tokens=BATCH))
        show(
            "all quantities, base model as well",
            lambda: compare(model, model, text, targets, None, batch_tokens=BATCH),
            1,
        )
        cold = {"cache_dir": None, "rows": None, "with_rows": True}
        show("the base model's side, not cached", lambda: base_side(model, text, **how, **cold), 1)
        show("two models, full log-softmax", two_models, 1)
        ours, theirs = compare(model, model, text, *side, batch_tokens=BATCH), two_models()
        again = compare(model, model, text, *side, batch_tokens=BATCH)
    equal = all(np.array_equal(getattr(ours, name), getattr(again, name)) for name in vars(ours))
    print(
        f"\nforgetting loss {ours.target_nll.mean(dtype=float):.6f}, from full bfloat16 logits {theirs[0]:.6f}; ",
        end="",
    )
    print(f"KL {ours.kl.mean(dtype=float):.6f}, {theirs[1]:.6f}; measured twice bit for bit the same: {equal}")
    against_float64(bench, model, text, ours)


@torch.inference_mode()
def against_float64(bench: Bench, model, text, ours) -> None:
    """The largest difference from float64 logits of the same states, over the first window of the first batch."""
    from forgetting.models import adapters

    inner = model.get_base_model()
    rows = BATCH // CONTEXT
    ids = torch.from_numpy(text.input_ids[: rows * CONTEXT].astype(np.int64)).view(-1, CONTEXT).to(bench.device)
    weight = inner.get_output_embeddings().weight
    found = []
    for adapter in (True, False):
        with adapters.undisturbed(model), contextlib.nullcontext() if adapter else model.disable_adapter():
            states = inner.model(input_ids=ids, use_cache=False)[0][0, :-1].double()
        logits = torch.cat([states @ part.double().T for part in weight.split(16_384)], 1)
        found.append(torch.log_softmax(logits, -1))
    tuned, base = found
    loss = -tuned.gather(1, base.argmax(1, keepdim=True))[:, 0]
    kl = (base.exp() * (base - tuned)).sum(1)
    for name, exact in (("target_nll", loss), ("kl", kl)):
        off = np.abs(getattr(ours, name)[: CONTEXT - 1] - exact.cpu().numpy())
        print(
            f"{name}: from float64 logits of one window at most {off.max():.1e} off, on average {off.mean():.1e} nats"
        )


class Batches:
    """The same batches for each implementation."""

    def __init__(self, shape: str, steps: int) -> None:
        self.size, self.steps = TRAINED[shape], steps
        self.windows = windows(4 * self.size, SHAPES[shape]["vocab_size"])
        self.order = [i % len(self.windows) for i in range(steps * self.size)]

    def __iter__(self):
        from forgetting.tuning.trainer import TrainingWindows, collate

        rows = TrainingWindows(self.windows, self.order)
        for start in range(0, len(rows), self.size):
            batch = collate([rows[i] for i in range(start, start + self.size)], 1)
            batch.pop("window")
            yield batch


def bare_steps(bench: Bench, model, batches: Batches) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    model.train()
    marks = []
    for batch in batches:
        model(**{name: part.to(bench.device) for name, part in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bench.synchronise()
        marks.append(time.perf_counter())
    return marks


class Clock:
    """A callback that marks the end of each step."""

    def __new__(cls, bench: Bench):
        from transformers import TrainerCallback

        class Marks(TrainerCallback):
            def __init__(self) -> None:
                self.marks: list[float] = []

            def on_step_end(self, *_args, **_kwargs) -> None:
                bench.synchronise()
                self.marks.append(time.perf_counter())

        return Marks()


def study_steps(bench: Bench, model, batches: Batches) -> list[float]:
    from forgetting.config.files import preset_fields
    from forgetting.config.schema import validate
    from forgetting.tuning.grid import expand_runs
    from forgetting.tuning.methods import METHODS
    from forgetting.tuning.mitigations import Course
    from forgetting.tuning.trainer import CheckedTrainer, make_trainer

    fields = preset_fields("miniature")
    sizes = {"batch_size": batches.size, "micro_batch_size": None, "steps": batches.steps}
    fields["training"] |= sizes | {"warmup_steps": 0, "learning_rate": 1e-4}
    fields["measure"] |= {"start": 1}
    run = expand_runs(validate(fields, where="bench"))[0]
    course = Course(batches.windows, np.array(batches.order), np.ones(len(batches.windows)))
    clock = Clock(bench)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(CheckedTrainer, model, METHODS.parse(run.method), run, course, [], Path(folder), 1)
        trainer.add_callback(clock)
        trainer.train()
    return clock.marks


def trainer_steps(bench: Bench, model, batches: Batches, *callbacks) -> list[float]:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from forgetting.tuning.trainer import TrainingWindows, collate

    def collated(rows):
        batch = collate(rows, 1)
        batch.pop("window")
        return batch

    clock = Clock(bench)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=batches.steps, per_device_train_batch_size=batches.size, learning_rate=1e-4,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            use_cpu=bench.device.type == "cpu", optim="adamw_torch_fused", train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=TrainingWindows(batches.windows, batches.order),
            data_collator=collated,
            callbacks=[*callbacks, clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.marks


def train(bench: Bench, shape: str) -> None:
    """A LoRA step of a study compared with a bare loop."""
    batches = Batches(shape, 14)
    tokens = batches.size * CONTEXT
    print(f"\n{shape}: LoRA, {batches.size} windows of {CONTEXT} tokens a step\n")
    print("| way | ms a step | x bare | tokens a second | share of peak | extra memory, MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    first = 0.0
    ways = {"bare loop": bare_steps, "transformers.Trainer": trainer_steps, "a step of a study's run": study_steps}
    for label, way in ways.items():
        model = bench.model(shape)
        bench.free()
        before = bench.allocated(reset=True)
        marks = way(bench, model, batches)
        extra = bench.allocated() - before
        seconds = statistics.median(np.diff(marks)[3:])
        first = first or seconds
        # the frozen weights' own gradients are not computed: 2 passes of products, not 3
        share = 2 * forward_flops(shape, tokens) / seconds / bench.peak_flops if bench.peak_flops else 0.0
        row = f"| {label} | {seconds * 1000:,.1f} | {seconds / first:.2f} | {tokens / seconds:,.0f} | {share:.2f} |"
        print(f"{row} {extra:,.0f} |", flush=True)
        del model
        bench.free()


def callback(bench: Bench, shape: str) -> None:
    """ForgettingCallback every 50 steps on 24,576 tokens, compared with training without it."""
    from forgetting import ForgettingCallback

    batches = Batches(shape, 100)
    text = windows(24_576 // CONTEXT if bench.device.type == "cuda" else 4, SHAPES[shape]["vocab_size"], 1)
    plain = trainer_steps(bench, bench.model(shape), batches)
    bench.free()
    measuring = ForgettingCallback(text, every=50)
    began = time.perf_counter()
    trainer_steps(bench, bench.model(shape), batches, measuring)
    whole = time.perf_counter() - began
    each = measuring.seconds / (len(measuring.rows) + 1)
    step = statistics.median(np.diff(plain))
    print(
        f"\n{shape}: callback on {text.n_predicted:,} tokens every 50 steps: {each:.2f} s a measurement, 50 steps ",
        end="",
    )
    print(f"{50 * step:.2f} s: {100 * each / (50 * step):.1f} % ({measuring.seconds:.2f} s of {whole:.2f} s in all)")
    for row in measuring.rows:
        print(f"  step {row['step']}: forgetting {row['forgetting']:.5f} ± {row['forgetting_se']:.5f}")


def bits(bench: Bench, shape: str) -> None:
    """`forgetting.measure` from folders, as loaded, and with the base in 8 and 4 bits."""
    import forgetting
    from forgetting.config.files import load_preset
    from forgetting.models.loading import load_tokenizer

    text = windows(16_384 // CONTEXT if bench.device.type == "cuda" else 4, SHAPES[shape]["vocab_size"], 2)
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = Path(folder, "base"), Path(folder, "adapter")
        model = bench.model(shape)
        adapted(model)
        model.save_pretrained(adapter)
        model.unload().save_pretrained(base)
        load_tokenizer(load_preset("miniature").model).save_pretrained(base)  # the texts are already tokenised
        del model
        bench.free()
        print(f"\n{shape}: forgetting.measure from folders, {text.n_predicted:,} tokens\n")
        print("| base | s in all | memory, MiB | forgetting | ± |\n|---|---:|---:|---:|---:|")
        for bit in (None, 8, 4):
            bench.allocated(reset=True)
            began = time.perf_counter()
            found = forgetting.measure(
                str(base), str(adapter), text=text, bits=bit, device=str(bench.device), cache_dir=None
            )
            seconds = time.perf_counter() - began
            row = found.forgetting
            name = "bfloat16" if bit is None else f"{bit} bits"
            print(f"| {name} | {seconds:.1f} | {bench.allocated():,.0f} | {row.value:.5f} | {row.se:.5f} |", flush=True)
            bench.free()


def resume(bench: Bench, _shape: str) -> None:
    """A study's run of the miniature that is stopped and resumed, compared with an uninterrupted one."""
    import yaml

    from forgetting.config.files import preset_fields
    from forgetting.store.columns import COSTS
    from forgetting.store.folder import StudyFolder

    fields = preset_fields("miniature")
    fields["datasets"].pop("news")
    fields["methods"][0]["rank"] = [8]
    fields["training"]["steps"] = 60
    fields["measure"] |= {"start": 10, "every": 10}
    fields["model"]["device"] = str(bench.device)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "study.yaml")
        config.write_text(yaml.safe_dump(fields))
        rows = []
        for name in ("whole", "stopped"):
            command = [sys.executable, "-m", "forgetting", "study", str(config), "--out", str(Path(folder, name))]
            if name == "stopped":
                stop_after_rows(command, Path(folder, name), 3)
            began = time.perf_counter()
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            print(f"{name}: exit {run.returncode} in {time.perf_counter() - began:.1f} s")
            if run.returncode:
                print(run.stderr[-2000:])
                return
            (found,) = StudyFolder.open(Path(folder, name)).runs()
            rows.append([{k: v for k, v in row.items() if k not in COSTS} for row in found.measurements()])
        print(f"\nresumed after a stop, against an uninterrupted run: {len(rows[0])} rows equal: {rows[0] == rows[1]}")


def stop_after_rows(command: list[str], out: Path, count: int) -> None:
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 90
    while time.monotonic() < until and running.poll() is None:
        written = [path.read_bytes().count(b"\n") for path in out.glob("runs/*/measurements.jsonl")]
        if sum(written) >= count:
            running.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    print("stopped: exit", running.wait(timeout=120))


PARTS = {part.__name__: part for part in (ceilings, measure, train, callback, bits, resume)}
ONCE = ("ceilings", "callback", "bits", "resume")


def main() -> None:
    """Run the parts; a failure of one is printed, and the others continue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1B", "8B"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    logging.getLogger("forgetting").setLevel(logging.ERROR)
    bench = Bench(given)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    import peft
    import transformers

    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    for part in given.parts:
        shapes = given.shapes[:1] if part in ONCE else given.shapes
        for shape in shapes:
            began = time.perf_counter()
            try:
                PARTS[part](bench, shape)
            except Exception:
                traceback.print_exc(limit=6, file=sys.stdout)
            bench.free()
            print(f"({part}: {time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
