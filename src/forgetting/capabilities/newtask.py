"""Forward KL from the base to the tuned model on the *new* task, another predictor of forgetting besides L_f.

Source: Shenfeld et al. 2025, RL's Razor, arXiv:2509.04259: KL(base || tuned) on the new task predicts forgetting. Here
it is the mean over the positions of the held-out fine-tuning data, with the data's own text as context.
"""

from __future__ import annotations

from typing import Any

from ..data.windows import Windows
from ..measuring.estimate import Mean, clustered_mean


def forward_kl(tuned: Any, heldout: Windows, base: Any, *, batch_tokens: int = 8192) -> Mean:
    """KL(base || tuned), nats/token, with its standard error clustered by document.

    Args:
        tuned: the fine-tuned model.
        heldout: windows of the new task that were not trained on.
        base: the base model; the same object as `tuned` if that is a PeftModel whose adapters can be switched off.
        batch_tokens: tokens per forward pass.
    """
    from ..measuring.base_targets import base_side
    from ..measuring.comparison import compare

    targets, expected = base_side(
        base, heldout, key="live", cache_dir=None, batch_tokens=batch_tokens, rows=None, with_rows=True
    )
    found = compare(base, tuned, heldout, targets, expected, batch_tokens=batch_tokens)
    return clustered_mean(found.kl, heldout.token_documents())
