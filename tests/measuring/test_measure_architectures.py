"""Causal architectures of transformers, tiny and random, from files and with adapters, against a plain loop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import architectures

FEW = {
    "gpt2": "tokens",
    "gemma2": "lora-on-head",
    "mixtral": "head",
    "deepseek_v3": "ia3",
    "jamba": "tokens",
    "modernbert-decoder": "dora",
}
REFUSED = ("bert", "roberta", "xlnet", "bart", pytest.param("t5", marks=pytest.mark.full))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "gpt2" else pytest.mark.full) for n in FEW])
def test_a_few_architectures(name: str, tmp_path: Path) -> None:
    rows = list(architectures.rows_of(name, ("lora", FEW[name]), tmp_path))
    assert [row["result"] for row in rows] == ["equal", "equal"], rows


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_not_language_models_are_refused(name: str, tmp_path: Path) -> None:
    (row,) = architectures.rows_of(name, ("lora",), tmp_path)
    assert row["result"] == "refused", row
    assert "not a left-to-right language model" in row["note"]


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_all_architectures(name: str, tmp_path: Path) -> None:
    """`not made` is what the installed PEFT or transformers cannot make: no adapter of ours to measure."""
    rows = list(architectures.rows_of(name, architectures.ADAPTERS, tmp_path))
    assert all(row["result"] in ("equal", "refused", "not made") for row in rows), rows
    assert any(row["result"] != "not made" for row in rows), rows
