"""The shape of the source: rooms import only from rooms above them, stay small, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "forgetting"
FILES = sorted(SOURCE.rglob("*.py"))

ROOMS = (
    "mirror",
    "errors",
    "guard",
    "stopping",
    "ranks",
    "config",
    "config_files",
    "windows",
    "miniature",  # above text, which reads `miniature:NAME`; its pre-training recipe is a script of its own
    "corpus_files",
    "text",
    "base",
    "methods",
    "memory",
    "measure",
    "mitigations",  # below measure, whose passes over the base model it uses
    "rows",
    "store",
    "checkpoints",
    "doctor",
    "trainer",
    "train",
    "capabilities",
    "provenance",
    "runs",
    "parallel",
    "engine",
    "study",
    "repeat",
    "laws",
    "tables",
    "fit",
    "plan",
    "compare",
    "report",
    "instrument",
    "api",
    "cli",
)
"""Data flows one way, down this list (CONTRIBUTING.md)."""
SCRIPTS = {"miniature/pretrain.py"}
"""Run by hand with `python -m`; imported by nothing."""


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports, wherever in it the import stands."""
    package = ("forgetting", *path.relative_to(SOURCE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "forgetting" else [module]
            found |= {name.split(".")[1] for name in names if name.startswith("forgetting.")}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("forgetting.")}
    return found & {room(file) for file in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_up_the_list_only(path: Path) -> None:
    mine = room(path)
    if mine in ("__init__", "__main__") or str(path.relative_to(SOURCE)) in SCRIPTS:
        return
    assert mine in ROOMS, f"{path.name}: which room is it in? add it to ROOMS and to CONTRIBUTING.md"
    below = {other for other in imported_rooms(path) if ROOMS.index(other) > ROOMS.index(mine)}
    assert not below, f"{mine} imports {below}, which lie below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, f"{path.name}: {node.name}"


LIGHT = (
    *("store", "laws", "fit", "plan", "compare", "report", "tables", "cli.app", "config"),
    *("methods", "mitigations", "miniature"),
)


@pytest.mark.parametrize("module", LIGHT)
def test_light_rooms_do_not_import_torch(module: str) -> None:
    code = f"import sys, forgetting.{module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_shows_its_help_at_once() -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-m", "forgetting", "--help"], capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - began)
    assert "study" in shown.stdout
    assert min(times) < 0.5
