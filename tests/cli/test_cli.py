"""The command from end to end: a study, its table and report, and many kinds of wrong input."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml

from forgetting.cli import main
from forgetting.store.columns import COLUMNS
from forgetting.store.table import load_table


@dataclass
class Result:
    code: int
    out: str
    err: str


class Command:
    """Calls the command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Result:
        self.monkeypatch.setattr(sys, "argv", ["forgetting", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = self.capsys.readouterr()
        return Result(int(stopped.value.code or 0), output.out, output.err)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def flags(tiny_model: Path, corpora: Path) -> list[str]:
    given = f"--model {tiny_model} --train {corpora / 'train.jsonl'} --text {corpora / 'general.jsonl'} --context 32"
    recipe = "--steps 12 --batch-size 4 --learning-rate 3e-3 --measure-start 2 --measure-every 2 --jobs 1"
    return f"{given} {recipe}".split()


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
def test_threads_wait_briefly_unless_the_user_sets_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, own: dict[str, str]
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.setenv(name, "")  # so that the command's changes are undone after the test
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    command("--help")
    assert {name: os.environ[name] for name in names if name in os.environ} == (own or {"GOMP_SPINCOUNT": "1000"})


@pytest.mark.full
def test_a_study_from_flags_alone_ends_in_a_report(command: Command, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["study", *flags, "--rank", "1", "--rank", "4", "--out", out]
    # the recipe of a study by flags warms up for 10 of its 12 steps
    first = command(*arguments)
    assert first.code == 0, first.err
    assert (out / "report.html").read_text().startswith("<!")
    assert str(out / "report.html") in first.out.replace("\n", "")
    assert "2 runs of 12 steps" in first.err
    table = load_table(out)
    assert table.groupby("run_id")["step"].apply(list).tolist() == [[0, 2, 4, 6, 8, 10, 12]] * 2
    assert (table["dataset"] == "train").all()
    assert table.loc[table["step"] == 0, "forgetting"].tolist() == [0.0, 0.0]
    assert (table.loc[table["step"] == 12, "forgetting"] > 0).all()
    assert table[[f"{name}_se" for name in ("finetune_loss", "forgetting_loss")]].notna().all(axis=None)
    assert table.groupby("rank")["trainable_params"].first().to_dict() == {1: 1088, 4: 4352}

    before = (out / "runs").stat().st_mtime_ns
    again = command(*arguments, "--json")
    assert again.code == 0
    content = json.loads(again.out)
    assert len(content["skipped"]) == 2
    assert {run["rank"] for run in content["runs"]} == {1, 4}
    assert (out / "runs").stat().st_mtime_ns == before
    resumed = command("study", out, "--json")
    assert json.loads(resumed.out)["skipped"] == content["skipped"]

    listed = command("table", out, "--json")
    rows = json.loads(listed.out)
    assert [row["finetune_loss"] for row in rows] == table["finetune_loss"].tolist(), "JSON keeps every digit"
    assert set(COLUMNS) <= set(rows[0])
    csv = pd.read_csv(io.StringIO(command("table", out, "--csv").out), float_precision="round_trip")
    assert csv["forgetting"].tolist() == table["forgetting"].tolist()
    assert "± " in command("table", out).out
    (out / "report.html").unlink()
    assert command("report", out).code == 0
    assert (out / "report.html").exists()


@pytest.mark.full
def test_chat_data_full_fine_tuning_and_a_diverged_run(
    command: Command, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    fields = {
        "name": "mixed",
        "model": {"source": str(tiny_model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"chat": {"source": str(corpora / "chat.jsonl")}},
        "methods": [{"name": "lora", "rank": 4, "alpha": 3e38}, {"name": "full"}],
        "context": 32,
        "training": {"steps": 6, "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-2},
        "measure": {"start": 2, "every": 2},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(fields))
    result = command("study", tmp_path / "my.yaml", "--out", tmp_path / "out", "--jobs", "1")
    assert result.code == 1
    assert "failed: chat-lora-r4-s0-" in result.err
    assert "the run diverged; lower training.learning_rate" in result.err
    table = load_table(tmp_path / "out")
    assert table.groupby("method")["status"].first().to_dict() == {"full": "done", "lora": "failed"}
    assert table["forgetting"].notna().all(), "no number of a diverged step is stored"
    again = command("study", tmp_path / "my.yaml", "--out", tmp_path / "out", "--jobs", "1", "--json")
    assert again.code == 1
    assert list(json.loads(again.out)["failed"]) == [table.loc[table["method"] == "lora", "run_id"].iloc[0]]


@pytest.mark.full
def test_a_study_too_small_for_a_law_still_ends_in_a_report(command: Command, flags: list[str], tmp_path: Path) -> None:
    result = command("study", *flags, "--measure-start", "12", "--rank", "1", "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["fits"] == {}
    assert [run["step"] for run in content["runs"]] == [12]
    assert (tmp_path / "out" / "report.html").exists()


# (arguments, exact beginning or part of the one line that follows `error: `); {} are paths of the fixture `wrong`
TOUR: list[tuple[str, str]] = [
    ("study {dir}/none.yaml", "none.yaml: no such configuration file; create it, or choose a preset with --preset"),
    ("study {dir}/list.yaml", "list.yaml: needs a mapping of fields, got list"),
    ("study {dir}/broken.yaml", "broken.yaml, line 3: expected the node content"),
    ("study {dir}/unknown.yaml", "unknown.yaml: training.stepz: unknown field; did you mean 'steps'?"),
    ("study {dir}", "not a study folder (it has no study.yaml)"),
    ("study --preset paper-orca", "preset: no preset 'paper-orca'; did you mean 'paper-openorca'?"),
    ("study {dir}/unknown.yaml --preset miniature", "give a configuration file or --preset, not both"),
    ("study --model {model}", "--train and --text: missing; your own study needs --model, --train and --text"),
    ("study {flags} --rank 0", "methods.lora: rank: got 0; input should be greater than or equal to 1"),
    ("study {flags} --method loar", "methods: no method 'loar'; did you mean 'lora'?"),
    ("study {flags} --method full --rank 8", "methods.full: rank: unknown field"),
    ("study {flags} --measure-start 900", "measure.start 900 is after the last step, training.steps 12"),
    ("study {flags} --context 4096", "context: got 4096; the model was built for at most 64 positions; give context"),
    (
        "study --model {model} --train {dir}/columns.jsonl --text {dir}/short.txt",
        "context: got 512, the default; the model was built for at most 64 positions; give context 64 (--context 64)",
    ),
    ("study {flags} --context 0", "context: got 0; input should be greater than or equal to 8"),
    ("study {flags} --text {dir}/none.txt", "none.txt: no such file"),
    ("study {flags} --text {dir}/empty.txt", "empty.txt: empty; it has no rows"),
    ("study {flags} --text {dir}/short.txt", "the text has 1 document and none is two tokens long"),
    ("study {flags} --train {dir}/bad.jsonl", "bad.jsonl, line 2: not JSON"),
    ("study {flags} --train {dir}/columns.jsonl", "columns: body, title"),
    ("study {flags} --train {dir}/one.jsonl", "the fine-tuning data has 1 distinct documents; at least 4"),
    ("study {flags} --model {dir}/no-weights", "this folder has no *.safetensors weights"),
    ("study {flags} --model {dir}/pickled", "pickled weights are refused: convert them to safetensors"),
    ("study {flags} --model {dir}/damaged", "damaged"),
    ("study {flags} --model {dir}/nowhere", "no such folder"),
    ("study {flags} --out {dir}/other-study", "holds a study of another configuration (name: there"),
    ("study {flags} --out {dir}", "neither empty nor a study folder (no study.yaml); choose another with out (--out)"),
    ("table {dir}", "not a study folder (it has no study.yaml)"),
    ("table {dir}/nowhere", "nowhere: no such folder"),
    ("report {dir}/other-study", "this study has no measurements yet; run `forgetting study"),
    ("table {dir}/other-study --json --csv", "--json, --csv, --parquet: give only one of them"),
]


@pytest.fixture
def wrong(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with invalid files."""
    folder = tmp_path / "wrong"
    folder.mkdir()
    files = {
        "list.yaml": "- 1\n",
        "broken.yaml": "name: x\nmodel: [\n",
        "unknown.yaml": "model: {source: m}\ntext: {source: t}\ndatasets: {a: {source: a}}\n"
        "methods: [{name: lora}]\ntraining: {stepz: 3}\n",
        "empty.txt": "",
        "short.txt": "river",
        "bad.jsonl": '{"text": "the old"}\n{"text"\n',
        "columns.jsonl": '{"body": "a", "title": "b"}\n',
        "one.jsonl": '{"text": "the old river"}\n' * 9,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    for name in ("no-weights", "pickled", "damaged"):
        shutil.copytree(tiny_model, folder / name)
        (folder / name / "model.safetensors").unlink()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "damaged" / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:-1000])
    (folder / "other-study").mkdir()
    shutil.copy(
        Path(__file__).parents[2] / "src/forgetting/config/presets/paper-openorca.yaml",
        folder / "other-study/study.yaml",
    )
    return folder


@pytest.mark.parametrize(("arguments", "message"), TOUR, ids=[arguments for arguments, _ in TOUR])
def test_a_mistake_gets_one_clear_line_and_exit_code_2(
    command: Command, flags: list[str], wrong: Path, tiny_model: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    filled = arguments.format(dir=wrong, model=tiny_model, flags=" ".join(flags)).split()
    if arguments.startswith("study") and "--out" not in arguments:
        filled += ["--out", str(tmp_path / "out")]
    before = sorted(wrong.rglob("*"))
    result = command(*filled)
    assert result.code == 2, result.err
    errors = [line for line in result.err.splitlines() if not line.startswith("study ")]
    assert len(errors) == 1, result.err
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert result.out == ""
    assert sorted(wrong.rglob("*")) == before, "nothing was written"
    assert not (tmp_path / "out").exists()


def test_wrong_options_are_named_by_the_parser(command: Command) -> None:
    result = command("study", "--rank", "eight")
    assert result.code == 2
    assert "Invalid value for '--rank'" in result.err
    assert command("studdy").code == 2
    assert command("study", "--dtype", "int3").code == 2


def test_version(command: Command) -> None:
    assert command("--version").out.startswith("forgetting 0.")


def test_a_full_disk_gives_a_one_line_error_even_if_only_a_librarys_message_says_so(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("forgetting.cli.app.app", full)
    output = command("report", "anything")
    assert (output.code, output.out) == (1, "")
    assert output.err == "error: the disk is full; free some space, then run the same command again\n"


@pytest.mark.full
def test_a_signal_while_a_library_is_imported_ends_without_a_traceback() -> None:
    """If its import is interrupted, numpy raises an ImportError instead of the original exception."""
    import subprocess
    import sys

    code = """
import os, signal
from forgetting.cli import app

def importing():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass
    except BaseException:
        raise ImportError("initialization failed") from None

app.app = importing
app.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 143
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "stopped"
