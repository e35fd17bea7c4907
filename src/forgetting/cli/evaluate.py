"""`forgetting evaluate`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display.markdown import code, escaped
from ..display.tables import Shown
from ..errors import UsageError
from . import options as o
from .printing import print_shown, say
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
    from ..capabilities.evaluate import Evaluation, EvaluationCheck
    from ..capabilities.suites import Plan

Base = Annotated[str, typer.Argument(help="The base model: a folder, a Hub id, or `miniature`; or a study folder.")]
Tuned = Annotated[str | None, typer.Argument(help="The model fine-tuned from it: an adapter or a full model.")]
SuiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        help="knowledge, reasoning, safety, a .jsonl file of your own items, an lm-eval .yaml, or any task of "
        "lm-evaluation-harness. Repeat for several. Default: the first three.",
    ),
]
IncludePath = Annotated[
    list[str] | None,
    typer.Option(help="A folder where lm-eval also looks for tasks and groups. Repeat for several."),
]
Out = Annotated[Path | None, typer.Option(help="Folder to store answers in. Default: evaluations/NAME.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use only this many items of each task, from the first, for a quick look.")
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Items per forward pass. Default: 256 for a small model, 16 for a larger one.")
]
Fewshot = Annotated[
    int | None, typer.Option(min=0, help="Few-shot examples before each item. Default: as the task defines.")
]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="Apply the chat template. Default: if the model has one.")
]
Metric = Annotated[str | None, typer.Option(help="The lm-eval metric to use as an item's score.")]
ClusterBy = Annotated[
    str | None, typer.Option(help="Item field that groups items, e.g. by passage; standard errors cluster by it.")
]
MaxNew = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Maximum tokens of a reply to a local item or prompt.")
]
Harmful = Annotated[
    str | None, typer.Option(help="Harmful prompts for `safety`: a .csv, .txt or .jsonl file, or a Hub id.")
]
Harmless = Annotated[str | None, typer.Option(help="Harmless look-alike prompts for `safety`: same kinds of source.")]
Keep = Annotated[bool, typer.Option("--keep-completions", help="Also store the replies to harmful prompts.")]
JudgeOption = Annotated[
    str | None,
    typer.Option("--judge", help="A model that judges whether replies are refusals. Default: built-in rules."),
]
Export = Annotated[Path | None, typer.Option(help="Write the replies of `safety` to a CSV, to label refusals by hand.")]
Import = Annotated[Path | None, typer.Option("--import", help="Judge refusals by the labels in such a CSV.")]
RelearnOption = Annotated[
    bool,
    typer.Option(
        "--relearn", help="Test whether lost knowledge comes back: retrain on half of each suite, score the other half."
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Path of the report page. Default: report.html in the folder.")
]


@dataclass(frozen=True)
class AskOptions:
    """What is asked, and how: flags for evaluating two models or a study."""

    suite: SuiteOption = None
    include_path: IncludePath = None
    limit: Limit = None
    batch_size: Batch = None
    fewshot: Fewshot = None
    chat: Chat = None
    metric: Metric = None
    cluster_by: ClusterBy = None
    max_new_tokens: MaxNew = 64
    harmful: Harmful = None
    harmless: Harmless = None
    keep_completions: Keep = False

    def given(self) -> dict[str, Any]:
        """The arguments for `evaluate`."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "suite"}
        return given | {"suites": self.suite or (), "include_path": self.include_path or ()}

    def plan(self) -> Plan:
        """The plan for the runs of a study."""
        from ..capabilities.settings import Settings
        from ..capabilities.suites import Plan

        how = Settings(
            self.limit, self.batch_size, self.chat, self.fewshot, metric=self.metric, cluster_by=self.cluster_by
        )
        prompts = (self.harmful, self.harmless, self.keep_completions, self.max_new_tokens)
        return Plan(tuple(self.suite or ()), how, *prompts, tuple(self.include_path or ()))


class BackendName(StrEnum):
    """Allowed --backend."""

    openai = "openai"
    openai_chat = "openai-chat"


