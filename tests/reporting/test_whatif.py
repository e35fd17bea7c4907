"""The what-if panel: its numbers equal those of `predict` and `plan`, in the measured range and beyond."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from test_report import study
from test_report_browser import browser, open_in  # noqa: F401 - a fixture

from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.plan import Cost, costs_of, plan_budget
from forgetting.analysis.plan.predict import predict_rows
from forgetting.analysis.plan.surface import surface_of
from forgetting.display.numbers import MINUS
from forgetting.reporting import render_study
from forgetting.reporting.sections import cells_of
from forgetting.reporting.series import group, panels, tidy
from forgetting.reporting.whatif import what_if

RANKS, STEPS, FLOOR, PER_RANK = (8, 16, 32, 64, 128), (20, 40, 60, 80, 100, 140, 200), 0.42, 1000
LOSSES = ("finetune_loss", "forgetting_loss")
SET = """([panel, points]) => {
    const box = document.getElementById(`${panel}-whatif`);
    const part = (name) => box.querySelector(`[data-part="${name}"]`);
    const text = (name) => part(name).textContent;
    return points.map((point) => {
        ["size", "steps", "budget"].forEach((name, i) => { part(name).value = point[i]; });
        part("budget").dispatchEvent(new Event("input", { bubbles: true }));
        const rows = [...part("table").tBodies[0].rows].map((row) => [...row.cells].slice(1).map((c) => c.textContent));
        return { rows, losses: text("losses"), spent: text("spent"), notes: text("notes") };
    });
}"""


@pytest.fixture(scope="module")
def made() -> tuple[Any, ...]:
    """A study of five ranks whose joint law has a rival beyond the measured range."""
    config, table, runs, _ = study(("news",), tuple({"name": "lora", "rank": r} for r in RANKS))
    rng = np.random.default_rng(0)
    rows = []
    for rank, run in zip(RANKS, runs, strict=True):
        shift = rng.normal(0, 0.01, 2)
        common = table[table["run_id"] == run["run_id"]].iloc[0].to_dict() | {"trainable_params": PER_RANK * rank}
        for step in STEPS:
            size = PER_RANK * rank
            tuned = 1.2 + 1.1 * ((500 / size) ** 0.3 + (20 / step) ** 0.5) ** 0.8 + shift[0]
            forgot = 1.9 - 1.0 * ((400 / size) ** 0.25 + (12 / step) ** 0.45) ** 0.7 + shift[1]
            own = {"step": step, "finetune_loss": tuned, "forgetting_loss": forgot, "forgetting_floor": FLOOR}
            spent = {"train_seconds": step * (0.5 + rank / 100), "train_tokens": step * 4096}
            rows.append(common | own | {"forgetting": forgot - FLOOR} | spent)
    made = pd.DataFrame(rows).astype({"rank": "Int64"})
    fit = fit_law("shifted_power", made, label="news", bootstrap=60)
    assert fit.rivals
    return config, made, runs, {"news": {"shifted_power": fit}}


@pytest.fixture(scope="module")
def law(made) -> Fit:
    return made[3]["news"]["shifted_power"]


@pytest.fixture(scope="module")
def opened(made, browser, tmp_path_factory) -> Any:  # noqa: F811 - the fixture
    path = tmp_path_factory.mktemp("whatif") / "report.html"
    path.write_text(render_study(*made), encoding="utf-8")
    return open_in(browser, path)


def panel_of(made: tuple[Any, ...]) -> Any:
    config, table, runs, fits = made
    rows = tidy(table)
    return panels(config.datasets, rows, group(rows, runs), fits)[0]


def signed(cells: tuple[str, ...]) -> list[str]:
    """With the page's minus signs, also in exponents."""
    return [cell.replace("-", MINUS) for cell in cells]


def test_the_page_has_the_fits_own_numbers_and_stops_at_what_was_measured(made, law):
    data = what_if(panel_of(made), Cost(4096.0))
    surface = surface_of(law)
    given = np.frombuffer(base64.b64decode(data["draws"]), "<f8").reshape(surface.draws.shape)
    assert (given == surface.draws).all()
    assert {PER_RANK * r for r in (4, *RANKS, 256)} == set(data["sizes"])
    assert set(STEPS) < set(data["steps"])
    assert (data["steps"][0], data["steps"][-1]) == (5, 800)
    assert data["start"] == [PER_RANK * 32, 200, pytest.approx(data["start"][2])]
    assert any(c["extrapolated"] for c in data["checks"])
    assert not all(c["extrapolated"] for c in data["checks"])
    assert len(json.dumps(data)) < 60_000


