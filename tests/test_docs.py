"""What the docs say is what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


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


def test_readme_opens_with_its_two_commands_and_its_files_exist() -> None:
    import re

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make study") < text.index("make test")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nstudy:" in makefile
    assert "\ntest:" in makefile
