"""Memory: what a run took at its highest (resident on a CPU, allocated by torch on a GPU), and what there is."""

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
    """Count the peak from here on.

    On a CPU this clears the high-water mark that Linux keeps of the process's resident memory (proc(5),
    `clear_refs`); elsewhere there is none to clear.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and (PROC / "clear_refs").exists():
        # the C library keeps freed memory, which would count as needed
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        (PROC / "clear_refs").write_text("5")


def peak(device: torch.device) -> float | None:
    """The highest memory since `reset_peak`, MiB; None where this machine does not tell.

    On a CPU it is the whole process: libraries, data and model; two runs compare by their difference.
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
        total: bytes that this process can have at most, were nothing else there.
        free: bytes that it can have now.
        where: in words, whose memory it is.
    """

    total: int
    free: int
    where: str


def room(device: torch.device, root: Path = Path("/")) -> Room | None:
    """The memory that there is on a device; None where this machine does not tell.

    Of the CPU the least of the machine's, of the control groups' that the process is in (a container's, a job's), and
    of its own limit (`ulimit -v`).

    Args:
        device: of torch.
        root: where /proc and /sys lie.
    """
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return Room(total, free, f"GPU {device} ({torch.cuda.get_device_name(device)})")
    return cpu_room(root) if device.type == "cpu" else None


def cpu_room(root: Path = Path("/")) -> Room | None:
    """`room` of the CPU; without torch."""
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
    """The control groups with a limit that this process is in, of version 1 or 2."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("memory" if kinds else "")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            inside = top / path.strip("/")
            # inside a container its own group may be the top
            for folder in dict.fromkeys((inside, *inside.parents, top)):
                if folder == top or top in folder.parents:
                    found += _group(folder, *names)
    return found


def _group(folder: Path, limit: str, usage: str) -> list[Room]:
    """One control group; none where it sets no limit. Pages of files that are read can be taken back."""
    with suppress(OSError, ValueError):
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        if most >= 2**60:  # version 1 says so where there is none
            return []
        with suppress(OSError, ValueError, KeyError):
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used -= int(stat.get("total_inactive_file", stat["inactive_file"]))
        return [Room(most, max(most - used, 0), "the control group of this process (its container or job)")]
    return []


def _limit(root: Path) -> Room | None:
    """The process's own limit on its address space; None without one, or where Linux's /proc does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/self/limits").read_text().splitlines()
        soft = next(line for line in lines if line.startswith("Max address space")).split()[3]
        used = int((root / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return Room(int(soft), max(int(soft) - used, 0), "this process (ulimit -v)")  # int("unlimited") is none
    return None
