"""A repeated run gives every number again; differences are found, named and judged by the stated rule."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from forgetting.cli import main
from forgetting.store.folder import RunFolder, StudyFolder
from forgetting.studies.repeat import compare


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["forgetting", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out, output.err


@pytest.mark.full
def test_a_run_is_repeated_to_the_last_digit_and_a_changed_number_is_found(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpora, data)
    flags = f"--model {tiny_model} --train {data / 'train.jsonl'} --text {data / 'general.jsonl'} --context 32"
    flags += " --steps 12 --batch-size 4 --measure-start 4 --measure-every 4 --jobs 1"
    out = tmp_path / "study"
    assert run(monkeypatch, capsys, "study", *flags.split(), "--out", out)[0] == 0
    (folder,) = StudyFolder.open(out).runs()
    record = folder.read()
    for name in ("config", "base", "data", "versions", "hardware", "seed", "command", "started", "finished"):
        assert record[name] is not None, name
    assert record["command"].startswith("forgetting study --model ")
    assert {"torch", "transformers", "peft", "python"} <= set(record["versions"])

    code, output, err = run(monkeypatch, capsys, "study", out, "--repeat", folder.id)
    assert code == 0, err
    assert "equal to the last digit" in output
    assert (out / "repeats" / folder.id / "1" / "runs" / folder.id / "run.json").exists()

    file = folder.path / "measurements.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[-1]["agreement"] += 2**-40
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, output, _ = run(monkeypatch, capsys, "study", out, "--repeat", folder.id, "--json")
    assert code == 1
    found = json.loads(output)
    assert found["differences"] == {"agreement": pytest.approx(2**-40, rel=1e-3)}
    assert found["beyond"] == ["agreement"]
    assert found["folder"].endswith("/2")

    with (data / "train.jsonl").open("a") as more:
        more.write('{"text": "the town went north ."}\n')
    code, _, err = run(monkeypatch, capsys, "study", out, "--repeat", folder.id)
    assert code == 1
    assert "cannot be repeated: the train" in err
    assert "changed since it was run" in err


def test_on_another_machine_a_mean_may_differ_by_its_standard_error(tmp_path: Path) -> None:
    from scale_study import make

    make(tmp_path / "a", 6, measurements=6)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    old, new = (StudyFolder.open(tmp_path / name).runs()[0] for name in "ab")
    rows = old.measurements()
    assert compare(old, new, tmp_path).holds
    se = rows[2]["forgetting_se"]
    for factor, elsewhere, holds in ((0.5, False, False), (0.5, True, True), (1.5, True, False)):
        changed = [dict(row) for row in rows]
        changed[2]["forgetting"] += factor * se
        text = "".join(json.dumps(row) + "\n" for row in changed)
        (new.path / "measurements.jsonl").write_text(text)
        new.update(versions={"torch": "9.9"} if elsewhere else {})
        made = compare(old, new, tmp_path)
        assert made.holds is holds
        assert made.differences["forgetting"] == pytest.approx(factor * se)
        assert ("torch None then, 9.9 now" in made.sentence()) is elsewhere
    (new.path / "measurements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert not compare(old, new, tmp_path).holds  # a row is missing


@pytest.mark.parametrize(("change", "holds"), [(0.04, True), (0.06, False)])
def test_on_another_machine_answers_kept_may_differ_by_their_standard_error(
    tmp_path: Path, change: float, holds: bool
) -> None:
    runs = []
    for name, kept in (("a", 0.5), ("b", 0.5 + change)):
        folder = RunFolder(tmp_path / name / "runs" / "run")
        folder.path.mkdir(parents=True)
        folder.update(run_id="run", versions={"torch": name})
        folder.append({"step": 5, "alpha": None, "kept[own]": kept, "kept[own]_se": 0.05, "text_tokens[own]": 9})
        runs.append(folder)
    assert compare(*runs, tmp_path).beyond == (() if holds else ("kept[own]",))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--repeat", "x"], "give only the study folder"),
        (["{out}", "--repeat", "none-s0"], "this run has not started; finished runs: instructions-lora"),
        (["{out}", "--repeat", "../x"], "not a run id"),
        (["{out}", "--repeat", "x", "--steps", "5"], "give only the study folder"),
    ],
)
def test_wrong_repeats_are_named(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scale_study import make

    make(tmp_path / "a", 6, measurements=6)
    code, _, err = run(monkeypatch, capsys, "study", *(a.format(out=tmp_path / "a") for a in arguments))
    assert code == 2
    assert says in err
