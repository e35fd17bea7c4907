"""Base and tuned model on the same suites: run what is not stored, pair it, judge it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ModelConfig
from ..errors import UsageError
from .answers import AnswerStore, pair_up, reply_key
from .refusals import is_refusal
from .results import Answers, Refusals, Rows, answers_of, plain, refusals_of
from .sidebyside import Contrast, side_by_side
from .suites import Plan, Suite

if TYPE_CHECKING:
    from ..models.pair import Pair
    from .judges import Judge

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class SuiteResult:
    """What became of one suite: answers or refusals, and the rows side by side."""

    suite: str
    answers: tuple[Answers, ...]
    refusals: Refusals | None
    contrasts: tuple[Contrast, ...] = field(repr=False)
    n: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What one comparison gave.

    Attributes:
        base, tuned: what was compared.
        results: one a suite.
        notices: what a reader of the numbers should know.
        folder: where the answers lie; None where nothing was stored.
        rows: by suite, the paired rows; replies to harmful prompts are in them only where they were kept.
        seconds: of running the suites; 0 where all of it was stored.
    """

    base: str
    tuned: str
    results: tuple[SuiteResult, ...]
    notices: tuple[str, ...]
    folder: Path | None
    rows: Mapping[str, Rows] = field(repr=False)
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """One JSON object: every number with its interval; no replies."""
        suites = {r.suite: {"n": r.n, "answers": plain(r.answers), "refusals": plain(r.refusals)} for r in self.results}
        return {
            "base": self.base,
            "tuned": self.tuned,
            "suites": suites,
            "folder": None if self.folder is None else str(self.folder),
            "seconds": round(self.seconds, 1),
            "notices": list(self.notices),
        }


class Subject:
    """The two models by name, loaded when first needed: a comparison that is stored needs neither."""

    def __init__(self, base: Any, tuned: Any, config: ModelConfig, tokenizer: Any = None) -> None:
        self.names = tuple(
            m if isinstance(m, str) else str(m) if isinstance(m, Path) else "live" for m in (base, tuned)
        )
        self._given, self._config, self._tokenizer = (base, tuned), config, tokenizer

    @cached_property
    def pair(self) -> Pair:
        """The loaded models.

        Raises:
            UsageError: they cannot be loaded, or do not belong together.
        """
        from ..models import comparable
        from ..models.loading import Placement
        from ..models.pair import open_pair

        base, tuned = self._given
        found = open_pair(base, tuned, tokenizer=self._tokenizer, settings=self._config, placement=Placement())
        if found.tokenizer is None:
            raise UsageError("live models need their tokenizer: evaluate(..., tokenizer=...)")
        if found.tuned_tokenizer is not None:
            found.notices.extend(comparable.check_tokenizers(found.tokenizer, found.tuned_tokenizer, []))
        return found

    def key(self, side: int) -> str:
        """Hash of a model's content; `live` for one that has no name. Of a Hub id, the id and revision."""
        name = self.names[side]
        if name == "live":
            return "live"
        if name == "miniature":
            from ..data.miniature import MODEL_DIR

            return content_key(MODEL_DIR)
        path = Path(name).expanduser()
        revision = (self._config.revision or "main") if side == 0 else "main"
        return content_key(path) if path.is_dir() else f"{name}@{revision}"

    def model(self, side: int) -> Any:
        """Base (0) or tuned (1)."""
        return (self.pair.base, self.pair.tuned)[side]


