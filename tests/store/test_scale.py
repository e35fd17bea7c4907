"""Many runs: cached columns equal the plain files, damage is detected, pending runs are found quickly."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgetting.cli import main
from forgetting.reporting import aggregate, sections
from forgetting.store import table_cache
from forgetting.store.folder import RunFolder, StudyFolder
from forgetting.store.table import load_table, records
from forgetting.studies.conclude import conclude
from forgetting.studies.study import left
from scale_study import make


def twin(folder: Path) -> pd.DataFrame:
    """The slow twin: every line of every run parsed separately."""
    found = []
    for run in StudyFolder.open(folder).runs():
        record = run.read()
        for row in run.measurements():
            shared = {"dataset": record["dataset"], "rank": record["method"].get("rank"), "run_id": run.id}
            found.append({**shared, "status": record["status"], **row})
    return pd.DataFrame(found)


def kept(folder: Path) -> Path:
    return folder / "cache" / "rows.parquet"


def test_a_table_read_in_bulk_or_from_the_cache_equals_that_of_the_plain_files(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_table(study)
    assert not kept(study).exists()  # a small study is read quickly without cached columns
    slow = twin(study)
    for name in slow:
        assert plain[name].tolist() == slow[name].tolist(), name
    monkeypatch.setattr(table_cache, "KEPT_FROM", 1)
    monkeypatch.setattr(table_cache, "BULK", 1000)
    pd.testing.assert_frame_equal(load_table(study), plain)
    assert kept(study).exists()
    monkeypatch.setattr(
        table_cache, "_read", lambda *_: pytest.fail("read again") if _[1] else table_cache.Part([], _[2].empty_table())
    )
    pd.testing.assert_frame_equal(load_table(study), plain)


def test_cached_columns_follow_every_change_of_the_plain_files(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_cache, "KEPT_FROM", 1)
    load_table(study)
    runs = StudyFolder.open(study).runs()
    runs[3].update(status="running", measured=None)
    runs[3].keep_until(40)
    runs[3].append({"step": 50, "finetune_loss": 0.125})
    runs[5].update(status="failed", why="x")
    (runs[7].path / "run.json").unlink()
    new = StudyFolder.open(study).run("zz-lora-r1-s0-0")
    new.update(status="running", dataset="zz", method={"name": "lora"}, seed=0)
    new.append({"step": 0, "finetune_loss": 2.0})
    whole = load_table(study)
    slow = twin(study)
    assert whole.loc[whole["status"] == "damaged", "run_id"].tolist() == [runs[7].id]
    got = whole[whole["status"] != "damaged"]
    assert got["run_id"].tolist() == slow["run_id"].tolist()
    assert got["finetune_loss"].tolist() == slow["finetune_loss"].tolist()
    assert set(got.loc[got["run_id"] == runs[5].id, "status"]) == {"failed"}
    pd.testing.assert_frame_equal(load_table(study), whole)


@pytest.mark.full
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_cache_is_detected_and_recreated(
    study: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(table_cache, "KEPT_FROM", 1)
    good = load_table(study)
    content = bytearray(kept(study).read_bytes())
    content[len(content) // 2] ^= 1
    worse = {"flip": bytes(content), "cut": bytes(content[: len(content) // 3]), "empty": b"", "other": b"PK" * 500}
    kept(study).write_bytes(worse[damage])
    pd.testing.assert_frame_equal(load_table(study), good)
    assert "rows.parquet: damaged" in caplog.text
    caplog.clear()
    pd.testing.assert_frame_equal(load_table(study), good)
    assert "damaged" not in caplog.text


@pytest.mark.full
def test_no_flipped_bit_changes_a_cached_number(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the bit is, in values or metadata, the columns are equal or recreated."""
    monkeypatch.setattr(table_cache, "KEPT_FROM", 1)
    load_table(study)
    stored = pq.read_schema(kept(study))
    rows = pa.schema([(field.name, field.type.value_type) for field in list(stored)[table_cache.HEADS :]])
    good = table_cache._load(kept(study), rows)
    assert good is not None
    content, draw = kept(study).read_bytes(), random.Random(0)
    noticed = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        kept(study).write_bytes(flipped)
        found = table_cache._load(kept(study), rows)
        noticed += found is None
        assert found is None or (found.runs == good.runs and found.rows.equals(good.rows))
    assert noticed > 100


