"""Executes one run of a study in this process: locks, trains and measures it, and records the outcome."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.bits import quantised_notes
from ..config.schema import RunConfig, StudyConfig, is_probe
from ..errors import ForgettingError
from ..files import no_room, redact, write_atomically
from ..models import memory, processes, quantised
from ..store.axes import REPLAY
from ..store.columns import DAMAGED
from ..store.folder import HeldError, ReadOnlyRun, RunFolder, StudyFolder
from ..tuning.checkpoints import drop_unfinished
from ..tuning.grid import runs_by_id
from ..tuning.methods import METHODS
from ..tuning.stopping import StoppedError
from . import growing, own_code, provenance, tracking
from .inputs import StudyInputs

if TYPE_CHECKING:
    from ..measuring.base_targets import BaseTargets
    from ..models.loading import Base
    from ..tuning.run import RunData

SMALL_MODEL = 50_000_000
"""Models with fewer parameters run best with one thread per run."""


def is_pending(record: Mapping[str, Any]) -> bool:
    """Whether a run is still to do, given its run.json: it is unfinished, or failed without diverging.

    A run with damaged files is not pending; the user must delete it.
    """
    return not (record.get("status") in ("done", DAMAGED) or record.get("kind") == "diverged")


class Worker:
    """Executes runs of a stored study for an engine, and keeps the inputs that they share.

    Only the folder is pickled, so each process that an engine starts reads the texts itself, once.
    """

    def __init__(self, study: Path, inputs: StudyInputs | None = None) -> None:
        """Create it.

        Args:
            study: the study folder.
            inputs: the study's inputs; None reads them when the first run needs them.
        """
        self.study = study
        self._inputs = inputs

    def __reduce__(self) -> tuple[Any, ...]:
        return Worker, (self.study,)

    def __call__(self, run_id: str, tell: Callable[[int], None]) -> None:
        """Execute one run, unless another process holds its lock.

        Args:
            run_id: id of the run.
            tell: called with the number of each finished step.

        Raises:
            StoppedError: a stop was requested; the run can resume from a checkpoint.
            ForgettingError: the disk is full, or the run's record is damaged.
        """
        with suppress(HeldError):
            self.do(run_id, tell)

    def do(self, run_id: str, tell: Callable[[int], None]) -> bool:
        """Execute one run; returns whether there was anything to do.

        Raises:
            HeldError: another process holds the run.
            StoppedError, ForgettingError: see `__call__`.
        """
        folder = StudyFolder.open(self.study)
        if self._inputs is None:
            self._inputs = StudyInputs(folder.config())
        return do_run(folder, self._inputs, run_id, tell)


def do_run(study: StudyFolder, inputs: StudyInputs, run_id: str, tell: Callable[[int], None]) -> bool:
    """Execute one run in this process, unless it is done; failures are recorded in its run.json.

    If several processes form a group (`processes.join`), all of them call this; the main one holds the lock and writes.

    Returns:
        Whether there was anything to do.

    Raises:
        HeldError: another process holds the run.
        StoppedError, ForgettingError: see `Worker`; also if the code of this package changed.
        RunFailedError: raised in processes other than the main one; the process that started them records it.
    """
    processes.refuse_foreign()
    own_code.check_same()
    quiet_libraries()
    folder = study.run(run_id)
    folder = folder if processes.is_main() else ReadOnlyRun(folder.path)
    try:
        with study.in_place(), _held(folder) as before:
            study.check_there()
            if not is_pending(before):
                return False
            _check_asked(study, inputs, run_id)
            if processes.is_main():
                before = growing.begin(study, inputs.config, inputs.runs[run_id], folder)
            before = processes.shared(before)
            with _failure_kept(study, folder):
                _train(study, inputs, folder, before, tell)
            return True
    except Exception as error:
        if not no_room(error):
            raise
        with suppress(OSError):
            drop_unfinished(folder.path / "checkpoints")
        raise ForgettingError(
            f"{study.path}: the disk is full; everything measured so far is kept: free some space, "
            "then run the same command again"
        ) from None


def _check_asked(study: StudyFolder, inputs: StudyInputs, run_id: str) -> None:
    """Check that another command has not removed this run from the study.

    Raises:
        ForgettingError: it has.
    """
    now = study.config()
    if now != inputs.config and run_id not in runs_by_id(now):
        raise ForgettingError(
            f"{study.path}: its configuration changed while this command ran, and run {run_id} is no longer "
            "in it; everything measured is kept: run the command again with the configuration that you want"
        )


@contextmanager
def _failure_kept(study: StudyFolder, folder: RunFolder) -> Iterator[None]:
    """Record any failure of the block except a stop or a full disk, so that a failed run is stored as failed."""
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        study.check_there()  # if the folder was deleted, say that instead
        folder.check_there()
        own_code.check_same()  # the failure may come from mixing two versions of the code
        if no_room(error):
            raise
        if not processes.is_main():
            raise processes.RunFailedError(_why(error)) from error
        _keep_failure(folder, error)


@contextmanager
def _held(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Hold the run's lock; in a group of processes the main one holds it for all.

    Yields:
        The content of run.json; empty if the run has not begun.

    Raises:
        HeldError: another process holds the run.
        ForgettingError: run.json is damaged.
    """
    with ExitStack() as stack:
        why, record = "", {}
        if processes.is_main():
            try:
                stack.enter_context(folder.lock())
                record = folder.read()
            except HeldError as error:
                why = str(error)
        why, record = processes.shared((why, record))
        if why:
            raise HeldError(why)
        yield record


