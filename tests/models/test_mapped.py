"""Memory of a model that is mapped from its files: little of it at a time, and never a lost change."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from forgetting.models import memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux reports pages of files")
MIB = 2**20


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, torch.Tensor]]:
    """Eight matrices of 1 MiB, mapped from their file."""
    monkeypatch.setattr(memory, "FEW", 2 * MIB)
    path = tmp_path / "weights"
    save_file({str(i): torch.full((512, 512), float(i)) for i in range(8)}, path)
    return path, load_file(path)


def resident(path: Path) -> int:
    """MiB of a file that are in this process's memory."""
    found = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
    return sum(map(int, found)) // 1024


def test_a_mapped_model_is_read_a_few_weights_at_a_time(mapped: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, weights = mapped
    memory.release_mapped()
    most = 0
    for i, (name, weight) in enumerate(memory.a_few_at_a_time(weights.items(), lambda one: one[1].nbytes)):
        assert float(weight.sum()) == float(name) * 512 * 512
        most = max(most, resident(path))
        assert i < 8
    assert most <= 3  # the kernel may read a little ahead
    assert resident(path) == 0


def test_a_mapped_model_runs_with_a_few_weights_at_a_time(mapped: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, weights = mapped
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in weights))
    for layer, weight in zip(model, weights.values(), strict=True):
        layer.weight = nn.Parameter(weight)
    seen: list[int] = []
    for layer in model:
        layer.register_forward_hook(lambda *_: seen.append(resident(path)))
    with torch.no_grad():
        expected = model(torch.ones(1, 512))
        assert resident(path) == 8
        memory.release_mapped()
        seen.clear()
        with memory.running_a_few_at_a_time(model):
            assert torch.equal(model(torch.ones(1, 512)), expected)
    assert max(seen) <= 3
    assert resident(path) == 0
    assert all(len(layer._forward_hooks) == 1 for layer in model)


def test_changed_weights_are_kept(mapped: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, weights = mapped
    weights["3"][0, 0] = 99.0
    memory.release_mapped()
    assert float(weights["3"][0, 0]) == 99.0
    assert float(weights["4"].sum()) == 4 * 512 * 512
    assert resident(path) > 0
