"""The memory that a run takes at its highest: resident on a CPU, allocated by torch on a GPU."""

from __future__ import annotations

import ctypes
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
        # what was freed but is still held by the C library is nobody's need
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