def test_a_run_without_rows_is_cached_too_and_columns_of_another_type_are_not_used(
    study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(table_cache, "KEPT_FROM", 1)
    run = StudyFolder.open(study).run("aa-lora-r1-s0-0")
    run.update(status="failed", dataset="aa", method={"name": "lora"}, seed=0)
    (study / "cache").mkdir()
    (study / "cache" / "rows.arrow").write_bytes(b"of a version before")
    first = table_cache.read_rows(study, {"step": int, "finetune_loss": float})
    assert table_cache.read_rows(study, {"step": int, "finetune_loss": float}).equals(first)
    assert pq.read_table(kept(study), columns=["run_id", "step"]).to_pylist()[0] == {"run_id": run.id, "step": []}
    fewer = table_cache.read_rows(study, {"step": int})
    assert fewer.equals(first.drop(["finetune_loss"]))
    assert not caplog.records


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"step": 1', "line 7: n"),
        ("[1]", "line 7: n"),
        ('{"step": "x"}', "line 7: step is 'x' where a whole number"),
        ('{"step": 1, "agreement": [1]}', r"line 7: agreement is \[1\] where a finite number"),
        ('{"step": 1.5}', "line 7: step is 1.5"),
        ('{"step": 1' + "0" * 5000 + "}", "line 7: a number"),
    ],
)
def test_a_damaged_row_is_named_by_file_and_line(study: Path, line: str, says: str) -> None:
    run = StudyFolder.open(study).runs()[2]
    run.update(measured=None)  # as written by a version that stored no hashes
    file = run.path / "measurements.jsonl"
    with file.open("a") as out:
        out.write(line + "\n")
    table = load_table(study)
    assert table.loc[table["status"] == "damaged", "run_id"].tolist() == [run.id]
    assert re.search(says, run.flaw())


@pytest.mark.full
@pytest.mark.parametrize("field", ["dataset", "method", "status", "seed"])
def test_an_invalid_run_record_is_named(study: Path, field: str) -> None:
    file = StudyFolder.open(study).runs()[0].path / "run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {field: [3]}))
    table = load_table(study)
    assert table.loc[table["status"] == "damaged", "run_id"].tolist() == [file.parent.name]
    assert re.match(rf"run\.json: .*{field}", RunFolder(file.parent).flaw())


def test_pending_runs_are_found_from_the_records(study: Path) -> None:
    assert left(study) == []
    folder = StudyFolder.open(study)
    ids = [run.id for run in folder.runs()]
    folder.run(ids[4]).update(status="running")
    folder.run(ids[6]).update(status="failed", kind="error")
    folder.run(ids[8]).update(status="failed", kind="diverged")
    (folder.run(ids[9]).path / "run.json").unlink()
    assert sorted(left(study)) == sorted([ids[4], ids[6], ids[9]])


