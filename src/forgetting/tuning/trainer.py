"""transformers.Trainer with the terms of a run's mitigations; stops at the first gradient that is not finite."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..config.schema import RunConfig, TrainingConfig
from ..data.padding import IGNORED, right_padded
from ..data.windows import Windows
from ..errors import ForgettingError
from ..models import accelerate_internals, processes, transformers_internals
from ..models.adapters import unwrapped
from . import fused_loss, schedule
from .folded_lora import FoldedLayers
from .methods import Method
from .mitigations import Course, Term


class DivergedError(ForgettingError):
    """A loss is not finite. The run is stored as failed, its finite measurements are kept, and no fit uses it."""


class TrainingWindows(torch.utils.data.Dataset[dict[str, Any]]):
    """The training windows in training order, as many as the run needs."""

    def __init__(self, windows: Windows, order: NDArray[np.int64]) -> None:
        self.windows, self.order = windows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        window = int(self.order[index])
        ids, _ = self.windows.window(window)
        return {"input_ids": ids, "labels": self.windows.labels(window), "window": window}


def collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest: input_ids, attention_mask, labels [batch, length]; window [batch]."""
    batch = right_padded([row["input_ids"] for row in rows], pad_id, labels=[row["labels"] for row in rows])
    batch["window"] = np.array([row["window"] for row in rows], np.int64)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


