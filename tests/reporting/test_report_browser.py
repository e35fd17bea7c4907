"""The report as a browser shows it: drawn, quiet, offline, readable on a desk and in a hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_report import LORA, fail_one, fit_of, study

from forgetting.reporting import write_study_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((p for p in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser")) if p.exists()), None)
pytestmark = pytest.mark.full
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
POINTS = """gd => gd.data.filter(t => t.visible && t.meta.role === "points")
    .reduce((n, t) => n + t.x.filter(x => x !== null).length, 0)"""


def wait_for(page: Any, wanted: Any) -> None:
    """Wait for the charts' ground; `wait_for_function` would need eval, which the page's policy forbids."""
    for _ in range(100):
        if wanted(page.locator(".chart").first.evaluate("gd => gd.layout.paper_bgcolor")):
            return
        page.wait_for_timeout(100)
    raise AssertionError("the charts did not change their ground")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page and what went wrong in it."""

    page: Any
    trouble: list[str] = field(default_factory=list)

    def points(self) -> dict[str, list[int]]:
        """Visible points by kind of chart, one number a data set."""
        found: dict[str, list[int]] = {}
        for chart in self.page.locator(".chart").all():
            found.setdefault(chart.get_attribute("data-kind"), []).append(chart.evaluate(POINTS))
        return found


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    contexts = []

    def opened(args: Any, width: int = 1280, scheme: str = "light", **more: Any) -> Opened:
        path = write_study_report(*args, path=tmp_path / "report.html", **more)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        made = Opened(context.new_page())
        page = made.page
        page.on("console", lambda m: made.trouble.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: made.trouble.append(f"error: {e}"))
        page.on("dialog", lambda d: (made.trouble.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: r.url.startswith("file:") or made.trouble.append(f"request: {r.url}"))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return made

    yield opened
    for context in contexts:
        context.close()


def test_every_measurement_is_drawn_and_nothing_complains(show):
    opened = show(study())
    rows = 6 * 22  # ranks x measured steps after step 0
    assert opened.points() == {
        "line": [rows] * 2,
        "steps-finetune_loss": [rows] * 2,
        "steps-forgetting_loss": [rows] * 2,
        "size": [6] * 2,
        "agreement": [rows] * 2,
    }
    drawn = opened.page.evaluate(
        "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.point').length)"
    )
    assert drawn == [rows, rows, rows, 6, rows] * 2
    assert opened.trouble == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_without_sideways_scrolling(show, width, scheme):
    args = study(("openorca", "news", "poems"))
    fail_one(args[1], args[2], "x" * 300)
    opened = show(args, width, scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    inside = (
        "[...document.querySelectorAll('.chart .main-svg')].every(s => s.getBoundingClientRect().right <= innerWidth)"
    )
    assert page.evaluate(inside)
    assert opened.trouble == []


def test_hover_names_the_run(show):
    opened = show(study(("news",)))
    chart = opened.page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    box = chart.locator(".point").nth(40).bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = chart.locator(".hoverlayer").text_content(timeout=5000)
    assert "news-lora-r" in text
    assert "step" in text
    assert "±" in text
    assert opened.trouble == []


def test_colours_follow_the_scheme(show):
    grounds = {}
    for scheme in ("light", "dark"):
        page = show(study(("news",)), scheme=scheme).page
        grounds[scheme] = page.evaluate("document.querySelector('.chart').layout.paper_bgcolor")
        page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        wait_for(page, lambda ground, old=grounds[scheme]: ground != old)
    assert grounds == {"light": "#ffffff", "dark": "#1a1d22"}


def test_legend_hides_a_series_in_every_chart_of_its_data_set_only(show):
    opened = show(study())
    opened.page.locator("#d0 .legend button").first.click()
    assert opened.page.locator("#d0 .legend button").first.get_attribute("aria-pressed") == "false"
    assert opened.points()["line"] == [110, 132]
    assert opened.points()["size"] == [5, 6]


def test_failed_runs_and_the_base_model_are_drawn_only_when_asked_for(show):
    args = study(("news",))
    fail_one(args[1], args[2], "the loss became NaN")
    opened = show(args)
    assert opened.points()["line"] == [110]
    opened.page.locator("button[data-series=failed]").click()
    assert opened.points()["line"] == [110 + 7]
    opened.page.locator("button[data-series=base]").click()
    assert opened.points()["line"] == [110 + 7 + 5]


def test_the_table_of_runs_sorts_by_number(show):
    page = show(study(("news",))).page
    head = page.locator("#runs th").nth(5)
    assert head.text_content() == "P"
    head.locator("button").click()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert "r256" in page.locator("#runs tbody tr").first.text_content()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "<b>bold</b>"])
def test_hostile_names_are_text(show, name):
    args = study(("news",), names={"news": name})
    fail_one(args[1], args[2], name)
    args[3][name] = {"linear": fit_of("news", "linear", {"finetune_loss": (1.9, 2.2)}, warnings=[name])}
    opened = show(args)
    page = opened.page
    assert page.locator("h2", has_text=name).count() == 1
    chart = page.locator("#d1 .chart").first
    chart.scroll_into_view_if_needed()
    box = chart.locator(".point").nth(40).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert name in chart.locator(".hoverlayer").text_content(timeout=5000)
    assert page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
    assert opened.trouble == []


def test_the_policy_stops_a_script_that_got_in(show):
    opened = show(study(("news",)))
    opened.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("window.ran") is None


def test_no_button_sends_the_data_anywhere(show):
    opened = show(study(("news",)))
    titles = opened.page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles
    assert not any(word in title.lower() for title in titles for word in ("cloud", "share", "edit", "link"))


@pytest.mark.parametrize("methods", [(*LORA, {"name": "full"}, {"name": "ia3"}), ({"name": "full"},), LORA[:1]])
@pytest.mark.parametrize("fitted", [True, False])
def test_other_methods_with_and_without_fits(show, methods, fitted):
    config, table, runs, fits = study(("news",), methods)
    opened = show((config, table, runs, fits if fitted else {}))
    assert opened.points()["line"] == [22 * len(methods)]
    assert opened.points()["size"] == [len(methods)]
    assert opened.trouble == []


def test_paper_is_light_and_holds_the_charts(show):
    opened = show(study(("news",)), scheme="dark")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    wait_for(opened.page, lambda ground: ground == "#ffffff")
    assert opened.page.evaluate("document.querySelector('.chart .main-svg').getBoundingClientRect().width") <= 680
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    wait_for(opened.page, lambda ground: ground == "#1a1d22")
