"""A model's loss at each token of a text: for the true token, for the base model's top token, and agreement.

Shapes: N = windows.n_predicted, in the order of the windows; D width of the hidden states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..data.windows import Windows
from ..errors import UsageError
from ..models import adapters, processes, sharding
from . import kernels, passes, quantities
from .base_targets import BaseTargets
from .quantities import ONE_PASS, PerToken


@dataclass(frozen=True)
class TokenLosses:
    """One model's losses at each predicted position.

    Attributes:
        data_nll: [N] float32, -log p(true token), nats.
        target_nll: [N] float32, -log p(the base model's argmax token), nats; None without targets.
        agrees: [N] bool, whether the model's top token is the base model's; None without targets.
    """

    data_nll: NDArray[np.float32]
    target_nll: NDArray[np.float32] | None
    agrees: NDArray[np.bool_] | None

    def per_token(self, targets: BaseTargets | None) -> PerToken:
        """These together with the base model's, for the quantities that need only a pass of the tuned model."""
        if targets is None:
            return PerToken(self.data_nll)
        return PerToken(
            self.data_nll,
            self.target_nll,
            self.agrees,
            base_log_prob=targets.log_prob,
            base_data_log_prob=targets.data_log_prob,
        )


def token_losses(
    model: nn.Module,
    windows: Windows,
    targets: BaseTargets | None,
    *,
    batch_tokens: int,
    rows: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> TokenLosses:
    """Losses of `model` at every predicted position. Bit-reproducible for the same windows and batch_tokens.

    Restores the model's training mode, gradient flags and the random states.

    Args:
        model: a transformers causal language model, or a PeftModel (its adapters as they are).
        windows: the text.
        targets: the base model's, on the same windows; None measures only the true tokens' loss.
        batch_tokens: tokens per forward pass; halved, with a notice, if memory runs out.
        rows: compare only the vocabulary's first `rows` tokens; default all of the head's.
        shard: (index, count) of processes: measure every count-th batch; other positions are zero, so that shards add
            up.

    Raises:
        UsageError: no predicted position; targets of other windows.
        ForgettingError: memory is too small for a single window.
    """
    passes.check_windows(windows)
    tokens = windows.n_predicted
    if targets is not None and len(targets.argmax) != tokens:
        raise UsageError(f"base targets of {len(targets.argmax)} tokens do not belong to a text of {tokens}")
    inner = adapters.unwrapped(model)
    argmax = None if targets is None else torch.from_numpy(np.asarray(targets.argmax, np.int64))

    def measure(size: int) -> TokenLosses:
        kinds = {"data_nll": torch.float32, "target_nll": torch.float32, "agrees": torch.bool}
        found = passes.Collected(tokens, **kinds)
        with adapters.undisturbed(inner):
            run = passes.runner(inner, windows)
            limit = run.head.vocabulary if rows is None else rows
            top = None if argmax is None else argmax.to(run.device)
            for batch, hidden in passes.hidden_states(run, windows, size, shard):
                wanted = passes.to_device(batch.token, run.device)[None]
                if top is not None:
                    wanted = torch.cat([wanted, top[passes.to_device(batch.place, run.device)][None]])
                picked = kernels.pick(run.head, hidden, wanted, limit)
                found.put(batch.place, data_nll=picked.nll[0])
                if top is not None:
                    found.put(batch.place, target_nll=picked.nll[1], agrees=picked.top[1])
        arrays = found.arrays()
        return TokenLosses(arrays["data_nll"], None, None) if argmax is None else TokenLosses(**arrays)

    together = sharding.is_sharded(inner)
    return passes.halving(measure, windows, batch_tokens, sharded=shard[1] > 1, together=together)


def whole_losses(model: nn.Module, windows: Windows, targets: BaseTargets | None, *, batch_tokens: int) -> TokenLosses:
    """`token_losses` by all processes of a run, each on its share of the batches; all get the same result.

    Batches and numbers equal those of a single process, bit for bit.
    """
    shard = processes.index(), processes.count()
    found = token_losses(model, windows, targets, batch_tokens=batch_tokens, shard=shard)
    nll = processes.summed(found.data_nll)
    if found.target_nll is None or found.agrees is None:
        return TokenLosses(nll, None, None)
    return TokenLosses(
        nll, processes.summed(found.target_nll), processes.summed(found.agrees.astype(np.uint8)).astype(bool)
    )


def forgetting_of(
    model: nn.Module, windows: Windows, targets: BaseTargets, batch_tokens: int
) -> tuple[float, float | None]:
    """Excess forgetting of a model on a text, nats/token, and its standard error, None for a single document."""
    losses = whole_losses(model, windows, targets, batch_tokens=batch_tokens).per_token(targets)
    row = quantities.row(quantities.means(quantities.values(ONE_PASS, losses), windows.token_documents()))
    value = row["forgetting"]
    return math.nan if value is None else value, row["forgetting_se"]
