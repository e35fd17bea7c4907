"""`forgetting run` and `study --prepare`, as a scheduler calls them, and the flags of the engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table
from small_study import command, fields


@pytest.mark.full
def test_a_scheduler_runs_the_runs_of_a_prepared_study_one_by_one(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    given = fields(tiny_model, corpora, methods=[{"name": "lora", "rank": [2, 4]}])
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(given))
    out = tmp_path / "s"
    code, listed, _ = command(capsys, "study", tmp_path / "my.yaml", "--out", out, "--prepare")
    assert code == 0
    assert list(out.glob("cache/targets-*"))
    ids = listed.split()
    assert [name.split("-")[2] for name in ids] == ["r4", "r2"]

    code, output, _ = command(capsys, "run", out, ids[0])
    assert (code, output.startswith(f"{ids[0]}: done in "), "7 measurements" in output) == (0, True, True)
    assert command(capsys, "run", out, ids[0])[1] == f"{ids[0]}: done before, 7 measurements\n"
    with StudyFolder.open(out).run(ids[1]).lock():
        code, _, error = command(capsys, "run", out, ids[1])
    assert code == 1
    assert error.startswith(f"error: run {ids[1]}: held by process ")
    code, output, _ = command(capsys, "run", out, ids[1], "--json")
    assert json.loads(output)["worked"] is True
    assert command(capsys, "study", out, "--prepare")[1].split() == []
    assert set(load_table(out)["status"]) == {"done"}

    code, _, error = command(capsys, "run", out, "plain-lora-r9")
    assert (code, error) == (2, f"error: {out}: this study has no run 'plain-lora-r9'; {_choices(ids)}\n")


def _choices(ids: list[str]) -> str:
    from forgetting.errors import did_you_mean

    return did_you_mean("plain-lora-r9", sorted(ids))


def test_a_failed_run_is_an_error_with_its_reason(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    given = fields(tiny_model, corpora)
    given["training"] |= {"learning_rate": 9.9, "optimizer": "adamw", "max_grad_norm": 1e30}
    given["methods"] = [{"name": "full"}]
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(given))
    _, listed, _ = command(capsys, "study", tmp_path / "my.yaml", "--out", tmp_path / "s", "--prepare")
    StudyFolder.open(tmp_path / "s").run(listed.strip()).path.mkdir(parents=True)
    checkpoints = StudyFolder.open(tmp_path / "s").run(listed.strip()).path / "checkpoints"
    checkpoints.write_text("a file where a folder must be")
    code, _, error = command(capsys, "run", tmp_path / "s", listed.strip())
    assert code == 1
    assert error.startswith(f"error: run {listed.strip()} failed: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--engine ray --jobs 2", "--jobs: not with --engine ray; "),
        ("--run-gpus 1", "--run-gpus: needs --engine ray"),
        ("--ray-address auto", "--ray-address: needs --engine ray"),
        ("--run-memory 4", "--run-memory: needs --engine ray"),
        ("--run-cpus 2 --engine local", "--run-cpus: needs --engine ray"),
    ],
)
def test_a_flag_of_another_engine_is_refused(capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    code, _, error = command(capsys, "study", *flags.split())
    assert code == 2
    assert error.startswith(f"error: {message}")


def test_a_missing_ray_gives_a_one_line_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        code, _, error = command(capsys, "study", "--engine", "ray", "--out", tmp_path / "s")
    assert code == 2
    assert error.splitlines()[-1].startswith("error: --engine ray: ray is not installed for this Python 3.")
    assert "pip install 'forgetting[ray]'" in error
    assert not (tmp_path / "s").exists()