@dataclass(frozen=True)
class ServedOptions:
    """Models that run on servers."""

    backend: Annotated[
        BackendName | None,
        typer.Option(
            help="BASE and TUNED are addresses of OpenAI-compatible servers (vLLM, llama.cpp, TGI), such as "
            "http://localhost:8000/v1, for completions or chat completions (the latter give no log-probabilities). "
            "The key is read from OPENAI_API_KEY, further headers as JSON from FORGETTING_SERVER_HEADERS.",
        ),
    ] = None
    base_model: Annotated[
        str | None, typer.Option(help="The base model's name on the server. Default: the only one it lists.")
    ] = None
    tuned_model: Annotated[
        str | None, typer.Option(help="The tuned model's name on the server. Default: the only one it lists.")
    ] = None
    tokenizer: Annotated[
        str | None, typer.Option(help="The served models' tokenizer, a folder or Hub id; for --backend openai.")
    ] = None
    text_prompts: Annotated[
        bool, typer.Option("--text-prompts", help="When replies are generated, send prompts as text instead of tokens.")
    ] = False

    def given(self) -> dict[str, Any]:
        """The arguments for `evaluate`.

        Raises:
            UsageError: an option that needs --backend, without it.
        """
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.backend is None:
            if idle := [name for name, value in found.items() if value]:
                raise UsageError(f"--{idle[0].replace('_', '-')}: only with --backend")
            return {}
        from ..capabilities.served import Server

        return {"server": Server(**found | {"backend": self.backend.value})}


@dataclass(frozen=True)
class GateOptions:
    """How much may be lost, and where verdicts are written."""

    max_lost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SHARE",
            help="Net share of the items (lost minus gained) that may be lost: knowledge=0.02 for a suite or task, "
            "refusals=0 and harmless=0.05 for the prompts of safety, or one number for all. Repeat for several. Exit "
            "code 3 if more is lost.",
        ),
    ] = None
    confidence: Confidence = 0.95
    strict: Strict = False
    allow_undecided: AllowUndecided = False
    markdown: Markdown = None
    junit: Junit = None

    def budget(self) -> float | dict[str, float] | None:
        """The shares by name; an empty name stands for everything not named.

        Raises:
            UsageError: not a share, a repeated name, or options of the gate without --max-lost.
        """
        if not self.max_lost:
            if idle := o.words_of(self):
                raise UsageError(f"{idle[0]}: only with --max-lost")
            return None
        check_undecided(self.strict, self.allow_undecided)
        return shares_of(self.max_lost, self.confidence)

    def exit_code(self, found: Any) -> int:
        """The exit code for one verdict or several."""
        return int(found.exit_code(strict=self.strict, allow_undecided=self.allow_undecided))


def shares_of(given: list[str], confidence: float) -> float | dict[str, float]:
    """--max-lost as a number, or as numbers by name.

    Raises:
        UsageError: not a share, a repeated name, or a number for all together with numbers by name.
    """
    from ..capabilities.gate import check_loss

    found: dict[str, float] = {}
    for item in given:
        name, mark, number = item.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            raise UsageError(f"--max-lost: got '{item}'; give a share such as 0.02, or knowledge=0.02") from None
        if name in found:
            raise UsageError(f"--max-lost: two shares {'for ' + repr(name) if mark else 'for all'}; give one")
        check_loss(share, confidence, f"--max-lost {item}:" if mark else "--max-lost")
        found[name] = share
    if "" in found and len(found) > 1:
        raise UsageError("--max-lost: got a share for all and shares by name; give one for all, or name each suite")
    return found.get("", found)


