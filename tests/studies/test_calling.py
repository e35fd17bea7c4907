"""A function called in a worker process returns, raises, logs and warns as if it were called here."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from forgetting.errors import ForgettingError, UsageError
from forgetting.studies.engines.calling import call_in_worker
from forgetting.studies.engines.context import worker_context
from small_study import fields, numbers

pytestmark = pytest.mark.full


def speak() -> int:
    logging.getLogger("forgetting.data").warning("%s rows", 3)
    logging.getLogger("forgetting.data").info("not asked for")
    warnings.warn("half of them", UserWarning, stacklevel=1)
    return os.getpid()


def refuse() -> None:
    raise UsageError("no such file", "give another")


def fail() -> None:
    raise KeyError("wanted")


class _UnusualError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def fail_unusually() -> None:
    raise _UnusualError("a", "b")


def end() -> None:
    os._exit(0)


def test_the_result_log_messages_and_warnings_arrive(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning, match="half of them"):
        assert call_in_worker(worker_context(), speak) != os.getpid()
    assert [(one.name, one.getMessage()) for one in caplog.records] == [("forgetting.data", "3 rows")]


def test_errors_are_raised_here_as_what_they_are() -> None:
    context = worker_context()
    with pytest.raises(UsageError) as refused:
        call_in_worker(context, refuse)
    assert str(refused.value) == "no such file\ngive another"
    with pytest.raises(KeyError, match="wanted") as failed:
        call_in_worker(context, fail)
    assert "in fail" in failed.value.__notes__[0]  # its traceback there
    with pytest.raises(ForgettingError, match=r"^_UnusualError: ab$"):
        call_in_worker(context, fail_unusually)
    with pytest.raises(ForgettingError, match=r"a worker process ended before its work \(exit code 0\)"):
        call_in_worker(context, end)


STUDY = """
import sys
from forgetting.cli import main
if __name__ == "__main__":
    try:
        main()
    except SystemExit as done:
        assert done.code == 0, done.code
    assert not {"torch", "peft"} & set(sys.modules)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux alone")
@pytest.mark.slow
def test_the_command_leaves_the_libraries_to_its_workers(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    import torch
    import yaml

    if torch.accelerator.is_available():
        pytest.skip("workers are not forked if there is an accelerator")
    (tmp_path / "command.py").write_text(STUDY)
    methods = [{"name": "lora", "rank": [2, 3]}]
    training = {"steps": 6, "batch_size": 4}
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump(fields(tiny_model, corpora, methods=methods, training=training))
    )
    command = [sys.executable, str(tmp_path / "command.py"), "study", str(tmp_path / "study.yaml"), "--out"]
    subprocess.run([*command, str(tmp_path / "two"), "--jobs", "2"], check=True)
    one = [sys.executable, "-m", "forgetting", *command[2:], str(tmp_path / "one"), "--jobs", "1"]
    subprocess.run(one, check=True)
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one")
