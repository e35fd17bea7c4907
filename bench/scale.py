"""Costs of studies with many runs: a synthetic study, written by the package's own store, and the commands on it.

    python bench/scale.py make FOLDER --runs 10000 --measurements 100
    python bench/scale.py time FOLDER
    python bench/scale.py shapes FOLDER

`time` runs each command in its own process and prints its wall time, processor time and peak memory. `shapes` creates
three studies of a million measurements (10,000 runs of 100, 1,000 of 1,000, 200 of 5,000) and times `fit` and `report`
on each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from forgetting.analysis.laws import PUBLISHED
from forgetting.config.schema import RunConfig, StudyConfig
from forgetting.store.folder import StudyFolder
from forgetting.tuning.grid import expand_runs

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PARAMETERS_PER_RANK = 2_498_560
SHAPES = ((10_000, 100), (1_000, 1_000), (200, 5_000))
"""Numbers of runs, and of measurements per run."""
FLOOR = {"instructions": 0.3, "news": 0.5}


def synthetic_config(runs: int, measurements: int = 100, start: int = 10) -> StudyConfig:
    """Two data sets, ten ranks, as many seeds as the runs need."""
    per_rank = {"ranks": list(RANKS), "seeds": max(1, runs // (2 * len(RANKS)))}
    if runs < 2 * len(RANKS):
        per_rank["ranks"] = list(RANKS[: max(3, runs // 2)])
    return StudyConfig.model_validate(
        {
            "name": "synthetic",
            "model": {"source": "miniature"},
            "text": {"source": "miniature:encyclopedia-heldout"},
            "datasets": {"instructions": {"source": "miniature:instructions"}, "news": {"source": "miniature:news"}},
            "methods": [{"name": "lora", "rank": per_rank["ranks"]}],
            "seeds": list(range(per_rank["seeds"])),
            "training": {"steps": start + 10 * (measurements - 2)},
            "measure": {"start": start, "every": 10},
        }
    )


def make(folder: Path, runs: int, measurements: int = 100, start: int = 10) -> StudyConfig:
    """Write a finished study whose losses follow the paper's laws, with noise per run and per measurement.

    Args:
        folder: a new folder.
        runs: approximate number of runs.
        measurements: number per run, including step 0.
        start: the first measured step after 0; the others follow every 10 steps.
    """
    config = synthetic_config(runs, measurements, start)
    study = StudyFolder.create_or_resume(folder, config)
    sync, os.fsync = os.fsync, lambda _: None  # avoids a million waits for the disk
    try:
        for number, run in enumerate(expand_runs(config)):
            _write(study, run, np.random.default_rng([number, 7]), config.measured_steps())
    finally:
        os.fsync = sync
    return config


def _write(study: StudyFolder, run: RunConfig, rng: np.random.Generator, steps: list[int]) -> None:
    law = PUBLISHED[f"kalajdzievski2024/{'news' if run.dataset_name == 'news' else 'openorca'}"]
    theta = np.array([[law.parameters[name] for name in law.law.names]])
    size = PARAMETERS_PER_RANK * int(run.method.options["rank"])
    at = np.maximum(np.array(steps, dtype=float), 1.0)
    values = law.law.values(theta, {"trainable_params": np.full(at.size, float(size)), "step": at})[0]
    tuned, forgot = values + rng.normal(0, 0.004, (2, 1)) + rng.normal(0, 0.001, values.shape)
    folder = study.run(run.run_id())
    folder.update(
        run_id=folder.id,
        status="running",
        dataset=run.dataset_name,
        method=run.method.model_dump(mode="json", exclude={"label", "mitigations"}),
        label=run.method.label or run.method.name,
        mitigation="",
        seed=run.seed,
        config=run.model_dump(mode="json"),
        trainable_params=size,
        started="2026-01-01T00:00:00+00:00",
    )
    for i, step in enumerate(steps):
        folder.append(_row(step, float(tuned[i]), float(forgot[i]), FLOOR[run.dataset_name], rng))
    folder.seal(status="done", finished="2026-01-01T01:00:00+00:00")


def _row(step: int, tuned: float, forgot: float, floor: float, rng: np.random.Generator) -> dict[str, float | int]:
    means = {
        "finetune_loss": tuned,
        "forgetting_loss": forgot,
        "forgetting_floor": floor,
        "forgetting": forgot - floor,
        "agreement": float(np.exp(floor - forgot)),
        "data_loss_base": 2.5,
        "data_loss_tuned": 2.5 + 0.5 * (forgot - floor),
    }
    row: dict[str, float | int] = {"step": step}
    for name, value in means.items():
        row |= {name: value, f"{name}_se": float(rng.uniform(0.001, 0.003))}
    counts = {"finetune_tokens": 50_000, "finetune_documents": 400, "text_tokens": 100_000, "text_documents": 300}
    spent = {"train_tokens": step * 8192, "train_seconds": 0.4 * step, "measure_seconds": 0.05 * step}
    return row | counts | spent


def timed(command: list[str]) -> dict[str, float | int]:
    """Wall and processor seconds, peak memory in GB, and exit code of a command."""
    began = time.perf_counter()
    with Path(os.devnull).open("w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    return {
        "s": round(time.perf_counter() - began, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "GB": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "exit": os.waitstatus_to_exitcode(status),
    }


def commands(folder: Path) -> dict[str, list[str]]:
    """The commands that read a whole study; `left` is what resuming does before it trains."""
    forgetting = [sys.executable, "-m", "forgetting"]
    code = (
        "import sys; from pathlib import Path; from forgetting.studies.study import left; "
        "print(len(left(Path(sys.argv[1]))))"
    )
    return {
        "table --csv": [*forgetting, "table", "--csv", str(folder)],
        "fit": [*forgetting, "fit", str(folder)],
        "report": [*forgetting, "report", str(folder)],
        "left to run": [sys.executable, "-c", code, str(folder)],
        "doctor": [*forgetting, "doctor", str(folder)],
    }


def time_all(folder: Path, only: tuple[str, ...] = ()) -> None:
    """Print the costs of each command, or of some: first from the plain files, then from the cached columns."""
    for kept in (False, True):
        for name, command in commands(folder).items():
            if only and name not in only:
                continue
            if not kept:
                (folder / "cache" / "rows.parquet").unlink(missing_ok=True)
            print(json.dumps({"study": folder.name, "what": name, "kept": kept, **timed(command)}), flush=True)
    if (page := folder / "report.html").exists():
        print(json.dumps({"study": folder.name, "report_MB": round(page.stat().st_size / 1e6, 2)}), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "time", "shapes"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--measurements", type=int, default=100, help="of each run")
    given = parser.parse_args()
    if given.what == "make":
        began = time.perf_counter()
        make(given.folder, given.runs, given.measurements)
        print(f"{time.perf_counter() - began:.1f} s")
    elif given.what == "time":
        time_all(given.folder)
    else:
        for runs, measurements in SHAPES:
            folder = given.folder / f"{runs}x{measurements}"
            if not folder.exists():
                make(folder, runs, measurements)
            time_all(folder, ("fit", "report"))


if __name__ == "__main__":
    main()
