"""Files of answers must be plain files: anything else, such as a pipe, is refused before it is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forgetting.capabilities.answers import AnswerStore
from forgetting.capabilities.study_runs import study_results, study_rows
from forgetting.errors import UsageError

ASKED = {"limit": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("name", ["facts.jsonl", "meta.json"])
def test_a_pipe_instead_of_a_file_of_answers_is_refused(tmp_path: Path, name: str) -> None:
    store = AnswerStore(tmp_path / "capabilities")
    store.write("base", "k", "facts", ASKED, [])
    file = tmp_path / "capabilities" / "base" / name
    file.unlink()
    os.mkfifo(file)
    for read in (
        lambda: store.has("base", "k", "facts", ASKED),
        lambda: store.read("base", "facts") if name != "meta.json" else store.suites("base"),
        lambda: store.write("base", "k", "facts", ASKED, []),
        lambda: study_results(tmp_path),
        lambda: study_rows(tmp_path),
    ):
        with pytest.raises(UsageError, match=rf"{name}: not a plain file"):
            read()
