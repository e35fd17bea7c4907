"""The script of docs/examples runs unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "trl_replay.py"


@pytest.mark.slow
def test_the_replay_script_trains_and_measures(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out"
    command = [sys.executable, SCRIPT, tiny_model, corpora / "train.jsonl", corpora / "general.jsonl", out, "0.3", "4"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[-1:] and line.split()[0].isdigit()]
    assert [row[1] for row in rows][:2] == ["0", "1"]
    assert float(rows[0][3]) == 0  # before the first update, exactly the base model
