"""The installed Ray still has the undocumented settings that we use; it silently ignores unknown ones."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

from forgetting.studies.engines import ray_internals

ray = pytest.importorskip("ray")


@pytest.mark.parametrize("name", ray_internals.FLAGS)
def test_a_flag_is_known(name: str) -> None:
    from ray import _raylet

    flag = name.removeprefix("RAY_").encode()
    version = metadata.version("ray")
    assert flag in Path(_raylet.__file__).read_bytes(), f"ray {version} has no setting {name} any more"


def test_the_override_of_gpu_lists_is_known() -> None:
    from ray._private import accelerators

    found = [value for value in vars(accelerators).values() if value == ray_internals.OVERRIDE]
    assert found, f"ray {metadata.version('ray')} does not read {ray_internals.OVERRIDE} any more"


def test_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*ray_internals.FLAGS, ray_internals.OVERRIDE]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[0], "7")
    ray_internals.settle()
    assert [os.environ[name] for name in names] == ["7", "0", "0"]
    for name in names[1:]:
        monkeypatch.delenv(name)
