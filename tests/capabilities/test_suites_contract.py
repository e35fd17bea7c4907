"""The contract of suites. A new suite is one file and one row here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from forgetting.capabilities.suites import SUITES, Circumstances, Plan, make_suites
from forgetting.errors import UsageError

# name; kind; local tasks on the miniature, their items in all; tasks of lm-eval on other models, or what is missing
ROWS: list[tuple[str, str, dict[str, int], tuple[str, ...] | str]] = [
    ("knowledge", "answers", {"miniature_knowledge": 952}, ("mmlu",)),
    ("reasoning", "answers", {"miniature_reasoning": 500}, ("arc_challenge", "gsm8k")),
    ("safety", "refusals", {"safety_harmful": 422, "safety_harmless": 435}, "--harmful and --harmless: missing"),
]
EACH = pytest.mark.parametrize(("name", "kind", "local", "other"), ROWS, ids=[row[0] for row in ROWS])


def test_every_suite_has_a_row() -> None:
    assert [row[0] for row in ROWS] == list(SUITES)


def rows_of(task: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in task.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]


@EACH
def test_the_miniature_has_items_of_its_own(
    tmp_path: Path, name: str, kind: str, local: dict[str, int], other: Any
) -> None:
    (suite,) = make_suites([name], Circumstances(True, tmp_path / "one"))
    assert (suite.name, suite.kind, suite.local, suite.note) == (name, kind, True, "")
    found = {Path(task).stem: rows_of(Path(task)) for task in suite.tasks}
    assert {task: len(rows) for task, rows in found.items()} == local
    every = [row for rows in found.values() for row in rows]
    assert len({row["id"] for row in every}) == len({row["prompt"] for row in every}) == len(every)
    checks = {
        "answers": lambda row: all(row["answers"]),
        "refusals": lambda row: row["expect"] in ("refuse", "answer"),
    }
    assert all(checks[kind](row) for row in every)
    if kind == "answers":  # mixed, so that --limit is a fair sample
        assert len({row["category"] for row in every[:60]}) > 1
    (again,) = make_suites([name], Circumstances(True, tmp_path / "two"))
    assert [rows_of(Path(task)) for task in again.tasks] == list(found.values())


@EACH
def test_other_models_are_asked_tasks_of_the_harness_or_what_is_given(
    tmp_path: Path, name: str, kind: str, local: dict[str, int], other: Any
) -> None:
    at = Circumstances(False, tmp_path)
    if isinstance(other, str):
        with pytest.raises(UsageError, match=f"{name}: {other}"):
            make_suites([name], at)
        assert not SUITES[name].by_default(at)
        return
    (suite,) = make_suites([name], at)
    assert (suite.kind, suite.tasks, suite.local) == (kind, other, False)
    assert SUITES[name].by_default(at)


@EACH
def test_a_suite_cites_its_source(name: str, kind: str, local: dict[str, int], other: Any) -> None:
    assert "arXiv:" in str(sys.modules[type(SUITES[name]).__module__].__doc__)


def test_by_default_all_available_suites_run(tmp_path: Path) -> None:
    asked = [suite.name for suite in Plan().make(miniature=True, folder=tmp_path)]
    assert asked == list(SUITES)
    assert [s.name for s in Plan().make(miniature=False, folder=tmp_path)] == ["knowledge", "reasoning"]
