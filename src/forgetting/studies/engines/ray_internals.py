"""What is used of Ray that it does not document, in one place: what an upgrade may break.

Ray says nothing of a setting that it no longer knows; `tests/studies/test_ray_internals.py` looks for each of them in
the installed version. Seen in Ray 2.50.0 to 2.60.0.
"""

from __future__ import annotations

import os

FLAGS = {
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine is slow to start one
    "RAY_worker_niceness": "0",  # runs are the work here: Ray would put them behind all else
}
"""Flags of Ray's processes in C++, with our values."""
OVERRIDE = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""Read by ray._private.accelerators; 0: a run that asks for no GPU keeps the machine's own list of GPUs."""


def settle() -> None:
    """Put the settings into the environment, where the user has not."""
    for name, value in {**FLAGS, OVERRIDE: "0"}.items():
        os.environ.setdefault(name, value)
