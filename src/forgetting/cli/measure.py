"""`forgetting measure` and `check`."""

from __future__ import annotations

import html
import json
import logging
import re
import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display.numbers import fixed
from ..display.tables import Shown
from ..errors import UsageError, visible
from . import options as o
from .printing import OneLine, print_shown, say

if TYPE_CHECKING:
    from ..config.schema import TextConfig
    from ..measuring.measurement import CheckResult, Measurement


class DeviceMap(StrEnum):
    """Allowed --device-map."""

    auto = "auto"


Base = Annotated[str, typer.Argument(help="The base model: a folder, a Hub id, or `miniature`.")]
Tuned = Annotated[str, typer.Argument(help="What was fine-tuned from it: a PEFT adapter or a full model.")]
Text = Annotated[
    str | None,
    typer.Option(
        help="General text: a {files} file, a folder of them, or a Hub id. Default: the WikiText-103 test set."
    ),
]
TextField = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="How to read it: a field of `text` in a study's file, such as split=test or text_column=body; "
        "repeat for several.",
    ),
]
MARKUP = re.compile(r"[\\`*_\[\]|#~!]")
"""What Markdown takes for more than a character; a backslash before it keeps it one."""
Html = Annotated[Path | None, typer.Option("--html", help="Also write a report page: where it forgot, token by token.")]


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure; `measure` and `check` share these flags."""

    context: Annotated[int | None, typer.Option(help="Tokens a window. Default: 512.")] = None
    tolerance: Annotated[
        float | None,
        typer.Option(help="Measure documents in random order until the standard error is at most this, nats/token."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of that order.")] = 0
    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Also measure the base against itself: a smaller difference is noise.")
    ] = False
    device_map: Annotated[
        DeviceMap | None, typer.Option("--device-map", help="Spread each model over all devices.")
    ] = None
    batch_tokens: o.BatchTokens = None
    cache: Annotated[
        Path | None,
        typer.Option(help="Where base targets and large texts' tokens are cached. Default: the user's cache."),
    ] = None
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Cache nothing.")] = False

    def given(self, models: o.ModelOptions) -> dict[str, Any]:
        """The same for `measure` and `check`.

        Raises:
            UsageError: flags that exclude each other.
        """
        if self.cache is not None and self.no_cache:
            raise UsageError("give --cache or --no-cache, not both")
        if self.device_map is not None and models.device not in (None, "auto"):
            raise UsageError("give --device or --device-map, not both")
        plain = ("context", "tolerance", "seed", "noise_floor", "batch_tokens")
        return {
            **{name: getattr(self, name) for name in plain},
            "device_map": self.device_map and self.device_map.value,
            "cache_dir": None if self.no_cache else (self.cache or "auto"),
            **models.given(),
        }


@o.expanded
def measure_command(
    base: Base,
    tuned: Tuned,
    *,
    text: Text = None,
    text_field: TextField = None,
    measuring: MeasureOptions,
    models: o.ModelOptions,
    html: Html = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure what a fine-tuned model forgot of its base, each number with its standard error."""
    how = measuring.given(models)
    _quiet()
    from ..measuring.measure import measure

    result = measure(base, tuned, text=_text(text, text_field), **how)
    _write_page(result, html)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    else:
        next_ = (
            "next: --html FILE shows in which tokens and documents; `forgetting evaluate` with the same two models "
            "shows which answers were lost"
        )
        print_shown([*replace(result, notices=()).shown(), Shown([next_])])
    _notices(result)


