"""The embedded default: a fictional world, its corpora and a base model pre-trained on them.

Small enough for two CPU cores, and shipped, so that a study runs without a network. `scripts/miniature/pretrain.py` in
the repository remakes the model.
"""

from __future__ import annotations

from pathlib import Path

from forgetting.data.miniature.corpora import CORPORA, probe_rows, rows

#: The shipped base model: config, weights, tokenizer and model card, loadable by transformers.
MODEL_DIR: Path = Path(__file__).parent / "model"

__all__ = ["CORPORA", "MODEL_DIR", "probe_rows", "rows"]
