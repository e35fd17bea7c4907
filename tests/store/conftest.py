"""A synthetic study, created once; each test gets a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scale_study import make


@pytest.fixture(scope="session")
def _forty_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forty") / "many"
    make(folder, 40, measurements=6)
    return folder


@pytest.fixture
def study(_forty_runs: Path, tmp_path: Path) -> Path:
    """40 finished runs of 6 measurements: 2 data sets, 10 ranks, 2 seeds."""
    return shutil.copytree(_forty_runs, tmp_path / "many")
