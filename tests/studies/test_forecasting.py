"""Forecasts in a study's progress: from the rows on disk, with the recipe's schedule, said once without bars."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import get_scheduler

from forgetting.cli.progress import StudyProgress
from forgetting.config.schema import validate
from forgetting.measuring.forecast import ANY, PLAIN, forecast
from forgetting.store.folder import RunFolder
from forgetting.studies.engines import Event
from forgetting.studies.forecasting import learning_rates, of_run
from forgetting.tuning.grid import expand_runs
from small_study import fields

ROWS = [(0, 0.0, 0.0), (2, 0.05, 0.002), (4, 0.09, 0.003), (6, 0.12, 0.004)]


def study(tmp_path, folder, method=None, **training):
    """The configuration of a study and its one run, whose rows are written up to step 6 of 12."""
    changes = {"training": {"steps": 12, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3, **training}}
    changes["methods"] = [{"name": "lora", "rank": 2, **(method or {})}]
    config = validate(fields(tmp_path, tmp_path, **changes), where="study")
    (run,) = expand_runs(config)
    path = folder / "runs" / run.run_id()
    path.mkdir(parents=True)
    rows = [{"step": s, "alpha": None, "forgetting": f, "forgetting_se": e} for s, f, e in ROWS]
    (path / "measurements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config, run


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rates_are_those_of_transformers(tmp_path, schedule):
    _, run = study(tmp_path, tmp_path / "s", schedule=schedule)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=12)
    expected = []
    for _ in range(12):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert learning_rates(run.training) == pytest.approx(expected)


@pytest.mark.parametrize("held", [False, True])
def test_a_run_is_forecast_from_its_rows_as_plain_or_as_held_back(tmp_path, held):
    method = {"mitigations": [{"name": "learning_rate", "factor": 0.5}]} if held else {}
    _, run = study(tmp_path, tmp_path / "s", method)
    steps, values, errors = zip(*ROWS[1:], strict=True)
    prior = ANY if held else PLAIN
    expected = forecast(steps, values, errors, end=12, rates=learning_rates(run.training), prior=prior)
    assert of_run(RunFolder(tmp_path / "s" / "runs" / run.run_id()), run) == expected
    assert expected.value > 0.12


def test_progress_says_the_forecast_of_a_run_once(tmp_path, capsys):
    config, run = study(tmp_path, tmp_path / "s")
    task = run.run_id()
    with StudyProgress(config, tmp_path / "s") as progress:
        progress.on_plan([run], [task])
        progress.on_event(Event(task, "started"))
        for step in range(1, 13):
            progress.on_event(Event(task, "step", step))
        progress.on_event(Event(task, "ended"))
    found = of_run(RunFolder(tmp_path / "s" / "runs" / task), run)
    said = [line for line in capsys.readouterr().err.splitlines() if "at step 12:" in line]
    assert said == [f"plain-lora-r2-s0, measured at step 6; {found}"]
