"""Both bands of predictions in a report, by name and level, with the numbers of `predict`."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_report import study, with_words

import forgetting
from forgetting.analysis.compare import Comparison
from forgetting.analysis.fit import Estimate, fit_law
from forgetting.analysis.fit.curves import bands_said
from forgetting.display.numbers import MINUS
from forgetting.errors import UsageError
from forgetting.reporting import render_study
from forgetting.reporting.aggregate import MOST_POINTS, drawn
from forgetting.reporting.curves import fitted_steps
from forgetting.reporting.figures import charts, hover_texts
from forgetting.reporting.sections import predictions
from forgetting.reporting.series import Panel, group, panels, tidy
from forgetting.studies.conclude import StudyResult

SCATTER = {"scatter": {"finetune_loss": 0.004, "forgetting_loss": 0.006}}


@pytest.fixture(scope="module")
def made() -> tuple[Any, ...]:
    """A study whose fits know how runs scatter."""
    config, table, runs, fits = study(("openorca",))
    fits = {name: {law: replace(fit, diagnostics=SCATTER) for law, fit in laws.items()} for name, laws in fits.items()}
    return config, table, runs, fits


def panel_of(made: tuple[Any, ...]) -> Panel:
    config, table, runs, fits = made
    rows = tidy(table)
    return panels(config.datasets, rows, group(rows, runs), fits)[0]


def test_the_table_holds_what_predict_prints(made):
    panel = panel_of(made)
    level, rows = predictions(panel)
    assert level == "95\u00a0%"
    ranks = [8, 16, 32, 64, 128, 256]
    printed = forgetting.predict(panel.joint, params=[2_498_560 * r for r in ranks], steps=260)
    at = {name: i for i, name in enumerate(printed.shown()[0].columns)}
    for row, cells in zip(rows, printed.shown()[0].rows, strict=True):
        for output, predicted in (("finetune_loss", row.finetune), ("forgetting_loss", row.forgetting)):
            assert cells[at[output]] == f"{predicted[0]} ({predicted[1]}; {predicted[2]})".replace(MINUS, "-")
    page = with_words(render_study(*made))
    for row in rows:
        for text in (*row.finetune, *row.forgetting):
            assert text in page
    assert "95 % band of the law’s mean" in page.replace("\u00a0", " ")
    assert "95 % band of one new run" in page.replace("\u00a0", " ")


def test_every_chart_of_a_law_has_both_bands_and_names_them(made):
    panel = panel_of(made)
    drawn = {chart.kind: chart for chart in charts(panel)}
    for kind, output, along, less in (
        ("line", "forgetting_loss", "finetune_loss", 0.0),
        ("steps-finetune_loss", "finetune_loss", "step", 0.0),
        ("steps-forgetting", "forgetting_loss", "step", 0.42),
        ("size", "forgetting_loss", "trainable_params", 0.42),
    ):
        chart = drawn[kind]
        assert "the 95\u00a0% band of the law’s mean" in chart.caption, kind
        assert "the 95\u00a0% band of one new run" in chart.caption, kind
        areas = {t["meta"]["role"]: t for t in chart.spec["data"] if t["meta"]["role"] in ("band", "run")}
        assert set(areas) == {"band", "run"}
        fit = panel.linear if kind == "line" else panel.joint
        x = np.array(areas["band"]["x"][: len(areas["band"]["x"]) // 2])
        at = {"step": 260.0} if kind == "size" else {} if kind == "line" else {"trainable_params": 2_498_560.0 * 64}
        p = fit.predict(output, **at, **{along: x})
        for role, low, high in (("band", p.low, p.high), ("run", p.run_low, p.run_high)):
            y = np.array(areas[role]["y"])
            assert y[: x.size] == pytest.approx(low - less, rel=1e-6)
            assert y[x.size :][::-1] == pytest.approx(high - less, rel=1e-6)


def test_without_a_known_scatter_only_the_mean_has_a_band():
    config, table, runs, fits = study(("openorca",))
    panel = panel_of((config, table, runs, fits))
    line = charts(panel)[0]
    assert "the 95\u00a0% band of the law’s mean" in line.caption
    assert "one new run" not in line.caption
    assert predictions(panel)[1][0].finetune[2] == "–"
    assert bands_said([], "95 %") == ""


def test_the_setup_shows_how_to_predict(made):
    page = render_study(*made)
    code = html.unescape(re.search(r'<pre tabindex="0">(import forgetting.*?)</pre>', page, re.S).group(1))
    assert code.startswith("import forgetting\n\nprint(forgetting.predict(")
    compile(code, "example", "exec")


def test_a_fits_own_figure_names_its_bands(made):
    figure = made[3]["openorca"]["linear"].figure()
    assert any("95\u00a0% band of one new run" in note.text for note in figure.layout.annotations)


@pytest.mark.parametrize("wrong", [5, ["x"], b"line", 1.5])
def test_a_figure_of_something_else_is_refused_in_one_line(made, wrong):
    config, table, _, fits = made
    result = StudyResult(Path("s"), config, table, fits, None, Path("s/report.html"), {})
    for ask in (
        lambda: result.figure(wrong),
        lambda: result.figure(kind=wrong),
        lambda: fits["openorca"]["linear"].figure(wrong),
        lambda: Comparison("lora", {}).figure(wrong),
    ):
        with pytest.raises(UsageError, match=r"^(dataset|kind|output): got .*; allowed: a string"):
            ask()


def test_captions_are_plain_text_which_the_page_escapes(made):
    config, table, runs, fits = made
    rows = tidy(table.assign(label="R&D"))
    panel = panels(config.datasets, rows, group(rows, runs), fits)[0]
    assert any("Bands at R&D rank 64: " in chart.caption for chart in charts(panel))


def test_a_bend_is_drawn_as_a_parabola_and_reported(made):
    """With its size, standard error and p of the fit's own test, and R2 of the least-squares parabola."""
    config, table, runs, _ = made
    loss = table["finetune_loss"]
    place = (loss - (loss.min() + loss.max()) / 2) / ((loss.max() - loss.min()) / 2)
    table = table.assign(forgetting_loss=table["forgetting_loss"] + 0.03 * place**2)
    fits = {"openorca": {"linear": fit_law("linear", table[table["step"] >= 50], bootstrap=200, label="openorca")}}
    rows = tidy(table)
    panel = panels(config.datasets, rows, group(rows, runs), fits)[0]
    chart = next(c for c in charts(panel) if c.kind == "line")
    (curve,) = [t for t in chart.spec["data"] if t["meta"]["role"] == "bend"]
    x, y = panel.points["finetune_loss"], panel.points["forgetting_loss"]
    parabola = np.polyfit(x, y, 2)
    assert np.array(curve["y"]) == pytest.approx(np.polyval(parabola, curve["x"]), abs=1e-4)
    r2 = 1 - np.sum((y - np.polyval(parabola, x)) ** 2) / np.sum((y - y.mean()) ** 2)
    assert f"the parabola through them (R² {r2:.3f}" in chart.caption
    (test,) = [t for t in panel.linear.diagnostics["misfit"] if t["kind"] == "bend"]
    assert f"they lie {test['size']:.2g} ± {test['se']:.1g} nats/token above" in chart.caption
    assert f"(p = {test['p_holm']:.1g}, by runs)" in chart.caption


