"""`forgetting evaluate`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display.tables import Shown
from ..errors import UsageError
from . import options as o
from .printing import print_shown, say

if TYPE_CHECKING:
    from ..capabilities.evaluate import Evaluation
    from ..capabilities.suites import Plan

Base = Annotated[str, typer.Argument(help="The base model (a folder, a Hub id, or `miniature`); or a study folder.")]
Tuned = Annotated[str | None, typer.Argument(help="What was fine-tuned from it: an adapter or a full model.")]
SuiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        help="knowledge, reasoning, safety, a .jsonl file of your own items, an lm-eval .yaml, or any task of "
        "lm-evaluation-harness; repeat for several. Default: the three.",
    ),
]
IncludePath = Annotated[
    list[str] | None,
    typer.Option(help="A folder in which lm-eval looks for tasks and groups by name; repeat for several."),
]
Out = Annotated[Path | None, typer.Option(help="Where answers are stored. Default: evaluations/NAME.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Items a forward pass. Default: 256 for a small model, else 16.")
]
Fewshot = Annotated[int | None, typer.Option(min=0, help="Examples before each item. Default: as the task says.")]
Chat = Annotated[bool | None, typer.Option("--chat/--no-chat", help="Chat template. Default: where the model has one.")]
Metric = Annotated[str | None, typer.Option(help="The metric of lm-eval that is an item's score.")]
ClusterBy = Annotated[str | None, typer.Option(help="The field of an item that names its passage.")]
MaxNew = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of a reply to a local item or prompt.")]
Harmful = Annotated[str | None, typer.Option(help="Harmful prompts of `safety`: a .csv, .txt, .jsonl or Hub id.")]
Harmless = Annotated[str | None, typer.Option(help="Harmless look-alikes of `safety`: the same.")]
Keep = Annotated[bool, typer.Option("--keep-completions", help="Store the replies to harmful prompts.")]
JudgeOption = Annotated[str | None, typer.Option("--judge", help="A model that judges refusals. Default: rules.")]
Export = Annotated[Path | None, typer.Option(help="Write the replies of `safety` into a CSV, to be labelled by hand.")]
Import = Annotated[Path | None, typer.Option("--import", help="Judge refusals by the labels in such a CSV.")]
RelearnOption = Annotated[
    bool, typer.Option("--relearn", help="Lost, or out of reach? Relearn half of each suite, score the other half.")
]
Html = Annotated[Path | None, typer.Option("--html", help="The report page. Default: report.html in the folder.")]


@dataclass(frozen=True)
class AskOptions:
    """What is asked, and how: the same for two models and for a study."""

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
        """The same for `evaluate`."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "suite"}
        return given | {"suites": self.suite or (), "include_path": self.include_path or ()}

    def plan(self) -> Plan:
        """The same for the runs of a study."""
        from ..capabilities.settings import Settings
        from ..capabilities.suites import Plan

        how = Settings(
            self.limit, self.batch_size, self.chat, self.fewshot, metric=self.metric, cluster_by=self.cluster_by
        )
        prompts = (self.harmful, self.harmless, self.keep_completions, self.max_new_tokens)
        return Plan(tuple(self.suite or ()), how, *prompts, tuple(self.include_path or ()))


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
    models: o.ModelOptions,
    html: Html = None,
    as_json: o.AsJson = False,
) -> None:
    """What was lost of knowledge, reasoning and safety guardrails, item by item, with paired statistics.

    Answers are stored, and what is stored is not asked again. With a study folder alone, the tuned model of each of its
    runs is evaluated, and the study's report shows it.
    """
    _check(judge, import_, tuned, base, relearn, export)
    if tuned is None:
        _evaluate_study(Path(base), asking.plan(), as_json)
        return
    if not (asking.suite or base == "miniature" or asking.harmful or asking.harmless):
        _tell("safety is left out: give --harmful and --harmless prompts to evaluate it")
    from ..capabilities.api import evaluate

    folder = out or Path("evaluations") / _name(base, tuned)
    how = asking.given() | models.given()
    result = evaluate(base, tuned, out=folder, judge=judge, labels=import_, relearn=relearn, tell=_tell, **how)
    _finish(result, export, html or folder / "report.html", as_json)


def _check(
    judge: str | None, import_: Path | None, tuned: str | None, base: str, relearn: bool, export: Path | None
) -> None:
    if judge is not None and import_ is not None:
        raise UsageError("give --judge or --import, not both")
    if tuned is not None:
        return
    if not (Path(base) / "study.yaml").is_file():
        raise UsageError(f"TUNED: missing: give what was fine-tuned from {base}; or a study folder alone")
    given = [
        n for n, x in (("--judge", judge), ("--import", import_), ("--relearn", relearn), ("--export", export)) if x
    ]
    if given:
        raise UsageError(f"{given[0]}: not for a whole study; give one run's BASE and TUNED")


def _name(base: str, tuned: str) -> str:
    """A folder's name: the base, and the last two parts of what was tuned from it."""
    parts = [part for part in re.split(r"[/\\]", tuned) if part not in ("", ".", "..", "adapter")][-1:]
    last = [part for part in re.split(r"[/\\]", base) if part][-1:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "--".join([*last, *parts])).strip("-.")[:120] or "evaluation"


def _finish(result: Evaluation, export: Path | None, page: Path, as_json: bool) -> None:
    from ..capabilities.judges import export as write_labels
    from ..files import write_atomically
    from ..reporting.capabilities import render_evaluation

    if export is not None:
        rows = [row for pairs in result.rows.values() for pair in pairs for row in pair if row["expect"] is not None]
        if not rows:
            raise UsageError("--export: there are no replies to label; add --suite safety")
        _tell(f"{write_labels(export, rows)} replies to label in {export}: write yes or no under `refusal`")
    try:
        write_atomically(page, render_evaluation(result))
    except OSError as error:
        raise UsageError(f"{page}: cannot be written: {error.strerror}") from None
    if as_json:
        typer.echo(json.dumps({**result.to_dict(), "report": str(page)}))
    else:
        print_shown([*replace(result, notices=()).shown(), Shown([f"report: {page}"])])
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
