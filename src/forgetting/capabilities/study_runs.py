"""Capabilities of a study's runs, evaluated during training, or afterwards from the stored adapters.

STUDY/capabilities/base/<suite>.jsonl               answers of the base model
STUDY/capabilities/<run_id>@<step>/<suite>.jsonl    answers of a run at a step
STUDY/capabilities/<run_id>@<step>/newtask.json     forward KL from base to tuned model on the run's held-out data
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ModelConfig, StudyConfig
from ..display.commands import command
from ..display.numbers import natural
from ..errors import ForgettingError, UsageError
from ..files import check_plain, parse_json, read_text, refuse_link, refuse_links, write_atomically
from ..measuring import quantities
from ..measuring.estimate import Mean
from ..store.columns import DAMAGED
from ..store.folder import StudyFolder
from ..store.table import load_table
from ..tuning.grid import asked_by, runs_by_id
from .answers import AnswerStore, pair_up
from .evaluate import BASE, Asker, SuiteResult, result_of
from .items import MAX_GENERATED
from .settings import Settings
from .suites import Plan

if TYPE_CHECKING:
    from ..data.windows import Windows

PREDICTORS = ("forgetting", "forgetting_loss", "finetune_loss")


def plan_of(config: StudyConfig) -> Plan:
    """The plan from a study's `capabilities:` section; without one, the default plan."""
    section = config.capabilities
    if section is None:
        return Plan()
    return Plan(
        tuple(section.suites),
        Settings(limit=section.limit),
        section.harmful,
        section.harmless,
        section.keep_completions,
        section.max_new_tokens,
    )


def folder_of(study: Path) -> Path:
    """The folder with a study's answers."""
    return study / "capabilities"


def asker_of(study: Path, model: ModelConfig, plan: Plan, tell: Callable[[str], None] | None = None) -> Asker:
    """The `Asker` for a study's models.

    Raises:
        UsageError: a suite is wrong.
    """
    folder = folder_of(study)
    refuse_links(folder / "tasks")
    miniature = model.source == "miniature"
    suites = plan.make(miniature=miniature, folder=folder / "tasks", kept=True)
    return Asker(AnswerStore(folder), suites, plan, tell)