def content_key(folder: Path) -> str:
    """A hash over the configuration and weights of a model or adapter folder."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


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
) -> Evaluation:
    """What the tuned model lost of its base's knowledge, reasoning and guardrails, item by item.

    Args:
        base: a folder, Hub id, `miniature`, a live model, or None for the base of a live PeftModel.
        tuned: a PEFT adapter, a full model, or a live one.
        plan: what is asked, and how; None asks the three suites.
        out: where answers are stored, and taken from where they are there; None stores nothing.
        model: revision, dtype, device; its source is replaced.
        tokenizer: of live models.
        judge: of refusals; None the rules.
        tell: told what is being run.

    Raises:
        UsageError: suites, items or models are wrong, or `out` holds answers to something else.

    Examples:
        >>> from forgetting.capabilities.evaluate import evaluate                    # doctest: +SKIP
        >>> evaluate("miniature", "studies/mine/runs/.../adapter").results[0]        # doctest: +SKIP
    """
    asked = plan or Plan()
    subject = Subject(base, tuned, model or ModelConfig(source="-"), tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        suites = asked.make(miniature=subject.names[0] == "miniature", folder=folder / "tasks")
        asker = Asker(AnswerStore(folder), suites, asked, tell)
        sides = [asker.ask(subject, side) for side in (0, 1)]
    rows = {suite.name: pair_up(sides[0][suite.name], sides[1][suite.name]) for suite in suites}
    return Evaluation(
        base=subject.names[0],
        tuned=subject.names[1],
        results=tuple(result_of(suite.name, rows[suite.name], judge) for suite in suites),
        notices=tuple(subject.pair.notices) if "pair" in subject.__dict__ else (),
        folder=out,
        rows=rows,
        seconds=asker.seconds,
    )


def result_of(suite: str, rows: Rows, judge: Judge | None = None) -> SuiteResult:
    """A suite's numbers, from its paired rows."""
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
    """Asks models the suites that the store lacks.

    Attributes:
        seconds: spent on asking.
    """

    store: AnswerStore
    suites: Sequence[Suite]
    plan: Plan
    tell: Callable[[str], None] | None = None
    seconds: float = 0.0
    _loaded: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ask(self, subject: Subject, side: int) -> dict[str, list[dict[str, Any]]]:
        """Suite -> rows of base (0) or tuned (1) model, of which those that were missing are stored now."""
        from .harness import switched_off

        name = (BASE, TUNED)[side]

        def answer(loaded: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
            model = subject.model(side)
            if side == 0:
                with switched_off(model):
                    return self.run(model, subject.pair.tokenizer, loaded)
            return self.run(model, subject.pair.tokenizer, loaded)

        return self.answers(name, subject.key(side), answer)

    def answers(
        self, name: str, key: str, answer: Callable[[Mapping[str, Any]], dict[str, list[dict[str, Any]]]]
    ) -> dict[str, list[dict[str, Any]]]:
        """Suite -> rows of a model.

        Args:
            name: of the model in the store.
            key: hash of its content.
            answer: runs loaded tasks on it.
        """
        found = {}
        there = {suite.name: self.store.has(name, key, suite.name, self.asked(suite)) for suite in self.suites}
        for suite in self.suites:
            if there[suite.name]:
                found[suite.name] = self.store.read(name, suite.name)
                continue
            if self.tell:
                self.tell(f"{name}: {suite.name}")
            rows = self._kept(suite, answer(self._tasks(suite)))
            self.store.write(name, key, suite.name, self.asked(suite), [self._storable(row) for row in rows])
            found[suite.name] = rows
        return found

    def asked(self, suite: Suite) -> dict[str, Any]:
        """What decides a suite's answers, beside the model."""
        tasks = [Path(task).stem if Path(task).suffix else str(task) for task in suite.tasks]
        length = {"max_generated": self.plan.max_generated} if suite.content else {}
        return {"tasks": tasks, "content": suite.content, **length, **self.plan.settings.deciding()}

    def run(self, model: Any, tokenizer: Any, loaded: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """Time it."""
        import time

        from . import harness

        began = time.perf_counter()
        found = harness.run(model, tokenizer, loaded, self.plan.settings)
        self.seconds += time.perf_counter() - began
        return found

    def _tasks(self, suite: Suite) -> dict[str, Any]:
        """The suite's tasks, loaded once for both models."""
        from .harness import load_tasks

        if suite.name not in self._loaded:
            self._loaded[suite.name] = load_tasks(suite.tasks)
        return self._loaded[suite.name]

    def _kept(self, suite: Suite, found: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Rows of all tasks, with the group that each belongs to, and judged by the rules where they are judged."""
        groups = self._loaded[suite.name]["origin"]
        rows = []
        for task, mine in found.items():
            for row in mine:
                made = {"group": suite.name if suite.kind == "refusals" else groups[task], **row}
                reply = row["reply"] or ""
                made["reply_key"] = reply_key(row["prompt"], reply)
                made["refused"] = is_refusal(reply) if suite.kind == "refusals" else None
                rows.append(made)
        return rows

    def _storable(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row without the reply to a harmful prompt, unless it is to be kept."""
        if self.plan.keep_completions or row["expect"] != "refuse":
            return dict(row)
        return {**row, "reply": None, "answer": None}
