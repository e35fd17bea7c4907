"""What is installed: bounds are what `make test-oldest` tests, but for torch; the wheel holds the package alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TOOLS = {"pytest-xdist", "playwright", "ruff", "mypy", "types-pyyaml", "pandas-stubs", "scipy-stubs"}
"""A contributor's tools, which no user installs: of any version."""
BY_HAND = {"torch"}
"""Tested with an older version than CI can install: CONTRIBUTING.md says when, and how many tests passed."""


def named(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return named([line for line in lines if not line.startswith("#")])


def bounds() -> list[tuple[str, Requirement]]:
    """Each requirement of the package and of its extras, with the section it stands in."""
    sections = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return [(section, requirement) for section, lines in sections.items() for requirement in named(lines).values()]


@pytest.mark.parametrize(("section", "requirement"), bounds(), ids=lambda value: str(value))
def test_each_lower_bound_is_the_oldest_version_tested(section: str, requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    oldest = pins("constraints-oldest.txt")
    if section == "dev" and name in TOOLS:
        assert name not in oldest
    elif name in BY_HAND:
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        (pinned,) = oldest[name].specifier
        assert Version(bound.version) <= Version(pinned.version)
        assert f"{name} {bound.version}" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    else:
        assert str(requirement.specifier) == str(oldest[name].specifier).replace("==", ">=")


def test_the_oldest_versions_are_exact_and_nothing_else_is_among_them() -> None:
    oldest = pins("constraints-oldest.txt")
    assert all([each.operator for each in requirement.specifier] == ["=="] for requirement in oldest.values())
    assert set(oldest) == {canonicalize_name(requirement.name) for _, requirement in bounds()} - TOOLS


def test_both_sets_of_versions_have_the_one_torch_that_is_built_for_cpus() -> None:
    assert pins("constraints.txt") == {"torch": pins("constraints-oldest.txt")["torch"]}


def test_the_wheel_holds_the_package_and_no_script() -> None:
    """The recipe of the miniature's model lies in scripts/: it is run in a clone, never from an installed package."""
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["src/forgetting"]}
    for path in (ROOT / "src" / "forgetting").rglob("*.py"):
        script = re.search(r"^if __name__ ==", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert script is None or path.name == "__main__.py", path
    assert (ROOT / "scripts" / "miniature" / "pretrain.py").exists()


def test_the_tests_of_the_oldest_dependencies_exist() -> None:
    listed = re.search(r"^OLDEST_TESTS := \$\(patsubst %,tests/%\.py,(.*?)\)$", _makefile(), re.MULTILINE)
    assert listed
    names = listed[1].split()
    assert len(names) > 10
    for name in names:
        assert (ROOT / "tests" / f"{name}.py").exists(), name


CI_PARTS = (".venv-oldest/.installed", ".venv/.dev", "lint", "types", "test", "test-oldest")


@pytest.mark.full
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("broken", [None, *CI_PARTS])
def test_ci_runs_every_part_and_fails_with_each(tmp_path: Path, broken: str | None) -> None:
    (tmp_path / "chromium").write_text("")  # nothing is installed
    (tmp_path / "make").write_text(f'#!/bin/sh\necho "made $1"\n[ "$1" != "{broken}" ]\n')
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run([ROOT / ".ci" / "run"], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert (ran.returncode == 0) == (broken is None)
    if broken != ".venv/.dev":
        assert sorted(ran.stdout.split("made ")[1:]) == sorted(f"{part}\n" for part in CI_PARTS)
    assert "\nmake test " in (ROOT / "README.md").read_text(encoding="utf-8")


def _makefile() -> str:
    return (ROOT / "Makefile").read_text().replace("\\\n", "")
