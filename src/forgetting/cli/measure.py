"""`forgetting measure` and `check`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.steps import NAME
from ..display.markdown import code, escaped
from ..display.numbers import fixed
from ..display.tables import Shown
from ..errors import UsageError, visible
from ..files import PACKED
from . import options as o
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
    write,
)

if TYPE_CHECKING:
    from ..config.schema import ProbeConfig, TextConfig
    from ..measuring.measurement import CheckResult
    from ..measuring.profile import Profile, ProfileCheck
    from ..measuring.task import Improvement
    from ..measuring.verdict import Verdict


class DeviceMap(StrEnum):
    """Allowed --device-map."""

    auto = "auto"


Base = Annotated[str, typer.Argument(help="The base model: a folder, a Hub id, or `miniature`.")]
Tuned = Annotated[str, typer.Argument(help="What was fine-tuned from it: a PEFT adapter or a full model.")]
Text = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]SOURCE",
        help="General text: a {files} file, a folder of them, or a Hub id. Default: the WikiText-103 test set. Several "
        "texts are measured one by one: repeat it, each with a name, as in chat=chat.jsonl.",
    ),
]
TextField = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="How to read it: a field of `text` in a study's file, such as split=test or text_column=body; "
        "repeat for several. Of one of several texts: NAME.FIELD=VALUE.",
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
            ".txt, also as .gz), a Hub id, `default` (240 of ours) or `miniature`; a row a kind of prompt. "
            "Repeat for several.",
        ),
    ] = None
    probe_tokens: Annotated[
        int | None, typer.Option(min=1, help="An answer is cut there. Default: 128, or half of the context.")
    ] = None
    probe_temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=10.0, help="Of sampled answers, by --seed. Default: 0, the most likely token."),
    ] = None

    def texts(self, seed: int) -> dict[str, ProbeConfig]:
        """The probes by name, each kind of prompts by itself.

        Raises:
            UsageError: prompts that cannot be read, a name twice, a setting without a probe.
        """
        from ..config.schema import ProbeConfig, validated
        from ..data.probes import by_kind

        given = {"max_new_tokens": self.probe_tokens, "temperature": self.probe_temperature}
        how = {name: value for name, value in given.items() if value is not None}
        if not self.probe and how:
            raise UsageError("--probe-tokens, --probe-temperature: say how --probe answers, which is missing")
        found: dict[str, ProbeConfig] = {}
        for item in self.probe or ():
            name, source = _named(item)
            config = validated(ProbeConfig, {"probe": source, "seed": seed, **how}, "--probe")
            parts = by_kind(name or _probe_name(source), config)
            if twice := parts.keys() & found.keys():
                raise UsageError(
                    f"--probe: two texts of the name '{min(twice)}'; give each its own, as in NAME={source}"
                )
            found |= parts
        return found


def _probe_name(source: str) -> str:
    """The file's name without its suffixes, or the last part of a Hub id."""
    path = Path(source)
    stem = Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "probe"


TaskText = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE", help="Held-out text of the task that was trained: the verdict is also on whether it improved."
    ),
]
TaskField = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="How to read --task-text, as --text-field.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Also write a report page: where it forgot, token by token.")]


