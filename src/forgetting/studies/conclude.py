"""`study` runs a study, fits the laws and writes the report; `report` does the last two for a stored study."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.study_table import LeftOut, counted_rows, counted_runs, read_study
from ..config.arguments import checked, wrong_type
from ..config.bits import quantised_notes
from ..config.files import study_config
from ..config.schema import RunConfig, StudyConfig
from ..display.commands import command
from ..display.tables import Result, Shown
from ..errors import ForgettingError, UsageError
from ..files import write_atomically
from ..store.axes import AXES
from ..store.folder import StudyFolder
from ..store.summary import last_rows, measurements_shown
from ..store.table import records, rows_to_fit
from ..tuning.grid import runs_by_id
from .engines import Engine, Hear, Local
from .pilot_note import ended

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..analysis.compare import Comparison
    from ..analysis.fit import Fit


@dataclass(frozen=True)
class StudyResult(Result):
    """Results of a study so far: its measurements, the fitted laws, the comparison and the report.

    Attributes:
        folder: the study folder.
        config: the whole study.
        table: one row per measurement of any run (`forgetting.store.columns.COLUMNS`); `status` is that of the run.
        fits: fitted laws by data set and name.
        comparison: comparison of methods and mitigations; None if there is nothing to compare.
        report: path of the report.
        failed: run id -> reason, for runs that failed.
        skipped: ids of runs that this call did not try again: finished, or diverged, before.
        seconds: wall time of this call's runs.
        left: runs that are damaged or not in the configuration; the results do not use them.
    """

    folder: Path
    config: StudyConfig = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    fits: dict[str, dict[str, Fit]] = field(repr=False)
    comparison: Comparison | None = field(repr=False)
    report: Path
    failed: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    left: LeftOut = field(default_factory=LeftOut)

    def to_frame(self) -> pd.DataFrame:
        """The measurements, one row each; equal to `table`."""
        return self.table

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the last measurement of each run, the laws, and the failed runs."""
        return {
            "folder": str(self.folder),
            "report": str(self.report),
            "seconds": round(self.seconds, 1),
            "skipped": list(self.skipped),
            "failed": self.failed,
            "damaged": self.left.damaged,
            "unasked": list(self.left.unasked),
            "foreign": self.left.foreign,
            "runs": records(last_rows(self.table).sort_values("run_id")),
            "fits": {name: {law: fit.to_dict() for law, fit in laws.items()} for name, laws in self.fits.items()},
        }

    def shown(self) -> list[Shown]:
        """The last measurement of each run, the laws, and the report's path."""
        seconds = f"  ({self.seconds / 60:.1f} min)" if self.seconds >= 1 else ""
        ended = {*self.skipped, *self.left.damaged}
        if not seconds and self.skipped and ended >= runs_by_id(self.config).keys():
            seconds = "  (nothing left to run)"
        notes = [line for name in self.config.datasets for line in _law_lines(name, self.fits.get(name, {}))]
        notes += quantised_notes(self.config.model)
        if self.failed:
            notes.append(f"{len(self.failed)} of its runs failed: {', '.join(self.failed)}")
        notes += self.left.sentences()
        notes.append(f"report: {self.report}{seconds}")
        return [replace(measurements_shown(last_rows(self.table)), notes=notes)]

    def next_commands(self) -> list[str]:
        """What to do next: each a purpose and a command that can be pasted."""
        from ..analysis.plan.source import EXAMPLE_BUDGET, can_plan, without_plan

        found, folder = [], StudyFolder(self.folder)
        if any(folder.run(run_id).state().get("kind") != "diverged" for run_id in self.failed):
            found.append(f"to run the failed runs again: {command('study', self.folder)}")
        if any(can_plan(laws) for laws in self.fits.values()):
            found.append(f"to plan a run within a budget: {command('plan', self.folder, '--budget', EXAMPLE_BUDGET)}")
        elif why := next(filter(None, map(without_plan, self.fits.values())), None):
            found.append(f"no plan is possible yet: {'; '.join(why)}")
        return [*found, f"to get every measurement: {command('table', self.folder, '--csv')}"]

    @checked
    def figure(self, dataset: str | None = None, kind: str = "line") -> go.Figure:
        """A chart of the report as a Plotly figure.

        Args:
            dataset: name of the data set; may be None if the study has only one.
            kind: `line` (forgetting against fine-tuning loss), `steps-finetune_loss`, `steps-forgetting`, `size`,
                `agreement`, or the name of a law over a mitigation's option, such as `replay`. The chart of the
                comparison is `result.comparison.figure()`.

        Raises:
            UsageError: no such data set or chart, or no data set given although there are several.
        """
        from ..reporting.notebook import study_figure

        runs = counted_runs(StudyFolder.open(self.folder), self.left)
        return study_figure(self.config, counted_rows(self.table), runs, self.fits, dataset, kind)


def _law_lines(dataset: str, laws: Mapping[str, Fit]) -> list[str]:
    """One line per law of a data set, with its R² and, for the linear law, its slope."""
    lines = []
    if "linear" in laws:
        fit = laws["linear"]
        slope, r2 = fit.parameters["c_fft"], fit.r2["forgetting_loss"]
        between = "" if math.isnan(slope.low) else f" [{slope.low:.3g}, {slope.high:.3g}]"
        lines.append(
            f"{dataset}: each nat of improvement in fine-tuning loss cost {slope.value:.3g}{between} nats of "
            f"forgetting (linear law, R² {r2:.4f})"
        )
    if "shifted_power" in laws:
        r2s = laws["shifted_power"].r2
        lines.append(
            f"{dataset}: joint power law in P and N, R² {r2s['forgetting_loss']:.4f} for forgetting, "
            f"{r2s['finetune_loss']:.4f} for fine-tuning loss"
        )
    for name in (name for name in AXES if name in laws):
        r2s = laws[name].r2
        lines.append(
            f"{dataset}: law over P, N and {AXES[name].what}, R² {r2s['forgetting']:.4f} for forgetting, "
            f"{r2s['finetune_loss']:.4f} for fine-tuning loss"
        )
    return lines


