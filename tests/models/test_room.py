"""Available memory: the minimum of the machine's, the control groups' and the process's own limit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from forgetting.models import memory

GIB = 2**30
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")


def machine(root: Path, *, total: int, free: int, groups: str, files: dict[str, object]) -> Path:
    """A root folder with those files of /proc and /sys that are read."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {total * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {free * 2**20} kB\n"
    )
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_a_machine_without_groups_has_its_own_memory(tmp_path: Path) -> None:
    found = memory.cpu_room(machine(tmp_path, total=64, free=50, groups="", files={}))
    assert found is not None
    assert (found.total, found.free, found.where) == (64 * GIB, 50 * GIB, "this machine")


def test_the_least_of_nested_groups_counts_and_read_files_are_no_need(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "job/memory.max": 16 * GIB,
        "job/memory.current": 3 * GIB,
        "job/step/memory.max": "max",
        "job/step/memory.current": 2 * GIB,
        "job/memory.stat": f"anon 5\ninactive_file {1 * GIB}",
    }
    found = memory.cpu_room(machine(tmp_path, total=64, free=50, groups="0::/job/step\n", files=files))
    assert found is not None
    assert (found.total, found.free) == (16 * GIB, 14 * GIB)
    assert "control group" in found.where


def test_inside_a_container_the_group_is_at_the_top(tmp_path: Path) -> None:
    files: dict[str, object] = {"memory.max": 8 * GIB, "memory.current": GIB}
    found = memory.cpu_room(machine(tmp_path, total=64, free=5, groups="0::/docker/abc\n", files=files))
    assert found is not None
    assert (found.total, found.free) == (8 * GIB, 5 * GIB)


def test_groups_of_version_1(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "memory/job/memory.limit_in_bytes": 4 * GIB,
        "memory/job/memory.usage_in_bytes": 3 * GIB,
        "memory/memory.limit_in_bytes": 2**63 - 4096,
        "memory/memory.usage_in_bytes": 9 * GIB,
    }
    groups = "3:cpu,cpuacct:/job\n2:memory:/job\n"
    found = memory.cpu_room(machine(tmp_path, total=64, free=50, groups=groups, files=files))
    assert found is not None
    assert (found.total, found.free) == (4 * GIB, GIB)


def test_the_process_has_a_limit_of_its_own(tmp_path: Path) -> None:
    root = machine(tmp_path, total=64, free=50, groups="", files={})
    (root / "proc/self/statm").write_text("1024 5 5 1 0 9 0\n")
    for limit, total in (("unlimited", 64 * GIB), (str(3 * GIB), 3 * GIB)):
        (root / "proc/self/limits").write_text(
            f"Limit  Soft Limit  Hard Limit  Units\nMax address space  {limit}  unlimited  bytes\n"
        )
        found = memory.cpu_room(root)
        assert found is not None
        assert found.total == total
    assert found.free == 3 * GIB - 1024 * os.sysconf("SC_PAGE_SIZE")
    assert "ulimit" in found.where


def test_this_machine_has_memory() -> None:
    found = memory.room(torch.device("cpu"))
    assert found is not None
    assert 0 < found.free <= found.total
    assert memory.room(torch.device("meta")) is None