def test_no_bend_no_parabola(made):
    chart = next(c for c in charts(panel_of(made)) if c.kind == "line")
    assert not [t for t in chart.spec["data"] if t["meta"]["role"] == "bend"]
    assert "parabola" not in chart.caption


def test_forgetting_that_cannot_be_told_from_0_is_shaded_and_hollow(made):
    """The border is Student's t times the standard error where a value is that many of its own errors."""
    config, table, runs, fits = made
    value = np.linspace(-0.001, 0.05, len(table))
    se = 0.002 + 0.1 * np.abs(value)  # t * se crosses the value where value = t * (0.002 + 0.1 * value)
    table = table.assign(forgetting=value, forgetting_se=se, text_documents=41.0)
    panel = panel_of((config, table, runs, fits))
    t = stats.t.ppf(0.975, 40)
    assert panel.resolution == pytest.approx(t * 0.002 / (1 - 0.1 * t), rel=0.02)
    chart = next(c for c in charts(panel) if c.kind == "steps-forgetting")
    band, border = chart.spec["layout"]["shapes"]
    assert (band["y0"], band["y1"], border["y0"]) == (-panel.resolution, panel.resolution, panel.resolution)
    assert "cannot distinguish from 0" in chart.caption
    points = [trace for trace in chart.spec["data"] if trace["meta"]["role"] == "points" and trace.get("visible", True)]
    hollow = [y for trace in points if trace["marker"]["symbol"] == "circle-open" for y in trace["y"]]
    full = [y for trace in points if trace["marker"]["symbol"] == "circle" for y in trace["y"]]
    assert max(map(abs, hollow)) <= panel.resolution < min(map(abs, full))
    assert len(hollow) + len(full) == len(panel.points)
    assert sum("not distinguishable from 0" in text for text in hover_texts(panel)) == len(hollow)
    assert "band and hollow points: forgetting not distinguishable from 0" in render_study(config, table, runs, fits)


