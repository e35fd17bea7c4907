"""`forgetting measure` and `check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display.commands import command
from ..display.markdown import as_markdown, code, escaped
from ..display.numbers import few, fixed, natural
from ..display.tables import Shown
from ..errors import UsageError, visible
from . import options as o
from .curve import Output, curve_of
from .printing import print_shown, quiet_libraries, say_notices
from .summaries import (
    AllowUndecided,
    Case,
    Confidence,
    Junit,
    Markdown,
    Strict,
    as_junit,
    check_undecided,
    heading,
    say_page,
    write,
)
from .texts import ProbeOptions, Text, TextField, one_text, texts_of, with_probes

if TYPE_CHECKING:
    from ..measuring.measurement import CheckResult
    from ..measuring.profile import Profile, ProfileCheck
    from ..measuring.task import Improvement
    from ..measuring.verdict import Verdict


Base = Annotated[str, typer.Argument(help="The base model: a folder, a Hub id, or `miniature`.")]
Tuned = Annotated[str, typer.Argument(help="The fine-tuned model: a PEFT adapter or a full model.")]
Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="TUNED...",
        help="The fine-tuned model: a PEFT adapter or a full model. Or several checkpoints of one run, or the folder "
        "in which a trainer wrote checkpoint-N.",
    ),
]
TaskText = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="Held-out text of the task, to also judge whether the task improved."),
]
TaskField = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="How to read --task-text, as --text-field.")
]
Html = Annotated[
    Path | None,
    typer.Option("--html", help="Also write a report page, which shows where the model forgot, token by token."),
]


@dataclass(frozen=True)
class PassOptions:
    """How to measure; `measure`, `check`, `card` and `scale` share these flags."""

    context: o.WindowTokens = None
    tolerance: Annotated[
        float | None,
        typer.Option(help="Measure documents in random order until the standard error is at most this, nats/token."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of that order.")] = 0
    device_map: o.SpreadOver = None
    batch_tokens: o.BatchTokens = None
    cache: o.Cache = None
    no_cache: o.NoCache = False

    def given(self, models: o.ModelOptions) -> dict[str, Any]:
        """The arguments of the Python function.

        Raises:
            UsageError: two flags exclude each other.
        """
        return {
            **{name: getattr(self, name) for name in ("context", "tolerance", "seed", "batch_tokens")},
            **o.places(models.device, self.device_map, self.cache, self.no_cache),
            **models.given(),
        }


@dataclass(frozen=True)
class MeasureOptions(PassOptions):
    """How to measure; `measure`, `check` and `card` share these flags."""

    noise_floor: Annotated[
        bool,
        typer.Option(
            "--noise-floor", help="Also measure the base against itself; a difference within this floor is noise."
        ),
    ] = False

    def given(self, models: o.ModelOptions) -> dict[str, Any]:
        """See `PassOptions.given`."""
        return {**super().given(models), "noise_floor": self.noise_floor}


@o.expanded
def measure_command(
    base: Base,
    tuned: Checkpoints,
    *,
    text: Text = None,
    text_field: TextField = None,
    probing: ProbeOptions,
    measuring: MeasureOptions,
    models: o.ModelOptions,
    html: Html = None,
    markdown: Markdown = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure what a fine-tuned model forgot of its base, each number with its standard error.

    Several checkpoints of one run are measured on the same tokens, one row each, by step, with the change since the
    previous one.
    """
    how = measuring.given(models)
    quiet_libraries()
    source = with_probes(texts_of(text, text_field), probing.texts(measuring.seed))
    from ..measuring.measure import profile
    from ..models.checkpoints import folders_of_checkpoints, is_only_checkpoints

    words = [*o.words("--text", text), *o.words("--text-field", text_field), *o.words_of(probing, measuring, models)]
    if len(tuned) > 1 or is_only_checkpoints(tuned[0]):
        curve_of(base, tuned, source, how, Output(html, markdown, as_json, words))
        return
    several = isinstance(source, dict)
    texts = source if several else {"text": source}
    found = profile(base, tuned[0], texts=texts, probes=not probing.no_probe, **how)
    _write_page(found, html)
    if markdown is not None:
        parts = found.shown() if several else [*found.first.shown(), *found.probes_shown()]
        write(markdown, as_markdown(parts))
    if as_json:
        typer.echo(json.dumps(found.to_dict() if several else _row(found, found.first.to_dict())))
    else:
        shown = found.shown() if several else [*replace(found.first, notices=()).shown(), *found.probes_shown()]
        to_do = [f"to see which answers were lost: {command('evaluate', base, tuned[0], *o.words_of(models))}"]
        if html is None:
            page = command("measure", base, tuned[0], *words, "--html", "page.html")
            to_do.append(f"to see in which tokens and documents: {page}")
        if inside := sorted(folders_of_checkpoints(tuned[0]), key=natural):
            to_do.append(f"to measure its checkpoints, too: {command('measure', base, *inside, *words)}")
        print_shown([*(replace(part, notes=()) for part in shown), Shown(to_do)])
    say_page(html, as_json=as_json)
    say_notices(found.notices)


