"""How much a model forgot, with standard errors.

Contains the table of measured quantities (`quantities.py`), the base model's targets, token losses from tiled kernels,
means clustered by document, the noise floor, where a model forgot, verdicts on a budget, `measure` and `check`, and
the callback that measures during training (docs/measure.md).
"""

from __future__ import annotations
