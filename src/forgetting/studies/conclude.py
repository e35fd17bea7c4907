"""What the commands do, for Python: a study with its fits and report, and both again from a stored study."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import RunConfig, StudyConfig
from ..errors import UsageError, did_you_mean
from ..files import write_atomically
from ..store.folder import StudyFolder
from ..store.table import fitted_rows, load_table
from .engines import Engine, Hear, Local

if TYPE_CHECKING:
    import pandas as pd

    from ..analysis.compare import Comparison
    from ..analysis.fit import Fit
    from ..analysis.plan import Plan
    from .study import StudyResult


@dataclass(frozen=True)
class Conclusion:
    """What a study says: its laws, and where the report lies."""

    fits: dict[str, dict[str, Fit]]
    report: Path


def study(
    config: StudyConfig,
    out: Path | str,
    *,
    engine: Engine | None = None,
    on_event: Hear | None = None,
    on_plan: Callable[[list[RunConfig], list[str]], None] | None = None,
) -> tuple[StudyResult, Conclusion]:
    """Run or resume a study, then fit the laws and write the report.

    Args:
        config: the study, for example `forgetting.config.files.load_preset("miniature")`.
        out: the study folder.
        engine: where its runs run: `Local(jobs)`, `Accelerate(launch)` or `Ray(...)` (forgetting.studies.engines);
            None is `Local(1)`, this process. More processes than one need the caller's script to guard its entry with
            `if __name__ == "__main__"`.
        on_event: told of every finished step.
        on_plan: told once of all runs, and of the ids of those still to do.

    Returns:
        The measurements, and the laws and report that they give.
    """
    from .study import study as run

    result = run(config, Path(out), engine=engine or Local(1), on_event=on_event, on_plan=on_plan)
    return result, conclude(Path(out))


def conclude(out: Path) -> Conclusion:
    """Fit the laws to a stored study and write fits.json and report.html into its folder.

    Raises:
        UsageError: not a study folder, or one without a measurement.
    """
    from ..analysis.fit import fit_study, save_fits
    from ..reporting import write_study_report

    folder = StudyFolder.open(out)
    config, table = folder.config(), load_table(out)
    if table.empty:
        raise UsageError(f"{out}: no measurement in this study yet; run `forgetting study {out}`")
    rows = fitted_rows(table, config)
    measured = rows[rows["status"] == "done"].groupby("dataset").size()
    # two points always lie on a line: a line needs three to say anything
    rows = rows[rows["dataset"].isin(measured.index[measured >= 3])]
    fits = fit_study(rows) if len(rows) else {}
    save_fits(fits, out / "fits.json")
    runs: list[dict[str, Any]] = [run.read() for run in folder.runs()]
    comparison = _compared(config, table, runs, fits, out)
    return Conclusion(fits, write_study_report(config, table, runs, fits, out / "report.html", comparison))


def _compared(
    config: StudyConfig, table: pd.DataFrame, runs: list[dict[str, Any]], fits: dict[str, dict[str, Fit]], out: Path
) -> Comparison | None:
    """The comparison with the first method's plain runs, in compare.json too; None where the study has no other."""
    from ..analysis.compare import Comparison, compare_tables, study_tables

    first = config.reference_label
    if not ((table["label"] != first) | (table["mitigation"] != "")).any():
        return None
    tables = study_tables(table, runs)
    try:
        made = compare_tables(tables, first, start=config.measure.start, fits=fits)
    except UsageError as error:  # not far enough yet: no finished run of the reference, or of any other
        made = Comparison(first, {}, without={"this study": str(error)})
    write_atomically(out / "compare.json", json.dumps(made.to_dict(), indent=1) + "\n")
    return made


def fit(table: pd.DataFrame | Mapping[str, Any] | str | Path, law: str = "shifted_power", **options: Any) -> Fit:
    """Fit one law to one table of runs; the command `forgetting fit` does it for each data set of a study.

    Args:
        table: columns by name, or the path of a table or study folder.
        law: a law's name.
        options: as of `forgetting.fit.fit_law`.

    Raises:
        UsageError: an unknown law, or a table that it cannot be fitted to.
    """
    from ..analysis.fit import fit_law
    from ..analysis.tables import read_tables

    return fit_law(law, read_tables([table]) if isinstance(table, str | Path) else table, **options)


def plan(
    law: Fit | str | Path, *, budget: float | None = None, target_loss: float | None = None, **options: Any
) -> dict[str, Plan]:
    """What to run for a budget of forgetting, or to reach a fine-tuning loss, by data set.

    Args:
        law: a fitted surface over P and N, a published law's name, a file of fits, or a study folder.
        budget: forgetting allowed, nats/token above the base model's.
        target_loss: fine-tuning loss to reach; give this or `budget`.
        options: as of `forgetting.plan.plan_budget` or `plan_target`.

    Raises:
        UsageError: neither or both of budget and target_loss, or no surface to plan with.
    """
    from ..analysis.fit import Fit
    from ..analysis.plan import load_laws, plan_budget, plan_target

    if (budget is None) == (target_loss is None):
        raise UsageError("give either budget or target_loss")
    surfaces = {law.label: law} if isinstance(law, Fit) else _surfaces(load_laws(law))
    if not surfaces:
        raise UsageError(f"{law}: no shifted power law in it to plan with")
    if budget is not None:
        return {label: plan_budget(surface, budget, **options) for label, surface in surfaces.items()}
    return {label: plan_target(surface, target_loss or 0.0, **options) for label, surface in surfaces.items()}


def _surfaces(laws: dict[str, dict[str, Fit]]) -> dict[str, Fit]:
    return {label: fits["shifted_power"] for label, fits in laws.items() if "shifted_power" in fits}


def compare(
    source: Any,
    reference: str | None = None,
    *,
    dataset: str | None = None,
    by: str | None = None,
    direction: str | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Does a method or mitigation save forgetting at equal fine-tuning loss, or only as early stopping does?

    Args:
        source: a study folder, any table that `forgetting fit` reads, or columns by name.
        reference: label whose plain runs all others are held against; default a study's first method.
        dataset: only this data set.
        by: the column to hold equal; default `finetune_loss`, or `test_accuracy` in PEFT's results.
        direction: `lower` or `higher` is better; only for a column of your own.
        confidence: nominal coverage of each interval.

    Returns:
        Savings with intervals, prices, the Pareto frontier and the paper's Appendix B, by data set.

    Raises:
        UsageError: a mistake in the table or arguments, or nothing to compare.
    """
    from ..analysis.compare import any_tables, compare_tables, open_study

    start = 0.0
    if isinstance(source, str | Path) and (Path(source) / "study.yaml").exists():
        config, tables = open_study(Path(source))
        first = config.reference_label
        reference, start = reference or first, float(config.measure.start)
    else:
        tables = any_tables(source)
    if dataset is not None and dataset not in tables:
        raise UsageError(f"no data set '{dataset}'; {did_you_mean(dataset, tables)}")
    chosen = tables if dataset is None else {dataset: tables[dataset]}
    return compare_tables(chosen, reference, by=by, direction=direction, confidence=confidence, start=start)