def _row(profile: Profile, row: dict[str, Any]) -> dict[str, Any]:
    """The row of one text, with the rows of the base model's own answers under `probes`, if they were measured."""
    return row if profile.probes is None or "probes" in row else row | {"probes": profile.to_dict()["probes"]}


@o.expanded
def check_command(
    base: Base,
    tuned: Tuned,
    *,
    budget: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]NATS",
            help="Allowed excess forgetting, nats/token. With several texts: NAME=NATS for each text to judge, or one "
            "number for all.",
        ),
    ],
    confidence: Confidence = 0.95,
    strict: Strict = False,
    allow_undecided: AllowUndecided = False,
    markdown: Markdown = None,
    junit: Junit = None,
    text: Text = None,
    text_field: TextField = None,
    task_text: TaskText = None,
    task_field: TaskField = None,
    probing: ProbeOptions,
    measuring: MeasureOptions,
    models: o.ModelOptions,
    html: Html = None,
    as_json: o.AsJson = False,
) -> None:
    """Judge a fine-tuned model against a forgetting budget: exit code 0 within it, 3 over it.

    The verdict is "undecided" if the confidence bounds lie on both sides of the budget, or with fewer than 5 documents.
    Its exit code is 0, but 3 with --strict, and 3 if the measurement was too small to decide (fewer than 5 documents,
    or an interval wider than the budget), unless --allow-undecided is given. With --task-text, the exit code is also 3
    if the upper bound of the task's improvement is not above 0; if only the lower bound is not, the verdict is
    undecided.
    """
    check_undecided(strict, allow_undecided)
    how = measuring.given(models)
    how["task_text"] = one_text(task_text, task_field, "--task-text", "--task-field")
    quiet_libraries()
    source = with_probes(texts_of(text, text_field), probing.texts(measuring.seed))
    found, profile = _checked(base, tuned, source, budget, confidence, {**how, "probes": not probing.no_probe})
    _write_page(profile, html, found.task)
    if markdown is not None:
        write(markdown, markdown_summary(found, profile))
    if junit is not None:
        write(junit, _as_junit(found, profile, strict=strict, allow_undecided=allow_undecided))
    if as_json:
        typer.echo(json.dumps(_row(profile, found.to_dict())))
    else:
        words = o.words_of(replace(measuring, noise_floor=False), models)
        words += o.words("--confidence", None if confidence == 0.95 else confidence)
        to_do = _weaker(found, profile, [*o.words("--text", text), *o.words("--text-field", text_field), *words])
        typer.echo("\n".join(map(visible, [*found.sentences(), *_not_judged(found, profile), *to_do])))
    say_page(html, as_json=as_json)
    say_notices([*(found.task.notices if found.task else ()), *profile.notices])
    raise typer.Exit(found.exit_code(strict=strict, allow_undecided=allow_undecided))


def _checked(
    base: str, tuned: str, source: Any, budget: list[str], confidence: float, how: dict[str, Any]
) -> tuple[CheckResult | ProfileCheck, Profile]:
    """The verdict on one text, or on several by name, and the measurements that it is based on."""
    from ..config.texts import is_probe
    from ..data.probes import kinds_beside
    from ..measuring.measure import profile
    from ..measuring.profile import judged
    from ..measuring.verdict import check_budget

    several = isinstance(source, dict)
    texts = source if several else {"text": source}
    beside = kinds_beside(base) if how["probes"] and not any(map(is_probe, texts.values())) else []
    budgets = budgets_of(budget, list(source) if several else None, beside)
    for name, value in budgets.items() if isinstance(budgets, dict) else [(None, budgets)]:
        check_budget(value, confidence, "budget" if name is None else f"budget of '{name}'")
    found = profile(base, tuned, texts=texts, **how)
    if not isinstance(budgets, dict):
        return judged(found.first, found.task, budgets, confidence), found
    if missing := [name for name in budgets if name not in found.everything]:
        raise UsageError(
            f"--budget {missing[0]}: the base model's own answers were not measured, because it has no chat template "
            "or could not answer; --probe default measures them"
        )
    return found.check(budgets, confidence), found


def _weaker(found: CheckResult | ProfileCheck, profile: Profile, words: list[str]) -> list[str]:
    """For an adapter over its budget on one text, the command that finds a weaker version of it."""
    from ..measuring.measurement import CheckResult

    first = profile.first
    if not isinstance(found, CheckResult) or found.verdict != "over":
        return []
    if not (Path(first.tuned).expanduser() / "adapter_config.json").is_file():
        return []
    scaled = command("scale", first.base, first.tuned, "--budget", f"{found.budget:g}", *words)
    return [f"to find a weaker version of it within the budget: {scaled}"]


def _not_judged(found: CheckResult | ProfileCheck, profile: Profile) -> list[str]:
    """A line on forgetting of the base model's own answers that no budget names; empty if there are none."""
    from ..measuring.profile import ProfileCheck

    verdicts = found.verdicts if isinstance(found, ProfileCheck) else {}
    rest = {name: one.forgetting for name, one in profile.answers.items() if name not in verdicts}
    if not rest:
        return []
    values = ", ".join(f"{name} {fixed(mean.value)} ± {mean.se_text}" for name, mean in rest.items())
    return [f"not judged, on the base model's own answers: {values}"]


