"""The reference of a comparison: its line and the test of it, filters that choose it, methods in PEFT's results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.compare import Contest, choose_axis, contest, read_source
from forgetting.analysis.compare.words import line_words, sentence
from forgetting.cli.app import app
from forgetting.config.arguments import from_records
from forgetting.errors import UsageError

LORA = {
    "task_type": "CAUSAL_LM",
    "peft_type": "LORA",
    "target_modules": ["q_proj", "v_proj"],
    "lora_alpha": 64,
    "bias": "none",
    "init_lora_weights": True,
    "use_dora": False,
    "use_rslora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "loftq_config": {},
    "eva_config": None,
    "velora_config": None,
    "alora_invocation_tokens": None,
}


def result(
    folder: Path,
    name: str,
    accuracy: float,
    forgot: float,
    *,
    optimizer: str = "AdamW",
    kind: str = "LORA",
    **more: Any,
) -> None:
    """A file as PEFT's method comparison writes it."""
    config = (LORA if kind == "LORA" else {"peft_type": kind}) | more
    run = {
        "created_at": "2026-07-15T06:00:39+00:00",
        "total_time": 1470.6,
        "experiment_name": name,
        "peft_branch": "main",
        "train_config": {
            "model_id": "meta-llama/Llama-3.2-3B",
            "max_steps": 5000,
            "seed": 0,
            "optimizer_type": optimizer,
            "optimizer_kwargs": {"lr": 0.0001, "weight_decay": 0.1},
        },
        "peft_config": config,
        "error_msg": "",
    }
    metrics = [
        {"step": 250, "valid accuracy": 0.42, "train loss": 0.98},
        {"step": 5000, "test accuracy": accuracy, "train loss": 0.6, "forgetting": forgot},
    ]
    train = {"status": "success", "num_trainable_params": 9_289_728, "metrics": metrics}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name.replace('/', '--')}.json").write_text(json.dumps({"run_info": run, "train_info": train}))


@pytest.fixture
def peft(tmp_path: Path) -> Path:
    """Results without a line: as in PEFT's own, accuracy does not predict forgetting."""
    folder = tmp_path / "MetaMathQA" / "results"
    result(folder, "lora/rank10-target-mlp", 0.494, 0.032, r=10, target_modules=["up_proj", "down_proj"])
    result(folder, "lora/rank32", 0.478, 0.050, r=32)
    result(folder, "lora/rank64", 0.474, 0.059, r=64)
    result(folder, "lora/rank32-dora", 0.469, 0.051, r=32, use_dora=True)
    result(folder, "lora/rank64-rslora", 0.513, 0.111, r=64, use_rslora=True)
    result(folder, "lora/rank32-lorafa", 0.404, 0.061, r=32, optimizer="lora-fa")
    result(folder, "lora/rank32-mica", 0.431, 0.079, r=32, init_lora_weights="mica")
    result(folder, "lora/rank14-bdlora", 0.487, 0.030, r=14, use_bdlora={"nblocks": 2})
    result(folder, "lora/rank32-pissa", 0.480, 0.070, r=32, init_lora_weights="pissa_niter_4")
    result(folder, "psoft/fast", 0.450, 0.051, kind="PSOFT", r=256, use_cayley_neumann=True)
    result(folder, "miss/bat", 0.504, 0.194, kind="MISS", r=64, init_weights="bat")
    result(folder, "miss/default", 0.487, 0.197, kind="MISS", r=64, init_weights=True)
    result(folder, "weak", 0.1, 0.01, kind="UNILORA")
    return folder


def test_methods_of_one_peft_type_are_distinguished(peft):
    found = forgetting.compare(peft, "lora").contests["MetaMathQA"]
    assert {str(key) for key in found.references} == {"lora rank 10", "lora rank 32", "lora rank 64"}
    labels = {one.key.label for one in found.contenders}
    assert labels >= {"dora", "rslora", "lora-fa", "mica", "bdlora", "pissa", "psoft", "miss", "miss-bat"}


