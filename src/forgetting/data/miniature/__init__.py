"""The embedded default: a fictional world, its corpora and a base model pre-trained on them.

It is small enough for two CPU cores and is part of the package, so that a study runs without a network. In the
repository, `scripts/miniature/pretrain.py` recreates the model.
"""

from __future__ import annotations

from pathlib import Path

from forgetting.data.miniature.corpora import CORPORA, probe_rows, rows

MODEL_DIR: Path = Path(__file__).parent / "model"
"""The shipped base model: config, weights, tokenizer and model card, loadable by transformers."""

__all__ = ["CORPORA", "MODEL_DIR", "probe_rows", "rows"]
