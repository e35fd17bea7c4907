"""One trajectory: transformers.Trainer on one method and data set, measured on the step grid, resumable.

A run that was cut and resumed gives the numbers of an uninterrupted one, bit for bit on a CPU: the order of the data
is fixed in advance, checkpoints carry optimiser and random state, and rows measured after the last whole checkpoint
are dropped and measured again.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from .base import Base, count_parameters
from .config import RunConfig, TrainingConfig
from .errors import ForgettingError
from .measure.estimate import Mean, clustered_mean
from .measure.losses import token_losses
from .measure.targets import BaseTargets
from .methods import Context, Method, parse_method
from .store import RunFolder
from .windows import Windows, training_order

IDENTITY_TOLERANCE = 0.01
"""nats/token by which step 0 may differ from the base model (rounding under bf16); more is no fine-tuning from it."""
COMPLETE = "complete"
"""Marker file of a checkpoint that was wholly written."""


class DivergedError(ForgettingError):
    """A loss is not finite. The run is stored as failed, its finite measurements are kept, and no fit uses it."""


@dataclass(frozen=True)
class RunData:
    """What a run trains and is measured on; train and held-out windows share no document."""

    train: Windows
    heldout: Windows
    text: Windows
    targets: BaseTargets


class TrainingWindows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """The training windows in the order in which they are trained on, as many as the run needs."""

    def __init__(self, windows: Windows, order: NDArray[np.int64]) -> None:
        self.windows, self.order = windows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids, predicted = self.windows.window(int(self.order[index]))
        return {"input_ids": ids.tolist(), "labels": np.where(predicted, ids, -100).tolist()}


def collate(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest: input_ids, attention_mask, labels, each [batch, length]."""
    length = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (length - len(row[key])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
    return {"input_ids": padded("input_ids", pad_id), "attention_mask": mask, "labels": padded("labels", -100)}


def measure_losses(model: PreTrainedModel, data: RunData, batch_tokens: int) -> dict[str, float | int]:
    """All quantities of one measured step, under the table's column names, each mean with its standard error.

    Raises:
        DivergedError: a loss is not finite.
    """
    finetune = token_losses(model, data.heldout, None, batch_tokens=batch_tokens)
    general = token_losses(model, data.text, data.targets, batch_tokens=batch_tokens)
    if general.target_nll is None or general.agrees is None:
        raise AssertionError("token_losses was given targets")
    heldout_documents, text_documents = data.heldout.token_documents(), data.text.token_documents()
    floor = -data.targets.log_prob
    means: dict[str, Mean] = {
        "finetune_loss": clustered_mean(finetune.data_nll, heldout_documents),
        "forgetting_loss": clustered_mean(general.target_nll, text_documents),
        "forgetting_floor": clustered_mean(floor, text_documents),
        # paired token by token: the floor's spread over documents cancels
        "forgetting": clustered_mean(general.target_nll - floor, text_documents),
        "agreement": clustered_mean(general.agrees.astype(np.float64), text_documents),
        "data_loss_base": clustered_mean(-data.targets.data_log_prob, text_documents),
        "data_loss_tuned": clustered_mean(general.data_nll, text_documents),
    }
    for name, mean in means.items():
        if not math.isfinite(mean.value):
            raise DivergedError(f"{name} is {mean.value}: the run diverged; lower training.learning_rate")
    row: dict[str, float | int] = {}
    for name, mean in means.items():
        row |= {name: mean.value, f"{name}_se": mean.se}
    return row | {
        "finetune_tokens": means["finetune_loss"].n_tokens,
        "finetune_documents": means["finetune_loss"].n_documents,
        "text_tokens": means["forgetting_loss"].n_tokens,
        "text_documents": means["forgetting_loss"].n_documents,
    }


class Measurer(TrainerCallback):
    """Measures on the grid, appends the row, then asks the Trainer for a checkpoint."""

    def __init__(
        self,
        run: RunConfig,
        method: Method,
        steps: list[int],
        data: RunData,
        folder: RunFolder,
        tell: Callable[[int], None],
        order: Any,
        probe: Callable[[Any, int], None] | None = None,
    ) -> None:
        self.starts_at_base, self.probe = method.start != "else", probe
        self.batch_tokens = run.measure.batch_tokens
        self.batch_size = run.training.batch_size
        self.steps, self.last = frozenset(steps), steps[-1]
        self.data, self.folder, self.tell = data, folder, tell
        # [N + 1] tokens trained on after each number of samples
        self.tokens = np.concatenate([[0], np.cumsum(data.train.lengths[order])])
        rows = folder.measurements()
        self.train_seconds = rows[-1]["train_seconds"] if rows else 0.0
        self.measure_seconds = rows[-1]["measure_seconds"] if rows else 0.0
        self.clock = time.perf_counter()

    def _record(self, model: PreTrainedModel, step: int) -> None:
        began = time.perf_counter()
        self.train_seconds += began - self.clock
        losses = measure_losses(model, self.data, self.batch_tokens)
        if step == 0 and self.starts_at_base and abs(losses["forgetting"]) > IDENTITY_TOLERANCE:
            raise ForgettingError(
                f"before the first update the model already differs from the base by {losses['forgetting']:.4f} "
                "nats/token: the method does not start at the base model"
            )
        self.clock = time.perf_counter()
        self.measure_seconds += self.clock - began
        self.folder.append(
            {
                "step": step,
                **losses,
                "train_tokens": int(self.tokens[step * self.batch_size]),
                "train_seconds": round(self.train_seconds, 3),
                "measure_seconds": round(self.measure_seconds, 3),
            }
        )
        if self.probe is not None and step:
            self.probe(model, step)
            self.clock = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure step 0, the base model, unless the run resumes after it."""
        if state.global_step == 0:
            self.clock = time.perf_counter()
            self._record(kwargs["model"], 0)
        self.clock = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Measure if the step is on the grid; the row is on disk before the checkpoint that follows it."""
        self.tell(state.global_step)
        if state.global_step in self.steps:
            self._record(kwargs["model"], state.global_step)
            control.should_save = state.global_step != self.last
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as wholly written."""
        (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class CheckedTrainer(Trainer):
    """A Trainer that stops at the first gradient that is not finite.

    Clipping would turn an infinite gradient into a zero step: a run that stands still and looks as if it forgot
    nothing.
    """

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise DivergedError(
                f"the gradient is not finite after step {self.state.global_step}: the run diverged; "
                "lower training.learning_rate"
            )
        return norm


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was wholly written, or None."""
    whole = [marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[-1]), default=None)


