"""Memory: the peak of a run (resident on a CPU, allocated by torch on a GPU), and how much is available."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROC = Path("/proc/self")
MIB = 2**20


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of the peak.

    On a CPU this clears the peak that Linux records for the process's resident memory (proc(5), `clear_refs`); other
    systems record none.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and (PROC / "clear_refs").exists():
        # return freed memory to the system, or it would count towards the peak
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        (PROC / "clear_refs").write_text("5")


def peak(device: torch.device) -> float | None:
    """The peak memory since `reset_peak`, MiB; None if this machine does not report it.

    On a CPU it covers the whole process: libraries, data and model. Compare two runs by the difference of their peaks.
    """
    if device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device)) / MIB
    if device.type != "cpu" or not (PROC / "status").exists():
        return None
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


@dataclass(frozen=True)
class Room:
    """The memory of a device.

    Attributes:
        total: bytes that this process could have if nothing else ran.
        free: bytes that it can have now.
        where: whose memory it is, in words.
    """

    total: int
    free: int
    where: str


def room(device: torch.device, root: Path = Path("/")) -> Room | None:
    """The memory of a device; None if this machine does not report it.

    For the CPU it is the smallest of the machine's memory, the limits of the process's control groups (of a container
    or a job), and the process's own limit (`ulimit -v`).

    Args:
        device: a torch device.
        root: where /proc and /sys are.
    """
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return Room(total, free, f"GPU {device} ({torch.cuda.get_device_name(device)})")
    return cpu_room(root) if device.type == "cpu" else None


def cpu_room(root: Path = Path("/")) -> Room | None:
    """`room` for the CPU, without torch."""
    found = [one for one in (_machine(root), *_groups(root), _limit(root)) if one is not None]
    if not found:
        return None
    least = min(found, key=lambda one: one.total)
    return Room(least.total, min(one.free for one in found), least.where)


def _machine(root: Path) -> Room | None:
    with suppress(OSError, ValueError, KeyError, IndexError):
        rows = [line.split() for line in (root / "proc/meminfo").read_text().splitlines()]
        fields = {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}
        return Room(fields["MemTotal"], fields["MemAvailable"], "this machine")
    if not hasattr(os, "sysconf"):  # on Windows
        return None
    with suppress(OSError, ValueError):  # macOS
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Room(total, total, "this machine")
    return None


def _groups(root: Path) -> list[Room]:
    """The limited control groups of this process, version 1 or 2."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("memory" if kinds else "")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            inside = top / path.strip("/")
            # inside a container, its own group may be the root
            for folder in dict.fromkeys((inside, *inside.parents, top)):
                if folder == top or top in folder.parents:
                    found += _group(folder, *names)
    return found


def _group(folder: Path, limit: str, usage: str) -> list[Room]:
    """One control group; none if it has no limit. The page cache does not count, since it can be reclaimed."""
    with suppress(OSError, ValueError):
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        if most >= 2**60:  # version 1 reports this if there is no limit
            return []
        with suppress(OSError, ValueError, KeyError):
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used -= int(stat.get("total_inactive_file", stat["inactive_file"]))
        return [Room(most, max(most - used, 0), "the control group of this process (its container or job)")]
    return []


def _limit(root: Path) -> Room | None:
    """The process's own limit on its address space; None without one, or if there is no /proc as on Linux."""
    if not hasattr(os, "sysconf"):
        return None
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/self/limits").read_text().splitlines()
        soft = next(line for line in lines if line.startswith("Max address space")).split()[3]
        used = int((root / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return Room(int(soft), max(int(soft) - used, 0), "this process (ulimit -v)")  # int("unlimited") is none
    return None
