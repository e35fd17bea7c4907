"""One trajectory: transformers.Trainer on one method and data set, measured on the step grid, resumable.

A run that was cut and resumed gives the numbers of an uninterrupted one, bit for bit on a CPU: the order of the data
is fixed in advance, checkpoints carry optimiser and random state, and rows measured after the last whole checkpoint
are dropped and measured again.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..config.schema import RunConfig
from ..data.windows import Windows, training_order
from ..errors import ForgettingError
from ..measuring.base_targets import BaseTargets
from ..measuring.estimate import Mean, clustered_mean
from ..measuring.losses import whole_losses
from ..models import adapters, memory, processes
from ..models.loading import Base, count_parameters
from ..store.folder import RunFolder
from . import checkpoints, stopping
from .methods import METHODS, Context, Method
from .mitigations import Course, GeneralTexts, Situation, parse_together, plan_course, with_recipe
from .trainer import DivergedError, make_trainer

IDENTITY_TOLERANCE = 0.01
"""nats/token by which step 0 may differ from the base model (rounding under bf16); more is no fine-tuning from it."""


@dataclass(frozen=True)
class RunData:
    """What a run trains and is measured on; train and held-out windows share no document.

    `general` holds the texts that mitigations ask for.
    """

    train: Windows
    heldout: Windows
    text: Windows
    targets: BaseTargets
    general: GeneralTexts


def measure_losses(model: PreTrainedModel, data: RunData, batch_tokens: int) -> dict[str, float | int]:
    """All quantities of one measured step, under the table's column names, each mean with its standard error.

    Several processes share out the batches; the numbers are those of one.

    Raises:
        DivergedError: a loss is not finite.
    """
    finetune = whole_losses(model, data.heldout, None, batch_tokens=batch_tokens)
    general = whole_losses(model, data.text, data.targets, batch_tokens=batch_tokens)
    if general.target_nll is None or general.agrees is None:
        raise AssertionError("whole_losses was given targets")
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
        course: Course,
        afterwards: Callable[[Any], Iterator[float]],
        spent: Mapping[str, float],
        probe: Callable[[Any, int], None] | None = None,
    ) -> None:
        self.afterwards = afterwards
        self.starts_at_base, self.probe = method.start != "else", probe
        self.batch_tokens = run.measure.batch_tokens
        self.batch_size = run.training.batch_size
        self.steps, self.last = frozenset(steps), steps[-1]
        self.data, self.folder, self.tell = data, folder, tell
        # [N + 1] tokens trained on after each number of samples
        self.tokens = np.concatenate([[0], np.cumsum(course.windows.lengths[course.order])])
        rows = folder.measurements()
        self.peak_memory: float | None = rows[-1]["peak_memory"] if rows else None
        self.train_seconds = float(spent.get("train_seconds", 0.0))
        self.measure_seconds = float(spent.get("measure_seconds", 0.0))
        self.clock = time.perf_counter()

    def _record(self, model: PreTrainedModel, step: int) -> None:
        began = time.perf_counter()
        self.train_seconds += began - self.clock
        # the peak of training: measuring has its own, which is no method's cost
        peak = memory.peak(model.device)
        if step and peak is not None:
            self.peak_memory = max(round(processes.largest(peak), 1), self.peak_memory or 0.0)
        processes.check_same(model, trainable=True, when=f"after step {step}")
        losses = measure_losses(model, self.data, self.batch_tokens)
        if step == 0 and self.starts_at_base and abs(losses["forgetting"]) > IDENTITY_TOLERANCE:
            raise ForgettingError(
                f"before the first update the model already differs from the base by {losses['forgetting']:.4f} "
                "nats/token: the method does not start at the base model"
            )
        self._write(step, None, losses, began)
        if step == self.last:
            for alpha in self.afterwards(model):
                began = time.perf_counter()
                self._write(step, alpha, measure_losses(model, self.data, self.batch_tokens), began)
        if self.probe is not None and step:
            if processes.is_main():
                self.probe(model, step)
            processes.wait_for_all()
        memory.reset_peak(model.device)
        self.clock = time.perf_counter()

    def _write(self, step: int, alpha: float | None, losses: dict[str, float | int], began: float) -> None:
        self.measure_seconds += time.perf_counter() - began
        self.folder.append(
            {
                "step": step,
                "alpha": alpha,
                **losses,
                "train_tokens": int(self.tokens[step * self.batch_size]),
                "train_seconds": round(self.train_seconds, 3),
                "measure_seconds": round(self.measure_seconds, 3),
                "peak_memory": self.peak_memory,
            }
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure step 0, the base model, unless the run resumes after it."""
        if state.global_step == 0:
            self.clock = time.perf_counter()
            self._record(kwargs["model"], 0)
        memory.reset_peak(kwargs["model"].device)
        self.clock = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Measure if the step is on the grid; the row is on disk before the checkpoint that follows it."""
        self.tell(state.global_step)
        if state.global_step in self.steps:
            self._record(kwargs["model"], state.global_step)
            control.should_save = state.global_step != self.last
        asked = int(processes.largest(stopping.requested() or 0))
        if asked:  # of any process: all stop at the same step
            stopping.request(asked)
        if asked and state.global_step != self.last:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as wholly written; with what was spent up to it, which no row tells between two."""
        processes.wait_for_all()  # each process writes its random state into it
        if processes.is_main():
            checkpoints.mark(
                Path(str(args.output_dir)) / f"checkpoint-{state.global_step}",
                train_seconds=self.train_seconds + time.perf_counter() - self.clock,
                measure_seconds=self.measure_seconds,
            )
        processes.wait_for_all()