class TermStates(TrainerCallback, ExportableState):
    """Stores the states of a run's terms in its checkpoints, and restores them when the run resumes."""

    def __init__(self, terms: list[Term]) -> None:
        self.terms = terms

    def state(self) -> dict[str, Any]:
        """The states of the terms, for trainer_state.json."""
        return {"args": {}, "attributes": {"states": [term.state() for term in self.terms]}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the states from the checkpoint, if the run resumes from one."""
        kept: Any = (state.stateful_callbacks or {}).get(type(self).__name__)
        if kept is not None and state.global_step > 0:
            for term, one in zip(self.terms, kept["attributes"]["states"], strict=True):
                if one:
                    term.load(one)


class CheckedTrainer(Trainer):
    """A Trainer with the terms of the run's mitigations, which stops at the first gradient that is not finite.

    Clipping would turn an infinite gradient into a zero step: the run would stand still and seem to forget nothing.
    """

    def __init__(self, *, terms: list[Term], **options: Any) -> None:
        super().__init__(**options)
        self.terms = terms

    @cached_property
    def fused(self) -> fused_loss.NextTokenLoss | None:
        """How the model's loss is computed without all logits; None if that could not be verified."""
        return fused_loss.find(self.model)

    @cached_property
    def folded(self) -> FoldedLayers:
        """Computed on first use, after a checkpoint was loaded, which may put other modules into the model."""
        return FoldedLayers(self.model)

    def compute_loss(
        self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss, plus what the terms add for this batch."""
        batch = dict(inputs)
        terms = [term for term in self.terms if term.reads_logits()]
        loss, outputs = self._model_loss(model, batch, num_items_in_batch, logits=bool(terms) or return_outputs)
        # divide as transformers does: by the whole step's tokens, or by the batch's if the model does not get them
        tokens = num_items_in_batch if transformers_internals.accepts_loss_kwargs(self) else None
        tokens = (batch["labels"][:, 1:] != IGNORED).sum() if tokens is None else tokens
        # the mean of the processes' gradients must be the sum of their parts; transformers scales its loss likewise
        shares = self.accelerator.num_processes
        for term in terms:
            part = term.on_batch(unwrapped(model), batch, outputs["logits"], tokens)
            loss = loss if part is None else loss + part * shares
        return (loss, outputs) if return_outputs else loss

    def _model_loss(self, model: torch.nn.Module, batch: Any, items: Any, *, logits: bool) -> tuple[Any, Any]:
        """The model's own loss and outputs; without all logits if nothing reads them."""
        passed = {name: value for name, value in batch.items() if name != "window"}
        loss: Any
        if not logits and self.fused is not None:
            with suppress(fused_loss.NotOursError), self.fused.acting():  # then use the model's own loss for this batch
                loss, outputs = super().compute_loss(model, passed, True, items)
                return loss, outputs
        loss, outputs = super().compute_loss(model, passed, True, items)
        return loss, outputs

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One batch; with the last of an update step, also the gradients that terms add once per step.

        With several processes, each adds them to its own gradients before the pass that averages all, so that rounding
        cannot make the processes diverge.
        """
        last, several = self.accelerator.sync_gradients, self.accelerator.num_processes > 1
        if last and several:
            self._add_once(model)
        with self.folding():
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if last and not several:
            self._add_once(model)
        return loss

    def folding(self) -> AbstractContextManager[None]:
        """Inside, LoRA layers are computed as in training: the same numbers up to rounding, in less time."""
        return self.folded.acting()

    def _add_once(self, model: torch.nn.Module) -> None:
        model.train()
        for term in self.terms:
            term.on_step(unwrapped(model), self.state.global_step)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The usual optimiser; its state resumes in the dtype in which it was saved."""
        made: torch.optim.Optimizer = super().create_optimizer(model)
        keep_dtypes(made)
        return made

    def _load_from_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Load, but keep frozen what does not train: PEFT makes every adapter that it loads trainable."""
        flags = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(*arguments, **options)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(flags[name])

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise DivergedError(
                f"the gradient is not finite after step {self.state.global_step}: the run diverged; "
                "lower training.learning_rate"
            )
        return norm


def keep_dtypes(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimiser load its state as it was saved, even if the weights are 16-bit.

    torch converts a loaded state to the dtype of the weights, but Adafactor's is always float32. A run resumed with
    rounded means would not give the numbers of an uninterrupted one.
    """
    loaded: list[dict[str, Any]] = []

    def before(_optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        loaded.append(state)

    def after(_optimizer: torch.optim.Optimizer) -> None:
        saved = loaded.pop()
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for number, weight in zip(numbers, weights, strict=True):
            for name, value in saved["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor) and optimizer.state[weight][name].dtype != value.dtype:
                    optimizer.state[weight][name] = value.to(optimizer.state[weight][name].device)

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)


def by_length(order: NDArray[np.int64], lengths: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """The order with each update step's windows sorted, longest first, so that micro-batches need the least padding.

    A step's gradient is the sum over all its windows, so it is the same up to rounding.

    Args:
        order: [steps * batch_size] window indices in training order.
        lengths: [W] tokens of each window.
        batch_size: windows per update step.
    """
    steps = order.reshape(-1, batch_size)
    return np.take_along_axis(steps, np.argsort(-lengths[steps], axis=1, kind="stable"), axis=1).reshape(-1)


def _arguments(training: TrainingConfig, seed: int, folder: Path, device: torch.device) -> TrainingArguments:
    share = training.batch_size // processes.count()
    micro = min(training.micro_batch_size or share, share)
    # use_reentrant=False: the reentrant kind needs gradients of the inputs, which LoRA does not have
    saving = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=training.learning_rate,
        lr_scheduler_type=schedule.NAMES[training.schedule],
        warmup_steps=training.warmup_steps,
        optim={"adafactor": "adafactor", "adamw": "adamw_torch_fused"}[training.optimizer],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=seed,
        train_sampling_strategy="sequential",  # training_order shuffles
        save_strategy="no",  # Measurer asks for checkpoints
        save_total_limit=None,  # checkpoints.mark deletes old ones; transformers would go by modification time
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        **(saving if training.gradient_checkpointing or _asked_to_checkpoint() else {}),
    )
    if device.type == "cuda" and processes.count() == 1:
        _use_one(device, arguments)
    return arguments


def _asked_to_checkpoint() -> bool:
    """Whether the accelerate configuration asks for it; the numbers are the same."""
    launch = processes.launched()
    return launch is not None and launch.sharding is not None and launch.sharding.checkpointing


def _use_one(device: torch.device, arguments: TrainingArguments) -> None:
    """Train only on the model's GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)  # accelerate puts the batches there
    transformers_internals.use_one_gpu(arguments, torch.device("cuda", index))


def make_trainer(
    kind: type[CheckedTrainer],
    model: Any,
    method: Method,
    run: RunConfig,
    course: Course,
    terms: list[Term],
    checkpoints: Path,
    pad_id: int,
) -> CheckedTrainer:
    """The trainer of one run, without callbacks.

    Args:
        kind: the Trainer class.
        model: prepared by the method and the mitigations.
        method: its own learning rate takes precedence over the recipe's.
        run: with the recipe as changed by the mitigations.
        course: what is trained on.
        terms: what is added to the loss.
        checkpoints: the folder for checkpoints.
        pad_id: token that fills up shorter windows.

    Raises:
        ForgettingError: there are several processes, and the model's loss cannot be divided by the whole step's tokens.
    """
    transformers_internals.check_overridden()
    training = run.training
    if method.learning_rate is not None:
        training = training.model_copy(update={"learning_rate": method.learning_rate})
    arguments = _arguments(training, run.seed, checkpoints, model.device)
    order = course.order
    if arguments.gradient_accumulation_steps > 1:
        order = by_length(order, course.windows.lengths, training.batch_size)
    trainer = kind(
        terms=terms,
        model=model,
        args=arguments,
        train_dataset=TrainingWindows(course.windows, order),
        data_collator=lambda rows: collate(rows, pad_id),
    )
    accelerate_internals.check_joined(trainer.accelerator, processes.count())
    trainer.remove_callback(PrinterCallback)
    if any(term.state() for term in terms):
        trainer.add_callback(TermStates(terms))
    if processes.count() > 1 and not transformers_internals.accepts_loss_kwargs(trainer):
        raise ForgettingError(
            "this model's loss does not take the tokens of the whole batch, so several processes cannot train it"
        )
    return trainer
