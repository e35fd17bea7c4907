"""Compares a tuned model with its base at each predicted position: every quantity of the table, in one pass.

The soft quantities need the base model's whole distribution. There are two exact ways; the cheaper one is used if it
applies:
1. tuned and base share a linear head (usual with LoRA): the base's expected rows (`kernels.expected_logit`), one dot
   product per position;
2. otherwise the base model runs next to the tuned one, batch by batch, and both heads are read tile by tile.

Shapes: N = windows.n_predicted, in the order of the windows; n positions of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.windows import Windows
from ..models import adapters
from . import batches, heads, kernels, passes
from .base_targets import BaseTargets, ExpectedRows
from .quantities import PerToken


@dataclass(frozen=True)
class Comparison:
    """The tuned model's losses at each predicted position, nats.

    Attributes:
        data_nll: [N] float32, -log p_tuned(true token).
        target_nll: [N] float32, -log p_tuned(the base model's argmax token).
        agrees: [N] bool, same top token.
        kl: [N] float32, KL(base || tuned).
        soft_nll: [N] float32, cross-entropy against the base model's whole distribution: kl + its entropy.
    """

    data_nll: NDArray[np.float32]
    target_nll: NDArray[np.float32]
    agrees: NDArray[np.bool_]
    kl: NDArray[np.float32]
    soft_nll: NDArray[np.float32]

    def per_token(self, targets: BaseTargets) -> PerToken:
        """These together with the base model's, for every quantity of general text."""
        return PerToken(
            self.data_nll,
            self.target_nll,
            self.agrees,
            self.kl,
            self.soft_nll,
            targets.log_prob,
            targets.data_log_prob,
        )


def compare(
    base: nn.Module,
    tuned: nn.Module,
    windows: Windows,
    targets: BaseTargets,
    expected: ExpectedRows | None,
    *,
    batch_tokens: int,
    rows: int | None = None,
) -> Comparison:
    """Every quantity of `tuned` against `base` on `windows`.

    Args:
        base: the base model, or `tuned` itself if it is a PeftModel whose adapters can be disabled.
        tuned: the fine-tuned model.
        targets: the base model's targets on the same windows, with the same `rows`.
        expected: the base model's expected rows, if available.
        batch_tokens: tokens per forward pass.
        rows: compare only the vocabulary's first `rows` tokens; default all of the head's.

    Raises:
        UsageError: no predicted position, a merged adapter.
        ForgettingError: memory is too small for a single window.
    """
    passes.check_windows(windows)
    base, tuned = adapters.unwrapped(base), adapters.unwrapped(tuned)
    return passes.halving(
        lambda size: _compare(base, tuned, windows, targets, expected, size, rows), windows, batch_tokens
    )


def _compare(
    base: Any,
    tuned: Any,
    windows: Windows,
    targets: BaseTargets,
    expected: ExpectedRows | None,
    size: int,
    rows: int | None,
) -> Comparison:
    kinds = dict.fromkeys(("data_nll", "target_nll", "kl"), torch.float32) | {"agrees": torch.bool}
    out = passes.Collected(windows.n_predicted, **kinds)
    with adapters.undisturbed(base), adapters.undisturbed(tuned):
        run = passes.runner(tuned, windows)
        limit = run.head.vocabulary if rows is None else rows
        shared = expected if expected is not None and same_head(expected.head, run.head) else None
        base_batches = None if shared is not None else _BaseStates(base, windows)
        argmax = torch.from_numpy(np.asarray(targets.argmax, np.int64)).to(run.device)
        for batch, hidden in passes.hidden_states(run, windows, size):
            token, place = (passes.to_device(part, run.device) for part in (batch.token, batch.place))
            picked = kernels.pick(run.head, hidden, torch.stack([token, argmax[place]]), limit)
            out.put(batch.place, data_nll=picked.nll[0], target_nll=picked.nll[1], agrees=picked.top[1])
            if shared is not None:
                out.put(batch.place, kl=_kl_of_rows(shared, batch, hidden, picked.lse, targets))
            elif base_batches is not None:
                head, state = base_batches.at(batch)
                out.put(batch.place, kl=kernels.divergence(head, run.head, state, hidden, limit))
    found = out.arrays()
    return Comparison(**found, soft_nll=found["kl"] + targets.entropy)


def _kl_of_rows(
    expected: ExpectedRows, batch: batches.Batch, hidden: Tensor, lse: Tensor, targets: BaseTargets
) -> Tensor:
    """[n] KL(base || tuned) = lse_tuned - E_base[z_tuned] - entropy_base, float64."""
    arrays = (*expected.at(batch.place), targets.entropy[batch.place])
    mean_row, mean_bias, entropy = (passes.to_device(np.asarray(array), lse.device) for array in arrays)
    return lse - kernels.expected_logit(expected.head, hidden, mean_row, mean_bias) - entropy


class _BaseStates:
    """The base model's states for the batch that the tuned model has just run."""

    def __init__(self, base: Any, windows: Windows) -> None:
        self.base = base
        with adapters.as_base(base):
            self.run = passes.runner(base, windows)

    def at(self, batch: batches.Batch) -> tuple[heads.Head, Tensor]:
        with adapters.as_base(self.base):
            return self.run.head, passes.states_of(self.run, batch)


def same_head(one: heads.Head, other: heads.Head) -> bool:
    """Whether two heads are linear and give equal logits for equal states: same weights, bias, scale, soft-capping."""
    if not isinstance(one, heads.LinearHead) or not isinstance(other, heads.LinearHead):
        return False
    if (one.scale, one.softcap, one.bias is None) != (other.scale, other.softcap, other.bias is None):
        return False
    pairs = [(one.weight, other.weight)]
    if one.bias is not None and other.bias is not None:
        pairs.append((one.bias, other.bias))
    return all(
        a.data_ptr() == b.data_ptr() or (a.shape == b.shape and a.device == b.device and torch.equal(a, b))
        for a, b in pairs
    )
