"""Packaging: lower bounds are the versions of `make test-oldest`, except torch; the wheel contains only the package."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TOOLS = {
    *("pytest-xdist", "playwright", "ruff", "mypy", "types-pyyaml", "pandas-stubs", "scipy-stubs"),
    *("build", "hatchling", "hatch-fancy-pypi-readme"),
    *("mkdocs-material", "mkdocstrings", "ipykernel", "kaleido", "nbclient", "nbformat"),
}
"""A contributor's tools, which no user installs: of any version."""
TOOLS_IN = {"dev", "docs", "notebooks"}
BY_HAND = {"torch"}
"""Tested with an older version than CI can install: CONTRIBUTING.md says when, and how many tests passed."""


def named(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return named([line for line in lines if not line.startswith("#")])


def bounds() -> list[tuple[str, Requirement]]:
    """Each requirement of the package and of its extras, with its section."""
    sections = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return [(section, requirement) for section, lines in sections.items() for requirement in named(lines).values()]


@pytest.mark.parametrize(("section", "requirement"), bounds(), ids=lambda value: str(value))
def test_each_lower_bound_is_the_oldest_version_tested(section: str, requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    oldest = pins("constraints-oldest.txt")
    if section in TOOLS_IN and name in TOOLS:
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


def test_the_wheel_contains_the_package_and_no_script() -> None:
    """The recipe of the miniature's model is in scripts/, to be run in a clone, not from an installed package."""
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["src/forgetting"]}
    for path in (ROOT / "src" / "forgetting").rglob("*.py"):
        script = re.search(r"^if __name__ ==", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert script is None or path.name == "__main__.py", path
    assert (ROOT / "scripts" / "miniature" / "pretrain.py").exists()


def test_the_version_is_the_same_everywhere() -> None:
    import forgetting

    version = PROJECT["version"]
    assert forgetting.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == version


def builder() -> Path | None:
    """A Python with the tools that build a release: this one, or that of `make test`, which `make test-oldest` uses."""
    tools = ("build", "hatchling", "hatch_fancy_pypi_readme")
    if all(importlib.util.find_spec(name) for name in tools):
        return Path(sys.executable)
    other = ROOT / ".venv" / "bin" / "python"
    return other if (ROOT / ".venv" / ".dev").exists() else None


def published(python: Path, folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    command = [python, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    built = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def installed(wheel: Path, folder: Path) -> Path:
    """An environment with the wheel and nothing else of ours; the dependencies are those of this one.

    A path in a `.pth` file adds the packages of a folder, and not what its own `.pth` files add: so an editable
    installation of this clone is not seen.
    """
    venv.create(folder)
    packages = next(folder.rglob("site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", "--no-index", wheel]
    done = subprocess.run(list(map(str, pip)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bin_folder / "forgetting"


@pytest.mark.full
def test_published_packages_are_complete_and_work_in_their_own_environment(tmp_path: Path) -> None:
    python = builder()
    if python is None:
        pytest.skip("the tools that build a release are not installed")
    sdist, wheel = published(python, tmp_path / "dist")
    own_files = {path for path in (ROOT / "src" / "forgetting").rglob("*") if path.is_file()}
    own_files = {path.relative_to(ROOT / "src").as_posix() for path in own_files if "__pycache__" not in path.parts}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == own_files
    with tarfile.open(sdist) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {name for name in inside if name.startswith("src/")} == {f"src/{name}" for name in own_files}
    assert {name for name in inside if "/" not in name} == {
        *("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml", ".gitignore")
    }
    assert sdist.stat().st_size < 8e6
    assert wheel.stat().st_size < 8e6

    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    page = HeaderParser().parsestr(zipfile.ZipFile(wheel).read(metadata).decode()).get_payload()
    assert isinstance(page, str)
    assert "make study" in page
    assert re.findall(r"\]\((?!https?:)[^)]*\)", page) == []  # they would lead nowhere on PyPI

    command = installed(wheel, tmp_path / "venv")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run([str(command), *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert json.loads(run("doctor", "--json"))["ok"]
    model = next((tmp_path / "venv").rglob("data/miniature/model"))
    tuned = disturbed(model, tmp_path / "tuned")
    few = ("--text-field", "max_documents=5", "--json", "--html", "page.html", "--no-cache")
    result = json.loads(run("measure", "miniature", str(tuned), "--text", "miniature:encyclopedia-heldout", *few))
    assert 0 < result["forgetting"] < 1
    assert (tmp_path / "page.html").stat().st_size > 10_000


def disturbed(model: Path, folder: Path) -> Path:
    """A copy of a model with weights that are 3 % larger or smaller."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    draw = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    changed = {name: w * (1 + 0.03 * torch.randn(w.shape, generator=draw)) for name, w in weights.items()}
    save_file(
        {name: w.to(weights[name].dtype) for name, w in changed.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def test_the_tests_of_the_oldest_dependencies_exist() -> None:
    listed = re.search(r"^OLDEST_TESTS := \$\(patsubst %,tests/%\.py,(.*?)\)$", _makefile(), re.MULTILINE)
    assert listed
    names = listed[1].split()
    assert len(names) > 10
    for name in names:
        assert (ROOT / "tests" / f"{name}.py").exists(), name


CI_PARTS = (".venv-oldest/.installed", ".venv/.dev", "lint", "types", "docs", "test", "test-oldest")


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
