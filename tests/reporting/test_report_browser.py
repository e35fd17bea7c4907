"""The report in a browser: charts drawn, no errors, offline, readable on large and small screens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
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
GROUND, LIGHT, DARK = "gd => gd.layout.paper_bgcolor", "#ffffff", "#1a1d22"
POINTS = """gd => gd.data.filter(t => t.visible && t.meta.role === "points")
    .reduce((n, t) => n + t.x.filter(x => x !== null).length, 0)"""


def wait_for(page: Any, accepted: Any) -> None:
    """Wait for the charts' background; `wait_for_function` would need eval, which the page's policy forbids."""
    for _ in range(400):
        if accepted(page.locator(".chart").first.evaluate(GROUND)):
            return
        page.wait_for_timeout(50)
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
        """Visible points by kind of chart, one number per data set."""
        found: dict[str, list[int]] = {}
        for chart in self.page.locator(".chart").all():
            found.setdefault(chart.get_attribute("data-kind"), []).append(chart.evaluate(POINTS))
        return found


def open_in(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> Opened:
    """A report's page, drawn, in a context of its own."""
    made = Opened(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page())
    page = made.page
    page.on("console", lambda m: made.trouble.append(f"console {m.type}: {m.text}"))
    page.on("pageerror", lambda e: made.trouble.append(f"error: {e}"))
    page.on("dialog", lambda d: (made.trouble.append(f"dialog: {d.message}"), d.dismiss()))
    page.on("request", lambda r: r.url.startswith("file:") or made.trouble.append(f"request: {r.url}"))
    page.goto(path.as_uri(), timeout=120_000)
    page.wait_for_selector("html[data-drawn]", timeout=60_000)
    return made


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    pages = []

    def opened(args: Any, width: int = 1280, scheme: str = "light", **more: Any) -> Opened:
        path = write_study_report(*args, path=tmp_path / "report.html", **more)
        pages.append(open_in(browser, path, width, scheme))
        return pages[-1]

    yield opened
    for each in pages:
        each.page.context.close()


@pytest.fixture(scope="module")
def news(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The page of one data set, opened once; tests change only the pointer's position and the order of runs."""
    return open_in(browser, write_study_report(*study(("news",)), path=tmp_path_factory.mktemp("news") / "report.html"))


def test_every_measurement_is_drawn_without_browser_errors(show):
    opened = show(study())
    rows = 6 * 22  # ranks x measured steps after step 0
    assert opened.points() == {
        "line": [rows] * 2,
        "steps-finetune_loss": [rows] * 2,
        "steps-forgetting": [rows] * 2,
        "size": [6] * 2,
        "agreement": [rows] * 2,
    }
    drawn = opened.page.evaluate(
        "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.point').length)"
    )
    assert drawn == [rows, rows, rows, 6, rows] * 2
    assert opened.trouble == []


@pytest.mark.parametrize("width", [1280, 390])
def test_readable_without_sideways_scrolling(show, width):
    args = study(("openorca", "news", "poems"))
    fail_one(args[1], args[2], "x" * 300)
    opened = show(args, width)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    inside = (
        "[...document.querySelectorAll('.chart .main-svg')].every(s => s.getBoundingClientRect().right <= innerWidth)"
    )
    for scheme, ground in (("light", LIGHT), ("dark", DARK)):
        page.emulate_media(color_scheme=scheme)
        wait_for(page, lambda seen, ground=ground: seen == ground)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(inside)
    assert opened.trouble == []


def test_hover_names_the_run(news):
    opened = news
    chart = opened.page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    box = chart.locator(".point").nth(40).bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = chart.locator(".hoverlayer").text_content(timeout=5000)
    assert "news-lora-r" in text
    assert "step" in text
    assert "±" in text
    assert opened.trouble == []


def test_colours_follow_the_scheme(news):
    assert news.page.locator(".chart").first.evaluate(GROUND) == LIGHT
    for scheme, ground in (("dark", DARK), ("light", LIGHT)):
        news.page.emulate_media(color_scheme=scheme)
        wait_for(news.page, lambda seen, ground=ground: seen == ground)
    assert news.trouble == []


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


def test_the_table_of_runs_sorts_by_number(news):
    page = news.page
    head = page.locator("#runs th").nth(5)
    assert head.text_content() == "P"
    head.locator("button").click()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert "r256" in page.locator("#runs tbody tr").first.text_content()


def test_hostile_names_are_text(show):
    hostile = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "<b>bold</b>"]
    datasets = ("news", "openorca", "poems")
    args = study(datasets, names=dict(zip(datasets, hostile, strict=True)))
    fail_one(args[1], args[2], " and ".join(hostile))
    for name in hostile:
        args[3][name] = {"linear": fit_of("news", "linear", {"finetune_loss": (1.9, 2.2)}, warnings=[name])}
    opened = show(args)
    page = opened.page
    for name in hostile:
        assert page.locator("h2", has_text=name).count() == 1
        chart = page.locator("section.panel", has=page.locator("h2", has_text=name)).locator(".chart").first
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


def test_no_button_sends_the_data_anywhere(news):
    titles = news.page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles
    assert not any(word in title.lower() for title in titles for word in ("cloud", "share", "edit", "link"))


@pytest.mark.parametrize(
    ("methods", "fitted"),
    [
        ((*LORA, {"name": "full"}, {"name": "ia3"}), True),
        (({"name": "full"},), False),
        pytest.param(({"name": "full"},), True, marks=pytest.mark.slow),
        pytest.param(LORA[:1], False, marks=pytest.mark.slow),
    ],
)
def test_other_methods_with_and_without_fits(show, methods, fitted):
    config, table, runs, fits = study(("news",), methods)
    opened = show((config, table, runs, fits if fitted else {}))
    assert opened.points()["line"] == [22 * len(methods)]
    assert opened.points()["size"] == [len(methods)]
    assert opened.trouble == []


def test_paper_is_light_and_holds_the_charts(show):
    opened = show(study(("news",)), scheme="dark")
    assert opened.page.locator(".chart").first.evaluate(GROUND) == DARK
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    wait_for(opened.page, lambda ground: ground == LIGHT)
    assert opened.page.evaluate("document.querySelector('.chart .main-svg').getBoundingClientRect().width") <= 680
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    wait_for(opened.page, lambda ground: ground == DARK)


def test_measurements_are_downloaded_as_the_table_writes_them(show):
    config, table, runs, fits = study(("news",))
    table.loc[3, "label"] = "=HYPERLINK(1)"
    opened = show((config, table, runs, fits))
    page = opened.page
    page.locator("details", has_text="All measurements").first.evaluate("d => d.open = true")
    with page.expect_download() as download:
        page.get_by_role("link", name="All columns as CSV").click()
    found = pd.read_csv(download.value.path())
    assert list(found.columns) == list(table.columns)
    assert found["label"][3] == "'=HYPERLINK(1)"
    for column in ("step", "finetune_loss", "forgetting_se"):
        assert found[column].tolist() == pytest.approx(table[column].tolist(), rel=1e-15, nan_ok=True)
    assert [line for line in opened.trouble if "blob:" not in line] == []
