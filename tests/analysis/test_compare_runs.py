"""Tables that do not name their runs, and runs whose seeds are unknown, in comparisons and fits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

import forgetting
from forgetting.analysis.compare import compare_tables
from forgetting.config.arguments import from_records
from forgetting.errors import UsageError

RANKS, SEEDS, STEPS = (4, 8, 16, 32), (0, 1, 2), 6


def table(*without: str, twin: float = 0.0) -> list[dict[str, Any]]:
    """LoRA of four ranks, and replay at rank 64, three seeds each; the scatter between ranks is 0.05."""
    rng = np.random.default_rng(5)
    rows = []
    for rank in (*RANKS, 64):
        of_rank = rng.normal(0, 0.05)
        for seed in SEEDS:
            shift = of_rank + rng.normal(0, 0.004)
            for i in range(STEPS):
                loss = 2.0 - 0.15 * i + 0.004 * seed
                row = {"run_id": f"{rank}-{seed}", "label": "lora", "rank": rank, "seed": seed, "step": 10 * (i + 1)}
                row |= {"mitigation": "replay" if rank == 64 else "", "finetune_loss": loss}
                rows.append(row | {"forgetting": 3 - 1.3 * loss + shift - (twin if rank == 64 else 0)})
    return [{k: v for k, v in row.items() if k not in without} for row in rows]


def contest(rows: list[dict[str, Any]]) -> Any:
    return compare_tables({"d": from_records(rows)}, "lora").contests["d"]


def test_unnamed_runs_are_identified_by_their_columns():
    named, unnamed = contest(table()), contest(table("run_id"))
    assert [c.saving for c in unnamed.contenders] == [c.saving for c in named.contenders]
    assert [len(runs) for runs in unnamed.runs.values()] == [3] * 5
    note = "treating rows with the same label, mitigation, rank, seed as one run (15 runs)"
    assert any(note in text for text in unnamed.notes)
    assert not any("run_id" in text for text in named.notes)


def test_a_repeated_step_in_an_unnamed_run_is_refused():
    with pytest.raises(UsageError, match=r"rows 6 and 7, steps 60 and 10, .*\(mitigation=, rank=4\).*column 'run_id'"):
        contest(table("run_id", "seed"))


def test_rows_without_steps_are_runs_with_a_notice():
    rows = [row for row in table("run_id") if row["step"] == 60]
    found = contest([{k: v for k, v in row.items() if k != "step"} for row in rows])
    assert any("treating every row as a run" in text for text in found.notes)


def test_runs_of_one_rank_are_one_rank_without_seeds_too():
    with_seeds, without = contest(table()), contest(table("seed"))
    assert [len(runs) for runs in without.runs.values()] == [3] * 5
    assert len(without.references) == 4
    # in both cases four ranks determine the scatter between ranks
    assert without.contenders[0].over_ranks == with_seeds.contenders[0].over_ranks
    assert any("as replicates" in text for text in without.notes)


def test_a_fit_takes_rows_of_one_rank_and_seed_as_a_run():
    rows = [row | {"forgetting_loss": row["forgetting"]} for row in table("run_id") if row["rank"] != 64]
    named = forgetting.fit(
        [row | {"run_id": f"{row['rank']}-{row['seed']}"} for row in rows], "linear", bootstrap=40, seed=1
    )
    unnamed = forgetting.fit(rows, "linear", bootstrap=40, seed=1)
    assert unnamed.n_runs == named.n_runs == 12
    width = [fit.parameters["c_fft"].high - fit.parameters["c_fft"].low for fit in (unnamed, named)]
    assert width[0] == pytest.approx(width[1], rel=0.5)  # runs are in another order
    assert any("treating rows with the same label, mitigation, rank, seed as one run" in w for w in unnamed.warnings)


def test_a_fit_points_to_a_column_of_runs_that_steps_do_not_confirm():
    rows = [{"run": i // 4, "x": float(i % 5 + 1), "y": float(i * i % 7)} for i in range(20)]
    made = forgetting.fit(rows, "y = a + b*x", bootstrap=20)
    assert any("give --run run" in w for w in made.warnings)
    assert any("treating every row as an independent run" in w for w in made.warnings)


@pytest.mark.parametrize("column", ["forgetting", "forgetting_loss"])
def test_forgetting_is_not_compared_with_itself(column):
    rows = [row | {"forgetting_loss": row["forgetting"]} for row in table()]
    with pytest.raises(UsageError, match=rf"by \(--by\) {column}: this column measures forgetting"):
        compare_tables({"d": from_records(rows)}, "lora", by=column)


@pytest.mark.parametrize("blank", ["", None, math.nan, pd.NA])
def test_runs_with_a_blank_mitigation_are_plain_in_appendix_b(blank):
    rows = [row | {"trainable_params": 100.0 * row["rank"], "mitigation": blank} for row in table()]
    rows = [row | {"forgetting_loss": row["forgetting"]} for row in rows]
    rows += [row | {"label": "full", "run_id": f"full-{row['run_id']}"} for row in rows if row["rank"] == 8]
    found = compare_tables({"d": from_records(rows)}, "lora").beyond["d"]
    assert {(row.label, row.runs) for row in found} == {("full", 3)}


def test_a_data_set_without_finished_runs_does_not_stop_the_comparison_of_others():
    done, running = from_records(table()), from_records([row | {"status": "running"} for row in table()])
    found = compare_tables({"done": done, "early": running}, "lora")
    assert list(found.contests) == ["done"]
    assert found.without["early"].startswith("'early' has no finished run to compare (left out, running: ")
    with pytest.raises(UsageError, match="'late' has no column 'forgetting_loss'"):
        compare_tables({"done": done, "late": from_records(table("forgetting"))}, "lora")


@pytest.mark.parametrize("without", ["run_id", "seconds"])
@pytest.mark.parametrize(
    ("step", "why"),
    [
        (1e70, "1e[+]70 where 0 or a size"),
        (10**400, "10+ where a finite"),
        (1e-70, "1e-70 where 0"),
        ("abc", "abc where a"),
        (math.inf, "inf where a"),
    ],
)
def test_an_impossible_step_is_named(without, step, why):
    rows = table(without)
    rows[2]["step"] = step
    with pytest.raises(UsageError, match=rf"'d', row 3( \(run 4-0\))?, column 'step': {why}"):
        contest(rows)


def test_rows_without_a_number_do_not_stop_appendix_b():
    rows = [row | {"trainable_params": 100.0 * row["rank"], "forgetting_loss": row["forgetting"]} for row in table()]
    rows = [row for row in rows if row["rank"] != 64]
    rows += [row | {"label": "full"} for row in rows if row["rank"] == 8]
    rows = [{k: v for k, v in row.items() if k != "run_id"} for row in rows]
    whole = compare_tables({"d": from_records(rows)}, "lora").beyond["d"]
    rows[-1] |= {"finetune_loss": "", "step": rows[-2]["step"]}  # a row without a number is of no run
    found = compare_tables({"d": from_records(rows)}, "lora").beyond["d"]
    assert [row.rows for row in found] == [row.rows - 1 for row in whole]
    rows[-2]["trainable_params"] = "unknown"
    found = {row.law: row.rows for row in compare_tables({"d": from_records(rows)}, "lora").beyond["d"]}
    assert found == {"linear": len(SEEDS) * STEPS - 1, "shifted_power": len(SEEDS) * STEPS - 2}


@pytest.mark.parametrize("blank", [None, math.nan, pd.NA, "", "None", "nan"])
def test_a_row_without_a_label_has_its_method_as_label(blank):
    rows = [row | {"trainable_params": 100.0 * row["rank"], "forgetting_loss": row["forgetting"]} for row in table()]
    for row in rows:
        row |= {"method": "lora", "mitigation": row["mitigation"] or blank}
    rows += [
        row | {"label": "plain", "method": "full", "run_id": f"full-{row['run_id']}"}
        for row in rows
        if row["rank"] == 8
    ]
    want = compare_tables({"d": from_records(rows)}, "lora").to_dict()
    for row in rows:
        row["label"] = blank if row["label"] == "lora" else row["label"]
    assert compare_tables({"d": from_records(rows)}, "lora").to_dict() == want
    assert [row["label"] for row in want["beyond_the_reference"]["d"]] == ["plain", "plain"]


def test_two_seeds_widen_intervals_by_what_the_confidence_says():
    rows = from_records([row for row in table() if row["seed"] < 2 and row["rank"] in (4, 64)])
    rows["rank"] = [4] * len(rows["rank"])
    for confidence, times in ((0.8, 2), (0.95, 6), (0.99, 25)):
        (note,) = [
            n for n in compare_tables({"d": rows}, "lora", confidence=confidence).contests["d"].notes if "two" in n
        ]
        assert f"{times} times as wide" in note


@pytest.mark.parametrize("blank", [None, math.nan, ""])
def test_rows_that_were_joined_to_a_study_have_no_start_of_their_own(blank):
    rows = [row | {"reference": "lora", "measure_start": 20} for row in table()]
    want = forgetting.compare(rows).to_dict()
    rows[0] |= {"reference": blank, "measure_start": blank}
    assert forgetting.compare(rows).to_dict() == want
    rows[3]["measure_start"] = "late"
    with pytest.raises(UsageError, match="row 4, column 'measure_start': 'late' is not a number"):
        forgetting.compare(rows)


def test_one_run_cannot_have_two_seeds():
    rows = [row | {"run_id": str(row["rank"]), "step": row["step"] + row["seed"]} for row in table()]
    with pytest.raises(UsageError, match="run 4 has rows with seed '0' and '1'; give each run a name of its own"):
        contest(rows)
    rows = table()
    rows[1]["seed"] = "0.0"
    contest(rows)


@pytest.mark.parametrize("wrong", [16, -0.5, "a"])
def test_an_alpha_that_is_no_share_is_named(wrong):
    rows = [row | {"alpha": wrong if i == 4 else None} for i, row in enumerate(table())]
    with pytest.raises(
        UsageError, match=f"row 5, column 'alpha': {wrong} where a share of the tuned weights from 0 to"
    ):
        contest(rows)
    last = [{**row, "alpha": 0.5} for row in table() if row["step"] == 60]
    with pytest.raises(UsageError, match="run 4-0 has several measurements at one alpha"):
        contest([*table(), *last, last[0]])


def test_cells_with_lists_are_texts():
    rows = [row | {"mitigation": [row["mitigation"]] if row["mitigation"] else None} for row in table()]
    assert [one.key.mitigation for one in contest(rows).contenders] == ["['replay']"]
    rows = [row | {"forgetting_loss": row["forgetting"], "step": [row["step"], 0]} for row in table()]
    rows[0]["step"] = [1]
    assert forgetting.fit(rows, "linear", bootstrap=0).n_points == len(rows)