def _why(error: Exception) -> str:
    """The reason of a failure in words; names a remedy if memory ran out."""
    from ..models.failures import out_of_memory

    why = str(error) if isinstance(error, ForgettingError) else f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        why = f"out of memory; use a smaller training.micro_batch_size ({why.splitlines()[0]})"
    return why


def _keep_failure(folder: RunFolder, error: Exception) -> None:
    """Write the traceback to error.txt and the failure to run.json."""
    diverged = type(error).__name__ == "DivergedError"
    write_atomically(folder.path / "error.txt", redact(traceback.format_exc()), parents=False)
    folder.update(status="failed", kind="diverged" if diverged else "error", why=_why(error), finished=provenance.now())


def quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries off the terminal."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)  # raised by transformers' own code in PEFT and Trainer
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # PEFT says so of GPT-2's layers, and sets it itself
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _train(
    study: StudyFolder,
    inputs: StudyInputs,
    folder: RunFolder,
    before: Mapping[str, Any],
    tell: Callable[[int], None],
) -> None:
    """Train and measure the run, from its inputs to its sealed record; `before` is its run.json so far."""
    from ..tuning.run import train_run

    run = inputs.runs[folder.id]
    launch = processes.launched()
    sharded = launch is not None and launch.sharding is not None
    if sharded:
        memory.collect()  # frees the model of the run before
    base = inputs.base(host=sharded)
    if is_small(base):
        limit_threads()
    shared = inputs.shared_targets(base, launch, study.path) if launch is not None and sharded else None
    if not processes.is_main():
        processes.wait_for_all()  # the main process fills the cache, then the others read it
    data, notices = _data(inputs, run, base, study, shared)
    if processes.is_main():
        processes.wait_for_all()
    prints = inputs.fingerprints(run.dataset_name, base, study.path)
    if changed := provenance.other_processes(before, processes.count(), sharded=sharded) or changes(before, prints):
        raise ForgettingError(f"{changed} since this run started; use a new study folder")
    if not before and processes.is_main():
        from ..capabilities.study_growth import forget_answers

        forget_answers(study.path, folder.id)
    folder.update(
        status="running",
        kind=None,
        why=None,
        measured=None,
        **provenance.record(folder.id, run),
        base=base.revision,
        data=prints,
        notices=[*notices, *(old for old in before.get("notices", []) if old not in notices)],
        **provenance.execution(base),
        started=before.get("started") or provenance.now(),
        resumed=[*before.get("resumed", []), provenance.now()] if before else [],
    )
    probe = _probe(inputs.config, folder.id, run, base, data, study)
    with tracking.followed(study, inputs.config, folder, run):
        train_run(run, inputs.config.measured_steps(), base, data, folder, before, study.path / "cache", tell, probe)
    folder.seal(status="done", finished=provenance.now())


