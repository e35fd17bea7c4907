"""One run: transformers.Trainer with one method and data set, measured on the step grid, resumable.

An interrupted and resumed run gives the same numbers as an uninterrupted one, bit for bit on a CPU: the order of the
data is fixed in advance, checkpoints include optimiser and random state, and rows measured after the last complete
checkpoint are dropped and measured again.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
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
from ..measuring import quantities
from ..measuring.base_targets import BaseTargets
from ..measuring.estimate import Mean
from ..measuring.losses import whole_losses
from ..measuring.quantities import HELDOUT, ONE_PASS
from ..models import adapters, memory, processes, quantised, sharding
from ..models.loading import Base, count_parameters
from ..store.folder import GoneError, RunFolder
from . import checkpoints, stopping
from .methods import METHODS, Context, Method
from .mitigations import Course, GeneralTexts, Mitigation, Situation, Term, parse_together, plan_course, with_recipe
from .sharded import ShardedTrainer
from .trainer import CheckedTrainer, DivergedError, make_trainer

IDENTITY_TOLERANCE = 0.01
"""nats/token by which step 0 may differ from the base model by rounding in bf16; beyond that, the run is refused."""


@dataclass(frozen=True)
class MeasuredText:
    """A general text with the base model's targets, and whether it is the base model's own answers."""

    windows: Windows
    targets: BaseTargets
    answers: bool = False


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is measured on; training and held-out windows share no document.

    `general` has the texts that mitigations need, `texts` the further measured texts, by name.
    """

    train: Windows
    heldout: Windows
    text: Windows
    targets: BaseTargets
    general: GeneralTexts
    texts: Mapping[str, MeasuredText] = field(default_factory=dict)


def measure_losses(
    model: PreTrainedModel, heldout: Windows, text: Windows, targets: BaseTargets, batch_tokens: int
) -> dict[str, Mean]:
    """All quantities of one measured step by name.

    Several processes share the batches; the numbers equal those of a single one.

    Raises:
        DivergedError: a loss is not finite.
    """
    finetune = whole_losses(model, heldout, None, batch_tokens=batch_tokens).per_token(None)
    general = whole_losses(model, text, targets, batch_tokens=batch_tokens).per_token(targets)
    found = quantities.means(quantities.values(HELDOUT, finetune), heldout.token_documents())
    found |= quantities.means(quantities.values(ONE_PASS, general), text.token_documents())
    for name, value in quantities.not_finite(found).items():
        raise DivergedError(f"{name} is {value}: the run diverged; lower training.learning_rate")
    return found


def measured_row(found: Mapping[str, Mean]) -> dict[str, float | None]:
    """The results of `measure_losses` under the table's column names: means, standard errors and counts.

    All means of one text have the same counts.
    """
    finetune, general = found["finetune_loss"], found["forgetting_loss"]
    return quantities.row(found) | {
        "finetune_tokens": finetune.n_tokens,
        "finetune_documents": finetune.n_documents,
        "text_tokens": general.n_tokens,
        "text_documents": general.n_documents,
    }


def measured_texts(
    model: PreTrainedModel, texts: Mapping[str, MeasuredText], batch_tokens: int
) -> dict[str, float | None]:
    """The columns of the further texts, named by `quantities.of_text`: those of `text`, and `kept` for answers.

    Raises:
        DivergedError: a loss is not finite.
    """
    row: dict[str, float | None] = {}
    for name, one in texts.items():
        losses = whole_losses(model, one.windows, one.targets, batch_tokens=batch_tokens).per_token(one.targets)
        found = quantities.means(quantities.values(ONE_PASS, losses), one.windows.token_documents())
        if one.answers:
            assert losses.agrees is not None
            found["kept"] = quantities.kept(losses.agrees, one.windows.token_documents())
        for quantity, value in quantities.not_finite(found).items():
            raise DivergedError(f"{quantity} of {name} is {value}: the run diverged; lower training.learning_rate")
        general = found["forgetting_loss"]
        columns = quantities.row(found) | {"text_tokens": general.n_tokens, "text_documents": general.n_documents}
        row |= {quantities.of_text(column, name): value for column, value in columns.items()}
    return row