def test_nothing_is_ranked_if_the_line_explains_nothing(peft):
    made = forgetting.compare(peft, "method=lora")
    found = made.contests["MetaMathQA"]
    own = [(p.loss, p.forgetting) for p in found.points if p.key in found.references]
    x, y = np.array(own).T
    line = stats.linregress(x, y)
    assert len(own) == 9
    assert found.trend is not None
    assert found.trend.r2 == pytest.approx(line.rvalue**2)
    assert found.trend.slope.value == pytest.approx(line.slope)
    residual = y - line.intercept - line.slope * x
    assert found.trend.scatter == pytest.approx(math.sqrt(float(residual @ residual) / 7))
    assert found.trend.slope.low < 0 < found.trend.slope.high
    assert found.flat
    for one in found.contenders:
        assert math.isnan(one.saving.value)
        assert one.verdict in ("no line", "never reaches", "beyond the reference")
        assert "less" not in sentence(one, found)
    psoft = next(one for one in found.contenders if one.key.label == "psoft")
    assert psoft.raw.value == pytest.approx(y.mean() - 0.051)
    half = stats.t.ppf(0.975, 8) * y.std(ddof=1) * math.sqrt(1 + 1 / 9)
    assert psoft.raw.high - psoft.raw.value == pytest.approx(half)
    assert psoft.raw_axis == pytest.approx(0.450 - x.mean())
    assert sentence(psoft, found).startswith("cannot be judged, because the reference is not a line; 0.009 [")
    text = str(made)
    assert f"R² {line.rvalue**2:.4f}, scatter {found.trend.scatter:.3f} nats" in text
    assert "not a line: in these runs its slope is not clearly different from 0" in text
    assert "Not ranked" in text


def test_json_contains_the_line(peft):
    called = CliRunner().invoke(app, ["compare", str(peft), "--reference", "method=lora", "--json"])
    assert called.exit_code == 0, called.output
    content = json.loads(called.output)
    assert content["reference"] == "method=lora"
    line = content["datasets"]["MetaMathQA"]["reference_line"]
    assert (line["form"], line["runs"], line["explains"]) == ("line", 9, False)
    assert line["r2"] < 0.1
    assert line["no_line"].startswith("not a line:")
    one = next(c for c in content["datasets"]["MetaMathQA"]["contenders"] if c["label"] == "psoft")
    assert one["verdict"] == "no line"
    assert one["saving"]["value"] is None
    assert one["raw"]["value"] == pytest.approx(0.0093, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["peft_type=LORA", "rank=32", "rank=64"], 7),
        (["lora", "rank=32", "rank=64"], 2),
        (["peft_type=LORA", "use_dora=false", "use_rslora=False", "optimizer=AdamW"], 6),
        (["target_modules=q_proj,v_proj"], 8),
        ({"peft_type": "LORA", "rank": [32, 64]}, 7),
        ({"optimizer": "lora-fa"}, 1),
    ],
)
def test_filters_choose_the_reference(peft, given, runs):
    found = forgetting.compare(peft, given).contests["MetaMathQA"]
    assert sum(len(found.runs[key]) for key in found.references) == runs
    assert sum(map(len, found.runs.values())) == 13  # all others are contenders


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("peft_typ=LORA", "no column 'peft_typ'; did you mean 'peft_type'"),
        ("peft_type=LOR", "no row has peft_type 'LOR'; did you mean 'LORA'"),
        (["lora", "dora"], "two labels, 'lora' and 'dora'"),
        (["peft_type=MISS", "rank=32"], "no row has all of peft_type=MISS, rank=32"),
        ("loar", "no runs of 'loar' to compare others with; did you mean 'lora'"),
        (None, "give a label, or COLUMN=VALUE"),
    ],
)
def test_a_wrong_reference_gives_a_one_line_error(peft, given, words):
    with pytest.raises(UsageError) as caught:
        forgetting.compare(peft, given)
    assert words in str(caught.value)
    assert "--" not in str(caught.value)


def test_a_filter_may_take_some_seeds_of_a_curve():
    rows = [
        {"label": "lora", "rank": 8, "seed": s, "run_id": f"l{s}", "step": i, "finetune_loss": 2 - i / 4}
        | {"forgetting": i / 4 + 0.01 * s}
        for s in range(4)
        for i in (1, 2, 3)
    ]
    found = next(iter(forgetting.compare(rows, ["lora", "seed=0", "seed=1"]).contests.values()))
    assert [str(c.key) for c in found.contenders] == ["lora rank 8 (not in the reference)"]
    assert found.contenders[0].saving.value == pytest.approx(-0.02)


def points(accuracies: Any, forgot: Any, contender: tuple[float, float]) -> Contest:
    rows = [
        {"method": "lora", "rank": r, "run_id": f"l{r}", "test_accuracy": float(x), "forgetting": float(y)}
        for r, (x, y) in enumerate(zip(accuracies, forgot, strict=True))
    ]
    rows += [{"method": "other", "run_id": "o", "test_accuracy": contender[0], "forgetting": contender[1]}]
    table = from_records(rows)
    return contest(read_source(table, "d", choose_axis(table, None, None)), "lora")


