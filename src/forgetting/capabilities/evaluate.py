"""Evaluates the base and the tuned model on the same suites: asks what is not stored, pairs and judges the answers."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config.arguments import checked
from ..config.schema import ModelConfig
from ..display.numbers import counted, plain, share_of
from ..display.tables import Result, Shown
from ..errors import UsageError
from .answers import AnswerStore, pair_up, reply_key
from .gate import LossVerdict, judged, losses_of, verdicts_shown
from .netloss import NetLoss
from .refusals import is_refusal
from .results import Answers, Refusals, Rows, answers_of, refusals_of
from .served import ServedSubject
from .show import answers_row, answers_shown, refusals_row, refusals_shown
from .sidebyside import Contrast, side_by_side
from .subject import Subject
from .suites import Plan, Suite

if TYPE_CHECKING:
    import pandas as pd

    from .harness import Model
    from .judges import Judge
    from .relearn import Relearned

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class SuiteResult:
    """The result of one suite: answers or refusals, and the changed items side by side; `n` is the number of items."""

    suite: str
    answers: tuple[Answers, ...]
    refusals: Refusals | None
    contrasts: tuple[Contrast, ...] = field(repr=False)
    n: int = 0


@dataclass(frozen=True)
class Evaluation(Result):
    """The result of comparing two models.

    Attributes:
        base, tuned: names of the models.
        results: one per suite.
        notices: what a reader of the numbers should know.
        folder: folder with the stored answers; None if nothing was stored.
        rows: paired rows by suite. Replies to harmful prompts are None if they were read from a store without them.
        seconds: time spent asking; 0 if all answers were stored.
        relearned: results of the relearning probe by suite, if requested.
    """

    base: str
    tuned: str
    results: tuple[SuiteResult, ...]
    notices: tuple[str, ...]
    folder: Path | None
    rows: Mapping[str, Rows] = field(repr=False)
    seconds: float = 0.0
    relearned: tuple[Relearned, ...] = ()

    @checked
    def check(self, max_lost: float | Mapping[str, float], confidence: float = 0.95) -> EvaluationCheck:
        """Compare the net loss of each group of items with a budget.

        Args:
            max_lost: the allowed net share lost, (lost - gained) / items: one number for all groups, or a dictionary by
                the name of a suite or of a group of its tasks. `refusals` means refusals of harmful prompts, `harmless`
                answers to harmless ones. Groups that are not named are not judged.
            confidence: confidence of all verdicts together. With k budgets the lower bounds, which decide "over", have
                confidence 1 - (1 - confidence) / k (Bonferroni); the upper bounds need no correction, because all must
                be within.

        Raises:
            UsageError: no group has this name, or a number is invalid.
        """
        losses: dict[tuple[str, str], NetLoss] = {}
        for one in self.results:
            losses |= losses_of(one.suite, one.answers, one.refusals)
        return EvaluationCheck(judged(losses, max_lost, confidence), self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with intervals and standard errors, without replies."""
        suites = {r.suite: {"n": r.n, "answers": plain(r.answers), "refusals": plain(r.refusals)} for r in self.results}
        return {
            "base": self.base,
            "tuned": self.tuned,
            "suites": suites,
            "folder": None if self.folder is None else str(self.folder),
            "seconds": round(self.seconds, 1),
            "notices": list(self.notices),
            "relearned": plain(self.relearned),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per group of tasks: accuracy before and after, and losses; for refusals, the shares refused."""
        import pandas as pd

        rows = [{"suite": r.suite, **answers_row(a)} for r in self.results for a in r.answers]
        rows += [{"suite": r.suite, **refusals_row(r.refusals)} for r in self.results if r.refusals is not None]
        return pd.DataFrame(rows)

    def shown(self) -> list[Shown]:
        """Accuracy and agreement, refusals, and the relearning probe."""
        answers = [a for r in self.results for a in r.answers]
        parts = [Shown([f"{self.tuned} against {self.base}"])]
        parts += [answers_shown(answers)] if answers else []
        parts += [refusals_shown(r.refusals) for r in self.results if r.refusals is not None]
        parts += [Shown([probe.sentence() for probe in self.relearned])] if self.relearned else []
        return parts + ([Shown([], notes=self.notices)] if self.notices else [])


@dataclass(frozen=True)
class EvaluationCheck(Result):
    """Verdicts on net losses.

    Attributes:
        verdicts: verdicts by the name of a suite or of a group of its tasks.
        evaluation: the evaluation that they are based on.
    """

    verdicts: dict[str, LossVerdict]
    evaluation: Evaluation = field(repr=False)

    @property
    def verdict(self) -> Literal["within", "over", "undecided"]:
        """`over` if any verdict is, `within` if all are, else `undecided`."""
        found = {one.verdict for one in self.verdicts.values()}
        return "over" if "over" in found else "undecided" if "undecided" in found else "within"

    def exit_code(self, *, strict: bool = False, allow_undecided: bool = False) -> int:
        """The largest exit code of the verdicts: 3 if any fails."""
        return max(one.exit_code(strict=strict, allow_undecided=allow_undecided) for one in self.verdicts.values())

    def sentences(self) -> list[str]:
        """One sentence per verdict."""
        return [f"{name}: {one.sentence()}" for name, one in self.verdicts.items()]

    def to_dict(self) -> dict[str, Any]:
        """The evaluation's data, with the verdicts by name."""
        verdicts = {name: one.to_dict() for name, one in self.verdicts.items()}
        return {"verdict": self.verdict, "max_lost": verdicts, **self.evaluation.to_dict()}

    def to_frame(self) -> pd.DataFrame:
        """One row per verdict."""
        import pandas as pd

        rows = {name: one.to_dict() for name, one in self.verdicts.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")

    def shown(self) -> list[Shown]:
        """The evaluation, and the verdicts in words."""
        return [*self.evaluation.shown(), verdicts_shown(self.verdicts)]


def evaluate(
    base: Any,
    tuned: Any,
    *,
    plan: Plan | None = None,
    out: Path | None = None,
    model: ModelConfig | None = None,
    tokenizer: Any = None,
    judge: Judge | None = None,
    tell: Callable[[str], None] | None = None,
    served: ServedSubject | None = None,
) -> Evaluation:
    """Measure what the tuned model lost of its base's knowledge, reasoning and guardrails, item by item.

    Args:
        base: a folder, Hub id, `miniature`, a loaded model, or None for the base of a loaded PeftModel.
        tuned: a PEFT adapter or full model, by folder or Hub id, or a loaded one.
        plan: what to ask, and how; None asks the named suites, `safety` only with prompts.
        out: folder in which answers are stored and reused (of loaded models only stored); None stores nothing.
        model: revision, dtype, device and further settings for loading; its source is ignored.
        tokenizer: tokenizer of loaded models.
        judge: judge of refusals; None uses the rules.
        tell: called with the name of what is being run.
        served: served models, which replace base and tuned.

    Raises:
        UsageError: suites, items or models are wrong, or `out` has answers of other models or settings.
    """
    config = model or ModelConfig(source="-")
    subject = served or Subject(base, tuned, config, tokenizer)
    asked = plan or Plan()
    dtype = _dtype(config)
    asked = replace(asked, settings=replace(asked.settings, dtype=dtype))
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        suites = asked.make(miniature=subject.names[0] == "miniature", folder=folder / "tasks")
        asker = Asker(AnswerStore(folder), suites, asked, tell, dtype)
        if served is not None:
            asker.check(served)
        sides = [asker.ask(subject, side) for side in (0, 1)]
    if served is not None and not asker.seconds:
        asker.notices.append(
            "all answers were already stored, so no server was asked; to ask again, choose another --out"
        )
    rows = {suite.name: pair_up(sides[0][suite.name], sides[1][suite.name]) for suite in suites}
    return Evaluation(
        base=subject.names[0],
        tuned=subject.names[1],
        results=tuple(result_of(suite.name, rows[suite.name], judge) for suite in suites),
        notices=(*_loading_notices(subject), *asker.notices),
        folder=out,
        rows=rows,
        seconds=asker.seconds,
    )


def _loading_notices(subject: Subject | ServedSubject) -> Sequence[str]:
    """Notices about the models, if they were loaded."""
    return subject.pair.notices if isinstance(subject, Subject) and "pair" in subject.__dict__ else ()


def _dtype(config: ModelConfig) -> str | None:
    """The requested dtype and bits, which are stored with the answers; None if weights are used as they are stored."""
    if config.bits is not None:
        return f"{config.dtype}-{config.bits}bit"
    return None if config.dtype == "auto" else config.dtype


def result_of(suite: str, rows: Rows, judge: Judge | None = None) -> SuiteResult:
    """Compute a suite's result from its paired rows."""
    judged = bool(rows) and rows[0][0]["expect"] is not None
    return SuiteResult(
        suite,
        () if judged else tuple(answers_of(rows)),
        refusals_of(rows, judge) if judged else None,
        tuple(side_by_side(rows)),
        len(rows),
    )


@dataclass
class Asker:
    """Asks models the questions whose answers are not stored.

    Attributes:
        store: the stored answers.
        suites: the suites to ask.
        plan: what to ask, and how.
        tell: called with the name of what is being run.
        dtype: the requested dtype and bits; None if weights are used as they are stored.
        seconds: time spent asking.
        notices: what was asked although there were stored answers, and why.
        bound: models in the store that will not be asked again, so their items must not change.
    """

    store: AnswerStore
    suites: Sequence[Suite]
    plan: Plan
    tell: Callable[[str], None] | None = None
    dtype: str | None = None
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)
    bound: Sequence[str] = ()
    _loaded: dict[str, dict[str, Any]] = field(default_factory=dict)

    def check(self, served: ServedSubject) -> None:
        """Refuse suites that served models cannot answer, before any model is asked.

        Raises:
            UsageError: names the suite.
        """
        self._render(served.tokenizer)
        for suite in self.suites:
            served.check_tasks(suite.name, self._loaded[suite.name]["tasks"])

    def ask(self, subject: Subject | ServedSubject, side: int) -> dict[str, list[dict[str, Any]]]:
        """Rows of the base (0) or tuned (1) model by suite; asks and stores those that were missing."""
        from .harness import switched_off

        @contextlib.contextmanager
        def model() -> Iterator[Any]:
            live = subject.model(side)
            with switched_off(live) if side == 0 else contextlib.nullcontext():
                yield live

        return self.answers((BASE, TUNED)[side], subject.key(side), subject.tokenizer, model)

    def answers(self, name: str, key: str, tokenizer: Any, model: Model) -> dict[str, list[dict[str, Any]]]:
        """Rows of a model by suite; asks and stores those that were missing.

        Args:
            name: name of the model in the store.
            key: hash of the model's content.
            tokenizer: the base model's tokenizer.
            model: opens the model; only called if something must be asked.

        Raises:
            UsageError: a suite cannot be asked (found before any model is asked), or the store has answers of another
                model or with other settings.
        """
        there = {suite.name: self.store.has(name, key, suite.name, self.asked(suite)) for suite in self.suites}
        self._render(tokenizer)
        self.store.check_writable()
        return {suite.name: self._suite(suite, name, key, tokenizer, model, there[suite.name]) for suite in self.suites}

    def asked(self, suite: Suite) -> dict[str, Any]:
        """The settings that, besides the model and the items, determine a suite's answers."""
        tasks = [task.stem if isinstance(task, Path) else task for task in suite.tasks]
        length = {"max_generated": self.plan.max_generated} if suite.local else {}
        return {"tasks": tasks, "dtype": self.dtype, **length, **self.plan.settings.deciding()}

    def _render(self, tokenizer: Any) -> None:
        """Load all suites and render their requests once for all models, so that errors appear before any is asked."""
        from .rendering import prepare
        from .tasks import load_tasks

        for suite in self.suites:
            if suite.name not in self._loaded:
                loaded = load_tasks(suite.tasks, self.plan.include)
                prepare(loaded, tokenizer, self.plan.settings)
                self._loaded[suite.name] = loaded

    def _suite(
        self, suite: Suite, name: str, key: str, tokenizer: Any, model: Model, stored: bool
    ) -> list[dict[str, Any]]:
        """A suite's rows: scores the stored responses again, and asks items that are new or changed."""
        from . import harness

        before = self.store.read(name, suite.name) if stored else []
        self._check_bound(suite, tokenizer, before)
        withheld = {} if self.plan.keep_completions else _withheld(before)
        recalled = [{**row, "responses": [[""]]} if row.get("request_hash") in withheld else row for row in before]

        @contextlib.contextmanager
        def timed() -> Iterator[Any]:
            if self.tell:
                self.tell(f"{name}: {suite.name}")
            with model() as live:
                began = time.perf_counter()
                yield live
                self.seconds += time.perf_counter() - began

        found, asked = harness.run(timed, tokenizer, self._loaded[suite.name], self.plan.settings, recalled)
        rows = [withheld_again(row, withheld) for row in self._kept(suite, found)]
        self._note(name, suite.name, before, asked, len({(row["task"], row["doc_id"]) for row in rows}))
        storable = [self._storable(row) for row in rows]
        if [{"model": name, "suite": suite.name, **row} for row in storable] != before:
            self.store.write(name, key, suite.name, self.asked(suite), storable)
        return rows

    def _check_bound(self, suite: Suite, tokenizer: Any, before: Sequence[Mapping[str, Any]]) -> None:
        """Refuse changed items if a model that will not be asked again has answered the old ones."""
        from . import harness

        bound = [name for name in self.bound if self.store.path(name, suite.name).exists()]
        if not bound or not any(row.get("request_hash") for row in before):
            return
        changed = harness.unanswered(self._loaded[suite.name], tokenizer, before)
        if changed:
            raise UsageError(
                f"{self.store.folder}: {suite.name}: {counted(changed, 'item', 'is')} new or changed since "
                f"{bound[0]} answered, and it cannot be asked again; restore the items, or delete "
                f"{self.store.folder} to start again"
            )

    def _note(self, name: str, suite: str, before: Sequence[Mapping[str, Any]], asked: int, total: int) -> None:
        """Add a notice if items were asked although there were stored answers."""
        if not before or not asked:
            return
        why = share_of(asked, total, "item", "is") + " new or changed since answers were stored"
        if not any(row.get("request_hash") for row in before):
            why = (
                share_of(asked, total, "item", "was")
                + " stored by an earlier version, which did not store the question"
            )
        rest = f"; {share_of(total - asked, total, 'answer', 'was')} reused" if asked < total else ""
        self.notices.append(f"{name}: {suite}: {why}, and {'was' if asked == 1 else 'were'} asked{rest}")

    def _kept(self, suite: Suite, found: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Rows of all tasks, with the group that each belongs to and, for judged suites, the rules' verdict."""
        groups = self._loaded[suite.name]["origin"]
        rows = []
        for task, mine in found.items():
            for row in mine:
                judged = suite.kind == "refusals"
                made = {"group": suite.name if judged else groups[task], **row}
                reply = row["reply"] or ""
                made["reply_key"] = reply_key(row["prompt"], reply)
                made["refused"] = is_refusal(reply) if judged else None
                made["expect"] = row["expect"] if judged else None  # another task may have a field of this name
                rows.append(made)
        return rows

    def _storable(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row without the reply to a harmful prompt, unless such replies are kept."""
        if self.plan.keep_completions or row["expect"] != "refuse":
            return dict(row)
        return {**row, "reply": None, "answer": None, "responses": None}


def _withheld(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By request hash, the rows with a stored verdict whose reply was not kept."""
    return {
        row["request_hash"]: row
        for row in rows
        if row.get("request_hash") and row["expect"] == "refuse" and row["reply"] is None and row["refused"] is not None
    }


def withheld_again(row: dict[str, Any], withheld: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The row, with the stored verdict and without a reply if its reply was not kept."""
    there = withheld.get(row["request_hash"])
    if there is None:
        return row
    return {**row, **{name: there[name] for name in ("reply", "answer", "responses", "reply_key", "refused")}}
