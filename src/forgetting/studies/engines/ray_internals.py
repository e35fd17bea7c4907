"""Undocumented settings of Ray that we use, which an upgrade may break.

Ray silently ignores unknown settings; `tests/studies/test_ray_internals.py` checks that each exists in the installed
version. Present in Ray 2.50.0 to 2.60.0.
"""

from __future__ import annotations

import os

FLAGS = {
    "RAY_raylet_start_wait_time_s": "120",  # starting one takes long on a busy machine
    "RAY_worker_niceness": "0",  # Ray would give runs the lowest priority
}
"""Flags of Ray's C++ processes, with our values."""
OVERRIDE = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""Read by ray._private.accelerators; with 0, a run without GPUs keeps the machine's CUDA_VISIBLE_DEVICES."""


def settle() -> None:
    """Put the settings into the environment, unless the user has set them."""
    for name, value in {**FLAGS, OVERRIDE: "0"}.items():
        os.environ.setdefault(name, value)