@dataclass(frozen=True)
class PassOptions:
    """How to measure; `measure`, `check` and `scale` share these flags."""

    context: Annotated[int | None, typer.Option(help="Tokens a window. Default: 512.")] = None
    tolerance: Annotated[
        float | None,
        typer.Option(help="Measure documents in random order until the standard error is at most this, nats/token."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of that order.")] = 0
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
        """The arguments of the function of the command's name.

        Raises:
            UsageError: flags that exclude each other.
        """
        if self.cache is not None and self.no_cache:
            raise UsageError("give --cache or --no-cache, not both")
        if self.device_map is not None and models.device not in (None, "auto"):
            raise UsageError("give --device or --device-map, not both")
        return {
            **{name: getattr(self, name) for name in ("context", "tolerance", "seed", "batch_tokens")},
            "device_map": self.device_map and self.device_map.value,
            "cache_dir": None if self.no_cache else (self.cache or "auto"),
            **models.given(),
        }


@dataclass(frozen=True)
class MeasureOptions(PassOptions):
    """And those that `measure` and `check` have beside them."""

    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Also measure the base against itself: a smaller difference is noise.")
    ] = False

    def given(self, models: o.ModelOptions) -> dict[str, Any]:
        """See `PassOptions.given`."""
        return {**super().given(models), "noise_floor": self.noise_floor}


@o.expanded
def measure_command(
    base: Base,
    tuned: Tuned,
    *,
    text: Text = None,
    text_field: TextField = None,
    probing: ProbeOptions,
    measuring: MeasureOptions,
    models: o.ModelOptions,
    html: Html = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure what a fine-tuned model forgot of its base, each number with its standard error."""
    how = measuring.given(models)
    quiet_libraries()
    source = _with_probes(texts_of(text, text_field), probing.texts(measuring.seed))
    if isinstance(source, dict):
        from ..measuring.measure import profile

        found = profile(base, tuned, texts=source, **how)
        _write_page(found, html)
        if as_json:
            typer.echo(json.dumps(found.to_dict()))
        else:
            print_shown([replace(part, notes=()) for part in found.shown()])
        say_page(html, as_json=as_json)
        say_notices(found.notices)
        return
    from ..measuring.measure import measure
    from ..measuring.profile import Profile

    result = measure(base, tuned, text=source, **how)
    _write_page(Profile({result.text: result}), html)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    else:
        where = "--html FILE shows in which tokens and documents; " if html is None else ""
        next_ = f"next: {where}`forgetting evaluate` with the same two models shows which answers were lost"
        print_shown([*replace(result, notices=()).shown(), Shown([next_])])
    say_page(html, as_json=as_json)
    say_notices(result.notices)


@o.expanded
def check_command(
    base: Base,
    tuned: Tuned,
    *,
    budget: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]NATS",
            help="Excess forgetting that is allowed, nats/token. With several texts NAME=NATS for each that is judged, "
            "or one number for all.",
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
    """Hold a fine-tuned model to a forgetting budget: exit code 0 within it, 3 over it.

    Where the confidence bounds lie on both sides of the budget, and below 5 documents, the verdict is "undecided". It
    fails with --strict, and where the measurement could not decide: below 5 documents, or with an interval wider than
    the budget, unless --allow-undecided. Else its exit code is 0. With --task-text it is also 3 where the upper bound
    of what the task improved by is not above 0, and the verdict is undecided where only the lower one is not.
    """
    check_undecided(strict, allow_undecided)
    how = measuring.given(models)
    how["task_text"] = one_text(task_text, task_field, "--task-text", "--task-field")
    quiet_libraries()
    source = _with_probes(texts_of(text, text_field), probing.texts(measuring.seed))
    found = _checked(base, tuned, source, budget, confidence, how)
    profile = _profile_of(found)
    _write_page(profile, html, found.task)
    if markdown is not None:
        write(markdown, markdown_summary(found))
    if junit is not None:
        write(junit, _as_junit(found, profile, strict=strict, allow_undecided=allow_undecided))
    typer.echo(json.dumps(found.to_dict()) if as_json else "\n".join(map(visible, found.sentences())))
    say_page(html, as_json=as_json)
    say_notices([*(found.task.notices if found.task else ()), *profile.notices])
    raise typer.Exit(found.exit_code(strict=strict, allow_undecided=allow_undecided))


def say_page(html: Path | None, *, as_json: bool) -> None:
    """Say which page was written."""
    if html is not None and not as_json:
        typer.echo(f"report: {visible(str(html))}")


def _profile_of(found: CheckResult | ProfileCheck) -> Profile:
    """What a verdict rests on."""
    from ..measuring.profile import Profile, ProfileCheck

    if isinstance(found, ProfileCheck):
        return found.profile
    return Profile({found.measurement.text: found.measurement})


def _checked(
    base: str, tuned: str, source: Any, budget: list[str], confidence: float, how: dict[str, Any]
) -> CheckResult | ProfileCheck:
    """The verdict on one text, or on several by their names."""
    from ..measuring.measure import check, profile
    from ..measuring.verdict import check_budget

    if not isinstance(source, dict):
        return check(base, tuned, budget=budgets_of(budget, None), confidence=confidence, text=source, **how)
    budgets = budgets_of(budget, list(source))
    for name, value in budgets.items():
        check_budget(value, confidence, f"budget of '{name}'")
    return profile(base, tuned, texts=source, **how).check(budgets, confidence)


def texts_of(
    sources: list[str] | None, given: list[str] | None
) -> str | TextConfig | dict[str, str | TextConfig] | None:
    """The general text with the fields of --text-field; several by their names, in order.

    Raises:
        UsageError: a text without a name among several, two of one name, a field that no text has, or a value that it
            does not take.
    """
    split = [_named(source) for source in sources or []]
    if len(split) <= 1 and not any(name for name, _ in split):
        return one_text(next(iter(sources or []), None), given)
    names = [name for name, _ in split]
    if None in names:
        plain = next(source for name, source in split if name is None)
        raise UsageError(f"--text: got '{plain}' among several texts; give each a name, as in chat={plain}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--text: two texts of the name '{twice[0]}'; give each its own")
    fields: dict[str, list[str]] = {str(name): [] for name in names}
    for item in given or []:
        name, mark, field = item.partition(".")
        if not mark or name not in fields:
            known = ", ".join(f"{name}.FIELD=VALUE" for name in fields)
            raise UsageError(f"--text-field: got '{item}'; with named texts give {known}")
        fields[name].append(field)
    return {str(name): with_fields(source, fields[str(name)]) for name, source in split}


def _with_probes(source: Any, probes: dict[str, ProbeConfig]) -> Any:
    """The texts and the probes by name; without probes the texts as they are.

    Raises:
        UsageError: a text and a probe of one name.
    """
    if not probes:
        return source
    texts = source if isinstance(source, dict) else {} if source is None else {"text": source}
    if twice := texts.keys() & probes.keys():
        raise UsageError(f"--probe: a text has the name '{min(twice)}', too; give one of them another")
    return texts | probes


def _named(source: str) -> tuple[str | None, str]:
    """The name and the source of NAME=SOURCE; a path that is there is a path, whatever is in its name."""
    name, mark, rest = source.partition("=")
    if not mark or not NAME.fullmatch(name) or Path(source).exists():
        return None, source
    return name, rest


def budgets_of(given: list[str], names: list[str] | None) -> Any:
    """--budget as a number, or as numbers by the names of texts.

    Raises:
        UsageError: not a number, a name that no text has, or several budgets of one text.
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
            raise UsageError(f"--budget: two budgets {'of ' + repr(key) if key else 'for all texts'}; give one")
        found[key] = value
    if names is None:
        if list(found) != [None]:
            raise UsageError("--budget: got a text's name, and there is one text without a name; give a number")
        return found[None]
    if unknown := [key for key in found if key is not None and key not in names]:
        raise UsageError(f"--budget: no text '{unknown[0]}'; texts: {', '.join(names)}")
    rest = dict.fromkeys(names, found[None]) if None in found else {}
    return rest | {key: value for key, value in found.items() if key is not None}


def one_text(
    source: str | None, given: list[str] | None, option: str = "--text", fields: str = "--text-field"
) -> str | TextConfig | None:
    """The text of an option with the fields that say how to read it; None where it was not given.

    Raises:
        UsageError: fields without a text, and what `with_fields` raises.
    """
    if source is not None:
        return with_fields(source, given or [], fields)
    if given:
        raise UsageError(f"{fields}: says how to read {option}, which is missing")
    return None


def with_fields(source: str, given: list[str], option: str = "--text-field") -> str | TextConfig:
    """A text with fields that say how to read it.

    Raises:
        UsageError: a field that no text has, or a value that it does not take.
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
        fields[name] = value
    try:
        return TextConfig.model_validate_strings({"source": source, **fields}, strict=False)
    except ValidationError as error:
        raise UsageError(*explain(error, TextConfig, option)) from None


def _as_junit(found: CheckResult | ProfileCheck, profile: Profile, **how: bool) -> str:
    """A test case a text."""
    from ..measuring.measurement import CheckResult

    verdicts: dict[str, Verdict] = {profile.first.text: found} if isinstance(found, CheckResult) else found.verdicts
    cases = [Case(name, one.verdict, one.sentence(), _code_of(one, how)) for name, one in verdicts.items()]
    if (task := found.task) is not None:
        cases.append(Case(f"task {task.text}", task.verdict, task.sentence(), task.exit_code(**how)))
    return as_junit("forgetting check", f"{profile.first.tuned} against {profile.first.base}", cases)


def _code_of(verdict: Verdict, how: dict[str, bool]) -> int:
    """The exit code of a verdict on forgetting alone."""
    from ..measuring.verdict import exit_code_of

    return exit_code_of(verdict.verdict, verdict.blind, **how)


def markdown_summary(found: CheckResult | ProfileCheck) -> str:
    """A verdict as Markdown, for a comment on a pull request."""
    from ..measuring.measurement import CheckResult

    rest = _summary(found) if isinstance(found, CheckResult) else _summary_of_texts(found)
    what = "Forgetting" if found.task is None else "Task and forgetting:"
    task = [] if found.task is None else [f"{escaped(found.task.sentence())} ({code(found.task.text)}).", ""]
    return "\n".join([heading(what, found.outcome), "", *task, *rest])


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
    for name, one in found.profile.measurements.items():
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
