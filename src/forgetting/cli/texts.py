"""Texts on the command line: one or several named texts, the fields that say how to read them, and probes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.steps import NAME
from ..errors import UsageError
from ..files import PACKED

if TYPE_CHECKING:
    from ..config.schema import ProbeConfig, TextConfig

Text = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]SOURCE",
        help="General text: a {files} file, a folder of them, or a Hub id. Default: the WikiText-103 test set. Repeat "
        "for several texts, each with a name, as in chat=chat.jsonl; each is measured separately.",
    ),
]
TextField = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="How to read the text: a field of `text` in a study file, such as split=test or text_column=body. "
        "Repeat for several. With several texts: NAME.FIELD=VALUE.",
    ),
]


@dataclass(frozen=True)
class ProbeOptions:
    """The base model's own answers as texts; `measure` and `check` share these flags."""

    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PROMPTS",
            help="Measure on the base model's own answers to prompts: a file (.jsonl, .json, .csv, .tsv, .parquet, "
            ".txt, also as .gz), a Hub id, `default` (240 shipped prompts) or `miniature`. One row per kind of prompt. "
            "Repeat for several.",
        ),
    ] = None
    no_probe: Annotated[
        bool,
        typer.Option(
            "--no-probe",
            help="Do not measure on the base model's own answers to 48 shipped prompts, which is the default if it "
            "has a chat template and --probe is not given.",
        ),
    ] = False
    probe_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum tokens of an answer. Default: 128, or half of the context if that is less."),
    ] = None
    probe_temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=10.0, help="Sampling temperature of answers. Default: 0, the most likely token."),
    ] = None

    def texts(self, seed: int) -> dict[str, ProbeConfig]:
        """The probes by name, one per kind of prompt.

        Args:
            seed: of sampled answers.

        Raises:
            UsageError: prompts that cannot be read, a repeated name, or a setting without a probe.
        """
        from ..config.schema import ProbeConfig, validated
        from ..data.probes import by_kind

        given = {"max_new_tokens": self.probe_tokens, "temperature": self.probe_temperature}
        how = {name: value for name, value in given.items() if value is not None}
        if self.probe and self.no_probe:
            raise UsageError("give --probe or --no-probe, not both")
        if not self.probe and how:
            raise UsageError("--probe-tokens, --probe-temperature: need --probe")
        found: dict[str, ProbeConfig] = {}
        for item in self.probe or ():
            name, source = _named(item)
            config = validated(ProbeConfig, {"probe": source, "seed": seed, **how}, "--probe")
            parts = by_kind(name or _file_name(source), config)
            if twice := parts.keys() & found.keys():
                raise UsageError(
                    f"--probe: two texts have the name '{min(twice)}'; give each its own, as in NAME={source}"
                )
            found |= parts
        return found


def _file_name(source: str) -> str:
    """A name from the file's name without its suffixes, or from the last part of a Hub id."""
    path = Path(source)
    stem = Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "probe"


def texts_of(
    sources: list[str] | None, given: list[str] | None
) -> str | TextConfig | dict[str, str | TextConfig] | None:
    """The general text with the fields of --text-field; several texts by name, in order.

    Raises:
        UsageError: several texts of which one has no name or two have the same, an unknown field, or a wrong value.
    """
    split = [_named(source) for source in sources or []]
    if len(split) <= 1 and not any(name for name, _ in split):
        return one_text(next(iter(sources or []), None), given)
    names = [name for name, _ in split]
    if None in names:
        plain = next(source for name, source in split if name is None)
        named = f"{_file_name(plain)}={plain}"
        raise UsageError(f"--text: got '{plain}' among several texts; give each a name, as in {named}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--text: two texts have the name '{twice[0]}'; give each its own")
    fields: dict[str, list[str]] = {str(name): [] for name in names}
    for item in given or []:
        name, mark, field = item.partition(".")
        if not mark or name not in fields:
            known = ", ".join(f"{name}.FIELD=VALUE" for name in fields)
            raise UsageError(f"--text-field: got '{item}'; with named texts give {known}")
        fields[name].append(field)
    return {str(name): with_fields(source, fields[str(name)]) for name, source in split}


def with_probes(source: Any, probes: dict[str, ProbeConfig]) -> Any:
    """The texts and probes by name; without probes, the texts unchanged.

    Raises:
        UsageError: a text and a probe with the same name.
    """
    if not probes:
        return source
    texts = source if isinstance(source, dict) else {} if source is None else {"text": source}
    if twice := texts.keys() & probes.keys():
        raise UsageError(f"--probe: a text also has the name '{min(twice)}'; give one of them another name")
    return texts | probes


def _named(source: str) -> tuple[str | None, str]:
    """Name and source of NAME=SOURCE; if the whole is an existing path, it is a source without a name."""
    name, mark, rest = source.partition("=")
    if not mark or not NAME.fullmatch(name) or Path(source).exists():
        return None, source
    return name, rest


def one_text(
    source: str | None, given: list[str] | None, option: str = "--text", fields: str = "--text-field"
) -> str | TextConfig | None:
    """The text of an option, with the fields that say how to read it; None if it was not given.

    Raises:
        UsageError: fields without a text, and the errors of `with_fields`.
    """
    if source is not None:
        return with_fields(source, given or [], fields)
    if given:
        raise UsageError(f"{fields}: needs {option}")
    return None


def with_fields(source: str, given: list[str], option: str = "--text-field") -> str | TextConfig:
    """A text with the fields that say how to read it.

    Raises:
        UsageError: an unknown field, or a wrong value.
    """
    if not given:
        return source
    from pydantic import ValidationError

    from ..config.explaining import explain
    from ..config.schema import TextConfig

    fields = {}
    for item in given:
        name, mark, value = item.partition("=")
        if not mark:
            raise UsageError(f"{option}: got '{item}'; give NAME=VALUE, for example split=test")
        if name in fields:
            raise UsageError(f"{option} {name}: given twice; give it once")
        fields[name] = value
    try:
        return TextConfig.model_validate_strings({"source": source, **fields}, strict=False)
    except ValidationError as error:
        raise UsageError(*explain(error, TextConfig, option)) from None