def test_no_law_no_panel(made, law):
    config, table, runs, _ = made
    assert what_if(panel_of((config, table, runs, {})), None) is None
    one = replace(law, measured_range=law.measured_range | {"trainable_params": (8000.0, 8000.0)})
    assert what_if(panel_of((config, table, runs, {"news": {"shifted_power": one}})), None) is None
    page = render_study(config, table, runs, {})
    assert "whatif-inputs" not in page[page.index("<main>") : page.index("</main>")]


def test_the_panel_is_labelled_for_those_who_do_not_see_it(made):
    page = render_study(*made)
    main = page[page.index("<main>") : page.index("</main>")]
    for part in ("size", "steps", "budget"):
        assert f'<label for="d0-whatif-{part}">' in main
        assert re.search(rf'<input type="number" id="d0-whatif-{part}"', main)
    assert len(re.findall(r'<input type="range"[^>]* aria-label="[^"]+"', main)) == 2
    assert 'role="status" aria-live="polite"' in main
    assert not re.search(r"\son\w+=", main)


@pytest.mark.full
def test_every_number_is_that_of_predict(opened, law):
    rng = np.random.default_rng(1)
    ranks = [*RANKS, 1, 3, 11, 100, 500, *rng.integers(8, 128, 10)]
    steps = [*STEPS, 1, 7, 19, 21, 137, 199, 201, 900, *rng.integers(20, 200, 15)]
    points = [(int(r), int(s), 0.3) for r in ranks for s in steps]
    seen = opened.page.evaluate(SET, ["d0", points])
    rows = predict_rows(law, "news", {"step": sorted({p[1] for p in points})}, ranks=sorted({p[0] for p in points}))
    expected = {(row["rank"], row["step"]): row for row in rows}
    for (rank, step, _), values in zip(points, seen, strict=True):
        row = expected[rank, step]
        for output, cells in zip((*LOSSES, "forgetting"), values["rows"], strict=True):
            assert cells == signed(cells_of(row[output])), (rank, step, output)
        assert (
            values["losses"].count("Outside the measured range (rank 8 to 128, 20 to 200 steps)") == row["extrapolated"]
        )
        assert ("bands include laws that fit about as well" in values["notes"]) == row["extrapolated"]
        seconds = step * (0.5 + rank / 100)
        cost = re.search(r"Cost: ([\d,]+) tokens and ([\d.,]+) hours", values["losses"])
        assert float(cost[1].replace(",", "")) == float(f"{4096 * step:.3g}")
        assert float(cost[2].replace(",", "")) == pytest.approx(seconds / 3600, rel=5e-3)
    assert opened.trouble == []


@pytest.mark.full
def test_the_budget_is_spent_where_plan_says(opened, made, law):
    budgets = [0.001, 0.05, 0.2, 0.31, 0.37, 0.45, 0.6, 0.7, 1.2, 5.0]
    points = [(rank, 100, budget) for rank in (*RANKS, 11) for budget in budgets]
    ways = set()
    cost = costs_of(type("Study", (), {"table": made[1]}))["news"]
    for (rank, _, budget), values in zip(points, opened.page.evaluate(SET, ["d0", points]), strict=True):
        text = values["spent"]
        found = plan_budget(law, budget, ranks=[rank], cost=cost)
        if "never spent" in text:
            ways.add("never")
            assert np.isinf(found.frontier[0].steps.value)
            limit = found.frontier[0].forgetting_loss.value - FLOOR
            assert f"the law’s limit is {limit:.5g}." in text
        elif "before the first step" in text:
            ways.add("early")
            assert "before the first step" in " ".join(found.sentences)
        elif "says nothing there" in text:
            ways.add("far")
            steps = re.search(r"would take ([\d,]+ steps?)", text)[1]
            assert any(f"would take {steps}, but 20 to 200 were measured" in s for s in found.sentences)
        else:
            (choice,) = found.frontier
            ways.add("outside" if choice.extrapolated else "inside")
            assert f"at rank {rank} at step {choice.steps.value:,.0f}" in text
            value, band, run = cells_of(
                {
                    "value": choice.finetune_loss.value,
                    "low": choice.finetune_loss.low,
                    "high": choice.finetune_loss.high,
                }
                | dict(zip(("run_low", "run_high"), choice.new_run["finetune_loss"], strict=True))
            )
            assert f"a fine-tuning loss of {value}" in text
            for name, span in (("95\u00a0% band", band), ("of one new run", run)):
                assert (f"{name} {span}" in text) == (span != "–")
            low, high = choice.steps.low, choice.steps.high
            if np.isfinite(low):
                between = f"{low:,.0f} to {high:,.0f}" if np.isfinite(high) else f"at least {low:,.0f}"
                assert f"(95\u00a0% band {between})" in text
            assert float(re.search(r"for ([\d,]+) tokens", text)[1].replace(",", "")) == float(f"{choice.tokens:.3g}")
            assert float(re.search(r"and ([\d.,]+) hours", text)[1].replace(",", "")) == float(f"{choice.hours:.3g}")
            assert ("outside the measured range" in text) == choice.extrapolated
    assert ways >= {"never", "far", "outside", "inside"}


