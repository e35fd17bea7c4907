"""Writes docs/commands.md and docs/configuration.md from the code: `python docs/generate.py`. A test fails on drift."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

HERE = Path(__file__).parent


def commands() -> str:
    """The help of the command and of each subcommand."""
    parts = ["# Commands\n", "Written from the code by `python docs/generate.py`.\n"]
    for name in ["", *_subcommands()]:
        title = f"forgetting {name}".strip()
        parts.append(f"## {title}\n\n```text\n{_help(*name.split())}```\n")
    return "\n".join(parts)


def _help(*arguments: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "forgetting", *arguments, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout  # noqa: S603
    return "\n".join(line.rstrip() for line in shown.replace("python -m forgetting", "forgetting").splitlines()) + "\n"


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
        ("`datasets.NAME`: as `text`, and", c.DatasetConfig),
        ("`training`", c.TrainingConfig),
        ("`measure`", c.MeasureConfig),
        ("`capabilities`", c.CapabilitiesConfig),
        ("`methods`: fields of every entry, beside the method's own options", c.MethodConfig),
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
    for noise in ("typing.", "forgetting.config.schema.", "Annotated"):
        text = text.replace(noise, "")
    return "`" + text.replace("|", "or").split(", FieldInfo")[0] + "`" if len(text) < 80 else "see below"


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    return "its section's" if isinstance(field.default, BaseModel) else f"`{field.default}`"


if __name__ == "__main__":
    (HERE / "commands.md").write_text(commands(), encoding="utf-8")
    (HERE / "configuration.md").write_text(configuration(), encoding="utf-8")
