"""Laws to predict and plan with: published ones by name, stored fits, study folders."""

from __future__ import annotations

from pathlib import Path

from forgetting.analysis.fit import Fit, fit_from_published, fit_study, load_fits
from forgetting.analysis.laws import PUBLISHED
from forgetting.errors import UsageError, did_you_mean

Laws = dict[str, dict[str, Fit]]
"""Fits by data set and law."""


def load_laws(name: str | Path, dataset: str | None = None) -> Laws:
    """Find laws.

    Args:
        name: a published law, a JSON file of `save_fits`, or a study folder (its fits.json, or its measurements).
        dataset: keep only this data set.

    Raises:
        UsageError: there is no such law, file or data set.
    """
    laws = _find(name)
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
        stored = path / "fits.json"
        return _nested(load_fits(stored), stored) if stored.exists() else _fit_folder(path)
    if path.exists():
        return _nested(load_fits(path), path)
    known = did_you_mean(str(name), PUBLISHED)
    raise UsageError(f"'{name}' is neither a published law, nor a file of fits, nor a study folder; {known}")


def _fit_folder(path: Path) -> Laws:
    from forgetting.store.folder import StudyFolder
    from forgetting.store.table import fitted_rows, load_table

    table = fitted_rows(load_table(path), StudyFolder.open(path).config())
    if table.empty:
        raise UsageError(f"{path}: no ended run in this study yet; run `forgetting study {path}`")
    return fit_study(table)


def _nested(fits: object, path: Path) -> Laws:
    if isinstance(fits, Fit):
        return {fits.label or path.stem: {fits.law: fits}}
    if isinstance(fits, dict):
        if fits and all(isinstance(v, Fit) for v in fits.values()):
            return {path.stem: dict(fits)}
        if fits and all(isinstance(v, dict) for v in fits.values()):
            return {str(k): dict(v) for k, v in fits.items()}
    raise UsageError(f"{path}: no fits in it")
