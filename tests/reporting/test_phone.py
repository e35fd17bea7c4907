"""The pages on a phone: nothing is cut without a hint that there is more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import forgetting.reporting
from forgetting.reporting.measurement import environment

FOLDER = Path(forgetting.reporting.__file__).parent
PAGES = sorted(path.name for path in (*FOLDER.glob("*.html"), *FOLDER.glob("*.j2")) if "<table" in path.read_text())


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_every_table_scrolls_by_itself(name: str) -> None:
    page = text_of(name)
    inside = re.findall(r'<div class="(?:cap-)?scroll"[^>]*>\s*<table', page)
    assert len(inside) == page.count("<table")


def test_a_table_or_chart_that_is_cut_shows_it() -> None:
    style = environment().get_template("page_style.html").render()
    for page in (style, text_of("capabilities.html.j2") + text_of("scroll_style.html")):
        assert "var(--shade), transparent) right / 1rem 100% no-repeat scroll" in page
        assert page.count("--shade:") == 2  # the light page and the dark one
        assert ".scroll table, .cap-scroll table { background: none; }" in page  # or it would hide the shade
    assert "min-width" not in re.sub(r"@media \([^)]*\)", "", style)
    assert '{% include "scroll_style.html" %}' in text_of("capabilities.html.j2")


def test_the_figures_of_an_evaluation_are_one_below_the_other() -> None:
    page = text_of("capabilities.html.j2")
    assert '<table class="pairs">' in page
    assert "@media (max-width: 40rem) { .pairs tr { display: grid; grid-template-columns: 1fr max-content; } }" in page