def budgets_of(given: list[str], names: list[str] | None, beside: Sequence[str] = ()) -> Any:
    """--budget as a number, or as numbers by the names of texts.

    Args:
        given: the values of --budget.
        names: of the texts; None means one text without a name, which is called `text` if a budget names a probe.
        beside: names of the probes that are measured along with the texts, and judged only if a budget names them.

    Raises:
        UsageError: not a number, an unknown name, or several budgets for one text.
    """
    found: dict[str | None, float] = {}
    for item in given:
        name, mark, number = item.rpartition("=")
        key = name if mark else None
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"--budget: got '{item}'; give nats/token, as in 0.1, or NAME=0.1 for one text") from None
        if key in found:
            raise UsageError(f"--budget: two budgets for {repr(key) if key else 'all texts'}; give one")
        found[key] = value
    unknown = [key for key in found if key is not None and key not in (*(names or ()), *beside)]
    if names is None:
        if unknown or (len(found) > 1 and not beside):
            also = f", or NAME=NATS for the base model's own answers ({few(beside)})" if beside else ""
            raise UsageError(f"--budget: got a text's name, but the only text has no name; give a number{also}")
        if list(found) == [None]:
            return found[None]
        names = ["text"]
    if unknown:
        raise UsageError(f"--budget: no text '{unknown[0]}'; texts: {', '.join([*names, *beside])}")
    rest = dict.fromkeys(names, found[None]) if None in found else {}
    return rest | {key: value for key, value in found.items() if key is not None}


def _as_junit(found: CheckResult | ProfileCheck, profile: Profile, **how: bool) -> str:
    """The verdicts as JUnit XML: one test case per text, and one for the task."""
    from ..measuring.measurement import CheckResult

    verdicts: dict[str, Verdict] = {profile.first.text: found} if isinstance(found, CheckResult) else found.verdicts
    cases = [Case(name, one.verdict, one.sentence(), _code_of(one, how)) for name, one in verdicts.items()]
    if (task := found.task) is not None:
        cases.append(Case(f"task {task.text}", task.verdict, task.sentence(), task.exit_code(**how)))
    return as_junit("forgetting check", f"{profile.first.tuned} against {profile.first.base}", cases)


def _code_of(verdict: Verdict, how: dict[str, bool]) -> int:
    """The exit code of the verdict on forgetting, without that on the task."""
    from ..measuring.verdict import exit_code_of

    return exit_code_of(verdict.verdict, verdict.blind, **how)


def markdown_summary(found: CheckResult | ProfileCheck, profile: Profile) -> str:
    """A verdict as Markdown, for a comment on a pull request."""
    from ..measuring.measurement import CheckResult

    rest = _summary(found) if isinstance(found, CheckResult) else _summary_of_texts(found)
    what = "Forgetting" if found.task is None else "Task and forgetting:"
    task = [] if found.task is None else [f"{escaped(found.task.sentence())} ({code(found.task.text)}).", ""]
    probes = [f"{escaped(line)}.\n" for line in _not_judged(found, profile)]
    return "\n".join([heading(what, found.outcome), "", *task, *rest, *probes])


def _summary(verdict: CheckResult) -> list[str]:
    from ..measuring.quantities import SHOWN

    result = verdict.measurement
    lines = [f"{escaped(verdict.sentence())}.", "", "| quantity | value | standard error |", "|---|---:|---:|"]
    for one in SHOWN:
        found = result.means[one.name]
        lines.append(f"| {one.label} | {fixed(found.value)} | {found.se_text} |")
    mean = result.forgetting
    where = f"{code(result.tuned)} against {code(result.base)} on {code(result.text)}"
    tail = f"{mean.extent}, nats/token, {verdict.confidence:.0%} bounds"
    return [*lines, "", f"{where}: {tail}.", *(f"- {escaped(n)}" for n in result.notices), ""]


def _summary_of_texts(found: ProfileCheck) -> list[str]:
    lines = ["| text | verdict | forgetting | standard error | bounds | budget |", "|---|---|---:|---:|---:|---:|"]
    judged_too = [name for name in found.verdicts if name not in found.profile.measurements]
    rows = found.profile.measurements | {name: found.profile.everything[name] for name in judged_too}
    for name, one in rows.items():
        mean, judged = one.forgetting, found.verdicts.get(name)
        bounds = f"{judged.low:.4f} to {judged.high:.4f}" if judged else ""
        verdict, budget = (judged.verdict, f"{judged.budget:g}") if judged else ("not judged", "")
        cells = (code(name), verdict, fixed(mean.value), mean.se_text, bounds, budget)
        lines.append(f"| {' | '.join(cells)} |")
    first = found.profile.first
    notices = [f"- {escaped(notice)}" for notice in found.profile.notices]
    return [*lines, "", f"{code(first.tuned)} against {code(first.base)}, nats/token.", *notices, ""]


def _write_page(profile: Profile, path: Path | None, task: Improvement | None = None) -> None:
    if path is None:
        return
    from ..reporting.measurement import render

    write(path, render(profile, task))