@o.expanded
def evaluate_command(
    base: Base,
    tuned: Tuned = None,
    *,
    asking: AskOptions,
    out: Out = None,
    judge: JudgeOption = None,
    export: Export = None,
    import_: Import = None,
    relearn: RelearnOption = False,
    gate: GateOptions,
    served: ServedOptions,
    models: o.ModelOptions,
    html: Html = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure which answers and refusals were lost, item by item, with paired statistics.

    Answers are stored, and stored answers are not asked for again. Given only a study folder, it evaluates the tuned
    model of each run, and the study's report shows the results.

    With --max-lost, the exit code is 3 if the lower confidence bound of the net loss is over the budget; undecided
    verdicts exit as in `check`. A budget of 0 is kept if the net loss is at most 0 and its upper bound at most 2
    points.
    """
    max_lost = gate.budget()
    if judge is not None and import_ is not None:
        raise UsageError("give --judge or --import, not both")
    if tuned is None:
        one = {"judge": judge, "out": out, "import": import_, "relearn": relearn, "export": export, "html": html}
        words = [word for name, value in one.items() for word in o.words(f"--{name}", value)]
        _check_study(base, [*words, *o.words_of(gate, served, models)])
        _evaluate_study(Path(base), asking.plan(), as_json)
        return
    if not (asking.suite or base == "miniature" or asking.harmful or asking.harmless):
        _tell("safety is skipped: to evaluate it, give --harmful and --harmless prompts")
    from ..capabilities.api import evaluate

    folder = out or Path("evaluations") / _name(served.base_model or base, served.tuned_model or tuned)
    how = asking.given() | models.given() | served.given()
    result = evaluate(base, tuned, out=folder, judge=judge, labels=import_, relearn=relearn, tell=_tell, **how)
    found = None if max_lost is None else result.check(max_lost, gate.confidence)
    _finish(result, found, export, html or folder / "report.html", as_json)
    if found is not None:
        _tell_others(found, gate)
        raise typer.Exit(gate.exit_code(found))


def _tell_others(found: EvaluationCheck, gate: GateOptions) -> None:
    if gate.markdown is not None:
        write(gate.markdown, markdown_summary(found))
    if gate.junit is not None:
        cases = [Case(name, v.verdict, v.sentence(), gate.exit_code(v)) for name, v in found.verdicts.items()]
        models = f"{found.evaluation.tuned} against {found.evaluation.base}"
        write(gate.junit, as_junit("forgetting evaluate", models, cases))


def markdown_summary(found: EvaluationCheck) -> str:
    """The verdicts as Markdown, for a comment on a pull request."""
    from ..capabilities.gate import points

    lines = [heading("Lost answers", found.verdict), ""]
    lines += [
        "| suite | verdict | items | lost | gained | net | bounds | budget | 80 % detect |",
        "|---|---|" + 7 * "---:|",
    ]
    for name, one in found.verdicts.items():
        cells = (code(name), one.verdict, f"{one.loss.n:,}", f"{one.loss.lost:g}", f"{one.loss.gained:g}")
        net = (points(one.loss.value), f"{points(one.low)} to {points(one.high)}", points(one.budget))
        least = "-" if one.detectable is None else points(one.detectable)
        lines.append(f"| {' | '.join((*cells, *net, least))} |")
    lines += ["", *(f"- {escaped(sentence)}" for sentence in found.sentences())]
    models = f"{code(found.evaluation.tuned)} against {code(found.evaluation.base)}, percentage points"
    return "\n".join([*lines, "", f"{models}.", *(f"- {escaped(n)}" for n in found.evaluation.notices), ""])


def _check_study(base: str, given: list[str]) -> None:
    """Refuse a folder that is not a study, and the options `given`, which apply to one run's models.

    Raises:
        UsageError: no study folder, or an option.
    """
    if not (Path(base) / "study.yaml").is_file():
        raise UsageError(f"TUNED: missing; give the model fine-tuned from {base}, or only a study folder")
    if given:
        raise UsageError(f"{given[0]}: does not apply to a whole study; give one run's BASE and TUNED")


def _name(base: str, tuned: str) -> str:
    """A folder name from the last parts of both models' paths, except `adapter`."""
    parts = [part for part in re.split(r"[/\\]", tuned) if part not in ("", ".", "..", "adapter")][-1:]
    last = [part for part in re.split(r"[/\\]", base) if part][-1:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "--".join([*last, *parts])).strip("-.")[:120] or "evaluation"


def _finish(result: Evaluation, found: EvaluationCheck | None, export: Path | None, page: Path, as_json: bool) -> None:
    from ..capabilities.judges import export as write_labels
    from ..reporting.capabilities import render_evaluation

    if export is not None:
        rows = [row for pairs in result.rows.values() for pair in pairs for row in pair if row["expect"] is not None]
        if not rows:
            raise UsageError("--export: there are no replies to label; add --suite safety")
        _tell(f"{write_labels(export, rows)} replies to label in {export}: write yes or no in column `refusal`")
    write(page, render_evaluation(result, found))
    if as_json:
        typer.echo(json.dumps({**(found or result).to_dict(), "report": str(page)}))
    else:
        from ..capabilities.gate import verdicts_shown

        verdicts = [] if found is None else [verdicts_shown(found.verdicts)]
        print_shown([*replace(result, notices=()).shown(), *verdicts, Shown([f"report: {page}"])])
    for notice in result.notices:
        say(f"notice: {notice}")


def _evaluate_study(folder: Path, plan: Plan, as_json: bool) -> None:
    from ..capabilities.study_runs import evaluate_runs, study_rows
    from ..studies.conclude import conclude

    evaluate_runs(folder, plan, tell=_tell)
    report = conclude(folder).report
    rows = study_rows(folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "report": str(report), "rows": rows}))
        return
    from ..capabilities.show import study_shown

    print_shown([study_shown(rows), Shown([f"report: {report}"])])


def _tell(text: str) -> None:
    say(text)
