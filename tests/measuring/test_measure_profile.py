"""Several texts at once: the numbers of `measure` on each, p corrected for all, budgets by name, one page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_measure_command import call, save_adapter

import forgetting
from forgetting.cli.measure import budgets_of
from forgetting.cli.texts import texts_of
from forgetting.config.schema import TextConfig
from forgetting.errors import UsageError
from forgetting.measuring.estimate import Mean
from forgetting.measuring.profile import Profile
from forgetting.measuring.verdict import judge
from forgetting.reporting.measurement import render


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def texts(corpora: Path) -> dict[str, str]:
    return {"plain": str(corpora / "general.jsonl"), "chat": str(corpora / "chat.jsonl")}


@pytest.fixture(scope="module")
def profile(tiny_model: Path, adapter: Path, texts: dict[str, str]) -> Profile:
    return forgetting.profile(str(tiny_model), str(adapter), texts=texts, context=32, cache_dir=None)


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("measure_seconds", "p", "p_holm")}


def test_each_row_is_what_measure_gives(
    profile: Profile, tiny_model: Path, adapter: Path, texts: dict[str, str]
) -> None:
    found = profile.to_dict()
    assert list(found["texts"]) == ["plain", "chat"]
    for name, source in texts.items():
        alone = forgetting.measure(str(tiny_model), str(adapter), text=source, context=32, cache_dir=None)
        assert without_seconds(found["texts"][name]) == without_seconds(alone.to_dict())
    assert profile.to_frame().loc["chat", "forgetting"] == found["texts"]["chat"]["forgetting"]
    assert json.loads(json.dumps(found)) == found


def with_means(profile: Profile, **means: Mean) -> Profile:
    one = profile.first
    return Profile({name: replace(one, means=one.means | {"forgetting": mean}) for name, mean in means.items()})


def test_p_is_students_and_holms(profile: Profile) -> None:
    made = with_means(profile, a=Mean(0.3, 0.1, 90, 11), b=Mean(-0.02, 0.01, 90, 21), c=Mean(0.0, 0.0, 90, 6),
                      few=Mean(0.5, 0.01, 90, 4), stiff=Mean(0.5, 0.0, 90, 9))  # fmt: skip
    p = made.p
    assert p["a"] == pytest.approx(2 * stats.t.sf(3.0, 10))
    assert p["b"] == pytest.approx(2 * stats.t.sf(2.0, 20))
    assert p["c"] == 1.0
    assert math.isnan(p["few"])  # too few documents
    assert math.isnan(p["stiff"])  # all documents alike
    assert made.p_holm["a"] == pytest.approx(3 * p["a"])
    assert made.p_holm["b"] == pytest.approx(2 * p["b"])
    assert made.to_dict()["texts"]["few"]["p_holm"] is None
    assert "unknown" in made.shown()[0].text()
    assert " on 5 texts, float32" in made.shown()[0].text()
    assert " on 1 text, float32" in with_means(profile, a=Mean(0.3, 0.1, 90, 11)).shown()[0].text()


def test_at_most_5_of_100_profiles_at_their_budget_are_over() -> None:
    """Four texts exactly at their budgets: each alone is over in 5 % of cases, and so is any of them together."""
    rng = np.random.default_rng(0)
    values = 0.1 + 0.05 * rng.normal(size=(4000, 4, 12))
    means, errors = values.mean(2), values.std(2, ddof=1) / math.sqrt(12)

    def share(of: int) -> float:
        over = [
            any(judge(Mean(m, s, 120, 12), 0.1, 0.95, of=of).verdict == "over" for m, s in zip(row, se, strict=True))
            for row, se in zip(means.tolist(), errors.tolist(), strict=True)
        ]
        return float(np.mean(over))

    assert share(4) == pytest.approx(1 - (1 - 0.05 / 4) ** 4, abs=0.01)
    assert share(1) == pytest.approx(1 - 0.95**4, abs=0.02)


def test_budgets_by_name(profile: Profile) -> None:
    made = with_means(profile, low=Mean(0.01, 0.001, 90, 30), high=Mean(0.5, 0.001, 90, 30))
    assert made.check({"low": 0.1}).verdict == "within"
    assert made.check(0.1).verdict == "over"
    assert made.check({"low": 0.0101, "high": 0.6}).verdict == "undecided"
    both = made.check({"high": 0.1, "low": 0.1})
    assert (both.exit_code(), made.check({"low": 0.1}).exit_code()) == (3, 0)
    assert list(both.verdicts) == ["low", "high"]
    assert both.verdicts["high"].low == pytest.approx(0.5 - 0.001 * stats.t.ppf(0.975, 29))
    assert both.verdicts["high"].high == pytest.approx(0.5 + 0.001 * stats.t.ppf(0.95, 29))
    row = both.to_dict()
    assert (row["verdict"], row["texts"]["low"]["verdict"], row["texts"]["high"]["budget"]) == ("over", "within", 0.1)
    with pytest.raises(UsageError, match=r"budget of 'lo': no such text; did you mean 'low'"):
        made.check({"lo": 0.1})
    with pytest.raises(UsageError, match="budget: give one for at least one text"):
        made.check({})


def test_sources_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.txt").write_text("x")
    assert texts_of(None, None) is None
    assert texts_of(["a=b.txt"], None) == "a=b.txt"  # if a file has that name, it is the file
    assert texts_of(["some/folder=x"], None) == "some/folder=x"
    assert texts_of(["chat=c.jsonl", "wiki=a=b.txt"], None) == {"chat": "c.jsonl", "wiki": "a=b.txt"}
    found = texts_of(["chat=owner/set", "wiki=w.txt"], ["chat.split=test"])
    assert found == {"chat": TextConfig(source="owner/set", split="test"), "wiki": "w.txt"}


@pytest.mark.parametrize(
    ("texts", "fields", "says"),
    [
        (["a.txt", "chat=b.txt"], None, r"--text: got 'a.txt' among several texts; give each a name, as in a=a.txt"),
        (["a=a.txt", "a=b.txt"], None, "two texts have the name 'a'"),
        (["a=a.txt"], ["split=test"], r"got 'split=test'; with named texts give a.FIELD=VALUE"),
        (["a=a.txt"], ["b.split=test"], r"got 'b.split=test'; with named texts give a.FIELD=VALUE"),
        (None, ["split=test"], "--text-field: needs --text"),
    ],
)
def test_wrong_texts(texts: list[str] | None, fields: list[str] | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        texts_of(texts, fields)


def test_budgets_on_the_command_line() -> None:
    assert budgets_of(["0.1"], None) == 0.1
    assert budgets_of(["0.1"], ["a", "b"]) == {"a": 0.1, "b": 0.1}
    assert budgets_of(["b=0.2"], ["a", "b"]) == {"b": 0.2}
    assert budgets_of(["b=0.2", "0.1"], ["a", "b"]) == {"a": 0.1, "b": 0.2}
    for given, names, says in (
        (["x"], None, "got 'x'; give nats/token"),
        (["a=0.1"], None, "the only text has no name"),
        (["c=0.1"], ["a"], "no text 'c'; texts: a"),
        (["0.1", "0.2"], ["a"], "two budgets for all texts"),
    ):
        with pytest.raises(UsageError, match=says):
            budgets_of(given, names)


@pytest.mark.full
def test_the_commands(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: Path,
    adapter: Path,
    texts: dict[str, str],
) -> None:
    given = ["--context", "32", "--no-cache", "--no-probe"]
    for name, source in texts.items():
        given += ["--text", f"{name}={source}"]
    pair = [str(tiny_model), str(adapter)]
    page, summary = tmp_path / "page.html", tmp_path / "summary.md"
    code, out, _err = call(monkeypatch, capsys, "measure", *pair, *given, "--html", page)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("plain", "chat"))] == ["plain", "chat"]
    assert "on 2 texts" in out
    text = page.read_text()
    assert text.count('class="point"') == 2
    assert re.findall(r'<h2 class="text" id="text-\d">(\w+)</h2>', text) == ["plain", "chat"]
    assert "default-src 'none'" in text
    code, out, _err = call(
        monkeypatch, capsys, "check", *pair, *given, "--budget", "chat=0.0001", "--json", "--markdown", summary
    )
    row = json.loads(out)
    assert (code, row["verdict"]) == (3, "over")
    assert "verdict" not in row["texts"]["plain"]
    assert "| `plain` | not judged |" in summary.read_text()
    code, out, err = call(monkeypatch, capsys, "check", *pair, *given, "--budget", "chat=-1")
    assert (code, out, err) == (
        2,
        "",
        "error: budget of 'chat' -1.0: must be a positive number of nats/token, for example 0.1\n",
    )
    code, _out, err = call(monkeypatch, capsys, "measure", *pair, "--text", "chat=nowhere.jsonl")
    assert code == 2
    assert err.startswith("error: text 'chat': ")
    assert err.count("\n") == 1


def test_one_text_has_the_same_page_as_before(profile: Profile) -> None:
    alone = render(Profile({"plain": profile.first}))
    assert 'class="point"' not in alone
    assert 'class="text"' not in alone
    assert "<h2>All quantities</h2>" in alone
    both = render(profile)
    assert "<h3>All quantities</h3>" in both
    assert render(profile) == both


def test_names_are_escaped(profile: Profile) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    made = Profile({hostile: profile.first, "b": profile.first})
    assert "<img" not in render(made)
    assert hostile not in str(made.figure().layout.title)
    assert "<img" not in made.shown()[0].html()