def changes(state: Mapping[str, Any], prints: dict[str, str]) -> str:
    """How the data or the model differ from when a run began, in words; empty if they do not.

    Args:
        state: the run's record.
        prints: today's hashes, from `StudyInputs.fingerprints`.
    """
    then = state.get("data") or prints
    changed = [
        f"the base model changed ({then.get(part)} then, {prints[part]} now)"
        if part == "base"
        else f"the {'general' if part == 'text' else part} text changed"
        for part in prints
        if then.get(part) != prints[part]
    ]
    return ", ".join(changed)


def is_small(base: Base) -> bool:
    """Whether one thread per run is best; parallel runs then use the cores, and the numbers are the same."""
    from ..models.loading import count_parameters

    return base.model.device.type == "cpu" and count_parameters(base.model, trainable=False) < SMALL_MODEL


def limit_threads() -> None:
    """Use one torch thread in this process from now on."""
    import torch

    torch.set_num_threads(1)


def _probe(
    config: StudyConfig, run_id: str, run: RunConfig, base: Base, data: RunData, folder: StudyFolder
) -> Callable[[Any, int], None] | None:
    """The callback that evaluates the run's capabilities at the configured steps; None without such steps."""
    asked = config.capabilities
    steps = asked.asks(run, config.training.steps) if asked is not None else frozenset()
    if not steps:
        return None
    from ..capabilities.study_runs import Probe, plan_of

    return Probe(
        folder.path,
        run_id,
        base.pinned(config.model),
        base.tokenizer,
        plan_of(config),
        steps,
        data.heldout,
        config.measure.batch_tokens,
    )


def _data(
    inputs: StudyInputs, run: RunConfig, base: Base, study: StudyFolder, targets: list[BaseTargets] | None
) -> tuple[RunData, list[str]]:
    """The windows and base targets of a run, and notices on them; `targets`, if given, are already computed."""
    from ..tuning.run import MeasuredText, RunData

    train, heldout = inputs.dataset(run.dataset_name)
    first, *others = inputs.targets(base, study.path) if targets is None else targets
    texts = inputs.texts(base, study.path)
    measured = {
        name: MeasuredText(text, of, answers=is_probe(inputs.config.texts[name]))
        for (name, text), of in zip(texts.items(), others, strict=True)
    }
    data = RunData(train, heldout, inputs.text, first, inputs.general, measured)
    parts = {"train": train, "heldout": heldout, "text": inputs.text, **{f"texts.{n}": t for n, t in texts.items()}}
    notices = [f"{part}: {notice}" for part, windows in parts.items() for notice in windows.notices]
    if (passes := passes_over(run, len(train))) > 1:
        notices.append(f"training made {passes:.1f} passes over the data: losses on held-out data may rise")
    if METHODS.parse(run.method).start == "else":
        notices.append(
            f"{run.method.name} need not start at the base model: step 0 is the untrained adapter, and forgetting is "
            "measured against the base model without it"
        )
    if run.training.schedule != "constant":
        notices.append(
            f"schedule {run.training.schedule}: a measured step does not equal a run that stopped there, since its "
            "learning rate had not decayed"
        )
    launch = processes.launched()
    if launch is not None and launch.content["mixed_precision"] != "no":
        notices.append(
            f"mixed_precision {launch.content['mixed_precision']} in the accelerate configuration is ignored: "
            f"the model computes in model.dtype, {quantised.dtype_name(base.model)}"
        )
    notices += [*quantised_notes(run.model), *METHODS.parse(run.method).notices(base.model)]
    if run.method.name == "full" and str(base.model.dtype) != "torch.float32":
        notices.append(
            f"full fine-tuning in {base.model.dtype}: small updates are lost to rounding; use dtype: float32"
        )
    return data, notices


def passes_over(run: RunConfig, windows: int) -> float:
    """How many passes a run makes over this many training windows; replayed windows replace some of them."""
    replayed: float = REPLAY.of(one.model_dump() for one in run.mitigations)
    return (1 - replayed) * run.training.steps * run.training.batch_size / windows