@pytest.mark.full
def test_a_slider_goes_by_keyboard_from_stop_to_stop(opened):
    page = opened.page
    number, slider = (page.locator(f"#d0-whatif [data-part={name}]") for name in ("size", "size-slider"))
    number.fill("11")
    assert slider.get_attribute("aria-valuetext") == "11"
    slider.focus()
    page.keyboard.press("End")
    assert number.input_value() == "256"
    page.keyboard.press("ArrowLeft")
    assert number.input_value() == slider.get_attribute("aria-valuetext") == "128"
    assert page.locator("#d0-whatif [data-part=losses]").text_content().startswith("Rank 128, ")
    assert slider.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    assert page.locator("#d0-whatif svg").count() == 2
    assert opened.trouble == []


@pytest.mark.full
@pytest.mark.parametrize("wrong", ["", "0", "-3", "1e300"])
def test_bad_input_is_named_and_shows_no_number(opened, wrong):
    page = opened.page
    steps = page.locator("#d0-whatif [data-part=steps]")
    steps.fill(wrong)
    assert "Steps: a number from 1 to" in page.locator("#d0-whatif [data-part=losses]").text_content()
    assert steps.get_attribute("aria-invalid") == "true"
    assert set(page.locator("#d0-whatif tbody td").all_text_contents()) == {"–"}
    steps.fill("100")
    assert steps.get_attribute("aria-invalid") == "false"


@pytest.mark.full
def test_it_works_on_a_phone_in_dark_mode_and_without_bands(made, law, browser, tmp_path):  # noqa: F811 - the fixture
    bare = replace(law, draws=[], rivals=(), diagnostics={})
    path = tmp_path / "report.html"
    path.write_text(render_study(*made[:3], {"news": {"shifted_power": bare}}), encoding="utf-8")
    opened = open_in(browser, path, 390, "dark")
    page = opened.page
    assert page.locator("#d0-whatif").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#d0-whatif label").first.text_content() == "Trainable parameters, P"
    assert "without resamples" in page.locator("#d0-whatif [data-part=notes]").text_content()
    value = law.predict("finetune_loss", trainable_params=32_000, step=200).value
    cells = page.locator("#d0-whatif tbody tr").first.locator("td").all_text_contents()
    assert cells == [f"{value:.5g}", "–", "–"]
    assert page.locator("#d0-whatif tbody tr").nth(2).is_hidden()
    assert opened.trouble == []
    page.context.close()


@pytest.mark.full
def test_other_numbers_than_python_gave_close_the_panel(made, law, browser, tmp_path):  # noqa: F811 - the fixture
    path = tmp_path / "report.html"
    page = render_study(*made).replace(get_plotlyjs(), "")  # the charts are not asked for here
    changed = re.sub(r'"widen":[\d.]+', f'"widen":{law.widen * 1.001}', page)
    assert changed != page
    path.write_text(changed, encoding="utf-8")
    opened = browser.new_context().new_page()
    opened.goto(path.as_uri(), timeout=120_000)
    opened.wait_for_selector("#d0-whatif-differs", timeout=60_000)
    assert opened.locator("#d0-whatif").is_hidden()
    opened.context.close()
