"""Finds the laws to predict and plan with: published laws, fits, stored fits, and study folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from forgetting.analysis.fit import LEAST_ROWS, Fit, fit_from_published, fit_study, load_fits, unfit
from forgetting.analysis.laws import PUBLISHED
from forgetting.analysis.selection import finished
from forgetting.analysis.tables import SUFFIXES
from forgetting.config.arguments import wrong_type
from forgetting.display.commands import command
from forgetting.errors import UsageError, did_you_mean
from forgetting.files import check_plain, refuse_link
from forgetting.store.axes import AXES, Axis

Laws = dict[str, dict[str, Fit]]
"""Fits by data set and law."""


class HasFits(Protocol):
    """An object with the fits of a study, such as its result."""

    @property
    def fits(self) -> Mapping[str, Mapping[str, Fit]]:
        """Fits by data set and law."""


LawSource = str | os.PathLike[str] | Fit | Mapping[str, Fit] | Mapping[str, Mapping[str, Fit]] | HasFits
"""A published law's name, a file of fits, a study folder, a fit, fits by law, fits by data set and law, or a study's
result."""
TABLES = set(SUFFIXES) - {".json"}
"""Suffixes of tables, which are not files of fits."""
ALLOWED = "a fit, fits by name, a study's result, a published law's name, or the path of a file of fits or study folder"


def laws_of(law: LawSource, dataset: str | None = None) -> Laws:
    """The laws given by an argument, by data set and law.

    Args:
        law: a name, path, fit or fits.
        dataset: keep only this data set.

    Raises:
        UsageError: an argument of another kind, one that contains no fit, or no such law, file or data set.
    """
    if isinstance(law, str | os.PathLike):
        return load_laws(os.fspath(law), dataset)
    found: Any = law if isinstance(law, Fit | Mapping) else getattr(law, "fits", None)
    if isinstance(found, Fit):
        laws: Laws = {found.label or found.law: {found.law: found}}
    elif isinstance(found, Mapping) and found and all(isinstance(fit, Fit) for fit in found.values()):
        label = next(iter(found.values())).label
        laws = {label or "given fits": {str(name): fit for name, fit in found.items()}}
    elif isinstance(found, Mapping) and all(_are_fits(fits) for fits in found.values()):
        laws = {str(name): dict(fits) for name, fits in found.items()}
    else:
        raise wrong_type("law", law, ALLOWED)
    if not laws:
        raise UsageError("law: it contains no fit")
    return _only(laws, dataset, "law")


def _are_fits(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(fit, Fit) for fit in value.values())


def without_plan(laws: Mapping[str, Fit]) -> list[str]:
    """Why the laws of a data set cannot plan, and what to do; empty if they can, or if no reason is known."""
    if "linear" not in laws or can_plan(laws):
        return []
    why = [w for w in laws["linear"].warnings if "shifted_power" in w]
    if any("different values of trainable_params" in w for w in why):
        why.append("a study gets one more rank by `forgetting study STUDY --rank RANK`")
    elif any("different values of step" in w for w in why):
        why.append("train longer (--steps), or measure more often in a new study (--measure-start, --measure-every)")
    return why


def pick(laws: Mapping[str, Fit], name: str | None, *, wants_surface: bool, along: Axis | None = None) -> Fit:
    """The law with this name; without a name, the only law, or the one that the request needs.

    Args:
        laws: the laws of one data set, by name.
        name: name of the law, if given.
        wants_surface: whether ranks or steps are given, so that the law must depend on them.
        along: the option of a mitigation whose values are given.

    Raises:
        UsageError: there is no such law, or it must be chosen by name.
    """
    if name is not None:
        if name not in laws:
            raise UsageError(f"no law '{name}' here; {did_you_mean(name, laws)}")
        return laws[name]
    if wants_surface and list(laws) == ["linear"]:
        only = "there is only the line between the two losses (Eq. 4), which does not depend on ranks or steps"
        raise UsageError("; ".join([only, *without_plan(laws)]))
    if len(laws) == 1:
        return next(iter(laws.values()))
    if along is not None and along.name not in laws:
        raise UsageError(
            f"there is no law over {along.what}: it needs a study with runs of 3 or more {along.value}s (including "
            "0), ranks and measured steps"
        )
    wanted = along.name if along is not None else "shifted_power" if wants_surface else "linear"
    if wanted not in laws:
        raise UsageError(f"no law '{wanted}' here; choose one by its name; {did_you_mean(wanted, laws)}")
    return laws[wanted]


def load_laws(name: str | Path, dataset: str | None = None) -> Laws:
    """The laws of a published law's name, a file or a folder.

    Args:
        name: a published law, a JSON file written by `save_fits`, or a study folder. If the folder's fits.json is
            missing or out of date, the laws are fitted again.
        dataset: keep only this data set.

    Raises:
        UsageError: there is no such law, file or data set.
    """
    return _only(_find(name), dataset, str(name))


def _only(laws: Laws, dataset: str | None, name: str) -> Laws:
    if dataset is None:
        return laws
    if dataset not in laws:
        raise UsageError(f"{name} has no data set '{dataset}'; {did_you_mean(dataset, laws)}")
    return {dataset: laws[dataset]}


def _find(name: str | Path) -> Laws:
    if str(name) in PUBLISHED:
        fit = fit_from_published(str(name))
        return {str(name): {fit.law: fit}}
    path = Path(name)
    if path.is_dir():
        stored = check_plain(refuse_link(path / "fits.json", path))
        if not stored.exists():
            return _fit_folder(path)
        laws = _nested(load_fits(stored), stored)
        return laws if not (path / "study.yaml").exists() or _are_of(laws, path) else _fit_folder(path)
    if path.exists():
        if path.suffix.lower() in TABLES:
            raise UsageError(
                f"{path}: a table; give a fit, a study folder or a published law's name; fit the table first: "
                f"`{command('fit', path, '--out', 'fits.json')}`, then give fits.json (in Python: forgetting.fit)"
            )
        return _nested(load_fits(path), path)
    known = did_you_mean(str(name), PUBLISHED)
    raise UsageError(f"'{name}' is neither a published law, nor a file of fits, nor a study folder; {known}")


def _are_of(laws: Laws, path: Path) -> bool:
    """Whether stored laws were fitted to the rows that a study's fits would use now.

    These rows change when runs finish, are damaged, or are removed from the configuration.
    """
    from forgetting.analysis.study_table import load_study
    from forgetting.store.table import rows_to_fit

    plain, wider = rows_to_fit(load_study(path))
    parts, along = _parts(plain), {law: _parts(rows) for law, rows in wider.items()}
    wanted = {(name, law) for law, rows in along.items() for name in parts if not unfit(rows[name], AXES[law])}
    return (
        laws.keys() == parts.keys()
        and wanted == {(name, law) for name, fits in laws.items() for law in fits if law in AXES}
        and all(_is_of(fit, along.get(law, parts)[name]) for name, fits in laws.items() for law, fit in fits.items())
    )


def _parts(rows: Any) -> dict[str, Any]:
    """The rows of finished runs by data set, for data sets with at least LEAST_ROWS."""
    rows = rows[finished(rows["status"])]
    return {str(name): part for name, part in rows.groupby("dataset") if len(part) >= LEAST_ROWS}


def _is_of(fit: Fit, rows: Any) -> bool:
    return fit.table_size == (len(rows), rows["run_id"].nunique()) and all(
        _is_range(span, rows[variable], whole="sampled_from" not in fit.diagnostics)
        for variable, span in fit.measured_range.items()
    )


def _is_range(span: tuple[float, float], values: Any, *, whole: bool) -> bool:
    """Whether a measured range is that of these values or, for a fit to a sample of rows, within it."""
    low, high = float(values.min()), float(values.max())
    return tuple(span) == (low, high) if whole else low <= span[0] <= span[1] <= high


EXAMPLE_BUDGET = 0.1
"""Budget in suggested commands, nats/token."""


def can_plan(laws: Mapping[str, Fit]) -> bool:
    """Whether a data set's fits are enough for a plan without further arguments."""
    fit = laws.get("shifted_power")
    return fit is not None and fit.diagnostics.get("forgetting_floor") is not None


def _fit_folder(path: Path) -> Laws:
    from forgetting.analysis.study_table import load_study
    from forgetting.store.table import rows_to_fit

    table, along = rows_to_fit(load_study(path))
    if table.empty:
        raise UsageError(f"{path}: this study has no finished run yet; run `{command('study', path)}`")
    return fit_study(table, along=along)


def _nested(fits: object, path: Path) -> Laws:
    if isinstance(fits, Fit):
        return {fits.label or path.stem: {fits.law: fits}}
    if isinstance(fits, dict):
        if fits and all(isinstance(v, Fit) for v in fits.values()):
            return {path.stem: dict(fits)}
        if fits and all(isinstance(v, dict) for v in fits.values()):
            return {str(k): dict(v) for k, v in fits.items()}
    raise UsageError(f"{path}: it contains no fits")
