"""Growing a study in its folder: which changes its stored runs allow, and new questions that finished runs answer.

`store.growth` compares the configurations; this module examines the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config.schema import CapabilitiesConfig, RunConfig, StudyConfig
from ..display.numbers import few, several
from ..errors import ForgettingError, UsageError
from ..store import growth
from ..store.folder import RunFolder, StudyFolder
from ..tuning import longer
from ..tuning.grid import runs_by_id
from . import provenance

if TYPE_CHECKING:
    from ..models.loading import Base

OTHER = "choose another folder with out (--out)"


def check(folder: StudyFolder, config: StudyConfig, wanted: Mapping[str, RunConfig]) -> None:
    """Refuse a configuration that a stored study cannot grow into.

    Args:
        folder: the study folder; accepted if it has no configuration yet, or the same one.
        config: the new configuration.
        wanted: its runs by id.

    Raises:
        UsageError: names the field that differs or the run that prevents it, and says what to do.
    """
    if not folder.config_file.exists() or (stored := folder.config()).is_same(config):
        return
    begun = {run.id: run for run in folder.runs()}
    former = {run_id: _former(run, stored) for run_id, run in wanted.items()}
    counted = runs_by_id(stored).keys() & begun.keys()
    _check_names(folder, former, begun)
    if counted and not counted & set(former.values()):
        raise UsageError(growth.another(folder.path, growth.differences(stored, config)))
    if stored.training.steps != config.training.steps:
        for run_id, run in wanted.items():
            _check_longer(folder, run, begun.get(former[run_id]))
    for run_id, run in wanted.items():
        if (there := begun.get(former[run_id])) is not None:
            _check_asked(folder, stored, config, run, there)


def _former(run: RunConfig, stored: StudyConfig) -> str:
    """The id of the same run with the number of steps of the stored configuration."""
    return longer.of_steps(run, stored.training.steps).run_id()


def _check_names(folder: StudyFolder, former: Mapping[str, str], begun: Mapping[str, RunFolder]) -> None:
    """Refuse a new label for a run that is already stored under another."""
    stored = {run_id.rsplit("-", 1)[-1]: run_id for run_id in begun}
    for run_id in former.values():
        there = stored.get(run_id.rsplit("-", 1)[-1])
        if there is not None and run_id not in begun:
            raise UsageError(
                f"{folder.path}: methods: the run {there} would now be {run_id}, and be repeated: restore the label "
                f"of its method, or {OTHER}"
            )


def _check_longer(folder: StudyFolder, run: RunConfig, there: RunFolder | None) -> None:
    """Refuse a longer run that cannot continue the finished run in the folder."""
    if there is None or there.state().get("status") != "done":
        return
    try:
        why = longer.refusal(run, there)
    except ForgettingError as error:
        why = str(error)
    if why:
        raise UsageError(
            f"{folder.path}: training.steps: now {run.training.steps}, but run {there.id} cannot be made longer: "
            f"{why}; restore the steps, or {OTHER}"
        )


def _check_asked(
    folder: StudyFolder, stored: StudyConfig, config: StudyConfig, run: RunConfig, there: RunFolder
) -> None:
    """Refuse new questions at a step that a run has passed, because its weights at that step are not kept."""
    asked = config.capabilities
    if asked is None:
        return
    past, last = _past(there), config.training.steps
    done = there.state().get("status") == "done" and stored.training.steps == last
    for step in sorted(asked.asks(run, last)):
        if step > past or (done and step == last):
            continue
        if _asks_more(stored.capabilities, asked) or step not in _asked_before(stored, run):
            raise UsageError(
                f"{folder.path}: capabilities: run {there.id} is past step {step}, where the new questions would be "
                "asked: only the weights of its last step are kept; restore capabilities, leave out such runs "
                f"(capabilities.datasets, ranks, seeds), or {OTHER}"
            )


def _past(run: RunFolder) -> int:
    """The last measured step of a run; 0 without measurements."""
    return max((row["step"] for row in run.measurements() if isinstance(row.get("step"), int)), default=0)


def _asked_before(stored: StudyConfig, run: RunConfig) -> frozenset[int]:
    """The steps at which the stored configuration asks a run its questions."""
    asked = stored.capabilities
    return frozenset() if asked is None else asked.asks(run, stored.training.steps)


def _asks_more(before: CapabilitiesConfig | None, now: CapabilitiesConfig) -> bool:
    """Whether the questions differ: other suites, or another limit on items."""
    return before is None or (before.limit, set(before.suites)) != (now.limit, set(now.suites))


def shorter(folder: StudyFolder, run: RunConfig) -> list[RunFolder]:
    """The stored shorter runs that a run could continue, longest first."""
    steps = {config.training.steps for _, config in growth.History(folder.path).earlier()}
    if folder.config_file.exists():
        steps.add(folder.config().training.steps)
    return longer.shorter_runs(folder, run, steps)


def begin(folder: StudyFolder, config: StudyConfig, run: RunConfig, at: RunFolder) -> dict[str, Any]:
    """Let a run that has not begun continue a stored shorter run, if there is one.

    Args:
        folder: the study folder.
        config: the study's configuration.
        run: the run to begin.
        at: the run's folder, whose lock this process holds.

    Returns:
        The content of the run's run.json afterwards.
    """
    record = at.read()
    if record and not record.get("went_on"):
        return record
    candidates = shorter(folder, run)

    def beside(old: RunFolder, step: int) -> None:
        asked = config.capabilities
        if asked is not None:
            from ..capabilities.study_growth import copy_answers

            steps = asked.asks(run, config.training.steps)
            copy_answers(folder.path, old.id, at.id, [one for one in steps if one <= step])

    if candidates:
        longer.go_on(at, provenance.record(at.id, run), config.measured_steps(), candidates, beside)
    return at.read()


def sentence(before: StudyConfig, now: StudyConfig) -> str:
    """A sentence on how a study grew."""
    old, new = runs_by_id(before), runs_by_id(now)
    parts = [growth.told(growth.differences(before, now))]
    if before.training.steps != now.training.steps:
        parts.append(f"runs of {now.training.steps} steps continue those of {before.training.steps}")
    else:
        if more := new.keys() - old.keys():
            parts.append(f"{several(len(more), 'run')} more")
        if gone := sorted(old.keys() - new.keys()):
            parts.append(f"no longer in the configuration, and left out of fits: {few(gone)}")
    return "the study changes: " + "; ".join(parts)


def last_steps(
    folder: StudyFolder, config: StudyConfig, wanted: Mapping[str, RunConfig]
) -> dict[str, tuple[int, bool]]:
    """The last step of each finished run by id, and whether the configuration asks its questions there.

    Runs that are not asked are included so that earlier answers stay comparable with the base model's.
    """
    asked, last = config.capabilities, config.training.steps
    found = {}
    for run in folder.runs():
        state = run.state()
        if state.get("status") != "done":
            continue
        if run.id in wanted:
            found[run.id] = last, asked is not None and last in asked.asks(wanted[run.id], last)
        else:
            own = (state.get("config") or {}).get("training", {}).get("steps")
            found |= {run.id: (own, False)} if isinstance(own, int) else {}
    return found


def ask(folder: StudyFolder, config: StudyConfig, reference: Base, base: Base, wanted: Mapping[str, RunConfig]) -> None:
    """Ask the base model and, from their stored weights, finished runs the questions that they have not answered.

    Args:
        folder: the study folder.
        config: the study's configuration, with `capabilities`.
        reference: the model that forgetting is measured against.
        base: the model that is fine-tuned.
        wanted: the study's runs by id.

    Raises:
        UsageError: a suite is wrong, or items changed that were answered by a run that cannot be asked again.
    """
    from ..capabilities.study_growth import ask_stored, lacking
    from ..capabilities.study_runs import ask_base, plan_of

    plan, ends = plan_of(config), last_steps(folder, config, wanted)
    again = [f"{run_id}@{step}" for run_id, (step, _) in ends.items()]
    ask_base(folder.path, reference, config.model, plan, next_asked=again)
    asked = [(run_id, step, always) for run_id, (step, always) in ends.items()]
    for run_id in lacking(folder.path, config.model, plan, asked):
        ask_stored(folder.path, folder.run(run_id), ends[run_id][0], config, plan, base)
