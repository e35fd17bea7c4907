"""The structure of the source: layers of packages, no circular imports, small files, light imports."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "forgetting"
FILES = sorted(SOURCE.rglob("*.py"))

PACKAGES = (
    "errors",
    "utf8",
    "files",
    "display",
    "config",
    "data",
    "models",
    "measuring",
    "store",
    "tuning",
    "capabilities",
    "analysis",
    "reporting",
    "studies",
    "integrations",
    "cli",
)
"""Data flows one way, down this list (CONTRIBUTING.md)."""


def package(module: str) -> str:
    """The top-level package of a module's dotted name below `forgetting`."""
    return module.split(".")[0]


def dotted(path: Path) -> str:
    """A file's module name below `forgetting`; a package's is that of its `__init__`."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in FILES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file as a tree; several tests look at each."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, wherever in it the import stands, TYPE_CHECKING included."""
    inside = ("forgetting", *path.relative_to(SOURCE).parts[:-1])
    found = set()
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            below = name.removeprefix("forgetting.")
            if below != name:
                found.add(below if below in MODULES else below.rpartition(".")[0])
    return {name for name in found if name in MODULES and name != dotted(path)}


def test_the_top_level_contains_only_the_packages() -> None:
    assert {package(name) for name in MODULES} - {"__init__", "__main__"} == set(PACKAGES)


def test_packages_import_only_from_those_above_them() -> None:
    for path in FILES:
        own = package(dotted(path))
        if own not in ("__init__", "__main__"):
            below = {name for name in imported(path) if PACKAGES.index(package(name)) > PACKAGES.index(own)}
            assert not below, f"{path} imports {below}, which lie below it"


def test_no_two_files_import_each_other_in_a_circle() -> None:
    """Strongly connected files (Tarjan 1972); what a file imports under TYPE_CHECKING counts."""
    graph = {name: imported(path) for name, path in MODULES.items()}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                circles.append(sorted(circle))

    for name in graph:
        if name not in order:
            visit(name)
    assert not circles


def test_files_and_functions_are_small() -> None:
    large = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 500:
            large.append(str(path))
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                large += [f"{path}: {node.name}"] if lines > 60 else []
    assert not large


def _light() -> list[str]:
    """Every module of the packages that must work without torch, and what `--help` loads."""
    whole = ("errors", "files", "display", "config", "store", "analysis", "reporting")
    single = (
        "measuring.quantities",
        "measuring.forecast",
        "cli.app",
        "tuning.methods",
        "tuning.mitigations",
        "data.miniature",
    )
    return [name for name in MODULES if package(name) in whole or name in single]


@pytest.mark.full
def test_light_packages_do_not_import_torch() -> None:
    names = [f"forgetting.{name}" for name in _light()]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_the_command_shows_its_help_without_torch() -> None:
    code = (
        "import sys\n"
        "from forgetting.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'torch', 'scipy', 'filelock', 'pyarrow'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert "study" in result.stdout, result.stderr
    assert "AssertionError" not in result.stderr


def test_no_test_asserts_a_time_or_clears_a_cache() -> None:
    """A busy machine is no defect: how long things take is for bench/. Waiting with a deadline is by `monotonic`.

    What a test has to clear by hand is stale for users, too.
    """
    clocks = re.compile(r"perf_counter|process_time|thread_time|time\.time\(|cache_clear")
    for path in Path(__file__).parent.rglob("*.py"):
        if path != Path(__file__):
            assert not clocks.search(path.read_text(encoding="utf-8")), path


def test_nothing_needs_a_posix_system_to_be_imported() -> None:
    """Modules that Python has on POSIX systems alone; `make types` looks at names inside of others, as on Windows."""
    posix = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog", "curses"}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not posix & {name.split(".")[0] for name in names}, path
