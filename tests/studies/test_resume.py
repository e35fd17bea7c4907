"""After kill -9 and resuming, measurements equal those of an uninterrupted run to the last bit (CPU)."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from forgetting.config.files import read_fields
from forgetting.config.schema import validate
from forgetting.studies.engines import Local
from forgetting.studies.study import study
from small_study import rows, start, wait_for_rows, write_config

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("methods", "workers", "cuts", "training"),
    [
        ([{"name": "lora", "rank": [2, 4], "dropout": 0.1}], 1, (10,), {"optimizer": "adafactor"}),
        pytest.param(
            [{"name": "full"}, {"name": "lora", "rank": 2}],
            2,
            (6, 14),  # killed twice, once early and once in the middle
            {"optimizer": "adamw", "micro_batch_size": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lora-adafactor-dropout", "full-adamw-accumulate-two-workers"],
)
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path,
    tiny_model: Path,
    corpora: Path,
    methods: list[dict[str, Any]],
    workers: int,
    cuts: tuple[int, ...],
    training: dict[str, Any],
) -> None:
    config = write_config(tmp_path, tiny_model, corpora, methods, **training)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    study(validate(read_fields(config), where="test"), whole, engine=Local(1))

    for enough in cuts:
        process = start(config, cut, workers)
        wait_for_rows(cut, enough, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(1.5)  # workers notice within a second that their parent is gone
    assert 0 < sum(map(len, rows(cut).values())) < sum(map(len, rows(whole).values()))

    resumed = start(config, cut, workers)
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors.decode()
    assert rows(cut) == rows(whole)
    states = [json.loads(file.read_text()) for file in cut.glob("runs/*/run.json")]
    assert any(state["resumed"] for state in states)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_stopped_study_keeps_its_rows_and_reports_it(
    tmp_path: Path, tiny_model: Path, corpora: Path, number: signal.Signals, workers: int
) -> None:
    config = write_config(tmp_path, tiny_model, corpora, [{"name": "lora", "rank": [1, 2, 4]}])
    out = tmp_path / "out"
    process = start(config, out, workers)
    wait_for_rows(out, 5, process)
    os.killpg(process.pid, number)  # the whole group, as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    lines = errors.decode().splitlines()
    assert lines[-1] == "stopped; everything measured so far is kept; run the same command again to resume"
    assert "Traceback" not in errors.decode()
    assert sum(map(len, rows(out).values())) >= 5
