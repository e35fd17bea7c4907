"""Memory: the peak of a run (resident on a CPU, allocated by torch on a GPU), and how much is available."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
PROC = Path("/proc/self")
MIB = 2**20
FEW = 64 * MIB
"""Bytes of mapped weights that are read before their pages are released."""
KEPT = MIB
"""Largest block of memory that `return_freed` lets the C library keep."""
MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's `mallopt`."""
DONTNEED = 4
"""MADV_DONTNEED of Linux's `madvise`."""
MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ \d+ +/")


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of the peak.

    On a CPU this clears the peak that Linux records for the process's resident memory (proc(5), `clear_refs`); other
    systems record none.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and (PROC / "clear_refs").exists():
        _trim()  # or freed memory would count towards the peak
        (PROC / "clear_refs").write_text("5")


def return_freed() -> None:
    """From now on, return the memory of large tensors to the system as soon as they are freed (glibc).

    By default glibc keeps freed blocks of up to 32 MiB for later ones, once blocks of that size have been freed. What
    FSDP gathers and frees, layer by layer, then stays in the process.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None) if (PROC / "status").exists() else None
    if option is not None:
        option(MMAP_THRESHOLD, KEPT)


def collect() -> None:
    """Free objects that only refer to each other, such as a model that FSDP sharded, and return their memory."""
    gc.collect()
    if (PROC / "status").exists():
        _trim()


def _trim() -> None:
    """Return freed memory to the system, if the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def a_few_at_a_time(read: Iterable[T], size: Callable[[T], int]) -> Iterator[T]:
    """Yield parts of a model that is mapped from its files, with few of them in memory at a time.

    Args:
        read: parts of the model; the caller reads each before it takes the next.
        size: the bytes of a part.
    """
    since = 0
    for one in read:
        yield one
        since += size(one)
        if since >= FEW:
            release_mapped()
            since = 0
    release_mapped()


@contextmanager
def running_a_few_at_a_time(model: nn.Module) -> Iterator[None]:
    """Inside, running a model keeps only a few of the weights that are mapped from its files in memory at a time."""
    since = 0

    def after(module: nn.Module, *_: object) -> None:
        nonlocal since
        since += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
        if since >= FEW:
            release_mapped()
            since = 0

    hooks = [module.register_forward_hook(after) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        release_mapped()


def release_mapped() -> None:
    """Release the pages of mapped files that were read and not changed; when needed, they are read again (Linux).

    Only private writable maps, which is how safetensors maps weights; a map with a changed page keeps all of its pages.
    """
    if not (PROC / "smaps").exists():
        return
    release = ctypes.CDLL(None).madvise
    release.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found = None
    for line in (PROC / "smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            found = MAPPED.match(line)
        elif found is not None and line.startswith("Anonymous:") and line.split()[1] == "0":
            start, end = (int(found[i], 16) for i in (1, 2))
            release(start, end - start, DONTNEED)


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
    """The process's own limit on its address space; None without a limit, or without Linux's /proc."""
    if not hasattr(os, "sysconf"):
        return None
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/self/limits").read_text().splitlines()
        soft = next(line for line in lines if line.startswith("Max address space")).split()[3]
        used = int((root / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return Room(int(soft), max(int(soft) - used, 0), "this process (ulimit -v)")  # int("unlimited") fails
    return None