@dataclass(frozen=True)
class Spent:
    """Time and memory that a run had used at the checkpoint that it resumes from; zero for a new run."""

    train_seconds: float = 0.0
    measure_seconds: float = 0.0
    peak_memory: float | None = None


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
        spent: Spent,
        folding: Callable[[], AbstractContextManager[None]],
        probe: Callable[[Any, int], None] | None = None,
        keeps_last: bool = False,
    ) -> None:
        self.afterwards, self.folding = afterwards, folding
        # with a full-precision reference, step 0 is the forgetting from quantising alone
        self.starts_at_base = method.start != "else" and run.model.reference != "full"
        self.probe = probe
        self.batch_tokens = run.measure.batch_tokens
        self.keeps_last = keeps_last
        self.batch_size = run.training.batch_size
        self.steps, self.last = frozenset(steps), steps[-1]
        self.data, self.folder, self.tell = data, folder, tell
        # [N + 1] tokens trained on after each number of samples
        self.tokens = np.concatenate([[0], np.cumsum(course.windows.lengths[course.order])])
        self.peak_memory = spent.peak_memory
        self.train_seconds, self.measure_seconds = spent.train_seconds, spent.measure_seconds
        self.clock = time.perf_counter()

    def _record(self, model: PreTrainedModel, step: int) -> None:
        began = time.perf_counter()
        self.train_seconds += began - self.clock
        # the peak of training; the peak of measuring is not a cost of the method
        peak = memory.peak(model.device)
        if step and peak is not None:
            self.peak_memory = max(round(processes.largest(peak), 1), self.peak_memory or 0.0)
        processes.check_same(model, trainable=True, when=f"after step {step}")
        losses, texts = self._losses(model)
        if step == 0 and self.starts_at_base and abs(losses["forgetting"].value) > IDENTITY_TOLERANCE:
            raise ForgettingError(
                f"before the first update the model already differs from the base by {losses['forgetting'].value:.4f} "
                "nats/token: the method does not start at the base model"
            )
        self._write(step, None, losses, texts, began)
        if step == self.last:
            for alpha in self.afterwards(model):
                began = time.perf_counter()
                self._write(step, alpha, *self._losses(model), began)
        if self.probe is not None and step:
            if processes.is_main():
                self.probe(model, step)
            processes.wait_for_all()
        memory.reset_peak(model.device)
        self.clock = time.perf_counter()

    def _losses(self, model: PreTrainedModel) -> tuple[dict[str, Mean], dict[str, float | None]]:
        with self.folding():
            found = measure_losses(model, self.data.heldout, self.data.text, self.data.targets, self.batch_tokens)
            return found, measured_texts(model, self.data.texts, self.batch_tokens)

    def _write(
        self,
        step: int,
        alpha: float | None,
        losses: Mapping[str, Mean],
        texts: Mapping[str, float | None],
        began: float,
    ) -> None:
        self.measure_seconds += time.perf_counter() - began
        self.folder.append(
            {
                "step": step,
                "alpha": alpha,
                **measured_row(losses),
                **texts,
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
        """Measure if the step is on the grid; the row is on disk before the checkpoint after it."""
        self.tell(state.global_step)
        if state.global_step in self.steps:
            self._record(kwargs["model"], state.global_step)
            control.should_save = state.global_step != self.last or self.keeps_last
        asked = int(processes.largest(stopping.requested() or 0))
        if asked:  # in any process: all stop at the same step
            stopping.request(asked)
        if asked and state.global_step != self.last:
            self.folder.check_there()
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as complete, with the time used so far, which no row has between measured steps."""
        processes.wait_for_all()  # each process writes its random state into it
        if processes.is_main():
            self.folder.check_there()
            checkpoints.mark(
                Path(str(args.output_dir)) / f"checkpoint-{state.global_step}",
                **self.folder.written(),
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
    before: Mapping[str, Any],
    cache: Path,
    tell: Callable[[int], None],
    probe: Callable[[Any, int], None] | None = None,
) -> None:
    """Train and measure one run in its folder, from its last complete checkpoint if it has one.

    With several processes, each calls this and trains on its share of every batch; the main one writes.

    Args:
        run: everything that affects the numbers.
        steps: the measured steps, from 0 to the last.
        base: freshly loaded; changed by the training.
        data: windows and base targets.
        folder: where rows, checkpoints and the tuned weights go.
        before: the run's record when it was last interrupted; empty for a new run.
        cache: for results of mitigations that the study's runs share.
        tell: called with the number of each finished step.
        probe: called with the model and the number of each measured step after 0; leaves the model unchanged.

    Raises:
        DivergedError: a loss is not finite.
        UsageError: the method or a mitigation does not fit the model or the data.
        ForgettingError: step 0 is not the base model, or a mitigation's text changed since the run started.
        StoppedError: a stop was requested; there is a checkpoint.
    """
    together = parse_together(run)
    at = Situation(with_recipe(run, together), base, data.general, cache)
    order = training_order(len(data.train), run.training.steps * run.training.batch_size, run.seed)
    course, terms = plan_course(together, Course(data.train, order, np.ones(len(data.train))), at)
    set_seed(run.seed)
    method = METHODS.parse(at.run.method)
    context = Context(run.seed, data.train, data.text, base.tokenizer, run.context)
    model = _trainable(base, method, context, together, terms)
    _check_facts(at.facts, before.get("mitigated") or {})
    folder.update(mitigated=at.facts, trainable_params=count_parameters(model, trainable=True))
    checkpoint, spent = _resume(folder, steps)
    pad_id = base.tokenizer.pad_token_id
    assert isinstance(pad_id, int)  # load_tokenizer sets one
    trainer = make_trainer(_kind(model), model, method, at.run, course, terms, folder.path / "checkpoints", pad_id)

    def afterwards(trained: Any) -> Iterator[float]:
        return itertools.chain.from_iterable(one.afterwards(trained, at) for one in together)

    lengthens = run.training.schedule == "constant" and adapters.is_peft(model)
    how = (spent, trainer.folding, probe, lengthens)
    measurer = Measurer(run, method, steps, data, folder, tell, course, afterwards, *how)
    trainer.add_callback(measurer)
    _own_random(run.seed)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < run.training.steps:
        stopping.check()
    _finish(model, method, folder, base, trainer, keeps_last=lengthens)
    folder.update(mitigated=at.facts, peak_memory=measurer.peak_memory)


def _trainable(
    base: Base, method: Method, context: Context, together: Sequence[Mitigation], terms: Sequence[Term]
) -> Any:
    """The model to train: the base model as changed by the method and the mitigations."""
    model = method.prepare(base.model, context)
    for mitigation in together:
        mitigation.adapt(model)
    processes.check_same(model, trainable=False, when="before training")
    launch = processes.launched()
    if launch is not None and launch.sharding is not None:
        inner = model.get_base_model() if adapters.is_peft(model) else model
        sharding.shard(model, inner, launch.sharding, launch.device)
    for term in terms:
        term.start(model)
    return model


def _kind(model: Any) -> type[CheckedTrainer]:
    return ShardedTrainer if sharding.is_sharded(model) else CheckedTrainer


def _gather(model: Any, trainer: CheckedTrainer) -> None:
    """Assemble, in the main process, what is saved of a sharded model; frees the optimiser first."""
    model.zero_grad(set_to_none=True)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    adapter = model.active_adapter if adapters.is_peft(model) else None
    named = list(model.named_parameters())
    # PEFT keeps an adapter's parameters, trained or frozen, under the adapter's name
    saved = [name for name, p in named if adapter is None or p.requires_grad or adapter in name.split(".")]
    sharding.make_whole(model, saved)


def _own_random(seed: int) -> None:
    """Give each process its own dropout; otherwise all would drop the same positions, in different windows."""
    if processes.index():
        torch.manual_seed(int(np.random.default_rng([seed, 20240701, processes.index()]).integers(2**62)))


def _finish(
    model: Any, method: Method, folder: RunFolder, base: Base, trainer: CheckedTrainer, *, keeps_last: bool
) -> None:
    """Store the tuned weights atomically, in the main process.

    An adapter's last checkpoint, three times its size, is kept so that a longer run can continue from it.
    """
    last = trainer.state.global_step if keeps_last else None
    if sharding.is_sharded(model):
        _gather(model, trainer)
    if processes.is_main():
        folder.check_there()
        partial = folder.path / "adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        method.save(model, partial)
        if base.source is not None:
            adapters.name_base(partial, base.source)
        if quantised.bits_of(base.model.config) is not None:
            quantised.note_base(partial, base.model)
        shutil.rmtree(folder.path / "adapter", ignore_errors=True)
        partial.rename(folder.path / "adapter")
        checkpoints.drop_but(folder.path / "checkpoints", last)
    processes.wait_for_all()


def _resume(folder: RunFolder, steps: Sequence[int]) -> tuple[Path | None, Spent]:
    """The run's last complete checkpoint, and the time and memory used up to it.

    Rows after it are dropped, and damage is stored as a notice. If rows before it are not those that were measured, the
    run starts again.
    """
    path, spent = None, Spent()
    if processes.is_main():
        found = checkpoints.newest(folder.path / "checkpoints")
        rows, wrong = _rows_until(folder, found, steps)
        if wrong:
            shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
            found = checkpoints.Found(notices=(*found.notices, f"{wrong}: started again at step 0"))
            rows = folder.keep_until(-1)
        if found.notices:
            folder.update(notices=[*folder.read().get("notices", []), *found.notices])
        trained, measured = (float(found.state.get(name, 0.0)) for name in ("train_seconds", "measure_seconds"))
        path, spent = found.path, Spent(trained, measured, rows[-1]["peak_memory"] if rows else None)
    return processes.shared((path, spent))


def _rows_until(folder: RunFolder, found: checkpoints.Found, steps: Sequence[int]) -> tuple[list[dict[str, Any]], str]:
    """Drop the rows after a checkpoint; return the others, and how they differ from those measured, in words."""
    try:
        rows = folder.keep_until(found.step)
    except GoneError:
        raise
    except ForgettingError as error:
        return [], str(error)
    if "rows" in found.state:
        sound = folder.written() == {name: found.state[name] for name in ("rows", "chain")}
    else:  # a checkpoint of a version without a chain of hashes
        sound = [row["step"] for row in rows] == [step for step in steps if step <= found.step]
    return rows, "" if sound else f"rows up to the checkpoint at step {found.step} are lost or changed"


def _check_facts(facts: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse to continue if a mitigation's text changed since the run started.

    Args:
        facts: what each mitigation did, by name.
        before: the same when the run was last interrupted.

    Raises:
        ForgettingError: names the mitigation.
    """
    for name, fact in facts.items():
        then = before.get(name)
        if isinstance(fact, dict) and isinstance(then, dict) and then.get("text") != fact.get("text"):
            raise ForgettingError(f"the text of {name} changed since this run started; use a new study folder")