@pytest.mark.full
def test_a_large_report_draws_means_says_so_and_counts_everything(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = conclude(study).report.read_text()
    assert 'id="aggregated"' not in small
    monkeypatch.setattr(aggregate, "MOST_POINTS", 50)
    monkeypatch.setattr(sections, "SHOWN_RUNS", 7)
    StudyFolder.open(study).runs()[9].update(status="failed", kind="error", why="planted failure")
    page = conclude(study).report.read_text()
    assert "240 measurements of 40 runs are too many to draw" in page
    assert "The first 7 of 40 runs" in page
    assert "planted failure" in page
    assert "mean of 2 runs" in page
    assert "<dt>measurements</dt><dd>195</dd>" in page.replace("\n", "")
    assert len(page) < len(small)


@pytest.mark.slow
def test_the_largest_page_is_under_8_mb(tmp_path: Path) -> None:
    make(tmp_path / "s", 100, measurements=aggregate.MOST_POINTS // 100)
    page = conclude(tmp_path / "s").report
    assert 'id="aggregated"' not in page.read_text()
    assert 6e6 < page.stat().st_size < 8e6


def test_a_mean_over_runs_has_the_standard_error_between_them(study: Path) -> None:
    from forgetting.reporting.series import group, tidy

    table = tidy(load_table(study))
    series = group(table, [run.read() for run in StudyFolder.open(study).runs()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregate, "MOST_POINTS", 200)
        means, caption = aggregate.drawn(table, series)
    assert "with the standard error between runs" in caption
    row = means[(means["dataset"] == "news") & (means["rank"] == 8) & (means["step"] == 20)].iloc[0]
    losses = table[(table["dataset"] == "news") & (table["rank"] == 8) & (table["step"] == 20)]["finetune_loss"]
    assert row["finetune_loss"] == pytest.approx(losses.mean(), rel=1e-12)
    assert row["finetune_loss_se"] == pytest.approx(abs(losses.iloc[0] - losses.iloc[1]) / 2, rel=1e-9)


def test_charts_of_means_say_so_and_count_the_runs_behind(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetting.reporting.figures import charts
    from forgetting.reporting.series import group, panels, tidy

    table = tidy(load_table(study))
    news = sorted(table.loc[table["dataset"] == "news", "run_id"].unique())
    late = news[:5]  # both runs of two series, one of a third
    table = table[~(table["run_id"].isin(late) & (table["step"] == table["step"].max()))]
    series = group(table, [])
    monkeypatch.setattr(aggregate, "MOST_POINTS", 50)
    points, _ = aggregate.drawn(table, series)
    panel = panels(["news"], points, series, {}, table)[0]
    captions = {chart.kind: chart.caption for chart in charts(panel)}
    assert "5 runs have not reached it" in captions["size"]
    assert "a mean over the runs" in captions["line"]
    assert "between runs" in captions["steps-finetune_loss"]


def test_the_headline_counts_every_run_alike_whatever_its_status(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetting.display.numbers import plus_minus
    from forgetting.reporting.series import group, panels, tidy
    from forgetting.reporting.words import headline

    table = tidy(load_table(study))
    table = table[table["dataset"] == "news"]
    twin = table[table["run_id"] == sorted(table["run_id"].unique())[0]]
    still = twin.assign(run_id="still", status="running", forgetting=twin["forgetting"] + 0.3)
    table = pd.concat([table, still], ignore_index=True)  # two runs done and one running at the last step
    series = group(table, [])
    rank = twin["rank"].iloc[0]
    last = table[(table["rank"] == rank) & (table["step"] == table["step"].max())]
    assert last["status"].value_counts().tolist() == [2, 1]
    said = plus_minus(float(last["forgetting"].mean()), float(last["forgetting_se"].mean()), digits=1)
    monkeypatch.setattr(aggregate, "MOST_POINTS", 50)
    points, _ = aggregate.drawn(table, series)
    assert f"{said} nats/token" in headline(panels(["news"], points, series, {}, table)[0]).state


@pytest.mark.full
@pytest.mark.parametrize("form", ["--csv", "--json", ""])
def test_a_large_table_is_written_whole(
    study: Path, form: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from forgetting.cli import study as command

    monkeypatch.setattr(command, "PRINTED", 100)
    monkeypatch.setattr(command, "PIECE", 33)
    monkeypatch.setattr(sys, "argv", ["forgetting", "table", str(study), *([form] if form else [])])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    output = capfdbinary.readouterr()
    table = load_table(study)
    if form == "--json":
        assert json.loads(output.out) == records(table)
    elif form == "--csv":
        import io

        read = pd.read_csv(io.BytesIO(output.out), keep_default_na=False, na_values=[""], float_precision="round_trip")
        assert list(read.columns) == list(table.columns)
        assert read["finetune_loss"].tolist() == table["finetune_loss"].tolist()
        assert read["run_id"].tolist() == table["run_id"].tolist()
    else:
        assert b"the first 100 of 240 rows" in output.err
