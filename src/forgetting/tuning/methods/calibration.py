"""Windows that some methods read before training; never those that forgetting is measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...config.schema import TextConfig
from ...errors import UsageError
from .base import Context

if TYPE_CHECKING:
    from ...data.windows import Windows


def general_windows(config: TextConfig, context: Context, where: str) -> Windows:
    """The windows of a calibration text.

    Args:
        config: the text.
        context: the run's context.
        where: names the option in errors.

    Raises:
        UsageError: the text contains windows that forgetting is measured on.
    """
    from ...data.array_cache import default_folder
    from ...data.prepared import Corpora

    windows = Corpora(context.tokenizer, context.length, default_folder()).text(config).windows
    measured = _contents(context.measured)
    if shared := len(_contents(windows) & measured):
        raise UsageError(
            f"{where}: forgetting is measured on {shared} of its windows; a method that has seen them would look "
            "better than it is: give another text"
        )
    return windows


def _contents(windows: Windows) -> set[bytes]:
    return {windows.window(i)[0].astype(np.int32).tobytes() for i in range(len(windows))}


def draw(windows: Windows, count: int, seed: int) -> Windows:
    """`count` windows in an order that depends only on the seed; all of them if there are fewer."""
    return windows.select(np.random.default_rng([seed, 20240605]).permutation(len(windows))[:count])
