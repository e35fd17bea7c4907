"""What the commands do, for Python: a study with its fits and report, and both again from a stored study."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import RunConfig, StudyConfig
from ..errors import UsageError
from ..files import write_atomically
from ..store.folder import StudyFolder
from ..store.table import fitted_rows, load_table
from .engines import Engine, Hear, Local

if TYPE_CHECKING:
    import pandas as pd

    from ..analysis.compare import Comparison
    from ..analysis.fit import Fit
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
