"""Broken standard streams: a study continues without progress, and a result that cannot be written is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forgetting.display.streams import WriteError, _Descriptor
from small_study import rows, write_config

PREDICT = ("predict", "kalajdzievski2024/openorca", "--rank", "8", "--steps", "200")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}


def shell(arguments: tuple[str, ...], streams: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command under bash, with these redirections."""
    command = ["bash", "-c", f'"$@" {streams}', "bash", sys.executable, "-m", "forgetting", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=300, env={**os.environ, **environment})


def test_what_a_descriptor_does_not_take_is_dropped_or_named(tmp_path: Path) -> None:
    file = tmp_path / "f"
    number = os.open(file, os.O_WRONLY | os.O_CREAT)
    assert _Descriptor(number, drops=True).write(b"as it is") == 8
    os.close(number)
    assert file.read_bytes() == b"as it is"
    assert _Descriptor(number, drops=True).write(b"dropped") == 7
    with pytest.raises(WriteError, match="standard output: the result cannot be written: Bad file descriptor"):
        _Descriptor(number, drops=False).write(b"lost")
    reader, writer = os.pipe()
    os.close(reader)
    assert _Descriptor(writer, drops=True).write(b"nobody reads it") == 15
    with pytest.raises(BrokenPipeError):
        _Descriptor(writer, drops=False).write(b"nobody reads it")
    os.close(writer)


@pytest.mark.full
@pytest.mark.parametrize(
    ("streams", "says"),
    [(">/dev/full", "No space left on device"), ("<&- >&-", "Bad file descriptor")],
)
def test_a_result_that_cannot_be_written_is_one_error(streams: str, says: str) -> None:
    done = shell(PREDICT, streams)
    assert done.returncode == 1
    assert done.stderr.decode() == f"error: standard output: the result cannot be written: {says}\n"


@pytest.mark.full
def test_a_broken_standard_error_changes_neither_result_nor_exit_code() -> None:
    right = shell(PREDICT, "")
    assert right.returncode == 0
    for streams in ("2>&-", "2>/dev/full", "2> >(exec 0<&-)"):
        done = shell(PREDICT, streams)
        assert (done.returncode, done.stdout) == (0, right.stdout)
    assert shell(("predict", "nothing-there"), "2>/dev/full").returncode == 2


@pytest.mark.full
def test_an_ascii_terminal_gets_what_it_can_show(tmp_path: Path) -> None:
    done = shell(("predict", "nö-law", "--rank", "8"), "", **ASCII)
    assert done.returncode == 2
    assert done.stderr.isascii()
    assert b"is neither a published law" in done.stderr
    (tmp_path / "tafel-ü.csv").write_text("step,loss\n" + "".join(f"{n},{1 + 2 / n!r}\n" for n in range(1, 9)))
    fitted = shell(("fit", str(tmp_path / "tafel-ü.csv"), "--law", "loss = E + A/step"), "", **ASCII)
    assert (fitted.returncode, fitted.stderr) == (0, b"")
    assert fitted.stdout.isascii()
    assert b"tafel-" in fitted.stdout


@pytest.mark.full
@pytest.mark.parametrize(
    ("streams", "jobs", "environment"),
    [
        pytest.param("2>&-", "2", {}, marks=pytest.mark.slow),
        pytest.param("2> >(head -1 >/dev/null)", "1", {}, marks=pytest.mark.slow),
        pytest.param(">/dev/full 2>/dev/full", "1", {}, marks=pytest.mark.slow),
        pytest.param("", "1", ASCII, marks=pytest.mark.slow),
    ],
)
def test_a_study_continues_without_its_progress(
    tmp_path: Path, tiny_model: Path, corpora: Path, streams: str, jobs: str, environment: dict[str, str]
) -> None:
    config = write_config(tmp_path, tiny_model, corpora, [{"name": "lora", "rank": [1, 2]}], steps=6)
    done = shell(("study", str(config), "--out", str(tmp_path / "s"), "--jobs", jobs), streams, **environment)
    assert [[row["step"] for row in run] for run in rows(tmp_path / "s").values()] == [[0, 2, 4, 6]] * 2
    assert (tmp_path / "s" / "report.html").is_file()
    # only the result decides: if it cannot be written, that is an error
    assert done.returncode == (1 if streams.startswith(">/dev/full") else 0)
    if environment:
        assert done.stdout.isascii()
        assert b"?" in done.stdout  # in place of the plus-minus sign before a standard error
    assert b"Traceback" not in done.stderr
