"""How much a model forgot, with standard errors.

The table of quantities that all others read (`quantities.py`), the base model's targets, token losses by tiled kernels,
means clustered by document, the noise floor, where a model forgot, verdicts on a budget; `measure` and `check`, and the
callback that measures while a model trains (docs/measure.md).
"""

from __future__ import annotations