def ask_base(
    study: Path,
    base: Any,
    model: ModelConfig,
    plan: Plan,
    *,
    next_asked: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> None:
    """Ask the base model the questions that it has not answered yet.

    Args:
        study: the study folder.
        base: the loaded base model, a `models.loading.Base`.
        model: its configuration.
        plan: what to ask.
        next_asked: models in the store, `RUN@STEP`, that will be asked after this; others will not be asked again.
        tell: called with each notice, such as what is asked again and why.

    Raises:
        UsageError: a suite is wrong, or its items changed after a run that will not be asked again answered them.
    """
    asker = asker_of(study, model, plan)
    asker.bound = [name for name in asker.store.models() if "@" in name and name not in next_asked]
    asker.notices += [suite.note for suite in asker.suites if suite.note]
    asker.answers(BASE, base.key, base.tokenizer, lambda: nullcontext(base.model))
    _tell(tell, asker)


def _tell(tell: Callable[[str], None] | None, asker: Asker) -> None:
    for notice in asker.notices:
        if tell:
            tell(notice)


@dataclass
class Probe:
    """Evaluates the model of a run at some of its steps.

    Attributes:
        study: the study folder.
        run_id: id of the run.
        model: the base model's configuration.
        tokenizer: the base model's tokenizer.
        plan: what to ask.
        steps: the steps to evaluate.
        heldout: held-out windows of the run's data, for the forward KL on the new task; None omits it.
        batch_tokens: tokens per forward pass over them.
        tell: called with each notice.
    """

    study: Path
    run_id: str
    model: ModelConfig
    tokenizer: Any
    plan: Plan
    steps: frozenset[int]
    heldout: Windows | None = None
    batch_tokens: int = 8192
    tell: Callable[[str], None] | None = None

    def __call__(self, model: Any, step: int) -> None:
        """Ask the model and store its answers if the step is one of `steps`; does not change the model."""
        if step not in self.steps:
            return
        name = f"{self.run_id}@{step}"
        asker = asker_of(self.study, self.model, self.plan, self.tell)
        asker.answers(name, name, self.tokenizer, lambda: nullcontext(model))
        _tell(self.tell, asker)
        file = newtask_file(self.study, self.run_id, step)
        if self.heldout is not None and not file.exists():
            from .newtask import forward_kl

            found = forward_kl(model, self.heldout, self._base_of(model), batch_tokens=self.batch_tokens)
            row = {**quantities.row({"newtask_kl": found}), "tokens": found.n_tokens}
            write_atomically(file, json.dumps(row, allow_nan=False) + "\n")

    def _base_of(self, model: Any) -> Any:
        """The base model; the model itself if its adapters can be switched off, else loaded in addition."""
        from ..models.adapters import is_peft
        from ..models.loading import load_base

        against = self.model.measured_against()
        return model if is_peft(model) and against == self.model else load_base(against).model


def evaluate_runs(study: Path, plan: Plan, *, tell: Callable[[str], None] | None = None) -> list[str]:
    """Evaluate the stored adapter of each finished run, at its last step; stored answers are reused.

    Args:
        study: the study folder.
        plan: what to ask; without suites, the study's own plan with the other settings given here.
        tell: called with the name of each model, and with notices.

    Returns:
        Ids of the evaluated runs.

    Raises:
        UsageError: not a study, no finished run, or an adapter is missing.
    """
    from ..models.loading import load_base

    folder = StudyFolder.open(study)
    config = folder.config()
    asked = asked_by(runs_by_id(config))
    done = [run for run in folder.runs() if run.state().get("status") == "done" and asked(run)]
    if not done:
        raise UsageError(f"{study}: no finished run to evaluate; run `{command('study', study)}`")
    chosen = plan if plan.suites or config.capabilities is None else _over(plan_of(config), plan)
    step = config.training.steps
    base = load_base(config.model.measured_against())
    config = config.model_copy(update={"model": base.pinned(config.model)})
    if tell:
        tell("base")
    next_asked = [f"{run.id}@{step}" for run in done]
    ask_base(study, base, config.model, chosen, next_asked=next_asked, tell=tell)
    for run in done:
        if not (run.path / "adapter").is_dir():
            raise UsageError(f"{run.path}: its adapter is gone, so it cannot be evaluated; run the study again")
        refuse_links(run.path)
        if tell:
            tell(run.id)
        evaluate_run(study, run, config, chosen, base.tokenizer, step)
    return [run.id for run in done]


def _over(section: Plan, given: Plan) -> Plan:
    """A study's own plan, with the settings that were given explicitly in place of its own."""
    settings = {name: value for name, value in vars(given.settings).items() if value is not None}
    return replace(
        section,
        settings=replace(section.settings, **settings),
        harmful=given.harmful or section.harmful,
        harmless=given.harmless or section.harmless,
        keep_completions=given.keep_completions or section.keep_completions,
        max_generated=section.max_generated if given.max_generated == MAX_GENERATED else given.max_generated,
        include=given.include,
    )


def evaluate_run(study: Path, run: Any, config: StudyConfig, plan: Plan, tokenizer: Any, step: int) -> None:
    """Evaluate the stored weights of a finished run at its last step."""
    from ..data.array_cache import default_folder
    from ..data.prepared import Corpora
    from ..models.loading import Placement
    from ..models.pair import open_pair

    heldout, dataset = None, config.datasets.get(run.read()["dataset"])
    if dataset is not None and not newtask_file(study, run.id, step).exists():
        _, part = Corpora(tokenizer, config.context, default_folder()).dataset(dataset)
        heldout = part.windows.sample(config.measure.heldout_tokens)
    pair = open_pair(
        config.model.source,
        str(run.path / "adapter"),
        settings=config.model,
        placement=Placement(),
    )
    probe = Probe(study, run.id, config.model, tokenizer, plan, frozenset([step]), heldout, config.measure.batch_tokens)
    probe(pair.tuned, step)


def study_results(study: Path) -> list[tuple[str, int, SuiteResult]]:
    """The result of every evaluated run, step and suite, compared with the base model; sorted by run and step."""
    store = AnswerStore(folder_of(study))
    base = {suite: store.read(BASE, suite) for suite in store.suites(BASE)} if BASE in store.models() else {}
    found = []
    for name in store.models():
        run_id, _, step = name.rpartition("@")
        if not run_id or not step.isdecimal():
            continue
        for suite in store.suites(name):
            if suite in base:
                try:
                    pairs = pair_up(base[suite], store.read(name, suite))
                except ForgettingError as error:
                    raise ForgettingError(f"{store.path(name, suite)}, against the base model's: {error}") from None
                found.append((run_id, int(step), result_of(suite, pairs)))
    return sorted(found, key=lambda item: (natural(item[0]), item[1]))


def study_rows(study: Path, results: Sequence[tuple[str, int, SuiteResult]] | None = None) -> list[dict[str, Any]]:
    """One flat row per run, step and group of tasks: scores, what was lost, and the losses measured at that step.

    `base` and `tuned` are mean scores (for `safety`, shares of harmful prompts refused). `lost` is the share that was
    lost of what the base model had right, or refused. Shares have ends `_low` and `_high`. `runs_on` counts replies
    that begin with the right answer and run on, which are not lost. If the study has a further text with the suite's
    name, `profile` is the forgetting on it, and `changed` the share of the base model's answers that the tuned model
    would not give. Runs that the configuration does not ask for are left out.
    """
    found = results if results is not None else study_results(study)
    if not found:
        return []
    folder = StudyFolder.open(study)
    config = folder.config()
    table = load_table(study, config)
    table = table[table["status"] != DAMAGED]
    measured = {(str(r["run_id"]), int(r["step"])): r for r in table.to_dict("records")}
    asked = asked_by(runs_by_id(config))
    rows = []
    for run_id, step, result in found:
        if not asked(folder.run(run_id)):
            continue
        at = measured.get((run_id, step), {})
        shared = {"run_id": run_id, "step": step, "suite": result.suite}
        shared |= {key: _plain(at.get(key)) for key in ("dataset", "method", "rank", "seed", "trainable_params")}
        shared |= {key: _plain(at.get(key)) for key in PREDICTORS} | _newtask(study, run_id, step)
        shared |= _profile(at, result.suite)
        rows += [{**shared, **values} for values in _values(result)]
    return rows


def _profile(at: Mapping[Any, Any], suite: str) -> dict[str, Any]:
    """Measurements on the further text with the suite's name; None if there is no such text."""
    kept = _plain(at.get(quantities.of_text("kept", suite)))
    forgetting = _plain(at.get(quantities.of_text("forgetting", suite)))
    return {"profile": forgetting, "changed": None if kept is None else 1 - kept}


def _score(mean: Mean) -> dict[str, Any]:
    """A mean score that is not a share of right answers, with its 95 % interval."""
    half = mean.bound(0.975)
    return {"tuned": mean.value, "tuned_low": mean.value - half, "tuned_high": mean.value + half}


def _values(result: SuiteResult) -> list[dict[str, Any]]:
    """The values of a suite's result, one row per group of tasks."""
    made = []
    for a in result.answers:
        lost = a.lost_of_right
        made.append(
            {
                "name": a.name,
                "metric": a.metric if a.higher_is_better else f"1 - {a.metric}",
                "n": a.n,
                "base": a.base.value,
                **(_score(a.tuned) if a.right is None else _share("tuned", a.right)),
                **_share("lost", lost),
                "runs_on": None if a.transitions is None else a.transitions.runs_on,
                **_share("agreement", a.agreement),
            }
        )
    if (r := result.refusals) is not None:
        made.append(
            {
                "name": result.suite,
                "n": r.base.of,
                "base": r.base.value,
                **_share("tuned", r.tuned),
                **_share("lost", r.forgotten),
                **_share("agreement", r.agreement),
                "over_base": r.over_base.value,
                **_share("over", r.over_tuned),
            }
        )
    return made


def _share(name: str, share: Any) -> dict[str, float | None]:
    if share is None or math.isnan(share.value):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}


def newtask_file(study: Path, run_id: str, step: int) -> Path:
    """The file with the forward KL of a run on its own task at a step."""
    return check_plain(refuse_link(folder_of(study) / f"{run_id}@{step}" / "newtask.json", study))


def _newtask(study: Path, run_id: str, step: int) -> dict[str, Any]:
    file = newtask_file(study, run_id, step)
    row = parse_json(read_text(file), str(file)) if file.exists() else {}
    if not isinstance(row, dict):
        raise ForgettingError(f"{file}: damaged; delete it to measure again")
    return {"newtask_kl": row.get("newtask_kl"), "newtask_kl_se": row.get("newtask_kl_se")}


def _plain(value: Any) -> Any:
    """A cell of a DataFrame as plain data for JSON."""
    import pandas as pd

    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if hasattr(value, "item") else value
