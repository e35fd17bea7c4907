"""Small synthetic studies for tests, by the generator of bench/scale.py."""

from __future__ import annotations

import sys
from pathlib import Path

from forgetting.config.schema import RunConfig
from forgetting.tuning.grid import expand_runs

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from scale import _write as write_run
from scale import make, synthetic_config

__all__ = ["make", "one_run", "synthetic_config", "write_run"]


def one_run(model: Path, *, trust: bool) -> RunConfig:
    """A run on a model, with or without trust_remote_code."""
    config = synthetic_config(6)
    section = config.model.model_copy(update={"source": str(model), "trust_remote_code": trust})
    return expand_runs(config.model_copy(update={"model": section}))[0]
