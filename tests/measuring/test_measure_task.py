"""The verdict on task and forgetting: the task improved, and forgetting is within its budget."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from test_measure_command import call, save_adapter

import forgetting
from forgetting.errors import UsageError
from forgetting.measuring.estimate import Mean
from forgetting.measuring.measurement import CheckResult
from forgetting.measuring.task import Improvement, judge_task, outcome


def judged(gain: Mean, of: int = 1) -> Improvement:
    return judge_task(gain, 0.95, of=of, text="t", before=Mean(3.0, 0.1, 90, 10), after=Mean(2.0, 0.1, 90, 10))


def test_the_bounds_decide() -> None:
    gain = Mean(0.81, 0.02, 900, 30)
    better = judged(gain, of=2)
    assert better.low == pytest.approx(0.81 - stats.t.ppf(0.95, 29) * 0.02)
    assert better.high == pytest.approx(0.81 + stats.t.ppf(0.975, 29) * 0.02)
    assert (better.verdict, better.exit_code(strict=True)) == ("improved", 0)
    assert better.sentence() == f"the task improved by 0.8100 ± 0.0200 nats/token, at least {better.low:.4f}"
    worse = judged(Mean(-0.1, 0.02, 900, 30))
    assert (worse.verdict, worse.exit_code(allow_undecided=True)) == ("not improved", 3)
    assert worse.sentence().startswith(
        "the task did not improve: its loss changed by 0.1000 ± 0.0200 nats/token, at best"
    )
    unclear = judged(Mean(0.01, 0.02, 900, 30))
    assert unclear.sentence() == (
        "undecided whether the task improved: measured improvement 0.0100 ± 0.0200 nats/token, "
        f"at least {unclear.low:.4f} and at most {unclear.high:.4f}"
    )
    assert (unclear.verdict, unclear.exit_code(), unclear.exit_code(strict=True)) == ("undecided", 0, 3)
    few = judged(Mean(0.81, math.nan, 90, 1))
    assert (few.verdict, few.exit_code(), few.exit_code(allow_undecided=True)) == ("undecided", 3, 0)
    assert json.loads(json.dumps(few.to_dict()))["gain_se"] is None
    same = judged(Mean(0.0, 0.0, 900, 30))
    assert same.verdict == "not improved"


def test_one_verdict_of_both() -> None:
    better, worse, unclear = (judged(Mean(value, 0.02, 900, 30)) for value in (0.8, -0.1, 0.01))
    assert [outcome("within", one) for one in (None, better, worse, unclear)] == [
        *("within", "within", "not improved", "undecided")
    ]
    assert [outcome("undecided", one) for one in (better, worse, unclear)] == ["undecided", "not improved", "undecided"]
    assert {outcome("over", one) for one in (None, better, worse, unclear)} == {"over"}


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"), seed=0)  # one that improves the task


@pytest.fixture(scope="module")
def found(tiny_model: Path, adapter: Path, corpora: Path) -> CheckResult:
    texts = {"text": str(corpora / "general.jsonl"), "task_text": str(corpora / "train.jsonl")}
    return forgetting.check(str(tiny_model), str(adapter), budget=5, context=32, cache_dir=None, **texts)


def test_the_gain_is_paired_token_by_token(found: CheckResult, tiny_model: Path, adapter: Path, corpora: Path) -> None:
    task = forgetting.measure(
        str(tiny_model), str(adapter), text=str(corpora / "train.jsonl"), context=32, cache_dir=None
    )
    assert found.task is not None
    assert found.task.gain == task.gain
    difference = task.means["data_loss_base"].value - task.means["data_loss_tuned"].value
    assert found.task.gain.value == pytest.approx(difference, abs=1e-6)
    assert found.task.gain.se < np.hypot(task.means["data_loss_base"].se, task.means["data_loss_tuned"].se)
    alone = forgetting.check(
        str(tiny_model), str(adapter), budget=5, text=str(corpora / "general.jsonl"), context=32, cache_dir=None
    )
    assert alone.measurement.means == found.measurement.means
    assert alone.outcome == alone.verdict
    assert "task" not in alone.to_dict()
    assert found.low < alone.low  # "over" is a statement about two verdicts together
    assert found.high == alone.high


def test_one_text_and_several_give_one_verdict(found: CheckResult) -> None:
    row = json.loads(json.dumps(found.to_dict()))
    assert (row["outcome"], row["verdict"], row["task"]["verdict"]) == ("within", "within", "improved")
    assert found.exit_code(strict=True) == 0
    assert found.sentences()[0].startswith("the task improved by ")
    assert found.sentences()[0] in str(found)
    failed = replace(found, task=judged(Mean(-0.8, 0.02, 900, 30)))
    assert (failed.outcome, failed.verdict, failed.exit_code(allow_undecided=True)) == ("not improved", "within", 3)
    profile = forgetting.Profile({"a": found.measurement, "b": found.measurement}, found.measurement)
    both = profile.check(5.0)
    assert both.task is not None
    assert both.outcome == outcome(both.verdict, both.task)
    assert list(both.to_dict()["texts"]) == ["a", "b"]  # the task is not one of the texts
    assert both.verdicts["a"].low == pytest.approx(
        found.measurement.forgetting.value - found.measurement.forgetting.bound(1 - 0.05 / 3)
    )
    with pytest.raises(UsageError, match="does not contain the gain"):
        replace(found.measurement, gain=None).improvement(0.95)


@pytest.mark.full
def test_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: Path,
    corpora: Path,
) -> None:
    pair = ["check", tiny_model, tiny_model, "--context", 32, "--no-cache", "--task-text", corpora / "train.jsonl"]
    files = ["--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md", "--html", tmp_path / "p.html"]
    code, out, _ = call(monkeypatch, capsys, *pair, "--text", corpora / "general.jsonl", "--budget", 5, *files)
    assert code == 3
    lines = out.splitlines()
    assert lines[0].startswith("the task did not improve: its loss changed by ")
    assert lines[1].startswith("within budget: forgetting ")
    assert (tmp_path / "m.md").read_text().startswith("### ❌ Task and forgetting: not improved\n\nthe task did not")
    assert "The task did not improve: its loss changed by " in (tmp_path / "p.html").read_text()
    cases = ElementTree.fromstring((tmp_path / "j.xml").read_bytes()).findall("testsuite/testcase")
    assert [[part.tag for part in case] for case in cases] == [["system-out"], ["failure"]]
    texts = ["--text", f"a={corpora / 'general.jsonl'}", "--text", f"b={corpora / 'chat.jsonl'}"]
    code, out, _ = call(monkeypatch, capsys, *pair, *texts, "--budget", 5, "--json")
    row = json.loads(out)
    assert (code, row["outcome"], list(row["texts"])) == (3, "not improved", ["a", "b"])
    (tmp_path / "short.txt").write_text("one")
    short = [*pair[:-1], tmp_path / "short.txt", "--budget", 5]
    for given in (["--text", corpora / "general.jsonl"], texts):
        code, _, err = call(monkeypatch, capsys, *short, *given)
        assert code == 2
        assert err.startswith("error: task_text (--task-text): ")
    code, out, err = call(monkeypatch, capsys, *pair[:6], "--task-field", "split=x", "--budget", 5)
    assert (code, out, err) == (2, "", "error: --task-field: needs --task-text\n")
