"""Shared flags are the same in every command; lists in help texts come from the code."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from forgetting.analysis.laws import LAWS
from forgetting.cli import main
from forgetting.cli import options as o
from forgetting.cli.app import app
from forgetting.cli.study import named_sources
from forgetting.config.files import presets
from forgetting.errors import UsageError
from forgetting.tuning.methods import METHODS

SHARED = ("measure", "check", "evaluate", "study")


def help_lines(command: str) -> str:
    """A command's help, one line per flag."""
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=10_000, max_content_width=10_000)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", [field.name.replace("_", "-") for field in fields(o.ModelOptions)])
def test_a_flag_on_models_is_the_same_in_every_command(name: str) -> None:
    lines = [line.split() for command in SHARED for line in help_lines(command).splitlines() if f"--{name} " in line]
    assert len(lines) == len(SHARED)
    assert all(line == lines[0] for line in lines)


DEVICES = (
    "measure {0} {0} --text {1}",
    "check {0} {0} --budget 1 --text {1}",
    "evaluate {0} {0} --suite {3} --out {2}",
    "study --model {0} --train {4} --text {1} --context 32 --out {2}",
)


@pytest.mark.parametrize("arguments", DEVICES)
def test_a_device_that_is_not_there_gives_a_one_line_error(
    arguments: str,
    tiny_model: Path,
    corpora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = (corpora / "general.jsonl", tmp_path / "out", tmp_path / "mine.jsonl", corpora / "train.jsonl")
    given = arguments.format(tiny_model, *files).split()
    (tmp_path / "mine.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    for device in ("abacus", "meta", "cuda:97"):
        monkeypatch.setattr(sys, "argv", ["forgetting", *given, "--device", device])
        with pytest.raises(SystemExit) as stopped:
            main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert stopped.value.code == 2
        assert len(lines) == 1
        assert lines[0].startswith(f"error: device '{device}': not available here (")


@pytest.mark.parametrize(
    ("command", "listed"), [("study", METHODS), ("study", presets()), ("fit", LAWS)], ids=["methods", "presets", "laws"]
)
def test_help_lists_everything_available(command: str, listed: Any) -> None:
    assert ", ".join(listed) in help_lines(command)


def test_flags_of_a_dataclass_replace_its_parameter() -> None:
    @dataclass(frozen=True)
    class Size:
        width: Annotated[int, typer.Option(help="w")] = 1
        height: Annotated[int | None, typer.Option("--high", help="h")] = None

    seen: list[Any] = []

    def draw(name: str, *, size: Size, color: str = "red") -> None:
        """Draw."""
        seen.append((name, size, color))

    draw.__annotations__ = {"name": str, "size": Size, "color": str, "return": None}
    small = typer.Typer()
    small.command()(o.expanded(draw))
    assert CliRunner().invoke(small, ["box", "--high", "3"]).exit_code == 0
    assert seen == [("box", Size(1, 3), "red")]


def test_only_given_flags_override_a_configuration() -> None:
    assert o.ModelOptions().given() == {}
    given = o.ModelOptions("main", o.Dtype.float16, "cuda:1", True).given()
    assert given == {"revision": "main", "dtype": "float16", "device": "cuda:1", "trust_remote_code": True}
    assert type(given["dtype"]) is str


def test_data_sets_with_the_same_file_name_get_different_names() -> None:
    assert named_sources(["data/x.jsonl", "org/set", "miniature:news"]) == {
        "x": "data/x.jsonl",
        "set": "org/set",
        "news": "miniature:news",
    }
    assert named_sources(["a/x.jsonl", "b/x.jsonl.gz"]) == {"a-x": "a/x.jsonl", "b-x": "b/x.jsonl.gz"}
    assert list(named_sources(["x.jsonl", "x.csv", "x.txt"])) == ["x", "x-2", "x-3"]
    with pytest.raises(UsageError, match=r"--train a/x\.jsonl: given twice"):
        named_sources(["a/x.jsonl", "a/x.jsonl"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("evaluate {0} --html page.html", "--html: does not apply to a whole study"),
        ("evaluate {0} --out answers", "--out: does not apply to a whole study"),
        ("evaluate {0} --relearn", "--relearn: does not apply to a whole study"),
        ("evaluate {0} --max-lost 0.1", "--max-lost: does not apply to a whole study"),
        ("evaluate {0} --dtype float32", "--dtype: does not apply to a whole study"),
        ("evaluate {0} --backend openai", "--backend: does not apply to a whole study"),
        ("evaluate a b --confidence 0.9", "--confidence: only with --max-lost"),
        ("card {0} {0}/study.yaml --context 64", "--context: only with --base"),
        ("card {0} {0}/study.yaml --device cpu", "--device: only with --base"),
        ("measure a b --text x --text-field split=a --text-field split=b", "--text-field split: given twice"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    given: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n")
    monkeypatch.setattr(sys, "argv", ["forgetting", *given.format(tmp_path).split()])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert says in capsys.readouterr().err
