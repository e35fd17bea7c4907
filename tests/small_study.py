"""Studies of a tiny model, as dictionaries and files, and functions that read their rows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.cli import main
from forgetting.store.columns import COSTS
from forgetting.store.folder import StudyFolder


def fields(tiny_model: Path, corpora: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"source": str(tiny_model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"plain": {"source": str(corpora / "train.jsonl")}},
        "methods": [{"name": "lora", "rank": 2, "dropout": 0.1}],
        "context": 32,
        "training": {"steps": 12, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3},
        "measure": {"start": 2, "every": 2},
    } | changes


def numbers(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each run, without times and memory."""
    return {
        run.id: [{key: value for key, value in row.items() if key not in COSTS} for row in run.measurements()]
        for run in StudyFolder.open(out).runs()
    }


def write_config(folder: Path, tiny_model: Path, corpora: Path, methods: list[dict[str, Any]], **training: Any) -> Path:
    fields = {
        "name": "resume",
        "model": {"source": str(tiny_model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"plain": {"source": str(corpora / "train.jsonl")}},
        "methods": methods,
        "context": 32,
        "training": {"steps": 40, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3, **training},
        "measure": {"start": 2, "every": 2},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def start(config: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "forgetting", "study", str(config), "--out", str(out), "--jobs", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Measurements of each run, without times."""
    return {
        file.parent.name: [
            {key: value for key, value in json.loads(line).items() if key not in COSTS}
            for line in file.read_text().splitlines()
        ]
        for file in sorted(out.glob("runs/*/measurements.jsonl"))
    }


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if sum(file.read_bytes().count(b"\n") for file in out.glob("runs/*/measurements.jsonl")) >= count:
            return
        assert process.poll() is None, (process.communicate()[1] or b"").decode()
        time.sleep(0.01)
    raise AssertionError(f"no {count} rows within 600 s")


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["forgetting", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out, output.err
