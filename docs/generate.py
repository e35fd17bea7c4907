"""Writes docs/commands.md, docs/configuration.md and CONTRIBUTING.md's table of packages from the code.

`python docs/generate.py`; a test fails on drift.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGES_BEGIN, PACKAGES_END = "<!-- from the docstrings, by docs/generate.py -->\n", "<!-- end -->\n"


def commands() -> str:
    """The help of the command and of each subcommand."""
    parts = ["# Commands\n", "Written from the code by `python docs/generate.py`.\n"]
    for name in ["", *_subcommands()]:
        title = f"forgetting {name}".strip()
        parts.append(f"## {title}\n\n```text\n{_help(*name.split())}```\n")
    return "\n".join(parts)


def _help(*arguments: str) -> str:
    from typer.testing import CliRunner

    from forgetting.cli.app import app

    shown = CliRunner().invoke(app, [*arguments, "--help"], prog_name="forgetting", terminal_width=78).stdout
    return "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"


def _subcommands() -> list[str]:
    from forgetting.cli.app import app

    return [str(command.name) for command in app.registered_commands]


def configuration() -> str:
    """Every field of a study's configuration, section by section."""
    from forgetting.config import schema as c
    from forgetting.config.files import presets
    from forgetting.tuning.methods import METHODS
    from forgetting.tuning.mitigations import MITIGATIONS

    parts = [
        "# Configuration of a study\n",
        "Written from the code by `python docs/generate.py`. A study is one YAML file; these are its fields. Shipped "
        f"examples: {', '.join(f'`{name}`' for name in presets())} (`forgetting study --preset NAME`).\n",
    ]
    sections: list[tuple[str, Any]] = [
        ("The study", c.StudyConfig),
        ("`model`", c.ModelConfig),
        ("`text`: the general text that forgetting is measured on", c.TextConfig),
        ("`texts.NAME`: fields as of `text`, or", c.ProbeConfig),
        ("`datasets.NAME`: as `text`, and", c.DatasetConfig),
        ("`training`", c.TrainingConfig),
        ("`measure`", c.MeasureConfig),
        ("`capabilities`", c.CapabilitiesConfig),
        ("`methods`: fields of every entry, in addition to the method's own options", c.MethodConfig),
        *((f"`methods`: `name: {name}`", method) for name, method in METHODS.items()),
        *((f"`methods[].mitigations`: `name: {name}`", mitigation) for name, mitigation in MITIGATIONS.items()),
    ]
    for title, model in sections:
        own = set(model.model_fields) - (set(c.TextConfig.model_fields) if model is c.DatasetConfig else set())
        parts.append(f"## {title}\n\n{inspect.cleandoc(model.__doc__ or '')}\n")
        if own:
            parts.append("| field | type | default | meaning |\n|---|---|---|---|")
        for name, field in model.model_fields.items():
            if name in own:
                parts.append(f"| `{name}` | {_type(field)} | {_default(field)} | {field.description or ''} |")
        parts.append("")
    return "\n".join(parts)


def _type(field: Any) -> str:
    text = getattr(field.annotation, "__name__", "")
    text = str(field.annotation) if not text or text in ("Literal", "tuple", "dict", "Union", "UnionType") else text
    for noise in ("typing.", "forgetting.config.schema.", "forgetting.config.texts.", "Annotated"):
        text = text.replace(noise, "")
    return "`" + text.replace("|", "or").split(", FieldInfo")[0] + "`" if len(text) < 80 else "see below"


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    return "its section's" if isinstance(field.default, BaseModel) else f"`{field.default}`"


def contributing() -> str:
    """CONTRIBUTING.md with its table of packages, each with its docstring, in the order in which data flows."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    before, rest = text.split(PACKAGES_BEGIN)
    after = rest.split(PACKAGES_END)[1]
    rows = "".join(f"| `{name}` | {_described(name)} |\n" for name in _packages())
    return f"{before}{PACKAGES_BEGIN}| package | what is in it |\n|---|---|\n{rows}{PACKAGES_END}{after}"


def _packages() -> list[str]:
    """The packages in the order that the layering test demands."""
    for node in ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES":
            return list(ast.literal_eval(node.value))
    raise ValueError("tests/test_architecture.py names no PACKAGES")


def _described(name: str) -> str:
    """A package's docstring as one line, pages of the documentation as links."""
    source = ROOT / "src" / "forgetting" / name
    path = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return re.sub(r"docs/(\w+)\.md", r"[\1](docs/\1.md)", text)


if __name__ == "__main__":
    (ROOT / "CONTRIBUTING.md").write_text(contributing(), encoding="utf-8")
    (HERE / "commands.md").write_text(commands(), encoding="utf-8")
    (HERE / "configuration.md").write_text(configuration(), encoding="utf-8")
