"""`forgetting chain`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display.markdown import code, escaped
from ..display.numbers import fixed, p_value, signed
from . import options as o
from .measure import Base
from .printing import print_shown, quiet_libraries, say_notices
from .summaries import say_page, write
from .texts import one_text

if TYPE_CHECKING:
    from ..measuring.chain_result import Chain


@dataclass(frozen=True)
class ChainOptions:
    """How a chain is measured, and how its models are loaded."""

    context: o.WindowTokens = None
    revision: o.Revision = None
    dtype: Annotated[o.Dtype | None, typer.Option(help="Dtype of every model without its own. Default: as stored.")] = (
        None
    )
    device: o.Device = None
    device_map: o.SpreadOver = None
    trust_remote_code: o.TrustRemoteCode = None
    batch_tokens: o.BatchTokens = None
    cache: o.Cache = None
    no_cache: o.NoCache = False

    def given(self) -> dict[str, Any]:
        """The arguments of `forgetting.chain`.

        Raises:
            UsageError: two flags exclude each other.
        """
        return {
            **{name: getattr(self, name) for name in ("context", "revision", "batch_tokens")},
            "dtype": "auto" if self.dtype is None else self.dtype.value,
            "device": self.device or "auto",
            "trust_remote_code": bool(self.trust_remote_code),
            **o.places(self.device, self.device_map, self.cache, self.no_cache),
        }


Steps = Annotated[
    list[str],
    typer.Argument(
        metavar="STEP...",
        help="[NAME=]MODEL[@FIELD=VALUE,...], in order: an adapter, a full model, or a GGUF file. Leave out MODEL for "
        "the model of the step before, as in @bits=4. Fields: dtype, bits (4 or 8), on (what an adapter is applied to: "
        "base, before, or a step's name), revision, file (a GGUF file in a folder or Hub repository).",
    ),
]


@o.expanded
def chain_command(
    base: Base,
    steps: Steps,
    *,
    text: Annotated[
        str | None,
        typer.Option(
            help="General text to measure on: a {files} file, a folder of them, or a Hub id. "
            "Default: the WikiText-103 test set."
        ),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="How to read the text: a field of `text` in a study file, such as split=test. Repeat for several.",
        ),
    ] = None,
    how: ChainOptions,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a report page, with a waterfall chart.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the table as Markdown, for a pull request or a model card.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure how much each step forgot: tuning, merging, another dtype, fewer bits, GGUF.

    All steps are measured on the same tokens against the same base model. A step's own part is its difference from the
    step before, paired by token, with a standard error clustered by document and p corrected for all steps (Holm).
    """
    chosen = how.given()
    source = one_text(text, text_field)
    quiet_libraries()
    from ..measuring.chain import chain

    found = chain(base, steps, text=source, **chosen)
    if html is not None:
        from ..reporting.chain import render

        write(html, render(found))
    if markdown is not None:
        write(markdown, markdown_table(found))
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        print_shown([replace(part, notes=()) for part in found.shown()])
    say_page(html, as_json=as_json)
    say_notices(found.all_notices)


def markdown_table(found: Chain) -> str:
    """A chain as Markdown: one sentence, and a table with a row per step."""
    lines = [f"{escaped(found.sentence())}.", ""]
    lines += ["| step | what | so far | of this step | p | agreement |", "|---|---|---:|---:|---:|---:|"]
    corrected = found.p_holm
    for step in found.steps:
        mean, part = step.so_far.forgetting, step.part
        cells = (
            code(step.name),
            escaped(step.kind),
            f"{fixed(mean.value)} ± {mean.se_text}",
            f"{signed(part.value)} ± {part.se_text}",
            p_value(corrected[step.name]),
            f"{100 * step.so_far.means['agreement'].value:.1f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    first = found.steps[0].so_far
    tail = f"{found.total.extent}, nats/token"
    lines += ["", f"Forgetting against {code(first.base)} on {code(first.text)}: {tail}, p corrected (Holm)."]
    return "\n".join([*lines, *(f"- {escaped(notice)}" for notice in found.all_notices), ""])