def _arguments(training: TrainingConfig, seed: int, folder: Path, device: torch.device) -> TrainingArguments:
    micro = training.micro_batch_size or training.batch_size
    # use_reentrant=False: with LoRA the inputs need no gradient, which the reentrant kind would stop at
    saving = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=training.batch_size // micro,
        learning_rate=training.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=training.warmup_steps,
        optim={"adafactor": "adafactor", "adamw": "adamw_torch"}[training.optimizer],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=seed,
        train_sampling_strategy="sequential",  # training_order shuffles
        save_strategy="no",  # Measurer asks for checkpoints
        save_total_limit=2,  # a kill while the newest is written leaves the one before it
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        **(saving if training.gradient_checkpointing else {}),
    )


def train_run(
    run: RunConfig,
    steps: list[int],
    base: Base,
    data: RunData,
    folder: RunFolder,
    tell: Callable[[int], None],
    probe: Callable[[Any, int], None] | None = None,
) -> None:
    """Train and measure one run in its folder, from its last whole checkpoint if it has one.

    Args:
        run: what decides the numbers.
        steps: the grid of measured steps, from 0 to the last.
        base: freshly loaded; changed by the training.
        data: windows and base targets.
        folder: where rows, checkpoints and the tuned weights go.
        tell: called with the number of each finished step.
        probe: called with the model and the number of each measured step after 0; leaves the model as it was.

    Raises:
        DivergedError: a loss is not finite.
        UsageError: the method does not fit the model.
    """
    set_seed(run.seed)
    device = base.model.device
    method = parse_method(run.method)
    training = run.training
    if method.learning_rate is not None:
        training = training.model_copy(update={"learning_rate": method.learning_rate})
    context = Context(run.seed, data.train, data.text, base.tokenizer, run.context)
    method.check(base.model, context)
    model = method.prepare(base.model, context)
    folder.update(trainable_params=count_parameters(model, trainable=True))
    checkpoints = folder.path / "checkpoints"
    resumed = last_checkpoint(checkpoints)
    folder.keep_until(int(resumed.name.rsplit("-", 1)[-1]) if resumed else -1)
    order = training_order(len(data.train), run.training.steps * run.training.batch_size, run.seed)
    pad_id = base.tokenizer.pad_token_id
    if not isinstance(pad_id, int):
        raise AssertionError("load_tokenizer sets a pad token")
    trainer = CheckedTrainer(
        model=model,
        args=_arguments(training, run.seed, checkpoints, device),
        train_dataset=TrainingWindows(data.train, order),
        data_collator=lambda rows: collate(rows, pad_id),
        callbacks=[Measurer(run, method, steps, data, folder, tell, order, probe)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    partial = folder.path / "adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    method.save(model, partial)
    shutil.rmtree(folder.path / "adapter", ignore_errors=True)
    partial.rename(folder.path / "adapter")
    shutil.rmtree(checkpoints, ignore_errors=True)
