"""What the docs say is what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "forgetting"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_docs_are_up_to_date(generate: ModuleType) -> None:
    for name in ("commands", "configuration"):
        written = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert getattr(generate, name)() == written, "run: python docs/generate.py"


def test_readme_opens_with_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make study") < text.index("make test")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nstudy:" in makefile
    assert "\ntest:" in makefile


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`([A-Za-z0-9_./-]+\.py|(?:src|tests|bench|scripts)/[A-Za-z0-9_./-]*)`", text):
        found = (ROOT / name).exists() or (PACKAGE / name).exists()
        assert found or ("/" not in name and any(ROOT.glob(f"[a-z]*/**/{name}"))), name
    for module in re.findall(r"`(forgetting(?:\.[a-z_]+)+)`", text):
        assert importlib.util.find_spec(module), module