def train_run(
    run: RunConfig,
    steps: list[int],
    base: Base,
    data: RunData,
    folder: RunFolder,
    cache: Path,
    tell: Callable[[int], None],
    probe: Callable[[Any, int], None] | None = None,
) -> None:
    """Train and measure one run in its folder, from its last whole checkpoint if it has one.

    Of several processes each calls this and trains on its share of every batch; the main one writes.

    Args:
        run: what decides the numbers.
        steps: the grid of measured steps, from 0 to the last.
        base: freshly loaded; changed by the training.
        data: windows and base targets.
        folder: where rows, checkpoints and the tuned weights go.
        cache: what mitigations compute once a study.
        tell: called with the number of each finished step.
        probe: called with the model and the number of each measured step after 0; leaves the model as it was.

    Raises:
        DivergedError: a loss is not finite.
        UsageError: the method or a mitigation does not fit the model or the data.
        ForgettingError: a mitigation's text changed since the run began.
        StoppedError: a stop was requested; a checkpoint is there.
    """
    together = parse_together(run)
    at = Situation(with_recipe(run), base, data.general, cache)
    order = training_order(len(data.train), run.training.steps * run.training.batch_size, run.seed)
    plain = Course(data.train, order, np.ones(len(data.train)))
    course, terms = plan_course(together, plain, at)
    set_seed(run.seed)
    method = METHODS.parse(at.run.method)
    model = method.prepare(base.model, Context(run.seed, data.train, data.text, base.tokenizer, run.context))
    for mitigation in together:
        mitigation.adapt(model)
    for term in terms:
        term.start(model)
    processes.check_same(model, trainable=False, when="before training")
    _keep_facts(folder, at.facts)
    folder.update(trainable_params=count_parameters(model, trainable=True))
    resumed = _resume(folder)
    pad_id = base.tokenizer.pad_token_id
    if not isinstance(pad_id, int):
        raise AssertionError("load_tokenizer sets a pad token")
    trainer = make_trainer(model, method, at.run, course, terms, folder.path / "checkpoints", pad_id)

    def afterwards(trained: Any) -> Iterator[float]:
        return itertools.chain.from_iterable(one.afterwards(trained, at) for one in together)

    trainer.add_callback(Measurer(run, method, steps, data, folder, tell, course, afterwards, resumed.state, probe))
    _own_random(run.seed)
    trainer.train(resume_from_checkpoint=str(resumed.path) if resumed.path else None)
    if trainer.state.global_step < run.training.steps:
        stopping.check()
    _finish(model, method, folder, base)


def _own_random(seed: int) -> None:
    """Dropout's own random numbers in each process: the same ones would drop the same places of different windows."""
    if processes.index():
        torch.manual_seed(int(np.random.default_rng([seed, 20240701, processes.index()]).integers(2**62)))


def _finish(model: Any, method: Method, folder: RunFolder, base: Base) -> None:
    """Store the tuned weights, whole or not at all, and what the run took; the main process does."""
    if processes.is_main():
        partial = folder.path / "adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        method.save(model, partial)
        if base.source is not None:
            adapters.name_base(partial, base.source)
        shutil.rmtree(folder.path / "adapter", ignore_errors=True)
        partial.rename(folder.path / "adapter")
        shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
        folder.update(peak_memory=next((row["peak_memory"] for row in reversed(folder.measurements())), None))
    processes.wait_for_all()


def _resume(folder: RunFolder) -> checkpoints.Found:
    """The run's last whole checkpoint; rows after it are dropped, and what was damaged is stored as a notice."""
    found = checkpoints.Found()
    if processes.is_main():
        found = checkpoints.newest(folder.path / "checkpoints")
        folder.keep_until(found.step)
        if found.notices:
            folder.update(notices=[*folder.read().get("notices", []), *found.notices])
    return processes.shared(found)


def _keep_facts(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Store what the mitigations did, and stop where their text is another than when the run began.

    Raises:
        ForgettingError: names the mitigation.
    """
    before = processes.shared(folder.read()).get("mitigated") or {}
    for name, fact in facts.items():
        then = before.get(name)
        if isinstance(fact, dict) and isinstance(then, dict) and then.get("text") != fact.get("text"):
            raise ForgettingError(f"the text of {name} changed since this run began; use a new study folder")
    folder.update(mitigated=facts)