@checked
def study(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str] = "miniature",
    out: str | os.PathLike[str] | None = None,
    *,
    engine: Engine | None = None,
    on_event: Hear | None = None,
    on_plan: Callable[[list[RunConfig], list[str]], None] | None = None,
) -> StudyResult:
    """Run or resume a study, then fit the laws and write the report.

    Args:
        config: a configuration, its fields as a dictionary, a YAML file, a study folder to resume, or a preset's name.
        out: the study folder; default the folder to resume, or studies/NAME.
        engine: where runs are executed: `Local(jobs)`, `Accelerate(launch)` or `Ray(...)` of
            forgetting.studies.engines; default `Local(1)`, in this process. With several processes the caller's script
            must guard its entry with `if __name__ == "__main__"`.
        on_event: called with every event, such as a finished step.
        on_plan: called once with all runs and the ids of those still to do.

    Returns:
        The measurements, fits, comparison and report.

    Raises:
        UsageError: the configuration, text or model is wrong, or changed since the first run; nothing was started.
        ForgettingError: every run failed, or the disk is full.
    """
    whole, folder = study_config(config)
    target = Path(out) if out is not None else folder or Path("studies") / whole.name
    if engine is not None and not hasattr(engine, "execute"):
        allowed = "Local(jobs), Accelerate(launch) or Ray(...) of forgetting.studies.engines"
        raise wrong_type("engine", engine, allowed)
    return run_study(whole, target, engine or Local(1), on_event=on_event, on_plan=on_plan)


def run_study(
    config: StudyConfig,
    out: Path,
    engine: Engine,
    *,
    on_event: Hear | None = None,
    on_plan: Callable[[list[RunConfig], list[str]], None] | None = None,
) -> StudyResult:
    """Like `study`, for a resolved configuration and a folder."""
    from . import tracking
    from .study import study as run

    ran = run(config, out, engine=engine, on_event=on_event, on_plan=on_plan)
    made = conclude(out)
    tracking.finish(StudyFolder(out), config, runs_by_id(config), made.fits)
    skipped = tuple(run_id for run_id in ran.skipped if run_id not in made.left.damaged)
    return replace(made, failed=ran.failed, skipped=skipped, seconds=ran.seconds)


@checked
def report(study: str | os.PathLike[str]) -> StudyResult:
    """Fit the laws and write the report again, from the measurements that a study has so far.

    Args:
        study: the study folder.

    Returns:
        The measurements, fits, comparison and report.

    Raises:
        UsageError: not a study folder, or one without measurements.
        ForgettingError: none of the stored measurements can be used.
    """
    return conclude(Path(study))


def conclude(out: Path) -> StudyResult:
    """Fit the laws to a stored study and write fits.json, compare.json and report.html into its folder.

    Raises:
        UsageError: not a study folder, or one without measurements.
        ForgettingError: none of the stored measurements can be used.
    """
    from ..analysis.fit import FITTED, LEAST_ROWS, fit_study, save_fits
    from ..reporting import write_study_report

    folder = StudyFolder.open(out)
    found = read_study(out)
    config = found.config
    table = found.counted()
    if table.empty:
        if left := found.left.sentences():
            raise ForgettingError(f"{out}: no usable measurement: {'; '.join(left)}")
        raise UsageError(f"{out}: this study has no measurements yet; run `{command('study', out)}`")
    rows, along = rows_to_fit(found.table, columns=FITTED)
    measured = rows.loc[rows["status"] == "done", "dataset"].value_counts()
    enough = rows["dataset"].isin(measured.index[measured >= LEAST_ROWS])
    fits = fit_study(rows if enough.all() else rows[enough], along=along) if enough.any() else {}
    del rows, along
    runs = counted_runs(folder, found.left, found.records)
    comparison = _compared(config, table, runs, fits)
    StudyFolder.open(out)  # fails if the folder was deleted meanwhile, so that nothing recreates it
    save_fits(fits, out / "fits.json")
    if comparison is None:
        (out / "compare.json").unlink(missing_ok=True)  # of methods that the study had before
    else:
        write_atomically(out / "compare.json", json.dumps(comparison.to_dict(), indent=1) + "\n")
    asked, why = ended(out)
    if asked < len(runs):  # no pilot, or a study that went on from it
        asked, why = found.asked, ""
    page = write_study_report(
        config, table, runs, fits, out / "report.html", comparison, found.left.unasked, asked, why
    )
    failed = {str(run.get("run_id")): str(run.get("why")) for run in runs if run.get("status") == "failed"}
    return StudyResult(out, config, found.table, fits, comparison, page, failed, left=found.left)


def _compared(
    config: StudyConfig, table: pd.DataFrame, runs: list[dict[str, Any]], fits: dict[str, dict[str, Fit]]
) -> Comparison | None:
    """The comparison with the first method without mitigations; None if the study has only that."""
    from ..analysis.compare import Comparison, compare_tables, study_tables

    first = config.reference_label
    if not ((table["label"] != first) | (table["mitigation"] != "")).any():
        return None
    tables = study_tables(table, runs)
    try:
        return compare_tables(tables, first, start=config.measure.start, fits=fits)
    except UsageError as error:  # too early: no finished run of the reference, or of anything else
        return Comparison(first, {}, without={"this study": str(error)})
