"""The configuration of one short run on the tiny model, for tests to vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forgetting.config.schema import StudyConfig, validate


def configure(tiny_model: Path, corpora: Path, **changes: Any) -> StudyConfig:
    fields = {
        "model": {"source": str(tiny_model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"chat": {"source": str(corpora / "chat.jsonl"), "heldout": 0.2}},
        "methods": [{"name": "lora", "rank": 4}],
        "context": 16,
        "training": {"steps": 8, "batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2},
        "measure": {"start": 4, "every": 4},
    }
    return validate({**fields, **changes}, where="test")