def test_a_difference_within_the_scatter_is_not_a_saving():
    rng = np.random.default_rng(0)
    x = np.linspace(0.3, 0.6, 12)
    noise = 0.02 * rng.standard_normal(12)
    found = points(x, 0.1 + x + noise, (0.45, 0.55 - 0.012))
    one = found.contenders[0]
    assert found.trend is not None
    assert found.trend.explains
    assert one.saving.value < found.trend.scatter
    assert one.verdict == "no evidence"
    far = points(x, 0.1 + x + noise, (0.45, 0.55 - 0.3))
    assert far.contenders[0].verdict == "saves"
    assert "line through lora: R² 0.9" in line_words(far)


def test_without_an_interval_a_difference_within_the_scatter_is_not_a_saving():
    rows = []
    for rank, shift in ((8, 0.03), (16, -0.03), (32, 0.02), (64, -0.02)):
        for i in range(6):
            row = {"label": "lora", "rank": rank, "run_id": f"l{rank}", "step": i + 1, "seed": 0}
            rows.append(row | {"finetune_loss": 2 - i / 10, "forgetting": i / 10 + shift})
            if rank == 8:
                row = row | {"label": "other", "run_id": "o"}
                rows.append(row | {"finetune_loss": 2 - i / 10, "forgetting": i / 10 + shift - 0.01})
    table = from_records(rows)
    found = contest(read_source(table, "d", choose_axis(table, None, None)), "lora")
    one = found.contenders[0]
    assert one.against == "lora rank 8"
    assert one.verdict == "no interval"
    assert sentence(one, found).startswith("no clear difference: 0.010 nats below the reference")
    assert found.trend is not None
    assert found.trend.explains


@pytest.mark.full
def test_the_test_of_the_slope_finds_a_line_and_none_in_noise():
    rng = np.random.default_rng(1)
    x = np.linspace(0.3, 0.6, 8)
    found = [not points(x, 0.02 * rng.standard_normal(8), (0.4, 0.0)).flat for _ in range(200)]
    assert sum(found) <= 20  # 5 %: 10 of 200
    found = [not points(x, x + 0.02 * rng.standard_normal(8), (0.4, 0.0)).flat for _ in range(50)]
    assert sum(found) == 50


@pytest.mark.full
def test_intervals_of_single_points_cover():
    """One more run of the reference gets an interval that covers 0 in about 95 of 100 tables."""
    rng = np.random.default_rng(2)
    x = np.linspace(0.3, 0.6, 8)
    held = 0
    for _ in range(200):
        at = float(rng.uniform(0.32, 0.58))
        one = points(x, x + 0.02 * rng.standard_normal(8), (at, at + 0.02 * float(rng.standard_normal()))).contenders[0]
        held += one.saving.low <= 0 <= one.saving.high
    assert held >= 182


def test_only_these_rows_are_compared(tmp_path):
    def run(label: str, batch: int, above: float, seed: int) -> list[dict[str, Any]]:
        return [
            {"label": label, "batch": batch, "seed": seed, "run_id": f"{label}{batch}{seed}", "step": i}
            | {"finetune_loss": 2 - i / 4, "forgetting": i / 4 + above}
            for i in (1, 2, 3)
        ]

    rows = [row for s in range(3) for row in run("lora", 8, 0.0, s) + run("l2", 8, -0.1, s) + run("l2", 16, -0.3, s)]
    chosen = forgetting.compare(rows, "lora", only={"batch": 8})
    alone = forgetting.compare([row for row in rows if row["batch"] == 8], "lora")
    assert str(chosen) == str(alone)
    assert str(chosen) != str(forgetting.compare(rows, "lora"))
    path = tmp_path / "rows.csv"
    path.write_text(",".join(rows[0]) + "\n" + "\n".join(",".join(map(str, row.values())) for row in rows) + "\n")
    result = CliRunner().invoke(app, ["compare", str(path), "--reference", "lora", "--only", "batch=8"])
    assert result.stdout.strip() == str(forgetting.compare(path, "lora", only={"batch": 8})).strip()
    with pytest.raises(UsageError, match="no row has batch '32'"):
        forgetting.compare(rows, "lora", only={"batch": 32})