@o.expanded
def check_command(
    base: Base,
    tuned: Tuned,
    *,
    budget: Annotated[float, typer.Option(help="Excess forgetting that is allowed, nats/token.")],
    confidence: Annotated[float, typer.Option(help="Confidence of each bound.")] = 0.95,
    strict: Annotated[bool, typer.Option("--strict", help="Undecided fails, too.")] = False,
    allow_undecided: Annotated[
        bool, typer.Option("--allow-undecided", help="Undecided passes, however little was measured.")
    ] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull-request comment there.")] = None,
    text: Text = None,
    text_field: TextField = None,
    measuring: MeasureOptions,
    models: o.ModelOptions,
    html: Html = None,
    as_json: o.AsJson = False,
) -> None:
    """Hold a fine-tuned model to a forgetting budget: exit code 0 within it, 3 over it.

    Where the confidence bounds lie on both sides of the budget, and below 5 documents, the verdict is "undecided". It
    fails with --strict, and where the measurement could not decide: below 5 documents, or with an interval wider than
    the budget, unless --allow-undecided. Else its exit code is 0.
    """
    if strict and allow_undecided:
        raise UsageError("give --strict or --allow-undecided, not both")
    how = measuring.given(models)
    _quiet()
    from ..measuring.measure import check

    result = check(base, tuned, budget=budget, confidence=confidence, text=_text(text, text_field), **how)
    _write_page(result.measurement, html)
    if markdown is not None:
        _write(markdown, markdown_summary(result))
    typer.echo(json.dumps(result.to_dict()) if as_json else visible(result.sentence()))
    _notices(result.measurement)
    raise typer.Exit(result.exit_code(strict=strict, allow_undecided=allow_undecided))


def _text(source: str | None, given: list[str] | None) -> str | TextConfig | None:
    """The general text with the fields of --text-field.

    Raises:
        UsageError: a field that no text has, or a value that it does not take.
    """
    if not given:
        return source
    if source is None:
        raise UsageError("--text-field: says how to read --text, which is missing")
    from pydantic import ValidationError

    from ..config.explaining import explain
    from ..config.schema import TextConfig

    fields = {}
    for item in given:
        name, mark, value = item.partition("=")
        if not mark:
            raise UsageError(f"--text-field: got '{item}'; give NAME=VALUE, for example split=test")
        fields[name] = value
    try:
        return TextConfig.model_validate_strings({"source": source, **fields}, strict=False)
    except ValidationError as error:
        raise UsageError(*explain(error, TextConfig, "--text-field")) from None


def _quiet() -> None:
    """Standard error carries our notices and no other library's chatter; standard output the result alone."""
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("notice: %(message)s"))
    logger = logging.getLogger("forgetting")
    logger.handlers, logger.propagate = [handler], False


def _notices(result: Measurement) -> None:
    for notice in result.notices:
        say(f"notice: {notice}")


def markdown_summary(verdict: CheckResult) -> str:
    """A verdict as Markdown, for a comment on a pull request."""
    from ..measuring.quantities import SHOWN

    result = verdict.measurement
    mark = {"within": "✅", "over": "❌", "undecided": "❔"}[verdict.verdict]
    lines = [
        f"### {mark} Forgetting {verdict.verdict if verdict.verdict == 'undecided' else verdict.verdict + ' budget'}",
        "",
        f"{_escaped(verdict.sentence())}.",
        "",
        "| quantity | value | standard error |",
        "|---|---:|---:|",
    ]
    for one in SHOWN:
        found = result.means[one.name]
        lines.append(f"| {one.label} | {fixed(found.value)} | {found.se_text} |")
    mean = result.forgetting
    where = f"{_code(result.tuned)} against {_code(result.base)} on {_code(result.text)}"
    tail = f"{mean.n_tokens:,} tokens in {mean.n_documents:,} documents, nats/token, {verdict.confidence:.0%} bounds"
    return "\n".join([*lines, "", f"{where}: {tail}.", *(f"- {_escaped(n)}" for n in result.notices), ""])


def _code(name: str) -> str:
    """A name as Markdown code that it cannot break out of."""
    return "`" + visible(name).replace("`", "'").replace("|", "/") + "`"


def _escaped(text: str) -> str:
    """Text as Markdown shows it: no markup, no links, nobody mentioned."""
    return MARKUP.sub(r"\\\g<0>", html.escape(visible(text), quote=False)).replace("@", "@<!-- -->")


def _write_page(result: Measurement, path: Path | None) -> None:
    if path is None:
        return
    from ..reporting.measurement import render

    _write(path, render(result.to_dict(), result.where(), result.tokenizer))


def _write(path: Path, text: str) -> None:
    from ..files import write_atomically

    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
