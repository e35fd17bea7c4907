"""One run of a study done in this process: held, trained, measured, and recorded whatever becomes of it."""

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
from ..models import processes, quantised
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
"""Parameters under which one thread a run is best."""


def is_pending(record: Mapping[str, Any]) -> bool:
    """Whether the run of a run.json is still to do: it has not ended, or failed for a reason that may pass.

    One whose files are damaged is left until the user deletes it.
    """
    return not (record.get("status") in ("done", DAMAGED) or record.get("kind") == "diverged")


class Worker:
    """Does runs of a stored study, for an engine, and holds what they share.

    Pickled it is the folder alone: each process that an engine starts reads the texts for itself, once.
    """

    def __init__(self, study: Path, inputs: StudyInputs | None = None) -> None:
        """Take the study folder, and what was read for it already."""
        self.study = study
        self._inputs = inputs

    def __reduce__(self) -> tuple[Any, ...]:
        return Worker, (self.study,)

    def __call__(self, run_id: str, tell: Callable[[int], None]) -> None:
        """Do one run; does nothing where another process holds it.

        Args:
            run_id: which run.
            tell: called with the number of each finished step.

        Raises:
            StoppedError: a stop was requested; the run can go on from a checkpoint.
            ForgettingError: no room on the disk, or a damaged record.
        """
        with suppress(HeldError):
            self.do(run_id, tell)

    def do(self, run_id: str, tell: Callable[[int], None]) -> bool:
        """The same, but says whether there was anything to do.

        Raises:
            HeldError: another process does it.
        """
        folder = StudyFolder.open(self.study)
        if self._inputs is None:
            self._inputs = StudyInputs(folder.config())
        return do_run(folder, self._inputs, run_id, tell)


def do_run(study: StudyFolder, inputs: StudyInputs, run_id: str, tell: Callable[[int], None]) -> bool:
    """Do one run in this process, unless it is done; failures are recorded in its run.json.

    Of several processes that `processes.join` made one group all call this, and the main one holds the run and writes.

    Returns:
        Whether there was anything to do.

    Raises:
        HeldError: another process does it.
        StoppedError, ForgettingError: as `Worker`, or the code of this package changed.
        RunFailedError: in a process that is not the main one, for whoever started it to record.
    """
    processes.refuse_foreign()
    own_code.check_same()
    quiet_libraries()
    folder = study.run(run_id)
    folder = folder if processes.is_main() else ReadOnlyRun(folder.path)
    try:
        with _held(folder) as before:
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
    """Stop where another command has taken this run out of the study meanwhile.

    Raises:
        ForgettingError: says so.
    """
    now = study.config()
    if now != inputs.config and run_id not in runs_by_id(now):
        raise ForgettingError(
            f"{study.path}: its configuration changed while this command ran, and run {run_id} is no longer "
            "in it; everything measured is kept: run the command again with the configuration that you want"
        )


@contextmanager
def _failure_kept(study: StudyFolder, folder: RunFolder) -> Iterator[None]:
    """Record what fails inside, whatever it is but a full disk: a failure is data, visible and never a number."""
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        study.check_there()  # else whatever went wrong did so because the folder has gone
        folder.check_there()
        own_code.check_same()  # else parts of two versions may have met
        if no_room(error):
            raise
        if not processes.is_main():
            raise processes.RunFailedError(_why(error)) from error
        _keep_failure(folder, error)


@contextmanager
def _held(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Hold the run; of several processes the main one does, for all.

    Yields:
        What its run.json says now; empty where the run has not begun.

    Raises:
        HeldError: somebody else holds it.
        ForgettingError: a damaged run.json.
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
    from ..models.failures import out_of_memory

    why = str(error) if isinstance(error, ForgettingError) else f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        why = f"out of memory; use a smaller training.micro_batch_size ({why.splitlines()[0]})"
    return why


def _keep_failure(folder: RunFolder, error: Exception) -> None:
    diverged = type(error).__name__ == "DivergedError"
    write_atomically(folder.path / "error.txt", redact(traceback.format_exc()), parents=False)
    folder.update(status="failed", kind="diverged" if diverged else "error", why=_why(error), finished=provenance.now())


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal: progress and errors here are ours."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers to itself, through PEFT and Trainer
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _train(
    study: StudyFolder,
    inputs: StudyInputs,
    folder: RunFolder,
    before: Mapping[str, Any],
    tell: Callable[[int], None],
) -> None:
    from ..tuning.run import train_run

    run = inputs.runs[folder.id]
    launch = processes.launched()
    sharded = launch is not None and launch.sharding is not None
    base = inputs.base(host=sharded)
    if is_small(base):
        limit_threads()
    shared = inputs.shared_targets(base, launch, study.path) if launch is not None and sharded else None
    if not processes.is_main():
        processes.wait_for_all()  # the main process computes what is not in the cache, the others find it there
    data, notices = _data(inputs, run, base, study, shared)
    if processes.is_main():
        processes.wait_for_all()
    prints = inputs.fingerprints(run.dataset_name, base, study.path)
    if changed := provenance.other_processes(before, processes.count(), sharded=sharded) or changes(before, prints):
        raise ForgettingError(f"{changed} since this run started; use a new study folder")
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
    """Which data or model is another than when a run began, in words; empty for none."""
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
    """Whether one thread is best for a run: then runs side by side fill the cores, with the same numbers."""
    from ..models.loading import count_parameters

    return base.model.device.type == "cpu" and count_parameters(base.model, trainable=False) < SMALL_MODEL


def limit_threads() -> None:
    """One thread in this process from here on."""
    import torch

    torch.set_num_threads(1)


def _probe(
    config: StudyConfig, run_id: str, run: RunConfig, base: Base, data: RunData, folder: StudyFolder
) -> Callable[[Any, int], None] | None:
    """What asks the run's model of its capabilities at the chosen steps; None where it is not asked."""
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
    """Windows and base targets of a run, if not those that are given, and what its reader should know of them."""
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
    passes = run.training.steps * run.training.batch_size / len(train)
    if passes > 1:
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
