"""Whether mixtures of experts run on CPUs: torch 2.8 has no kernel for them, and older transformers no workaround."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version


def skip_where_they_do_not_run() -> None:
    """Skip a test of such a model."""
    if Version(torch.__version__) < Version("2.9") and Version(transformers.__version__) < Version("5.13"):
        pytest.skip("no experts on CPUs with torch 2.8 and transformers before 5.13")
