"""A killed and resumed run with mitigations gives the numbers of an uninterrupted one, to the last bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from small_study import rows, start, wait_for_rows, write_config


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, tiny_model: Path, corpora: Path) -> None:
    text = {"source": str(corpora / "chat.jsonl")}
    mitigations: list[list[dict[str, Any]]] = [
        [{"name": "replay", "fraction": 0.25, "text": text}, {"name": "freeze_layers", "layers": 1}],
        [{"name": "replay", "fraction": 0.25, "generated": True}, {"name": "token_masking", "threshold": 30.0}],
        [{"name": "kl", "on": "both", "text": text}],
        [{"name": "budget", "budget": 0.02, "text": text}],
        [{"name": "ewc", "text": text, "windows": 8}, {"name": "flow"}, {"name": "interpolation"}],
    ]
    methods = [{"name": "lora", "rank": 2, "dropout": 0.1, "mitigations": mitigations}]
    config = write_config(tmp_path, tiny_model, corpora, methods, micro_batch_size=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = start(config, whole, 1)
    _, errors = uninterrupted.communicate(timeout=600)
    assert uninterrupted.returncode == 0, errors.decode()

    total = sum(map(len, rows(whole).values()))
    assert total == 5 * 21 + 11
    for enough in (8, 29, 50, 71, 92):  # in the middle of each run
        process = start(config, cut, 1)
        wait_for_rows(cut, enough, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(1.5)
    resumed = start(config, cut, 1)
    _, errors = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, errors.decode()
    assert rows(cut) == rows(whole)
