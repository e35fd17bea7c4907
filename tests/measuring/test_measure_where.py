"""Breakdowns, sampling, verdicts and the page, without any model."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from test_measure_kernels import make_windows

from forgetting.display.numbers import fixed
from forgetting.errors import UsageError
from forgetting.measuring.estimate import Mean, clustered_mean
from forgetting.measuring.measurement import Measurement, Settings
from forgetting.measuring.profile import Profile
from forgetting.measuring.quantities import PAIR
from forgetting.measuring.sampling import FIRST_DOCUMENTS, until
from forgetting.measuring.verdict import judge
from forgetting.measuring.where import where
from forgetting.reporting.measurement import _lower, render


def sample(seed=0):
    windows = make_windows([9, 17, 2, 30, 30, 5], documents=[0, 0, 1, 1, 2, 3], vocabulary=12)
    rng = np.random.default_rng(seed)
    return windows, rng.normal(0.2, 1, windows.n_predicted).astype(np.float32), rng.integers(0, 6, windows.n_predicted)


def test_groups_hold_every_position_once_and_equal_a_slow_twin():
    windows, change, argmax = sample()
    found = where(windows, change, argmax)
    for groups in (found.by_position, found.by_frequency, found.by_document):
        assert sum(group.change.n_tokens for group in groups) == windows.n_predicted
        total = sum(group.change.value * group.change.n_tokens for group in groups)
        assert total == pytest.approx(change.sum(dtype=float), rel=1e-5)
    slow = {}
    at = 0
    for w in range(len(windows)):
        for position in range(1, int(windows.lengths[w])):
            slow.setdefault(int(math.log2(position)), []).append(float(change[at]))
            at += 1
    assert [g.change.value for g in found.by_position] == pytest.approx([np.mean(slow[k]) for k in sorted(slow)])
    assert [g.label for g in found.by_position] == ["1", "2–3", "4–7", "8–15", "16–31"]
    assert [g.change.value for g in found.by_document] == sorted(g.change.value for g in found.by_document)[::-1]
    token, mean = found.by_token[0]
    assert mean.value == pytest.approx(change[argmax == token].mean(), rel=1e-5)


def test_passages_line_up_with_their_tokens():
    windows, change, argmax = sample()
    change[:] = 0
    first = int(windows.predicted[: windows.offsets[3]].sum())
    change[first + 4] = 29.0  # in window 3, the fifth predicted token: token 5
    passage = where(windows, change, argmax).passages[0]
    assert passage.document == "doc1"
    assert passage.token_ids.tolist() == windows.window(3)[0].tolist()
    assert np.isnan(passage.change[0])
    assert passage.change[5] == 29
    assert passage.expected[5] == argmax[first + 4]
    assert passage.mean == pytest.approx(1.0)


def test_an_empty_window_is_no_passage():
    whole = make_windows([9, 17, 2])
    offsets, documents = np.append(whole.offsets, 28), np.append(whole.documents, np.int32(2))
    windows = replace(whole, offsets=offsets, documents=documents)
    change = np.arange(windows.n_predicted, dtype=np.float32)
    found = where(windows, change, np.zeros(windows.n_predicted, np.int64))
    assert [(len(one.token_ids), one.mean) for one in found.passages] == [(17, 15.5), (9, 3.5)]


def many(documents=400, seed=0):
    windows = make_windows([64] * documents, vocabulary=10)
    rng = np.random.default_rng(seed)
    values = (rng.normal(0, 1, documents)[:, None] + rng.normal(0, 1, (documents, 63))).astype(np.float32)

    def measure(part):
        return {"x": np.concatenate([values[d] for d in part.documents])}

    return windows, values, measure


def test_a_tolerance_measures_whole_documents_until_it_is_met():
    windows, values, measure = many()
    sampled = until(windows, measure, "x", 0.08, seed=3)
    mean = clustered_mean(sampled.values["x"], sampled.windows.token_documents())
    assert mean.se <= 0.08
    assert not sampled.complete
    assert FIRST_DOCUMENTS <= mean.n_documents < 400
    assert mean.n_documents < 1.6 * values.mean(1).var() / 0.08**2  # no more than about what is needed
    for document, value in zip(sampled.windows.documents, sampled.values["x"].reshape(-1, 63), strict=True):
        assert (value == values[document]).all()
    again = until(windows, measure, "x", 0.08, seed=3)
    assert (again.windows.documents == sampled.windows.documents).all()
    assert (until(windows, measure, "x", 0.08, seed=4).windows.documents[:8] != sampled.windows.documents[:8]).any()


def test_a_tolerance_that_cannot_be_met_measures_everything_once():
    windows, _, measure = many(30)
    sampled = until(windows, measure, "x", 1e-9, seed=0)
    assert sampled.complete
    assert sorted(sampled.windows.documents.tolist()) == list(range(30))
    everything = until(windows, measure, "x", None, seed=0)
    assert everything.windows is windows


def test_documents_without_a_target_are_not_drawn():
    """A round of such documents only would be an error: nothing to measure."""
    windows = make_windows([300] * 40 + [1] * 40)

    def measure(part):
        assert part.n_predicted
        return {"x": np.arange(part.n_predicted, dtype=float)}

    for seed in range(8):
        sampled = until(windows, measure, "x", 1e-9, seed=seed)
        assert sampled.complete
        assert sorted(sampled.windows.documents.tolist()) == list(range(40))


@pytest.mark.slow
def test_stopping_at_a_tolerance_keeps_nominal_coverage():
    """Over 300 corpora, the 95 % interval after stopping early still covers the truth in 92-98 % of them."""
    covered = 0
    for seed in range(300):
        windows, _, measure = many(1000, seed)
        sampled = until(windows, measure, "x", 0.12, seed=seed)
        low, high = clustered_mean(sampled.values["x"], sampled.windows.token_documents()).interval()
        covered += low <= 0 <= high
    assert 0.92 * 300 <= covered <= 0.98 * 300


@pytest.mark.parametrize(
    ("value", "se", "budget", "verdict", "plain", "strict"),
    [
        (0.05, 0.01, 0.1, "within", 0, 0),
        (0.2, 0.01, 0.1, "over", 3, 3),
        (0.1, 0.01, 0.1, "undecided", 0, 3),
        (0.09, 0.01, 0.1, "undecided", 0, 3),
        (0.0, math.nan, 0.1, "undecided", 3, 3),
        (0.1, 0.2, 0.1, "undecided", 3, 3),
        (-0.1, 0.01, 0.01, "within", 0, 0),
        (0.1, 0.0, 0.1, "within", 0, 0),
    ],
)
def test_verdicts_and_exit_codes(value, se, budget, verdict, plain, strict):
    found = judge(Mean(value, se, 1000, 1 if math.isnan(se) else 30), budget, 0.95)
    assert found.verdict == verdict
    assert (found.exit_code(strict=False), found.exit_code(strict=True)) == (plain, strict)
    assert found.exit_code(allow_undecided=True) == (3 if verdict == "over" else 0)
    assert verdict in found.sentence()


@pytest.mark.parametrize("documents", [1, 2, 4])
def test_a_gate_on_too_few_documents_is_closed(documents):
    found = judge(Mean(0.0, math.nan if documents == 1 else 1e-6, 1000, documents), 0.1, 0.95)
    assert (found.verdict, found.exit_code()) == ("undecided", 3)
    few = {1: "1 document has", 2: "2 documents have", 4: "4 documents have"}[documents]
    more = {1: "4 more documents", 2: "3 more documents", 4: "1 more document"}[documents]
    assert (
        f"{few} no reliable standard error; give at least {more} (5 in all), better {30 - documents} (30 in all)"
        in (found.sentence())
    )
    assert "inf" not in found.sentence()


def test_a_verdict_says_how_many_documents_would_decide():
    found = judge(Mean(0.08, 0.02, 1000, 25), 0.1, 0.95)
    needed = found.documents_needed
    assert f"about {needed - 25} more documents like these 25 would decide" in found.sentence()
    # if the standard error falls with the square root of the documents, the bound then meets the budget
    assert 0.02 * math.sqrt(25 / needed) * (found.high - 0.08) / 0.02 == pytest.approx(0.02, rel=0.02)


def test_the_documents_that_would_decide_account_for_several_verdicts():
    found = judge(Mean(0.12, 0.011, 5000, 50), 0.1, 0.95, of=2)  # over by its bound alone, but not by the wider one
    assert (found.verdict, judge(found.forgetting, 0.1, 0.95).verdict) == ("undecided", "over")
    needed = math.ceil(50 * ((0.12 - found.low) / 0.02) ** 2)
    assert found.documents_needed == needed > 50
    assert f"about {needed - 50} more documents like these 50 would decide" in found.sentence()


def test_a_value_that_is_almost_the_budget_names_no_number_of_documents():
    sentence = judge(Mean(0.1000001, 0.02, 1000, 25), 0.1, 0.95).sentence()
    assert "so close to the budget that 1,000 times as many documents may not decide" in sentence


def test_a_small_number_is_never_shown_as_zero():
    assert fixed(-1.2e-6) == "-1.2e-06"
    assert fixed(0.0) == "0.0000"
    assert fixed(-0.0) == "0.0000"
    assert fixed(-0.00012) == "-0.0001"
    assert Mean(0.0, 3e-6, 10, 5).se_text == "3.0e-06"


def test_rounding_never_hides_a_difference():
    sentence = judge(Mean(-1.2e-6, 6e-5, 1000, 30), 1e-4, 0.95).sentence()
    assert "-0.0000 " not in sentence
    bounds = "at least -0.000103 and at most 0.000101"
    assert f"forgetting -0.000001 nats/token (standard error 6e-05), {bounds}, budget 0.0001" in sentence


def test_bounds_are_students_t():
    found = judge(Mean(1.0, 0.1, 100, 11), 0.5, 0.95)
    assert found.high - 1.0 == pytest.approx(0.1 * 1.812461, rel=1e-6)  # t(10) at 0.95


@pytest.mark.parametrize(
    ("budget", "confidence"), [(math.nan, 0.95), (0.0, 0.95), (-0.1, 0.95), (0.1, 0.5), (0.1, 1.0), (0.1, 95)]
)
def test_values_out_of_range_are_refused(budget, confidence):
    with pytest.raises(UsageError, match="must"):
        judge(Mean(0.1, 0.1, 10, 5), budget, confidence)


class Tokenizer:
    """Tokens whose text is hostile, or which split a character in two."""

    words = ["<script>alert(1)</script>", " a", "\n", "&amp;", '"', "'>", "é", "x", "y", "z", "{{ 7*7 }}", "</span>"]  # noqa: RUF012

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)

    def convert_ids_to_tokens(self, token):
        return self.words[token]


def page(tokenizer=Tokenizer()):  # noqa: B008
    windows, change, argmax = sample()
    means = {quantity.name: Mean(0.5, 0.01, 87, 4) for quantity in PAIR}
    found = Measurement(
        base="b<b>",
        tuned="<img src=x onerror=alert(1)>",
        text="t",
        means=means,
        documents_in_text=4,
        context=30,
        settings=Settings(),
        dtype="float32",
        seconds=1.0,
        noise=None,
        notices=("<i>note</i>",),
        windows=windows,
        change=change,
        argmax=argmax,
        tokenizer=tokenizer,
    )
    return windows, render(Profile({"t": found}))


def test_the_page_is_escaped_self_contained_and_whole():
    windows, text = page()
    assert "<script" not in text
    assert "<img" not in text
    assert "<i>note" not in text
    assert "49" not in re.findall(r"title=\"[^\"]*\">([^<]*)</span>", text)
    assert not re.findall(r"<[^>]*\s(?:src|href)=|https?://|@import|url\(", text)
    assert "default-src 'none'" in text
    body = text.split('<div class="passage">')[1].split("</div>")[0]
    visible = html.unescape("".join(re.findall(r"<span[^>]*>([^<]*)</span>", body)))
    assert visible in {Tokenizer().decode(windows.window(w)[0].tolist()) for w in range(len(windows))}
    assert page()[1] == text


def test_the_page_without_a_tokenizer_shows_ids():
    assert re.search(r"title=\"[^\"]*\">\[\d+\]</span>", page(None)[1])


def luminance(colour):
    """The relative luminance of WCAG of a colour of three numbers up to 255."""
    parts = np.asarray(colour) / 255
    return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def colour_of(text):
    """The numbers of `#fff`, `#1b1e24` or `179 38 30`."""
    if not text.startswith("#"):
        return np.array([float(part) for part in text.split()])
    digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)])


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_on_every_shade_can_be_read(mode):
    _, text = page()
    names = ("ink", "bad", "good", "surface", "page")
    colours = {name: colour_of(re.findall(rf"--{name}: ([^;]*);", text)[mode]) for name in names}
    shades = re.findall(r"\.[fg]\d { background: rgb\(var\(--(bad|good)\) / ([\d.]+)\)", text)
    assert len(shades) == 16
    for name, alpha in shades:
        for ground in ("surface", "page"):
            filled = float(alpha) * colours[name] + (1 - float(alpha)) * colours[ground]
            low, high = sorted((luminance(colours["ink"]), luminance(filled)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, alpha, ground)
    assert re.search(r"\.key span {[^}]*color: var\(--ink\)", text)


def test_a_tap_on_a_token_shows_its_hint():
    _, text = page()
    body = text.split('<div class="passage">')[1].split("</div>")[0]
    assert body.count("<span") == body.count(' tabindex="-1" title="') > 0
    assert ".passage span:focus::after { content: attr(title);" in text
    assert "or tap it" in text


def test_the_page_says_what_is_lower_in_whole_sentences():
    _, text = page()
    assert "On t, its log-probability of the tokens that b&lt;b&gt; expected is lower by 0.5000 nats/token" in text
    assert [_lower(value) for value in (-0.25, 0.0, None)] == [
        "higher by 0.2500",
        "lower by 0.0000",
        "lower by unknown",
    ]
    notes = re.findall(r'<p class="soft">(Loss change[^<]*)</p>', text)
    start = "Loss change in nats/token, with standard error, by "
    assert notes == [
        f"{start}the number of tokens before the predicted one.",
        f"{start}how many times the token occurs in the text.",
    ]
