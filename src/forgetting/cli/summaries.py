"""Verdicts for people who did not run the command: Markdown for a pull request, JUnit XML for a CI server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError, visible

NO_XML = re.compile("[\ufffe\uffff]")
MARKS = {"within": "✅", "over": "❌", "not improved": "❌", "undecided": "❔"}
Markdown = Annotated[
    Path | None, typer.Option(help="Also write a Markdown summary to this file, for a pull-request comment.")
]
Junit = Annotated[
    Path | None,
    typer.Option("--junit", help="Also write the verdicts to this file as JUnit XML, one test case each."),
]
Confidence = Annotated[float, typer.Option(help="Confidence of each bound.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 also if the verdict is undecided.")]
AllowUndecided = Annotated[
    bool,
    typer.Option("--allow-undecided", help="Exit with 0 if the verdict is undecided, however little was measured."),
]


@dataclass(frozen=True)
class Case:
    """A verdict as a test case.

    Attributes:
        name: name of what was judged.
        verdict: the verdict in a word.
        sentence: the verdict in a sentence.
        exit_code: exit code of this verdict alone.
    """

    name: str
    verdict: str
    sentence: str
    exit_code: int


def heading(what: str, verdict: str) -> str:
    """The heading of a summary."""
    return f"### {MARKS[verdict]} {what} {verdict + ' budget' if verdict in ('within', 'over') else verdict}"


def as_junit(suite: str, models: str, cases: Sequence[Case]) -> str:
    """Test cases as JUnit XML: over budget is a failure; undecided is skipped if it passes, otherwise a failure.

    Args:
        suite: the command that judged.
        models: the models compared.
        cases: one per verdict.
    """
    from xml.etree import ElementTree

    failed, skipped = (sum(c.exit_code != 0 for c in cases), sum(_skipped(c) for c in cases))
    counts = {"tests": str(len(cases)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}
    top = ElementTree.Element("testsuites", counts)
    group = ElementTree.SubElement(top, "testsuite", {"name": suite, **counts})
    for case in cases:
        names = {"classname": _in_xml(models), "name": _in_xml(case.name)}
        row = ElementTree.SubElement(group, "testcase", names)
        sentence = _in_xml(case.sentence)
        if case.exit_code:
            ElementTree.SubElement(row, "failure", {"type": case.verdict, "message": sentence}).text = sentence
        elif _skipped(case):
            ElementTree.SubElement(row, "skipped", {"message": sentence})
        else:
            ElementTree.SubElement(row, "system-out").text = sentence
    ElementTree.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, encoding="unicode") + "\n"


def _in_xml(text: str) -> str:
    return NO_XML.sub("\N{REPLACEMENT CHARACTER}", visible(text))


def _skipped(case: Case) -> bool:
    return case.verdict == "undecided" and not case.exit_code


def check_undecided(strict: bool, allow: bool) -> None:
    """Refuse --strict together with --allow-undecided.

    Raises:
        UsageError: both were given.
    """
    if strict and allow:
        raise UsageError("give --strict or --allow-undecided, not both")


def say_page(html: Path | None, *, as_json: bool) -> None:
    """Say which page was written."""
    if html is not None and not as_json:
        typer.echo(f"report: {visible(str(html))}")


def write(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        UsageError: it cannot be written.
    """
    from ..files import write_atomically

    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
