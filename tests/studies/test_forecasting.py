"""Forecasts in a study's progress: computed from the rows on disk and the recipe's schedule, printed once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import get_scheduler

from forgetting.cli.progress import StudyProgress
from forgetting.config.schema import TrainingConfig, validate
from forgetting.measuring.forecast import ANY, PLAIN, forecast
from forgetting.store.folder import RunFolder
from forgetting.studies.engines import Event
from forgetting.studies.forecasting import of_run
from forgetting.tuning.grid import expand_runs
from forgetting.tuning.schedule import NAMES, learning_rates
from small_study import fields

ROWS = [(0, 0.0, 0.0), (2, 0.05, 0.002), (4, 0.09, 0.003), (6, 0.12, 0.004)]


def study(tmp_path, folder, method=None, **training):
    """The configuration of a study and its only run, with rows on disk up to step 6 of 12."""
    changes = {"training": {"steps": 12, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3, **training}}
    changes["methods"] = [{"name": "lora", "rank": 2, **(method or {})}]
    config = validate(fields(tmp_path, tmp_path, **changes), where="study")
    (run,) = expand_runs(config)
    path = folder / "runs" / run.run_id()
    path.mkdir(parents=True)
    rows = [{"step": s, "alpha": None, "forgetting": f, "forgetting_se": e} for s, f, e in ROWS]
    (path / "measurements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config, run


AFTER_WARMUP = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}


@pytest.mark.parametrize("schedule", AFTER_WARMUP)
def test_learning_rates_rise_linearly_in_warm_up_and_then_follow_the_schedule(tmp_path, schedule):
    _, run = study(tmp_path, tmp_path / "s", schedule=schedule)
    after = [AFTER_WARMUP[schedule]((step - 2) / (12 - 2)) for step in range(2, 12)]
    assert learning_rates(run.training) == pytest.approx([0, 1 / 2, *after])


@pytest.mark.parametrize("schedule", NAMES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (12, 0), (100, 7), (1000, 333), (5, 4)])
def test_learning_rates_equal_those_of_transformers_to_the_last_bit(schedule, steps, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    factor = get_scheduler(NAMES[schedule], optimizer, warmup, steps).lr_lambdas[0]
    training = TrainingConfig(schedule=schedule, steps=steps, warmup_steps=warmup)
    assert learning_rates(training) == [factor(step) for step in range(steps)]


@pytest.mark.parametrize("held", [False, True], ids=["plain", "with mitigation"])
def test_the_forecast_of_a_run_uses_its_rows_its_schedule_and_the_prior_of_its_kind(tmp_path, held):
    method = {"mitigations": [{"name": "learning_rate", "factor": 0.5}]} if held else {}
    _, run = study(tmp_path, tmp_path / "s", method)
    steps, values, errors = zip(*ROWS[1:], strict=True)
    prior = ANY if held else PLAIN
    expected = forecast(steps, values, errors, end=12, rates=learning_rates(run.training), prior=prior)
    folder = RunFolder(tmp_path / "s" / "runs" / run.run_id())
    assert of_run(folder, run) == replace(expected, guide=True)
    own = run.model_copy(update={"model": run.model.model_copy(update={"source": "miniature"})})
    assert of_run(folder, own) == expected, "the bands are from runs of the miniature"
    assert expected.value > 0.12


def test_progress_prints_the_forecast_of_a_run_once(tmp_path, capsys):
    config, run = study(tmp_path, tmp_path / "s")
    task = run.run_id()
    with StudyProgress(config, tmp_path / "s") as progress:
        progress.on_plan([run], [task])
        progress.on_event(Event(task, "started"))
        for step in range(1, 13):
            progress.on_event(Event(task, "step", step))
        progress.on_event(Event(task, "ended"))
    found = of_run(RunFolder(tmp_path / "s" / "runs" / task), run)
    lines = [line for line in capsys.readouterr().err.splitlines() if "at step 12:" in line]
    assert lines == [f"plain-lora-r2-s0, measured at step 6; {found}"]


def test_progress_says_how_long_is_left(tmp_path, capsys, monkeypatch):
    config, run = study(tmp_path, tmp_path / "s")
    clock = iter((0, 0, 5, 200, 300))
    monkeypatch.setattr("forgetting.cli.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    progress = StudyProgress(config, tmp_path / "s")
    progress.on_plan([run] * 3, [run.run_id()] * 3)
    for task in "abc":
        progress.on_event(Event(f"{task}-0", "ended"))
    said = ["[1/3] a, less than a minute left", "[2/3] b, about 1.7 min left", "[3/3] c"]
    assert capsys.readouterr().err.splitlines()[1:] == said
