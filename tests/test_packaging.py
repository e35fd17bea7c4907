"""The lower bounds that the package promises are the versions that `make test-oldest` tests."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNTRIED = {"bitsandbytes"}
"""What the tests cannot try: it needs a GPU."""
TOOLS = {"pytest-xdist", "playwright", "ruff", "mypy", "types-pyyaml", "pandas-stubs", "scipy-stubs"}
"""A contributor's tools, which no user installs and `make test-oldest` does not need."""


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
    if name in UNTRIED or (section == "dev" and name in TOOLS):
        assert name not in oldest
    else:
        assert str(requirement.specifier) == str(oldest[name].specifier).replace("==", ">=")


def test_the_oldest_versions_are_exact_and_nothing_else_is_among_them() -> None:
    oldest = pins("constraints-oldest.txt")
    assert all([each.operator for each in requirement.specifier] == ["=="] for requirement in oldest.values())
    assert set(oldest) == {canonicalize_name(requirement.name) for _, requirement in bounds()} - UNTRIED - TOOLS


def test_both_sets_of_versions_have_the_one_torch_that_is_built_for_cpus() -> None:
    assert pins("constraints.txt") == {"torch": pins("constraints-oldest.txt")["torch"]}
