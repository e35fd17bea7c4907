"""Every command, YAML and Python example in the documentation is accepted by this version."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from forgetting.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
SCRIPTS = {"bench", "docs", "scripts", "tests"}


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The code of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    for language, code in re.findall(r"^ *```(\w+)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        if language in languages:
            yield code


CALL = re.compile(r"(?:\S*\$ )?(?:[A-Z_]+=\S+ )*(?:srun )?(?:\.venv/bin/)?(forgetting|python|pytest) (.*)")


def commands(page: Path, *programs: str) -> Iterator[list[str]]:
    """The arguments of each call of a program: in blocks of shell, in workflows, and in code within a sentence."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code in blocks(page, "sh", "bash") for line in code.replace("\\\n", " ").splitlines()]
    lines += [
        line for code in blocks(page, "console") for line in code.replace("\\\n", " ").splitlines() if "$ " in line
    ]
    lines += [line for code in blocks(page, "yaml") for line in re.findall(r"run: (.*)", code)]
    lines += re.findall(r"(?<!`)`(forgetting [^`\n]+)`(?!`)", text)
    for line in lines:
        call = CALL.match(line.strip())
        if call is None or call[1] not in programs:
            continue
        words = shlex.split(call[2], comments=True)
        ends = [i for i, word in enumerate(words) if word in (">", "|", "&&", "||")]
        yield words[: ends[0]] if ends else words


@cache
def _parser() -> Any:
    return typer.main.get_command(app)


def takes(arguments: list[str]) -> str | None:
    """Why the command refuses these arguments, or nothing; the command is not run."""
    root = _parser()
    name, *rest = arguments
    if name.startswith("-"):
        return None
    if name not in root.commands:
        return f"no command {name}"
    command = root.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    whole = "..." not in rest and sum(not word.startswith("-") for word in rest) >= sum(
        parameter.required for parameter in command.params
    )
    if not whole:  # an excerpt: its options exist
        return next((word for word in rest if word.startswith("--") and word not in known), None)
    try:
        command.make_context(name, rest)
    except Exception as error:  # typer's own kinds of errors, wherever it keeps them
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_taken(page: Path) -> None:
    wrong = {" ".join(words): why for words in commands(page, "forgetting") if words and (why := takes(words))}
    assert not wrong


def test_commands_are_found_and_wrong_ones_are_seen() -> None:
    found = [words for page in PAGES for words in commands(page, "forgetting")]
    assert len(found) > 100
    assert takes(["measure", "a", "b", "--txt", "c"])
    assert takes(["mesure", "a", "b"])
    assert takes(["check", "a", "b", "...", "--bugdet"])
    assert takes(["measure", "a", "b", "--text", "c"]) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_script_that_a_page_runs_exists(page: Path) -> None:
    for words in commands(page, "python", "pytest"):
        for word in words:
            if word.split("/")[0] in SCRIPTS:
                assert (ROOT / word.split("::")[0]).exists(), word


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_compiles_and_what_it_imports_from_here_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "forgetting":
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_yaml_of_a_study_has_fields_of_a_study(page: Path) -> None:
    """A complete study must be valid; a part is inserted into a small valid study."""
    from forgetting.config.schema import StudyConfig

    small: dict[str, Any] = {
        "model": {"source": "m"},
        "text": {"source": "t"},
        "datasets": {"d": {"source": "d"}},
        "methods": [{"name": "lora", "rank": 8}],
        "training": {"steps": 400},
        "measure": {"start": 5, "every": 5},
    }
    for code in blocks(page, "yaml"):
        content = yaml.safe_load(code)
        if isinstance(content, list):
            content = {"methods": content}
        if set(content) <= set(StudyConfig.model_fields):
            StudyConfig.model_validate(small | content)
