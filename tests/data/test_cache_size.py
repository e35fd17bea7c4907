"""The user's cache stays within its size: least recently used files are removed, files in use are kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from forgetting.cli.environment import doctor
from forgetting.data import array_cache, cache_size
from forgetting.errors import UsageError

MEGABYTE = {"x": np.zeros(250_000, np.float32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of at most 2.5 MB."""
    monkeypatch.setenv("FORGETTING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORGETTING_CACHE_GB", "0.0025")
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def add(folder: Path, name: str, hours_ago: float) -> Path:
    """Add a file of a megabyte with its lock, last used this long ago."""
    path = folder / f"{name}.safetensors"
    with array_cache.held(path):
        array_cache.write(path, MEGABYTE, name)
    used = path.stat().st_mtime - 3600 * hours_ago
    os.utime(path, (used, used))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def test_the_least_recently_used_files_are_removed(folder: Path) -> None:
    for hours, name in ((60, "a"), (40, "b")):
        add(folder, name, hours)
    assert array_cache.read(folder / "a.safetensors", "a") is not None  # used now, and closed
    add(folder, "c", 0)
    assert names(folder) == ["a", "c"]
    assert not (folder / "b.lock").exists()


@pytest.mark.skipif(os.name == "nt", reason="there, what was used within a day stays instead")
def test_files_in_use_are_kept(folder: Path) -> None:
    path = add(folder, "a", 60)
    stored = array_cache.read(path, "a")
    os.utime(path, (0, 0))
    add(folder, "b", 40)
    add(folder, "c", 0)
    assert names(folder) == ["a", "c"]
    del stored
    os.utime(path, (0, 0))
    add(folder, "d", 0)
    assert names(folder) == ["c", "d"]
    with array_cache.filling(folder / "e.safetensors", {"x": (np.float32, (250_000,))}, "e") as new:
        pass  # like a measurement, which stores rows and maps them repeatedly
    os.utime(folder / "e.safetensors", (0, 0))
    add(folder, "f", 0)
    assert names(folder) == ["e", "f"]
    assert new.hold is not None


def test_incomplete_files_are_removed_after_a_day_and_a_studys_cache_is_kept(folder: Path, tmp_path: Path) -> None:
    left, new = folder / ".a.safetensors.x", folder / ".b.safetensors.y"
    for half in (left, new):
        half.write_bytes(b"x" * 10)
    os.utime(left, (0, 0))
    for name in ("a", "b", "c", "d"):
        add(tmp_path, name, 1000)
        add(folder, name, 40)
    assert (left.exists(), new.exists()) == (False, True)
    assert names(tmp_path) == ["a", "b", "c", "d"]
    assert names(folder) == ["c", "d"]


@pytest.mark.parametrize("given", ["x", "-1", "nan", "inf"])
def test_an_invalid_size_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("FORGETTING_CACHE_GB", given)
    with pytest.raises(UsageError, match=f"FORGETTING_CACHE_GB: got '{given}'; give a number of gigabytes, 0 or more"):
        array_cache.default_folder()


def test_the_doctor_says_how_large_it_is(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"x" * 1_600_000)
    (check,) = (check for check in doctor(folder) if check.name == "cache")
    assert check.state == "works"
    assert check.found.startswith(f"0.0016 of at most 0.0025 GB in {folder}")
    assert cache_size.held_bytes(folder / "none") == 0