def test_without_standard_errors_there_is_no_such_band(made):
    config, table, runs, fits = made
    made = (config, table.assign(forgetting_se=np.nan), runs, fits)
    assert panel_of(made).resolution is None
    assert "distinguishable from 0" not in with_words(render_study(*made))


def test_scales_known_to_decades_are_powers_of_ten_in_the_table_of_laws(made):
    config, table, runs, fits = made
    fit = fits["openorca"]["shifted_power"]
    given = {"a_f": Estimate(3e98, 1e-12, 5e150, "weak"), "b_f": Estimate(2e9, identified="none")}
    fits = {"openorca": {**fits["openorca"], "shifted_power": replace(fit, parameters={**fit.parameters, **given})}}
    page = render_study(config, table, runs, fits)
    assert '<td class="num">10<sup>98.5</sup></td><td class="num soft">10<sup>−12.0</sup> to 10<sup>150.7</sup>' in page
    assert '<td class="num">not determined</td><td class="num soft">–</td>' in page


def test_mitigated_runs_have_no_curve_of_the_plain_ones_law(made):
    """The law is fitted to plain runs, and at the mitigated runs' P it would repeat their curve."""
    config, table, runs, fits = made
    one = table[table["rank"] == 8]
    replay = one.assign(run_id="replay", label="lora", mitigation="replay fraction=0.1")
    panel = panel_of((config, pd.concat([table, replay]), runs, fits))
    assert [s.label for s in panel.series][-1] == "LoRA rank 8 + replay fraction=0.1"
    curves = {trace["meta"]["series"] for trace in fitted_steps(panel, "finetune_loss")}
    assert curves == {s.key for s in panel.series[:-1]}


def test_a_means_error_counts_only_runs_that_have_the_quantity(made):
    table = made[1]
    copies = [table.assign(run_id=table["run_id"] + f"-{i}", forgetting=1.0 + i, agreement=0.5) for i in range(4)]
    more = pd.concat(copies)
    more.loc[more["run_id"].str.endswith("-3"), "forgetting"] = np.nan
    more.loc[~more["run_id"].str.endswith("-3"), "agreement"] = np.nan
    rows = tidy(pd.concat([more.assign(step=more["step"] + 1000 * i) for i in range(10)]))
    assert len(rows) > MOST_POINTS
    means, _ = drawn(rows, group(rows, []))
    assert means["forgetting_se"].to_numpy() == pytest.approx(1 / np.sqrt(3))
    assert means["agreement_se"].to_numpy() == pytest.approx(0.0021)
