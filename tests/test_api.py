"""Python mirrors the commands, and importing forgetting loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import forgetting
from forgetting.analysis.fit import fit_from_published
from forgetting.errors import UsageError


def test_importing_forgetting_is_light() -> None:
    code = "import sys, forgetting; sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fit_of_a_mapping_and_of_a_file_agree(tmp_path: Path) -> None:
    law = fit_from_published("kalajdzievski2024/openorca")
    rows = [(f"r{rank}", 2_498_560 * rank, step) for rank in (8, 64, 256) for step in range(50, 261, 30)]
    losses = [
        (
            float(law.predict("finetune_loss", trainable_params=p, step=n).value),
            float(law.predict("forgetting_loss", trainable_params=p, step=n).value),
        )
        for _, p, n in rows
    ]
    table = {
        "run_id": [r[0] for r in rows],
        "trainable_params": [r[1] for r in rows],
        "step": [r[2] for r in rows],
        "finetune_loss": [a for a, _ in losses],
        "forgetting_loss": [b for _, b in losses],
    }
    lines = [",".join(table), *(",".join(repr(table[k][i]) for k in table) for i in range(len(rows)))]
    (tmp_path / "runs.csv").write_text("\n".join(lines).replace("'", "") + "\n")
    fitted = forgetting.fit(table, "linear")
    assert fitted.r2["forgetting_loss"] > 0.99
    again = forgetting.fit(tmp_path / "runs.csv", "linear")
    assert again.parameters["c_fft"].value == pytest.approx(fitted.parameters["c_fft"].value, rel=1e-12)


def test_plan_takes_a_published_law_and_either_question() -> None:
    plans = forgetting.plan("kalajdzievski2024/openorca", budget=0.85, ranks=[8, 64])
    (plan,) = plans.values()
    assert [choice.rank for choice in plan.frontier] == [8, 64]
    by_fit = forgetting.plan(fit_from_published("kalajdzievski2024/openorca"), target_loss=0.68, ranks=[8])
    assert next(iter(by_fit.values())).frontier[0].steps.value > 0
    with pytest.raises(UsageError, match="either budget or target_loss"):
        forgetting.plan("kalajdzievski2024/openorca")
