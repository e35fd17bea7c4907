"""The documentation agrees with the code."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import forgetting

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "forgetting"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_docs_are_up_to_date(generate: ModuleType) -> None:
    for page in ("docs/commands.md", "docs/configuration.md", "CONTRIBUTING.md"):
        written = (ROOT / page).read_text(encoding="utf-8")
        assert getattr(generate, Path(page).stem.lower())() == written, "run: python docs/generate.py"


def test_readme_opens_with_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make study") < text.index("make test")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nstudy:" in makefile
    assert "\ntest:" in makefile


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`([A-Za-z0-9_./-]+\.py|(?:src|tests|bench|scripts)/[A-Za-z0-9_./-]*)`", text):
        found = (ROOT / name).exists() or (PACKAGE / name).exists()
        assert found or ("/" not in name and any(ROOT.glob(f"[a-z]*/**/{name}"))), name
    for module in re.findall(r"`(forgetting(?:\.[a-z_]+)+)`", text):
        assert importlib.util.find_spec(module), module


PATH = re.compile(r"(?<![\w./:@-])(?:[A-Za-z_][\w-]*/)+[\w.-]+\.(?:py|md|toml|txt|yml)\b|(?<![\w./-])test_\w+\.py\b")
DOTTED = re.compile(r"\bforgetting((?:\.[A-Za-z_]\w*)+)")
PLACES = ("src", "tests", "bench", "docs", "scripts")
CODE = [path for folder in PLACES for path in sorted((ROOT / folder).rglob("*.py"))]
TOPS = {*PLACES, *(path.name for path in (ROOT / "src" / "forgetting").iterdir())}


def words_of(path: Path) -> Iterator[str]:
    """The comments and docstrings of a file of code."""
    text = path.read_text(encoding="utf-8")
    if any(
        "#" in line and (PATH.search(line) or DOTTED.search(line)) for line in text.splitlines()
    ):  # otherwise nothing was found
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        yield from (token.string for token in tokens if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.fixture(scope="module")
def words() -> dict[Path, str]:
    """The comments and docstrings of each file of code."""
    return {path: "\n\n".join(words_of(path)) for path in CODE}


def cited(words: dict[Path, str], pattern: re.Pattern[str]) -> set[tuple[Path, str]]:
    return {(path, found) for path, text in words.items() for found in pattern.findall(text)}


@pytest.mark.full
def test_every_file_that_the_code_cites_exists(words: dict[Path, str]) -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    for path, name in cited(words, PATH):
        if "/" not in name:
            assert name in tests, f"{path}: no {name}"
        elif name.split("/")[0] in TOPS:
            places = (ROOT, ROOT / "src", ROOT / "src" / "forgetting", path.parent)
            assert any((place / name).exists() for place in places), f"{path}: no {name}"


@pytest.mark.full
def test_every_module_that_the_code_cites_exists(words: dict[Path, str]) -> None:
    for path, dotted in cited(words, DOTTED):
        module, parts = ROOT / "src" / "forgetting", dotted.split(".")[1:]
        while parts and ((module / parts[0]).is_dir() or (module / f"{parts[0]}.py").exists()):
            module /= parts.pop(0)
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        known = set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
        assert set(parts[:1]) <= known, f"{path}: forgetting{dotted} is not there"


def test_pages_name_every_method_mitigation_and_law() -> None:
    from forgetting.analysis.laws import LAWS, PUBLISHED
    from forgetting.tuning.methods import METHODS
    from forgetting.tuning.mitigations import MITIGATIONS

    for page, names in (("methods", METHODS), ("mitigations", MITIGATIONS), ("laws", [*LAWS, *PUBLISHED])):
        words = set(re.findall(r"[\w/]+", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
        assert not set(names) - words, page


def calls_in(page: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls of public functions in a page's Python examples."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("forgetting.") in forgetting.__all__:
                yield ast.unparse(node.func).removeprefix("forgetting."), node


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_call_the_functions_as_they_are(page: Path) -> None:
    for name, call in calls_in(page):
        signature = inspect.signature(getattr(forgetting, name))
        keywords = {word.arg: None for word in call.keywords if word.arg is not None}
        signature.bind(*call.args, **keywords)


def test_the_page_of_the_python_api_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: forgetting\.(\w+)$", text, re.M)) == sorted(forgetting.__all__)


def test_the_page_on_python_has_an_example_of_each_function() -> None:
    documented = {name for name, _ in calls_in(ROOT / "docs" / "python.md")}
    assert {name for name in forgetting.__all__ if name.islower()} | {"ForgettingCallback"} <= documented


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_as_they_ran(path: Path) -> None:
    """`make notebooks` stores outputs: each cell ran in its order, without an error, and the run time is noted."""
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/(tmp|home|root)/", text)
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert re.search(r"^Run time: [\d.]+ processor minutes", "".join(cells[0]["source"]), re.MULTILINE)
