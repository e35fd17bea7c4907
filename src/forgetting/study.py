"""A study: the grid of runs over one model and one general text. Skips what is stored, resumes what was cut, then
fits and reports. The only module that drives the rooms above it."""

from __future__ import annotations

import functools
import os
import platform
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import RunConfig, StudyConfig
from .engine.local import Event, execute
from .errors import ForgettingError, UsageError
from .guard import redact
from .methods import expand_grid, parse_method
from .mirror import make_callable
from .mitigations import expand_together
from .mitigations import label as mitigation_label
from .store import RunFolder, StudyFolder, load_table, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from .base import Base
    from .train import RunData
    from .windows import Windows

SMALL_MODEL = 50_000_000
"""Parameters under which one thread a run is best, and runs side by side fill the cores."""
PACKAGES = ("forgetting", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


@dataclass(frozen=True)
class StudyResult:
    """What a study gave.

    Attributes:
        folder: the study folder.
        table: one row a measurement.
        failed: run id -> why, for runs that failed.
        skipped: ids of runs that were finished before.
        seconds: wall time of this call's runs.
    """

    folder: StudyFolder
    table: pd.DataFrame
    failed: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0


def expand_runs(config: StudyConfig) -> list[RunConfig]:
    """All runs of a study: data sets x methods x seeds.

    Raises:
        UsageError: an unknown method or wrong option, or two entries that mean the same run.
    """
    variants = [
        (method, together)
        for entry in config.methods
        for method in expand_grid(entry)
        for alternative in entry.mitigations or ((),)
        for together in expand_together(alternative)
    ]
    runs = [
        RunConfig(
            model=config.model,
            text=config.text,
            dataset_name=name,
            dataset=dataset,
            method=method,
            mitigations=together,
            seed=seed,
            context=config.context,
            training=config.training,
            measure=config.measure,
        )
        for name, dataset in config.datasets.items()
        for method, together in variants
        for seed in config.seeds
    ]
    repeated = [run_id for run_id, count in Counter(run.run_id() for run in runs).items() if count > 1]
    if repeated:
        raise UsageError(f"methods: the same run is asked for twice: {', '.join(sorted(repeated))}")
    return runs


@functools.lru_cache(maxsize=2)
def _runs_by_id(yaml_text: str) -> dict[str, RunConfig]:
    """All runs of a study by id; kept between the runs of one process."""
    return {run.run_id(): run for run in expand_runs(_config(yaml_text))}


def left(out: Path) -> list[str]:
    """Ids of the runs of a stored study that are still to do, costliest first.

    Raises:
        ForgettingError: a damaged run.json, or not a study folder (UsageError).
    """
    folder = StudyFolder.open(out)
    runs = _runs_by_id(folder.config().to_yaml())
    return [run_id for run_id in _costliest_first(runs) if _is_pending(folder.run(run_id))]


def study(
    config: StudyConfig,
    out: Path,
    *,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_plan: Callable[[list[RunConfig], list[str]], None] | None = None,
) -> StudyResult:
    """Run a study, or what is left of it, in its folder.

    Args:
        config: the whole study.
        out: the study folder; created, or resumed if it holds this very configuration.
        workers: processes; None chooses: one a core for a small model on the CPU, else one.
        on_event: told of every finished step.
        on_plan: told once of all runs and the ids of those still to do.

    Returns:
        The table of all measurements and what failed. Runs that diverged are not tried again; others that failed are.

    Raises:
        UsageError: the configuration, text or model are wrong; nothing was started.
        ForgettingError: every run failed.
    """
    runs = expand_runs(config)
    _quiet_libraries()
    folder = StudyFolder(out)
    folder.check(config)
    _check_context(config)
    for name in config.datasets:
        _windows(config.to_yaml(), name)
    _text_windows(config.to_yaml())
    base = _base(config)
    folder = StudyFolder.create_or_resume(out, config)
    _targets(config, base, folder)
    if config.capabilities is not None:
        from .capabilities.study_runs import ask_base, plan_of

        ask_base(folder.path, base, config.model, plan_of(config))
    workers, threads = _layout(base, workers)
    del base
    pending = left(out)
    if on_plan:
        on_plan(runs, pending)
    began = time.perf_counter()
    work = functools.partial(run_one, str(out.resolve()))
    for run_id in execute(pending, work, workers=workers, threads=threads, on_event=on_event or _ignore):
        folder.run(run_id).update(status="failed", kind="error", why="its process died (killed, or out of memory)")
    states = {run_id: folder.run(run_id).read() for run_id in _runs_by_id(config.to_yaml())}
    failed = {run_id: str(state.get("why")) for run_id, state in states.items() if state.get("status") == "failed"}
    if len(failed) == len(runs):
        raise ForgettingError("every run failed; the first: " + next(f"{i}: {why}" for i, why in failed.items()))
    todo = set(pending)
    skipped = tuple(run_id for run_id in states if run_id not in todo)
    return StudyResult(folder, load_table(out), failed, skipped, time.perf_counter() - began)


def _costliest_first(runs: dict[str, RunConfig]) -> list[str]:
    """Large ranks first, so that no worker ends on one while the others stand idle; methods without a rank lead."""
    return sorted(runs, key=lambda run_id: -(runs[run_id].method.options.get("rank") or 10**9))


def _ignore(event: Event) -> None:
    """Nobody is told."""


def _is_pending(folder: RunFolder) -> bool:
    state = folder.read()
    return not (state.get("status") == "done" or state.get("kind") == "diverged")


def _layout(base: Base, workers: int | None) -> tuple[int, int]:
    """Worker processes and threads of each.

    A small model on a CPU gains nothing from a second thread, and one thread gives the same numbers for any number
    of workers.
    """
    from .base import count_parameters

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = base.model.device.type == "cpu"
    if on_cpu and count_parameters(base.model, trainable=False) < SMALL_MODEL:
        return workers or cores, 1
    return workers or 1, max(1, cores // (workers or 1))


def run_one(out: str, run_id: str, tell: Callable[[int], None]) -> None:
    """Do one run of a stored study in this process; failures are recorded in its run.json.

    Args:
        out: the study folder.
        run_id: which run.
        tell: called with the number of each finished step.
    """
    _quiet_libraries()
    study_folder = StudyFolder.open(Path(out))
    folder = study_folder.run(run_id)
    with folder.lock():
        try:
            _train(study_folder, folder, tell)
        except Exception as error:  # any failure is data: recorded, visible, never a number
            diverged = type(error).__name__ == "DivergedError"
            why = str(error) if isinstance(error, ForgettingError) else f"{type(error).__name__}: {error}"
            write_atomically(folder.path / "error.txt", redact(traceback.format_exc()))
            folder.update(status="failed", kind="diverged" if diverged else "error", why=why, finished=_now())


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal: progress and errors here are ours."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers to itself, through PEFT and Trainer
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _train(study_folder: StudyFolder, folder: RunFolder, tell: Callable[[int], None]) -> None:
    from .train import train_run

    config = study_folder.config()
    run = _runs_by_id(config.to_yaml())[folder.id]
    base = _base(config)
    data, notices = _data(config, run, base, study_folder)
    prints = {part: getattr(data, part).fingerprint() for part in ("train", "heldout", "text")} | {"base": base.key}
    before = folder.read()
    if before and before["data"] != prints:
        changed = ", ".join(part for part in prints if before["data"].get(part) != prints[part])
        raise ForgettingError(f"the {changed} changed since this run began; use a new study folder")
    folder.update(
        run_id=folder.id,
        status="running",
        kind=None,
        why=None,
        dataset=run.dataset_name,
        method=run.method.model_dump(mode="json", exclude={"label", "mitigations"}),
        label=run.method.label or run.method.name,
        mitigation=mitigation_label(run.mitigations),
        seed=run.seed,
        config=run.model_dump(mode="json"),
        base=base.revision,
        data=prints,
        notices=notices,
        versions={name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        hardware=_hardware(base),
        started=before.get("started") or _now(),
        resumed=[*before.get("resumed", []), _now()] if before else [],
    )
    train_run(run, config.measured_steps(), base, data, folder, tell, _probe(config, run, base, data, study_folder))
    folder.update(status="done", finished=_now())


def _probe(
    config: StudyConfig, run: RunConfig, base: Base, data: RunData, folder: StudyFolder
) -> Callable[[Any, int], None] | None:
    """What asks the run's model of its capabilities at the chosen steps; None where it is not asked."""
    asked = config.capabilities
    steps = asked.asks(run, config.training.steps) if asked is not None else frozenset()
    if not steps:
        return None
    from .capabilities.study_runs import Probe, plan_of

    return Probe(
        folder.path,
        run.run_id(),
        config.model,
        base.tokenizer,
        plan_of(config),
        steps,
        data.heldout,
        config.measure.batch_tokens,
    )


def _base(config: StudyConfig) -> Base:
    from .base import load_base

    return load_base(config.model)


def _check_context(config: StudyConfig) -> None:
    from .base import max_context

    positions = max_context(config.model)
    if positions is not None and config.context > positions:
        raise UsageError(f"context: got {config.context}; the model was built for at most {positions} positions")


@functools.lru_cache(maxsize=2)
def _text_windows(yaml_text: str) -> Windows:
    """Windows of the general text; kept between the runs of one process."""
    from .base import load_tokenizer
    from .text import load_corpus, tokenize

    config = _config(yaml_text)
    windows = tokenize(load_corpus(config.text), load_tokenizer(config.model), config.context)
    return windows.sample(config.measure.text_tokens)


@functools.lru_cache(maxsize=2)
def _windows(yaml_text: str, dataset: str) -> tuple[Windows, Windows]:
    """Training and held-out windows of a fine-tuning data set; kept between the runs of one process."""
    from .base import load_tokenizer
    from .text import load_corpus, split_heldout, tokenize

    config = _config(yaml_text)
    tokenizer = load_tokenizer(config.model)
    train, heldout = split_heldout(load_corpus(config.datasets[dataset]), config.datasets[dataset].heldout)
    return (
        tokenize(train, tokenizer, config.context),
        tokenize(heldout, tokenizer, config.context).sample(config.measure.heldout_tokens),
    )


def _config(yaml_text: str) -> StudyConfig:
    from .config import validate
    from .config_files import parse_yaml

    return validate(parse_yaml(yaml_text, where="study"), where="study")


def _targets(config: StudyConfig, base: Base, folder: StudyFolder) -> Any:
    from .measure.targets import base_targets

    return base_targets(
        base.model,
        _text_windows(config.to_yaml()),
        key=base.key,
        cache_dir=folder.path / "cache",
        batch_tokens=config.measure.batch_tokens,
    )


def _data(config: StudyConfig, run: RunConfig, base: Base, folder: StudyFolder) -> tuple[RunData, list[str]]:
    """Windows and base targets of a run, and what its reader should know of them."""
    from .train import RunData

    train, heldout = _windows(config.to_yaml(), run.dataset_name)
    text = _text_windows(config.to_yaml())
    data = RunData(train, heldout, text, _targets(config, base, folder))
    notices = [f"{part}: {notice}" for part in ("train", "heldout", "text") for notice in getattr(data, part).notices]
    passes = run.training.steps * run.training.batch_size / len(train)
    if passes > 1:
        notices.append(f"the training data were passed over {passes:.1f} times: losses on held-out data may turn up")
    if parse_method(run.method).start == "else":
        notices.append(
            f"{run.method.name} need not start at the base model: step 0 is the untrained adapter, and forgetting is "
            "measured against the base model without it"
        )
    if run.training.schedule != "constant":
        notices.append(
            f"schedule {run.training.schedule}: a measured step is not a run that stopped there, since its "
            "learning rate had not decayed"
        )
    if run.method.name == "full" and str(base.model.dtype) != "torch.float32":
        notices.append(
            f"full fine-tuning in {base.model.dtype}: small updates are lost to rounding; use dtype: float32"
        )
    return data, notices


def _hardware(base: Base) -> dict[str, Any]:
    import torch

    device = base.model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(base.model.dtype).removeprefix("torch."),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


make_callable(__name__)
