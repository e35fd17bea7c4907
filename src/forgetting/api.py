"""What the commands do, for Python: a study with its fits and report, and both again from a stored study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import RunConfig, StudyConfig
from .engine.local import Event
from .errors import UsageError
from .store import StudyFolder, load_table

if TYPE_CHECKING:
    import pandas as pd

    from .fit import Fit
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
    workers: int | None = 1,
    on_event: Callable[[Event], None] | None = None,
    on_plan: Callable[[list[RunConfig], list[str]], None] | None = None,
) -> tuple[StudyResult, Conclusion]:
    """Run or resume a study, then fit the laws and write the report.

    Args:
        config: the study, for example `forgetting.config.load_preset("miniature")`.
        out: the study folder.
        workers: processes; more than one, or None, needs the caller's script to guard its entry with
            `if __name__ == "__main__"`.
        on_event: told of every finished step.
        on_plan: told once of all runs, and of the ids of those still to do.

    Returns:
        The measurements, and the laws and report that they give.
    """
    from .study import study as run

    result = run(config, Path(out), workers=workers, on_event=on_event, on_plan=on_plan)
    return result, conclude(Path(out))


def fitted_rows(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """The rows that the laws are fitted on: finished runs of the study's first method, from `measure.start` on.

    The laws are of one method's grid; the paper fits LoRA ranks and predicts other methods from them (Appendix B).
    """
    first_method = table["method"] == config.methods[0].name
    return table[first_method & (table["step"] >= config.measure.start) & (table["status"] != "running")]


def conclude(out: Path) -> Conclusion:
    """Fit the laws to a stored study and write fits.json and report.html into its folder.

    Raises:
        UsageError: not a study folder, or one without a measurement.
    """
    from .fit import fit_study, save_fits
    from .report import write_study_report

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
    return Conclusion(fits, write_study_report(config, table, runs, fits, path=out / "report.html"))
