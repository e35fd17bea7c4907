"""Next-token loss without all logits: only at labelled positions, tile by tile, together with its gradient.

A causal model's own loss computes logits for every position and keeps them, and their gradient, in memory.
`NextTokenLoss` computes the logits of a few labelled positions, derives loss and gradient, and discards them. This is
fused linear cross-entropy, after Liger (Hsu et al. 2024, arXiv:2410.10989); its kernels are used on a GPU if available.

The model's own forward stays in control: it calls its head and its loss, which are replaced while it runs. So hooks,
wrappers (DistributedDataParallel, autocast) and anything that a model adds to its loss (expert balancing) work as
usual. The replacement is *verified* on a few tokens, in value and gradient; if it is wrong, or this cannot be checked,
the model keeps its own loss.

Shapes: B windows, L their length, n labelled positions, t positions of a tile, D width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.padding import IGNORED
from ..measuring import heads
from ..models import peft_internals, transformers_internals
from ..models.adapters import is_peft, unwrapped

log = logging.getLogger(__name__)

TILE_POSITIONS = 128
"""On a CPU: 128 x 2,560 float32 logits stay in the cache, and the product with a large head is efficient."""
CUDA_TILE_LOGITS = 2**26
"""On a GPU: logits per tile."""
PROBE = (2, 24)
"""Windows and tokens used to verify the loss."""


class NotOursError(Exception):
    """A model does something unknown between its head and its loss."""


FAILURES = (NotOursError, RuntimeError, ValueError, TypeError, IndexError)
"""What a forward with replaced head and loss may raise."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(z)[label], z = softcap * tanh(scale * (h W^T + b) / softcap), with its gradient.

    As in transformers, z is computed in the dtype of h and its softmax in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, form: tuple[float, float | None]
    ) -> Tensor:
        """See `summed`; `form` is scale and softcap."""
        parts = _Parts(hidden, weight, bias, ctx.needs_input_grad[:3])
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), parts.rows):
            tile = slice(start, start + parts.rows)
            losses[tile] = parts.add(tile, labels[tile, None], *form)
        ctx.save_for_backward(parts.to_hidden, parts.to_weight, parts.to_bias)
        ctx.dtypes = [None if given is None else given.dtype for given in (hidden, weight, bias)]
        ctx.any = len(hidden) > 0
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that `forward` computed, times that of the loss."""
        # `outward` is not finite for a mean over nothing
        slope = outward[0] if ctx.any else torch.zeros_like(outward[0])
        # in float32 or wider: a bfloat16 factor would be off by up to 0.4 %, equally for all of them
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        found = [None if saved is None else (saved * slope).to(dtype) for saved, dtype in pairs]
        return (*found, None, None)


class _Parts:
    """Loss and gradients of one tile after another, in reused buffers."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        tile = max(1, CUDA_TILE_LOGITS // len(weight)) if hidden.is_cuda else TILE_POSITIONS
        self.rows = max(1, min(tile, len(hidden)))
        # sums over tiles, and their factors, are in float32 or wider
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.to_hidden = torch.empty_like(hidden, dtype=wide) if needed[0] else None
        self.to_weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        self.to_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None
        self.probabilities = hidden.new_empty((self.rows, len(weight)), dtype=torch.float32)

    def add(self, tile: slice, labels: Tensor, scale: float, softcap: float | None) -> Tensor:
        """[t] losses of the tile's positions; their gradients are stored."""
        hidden = self.hidden[tile]
        made = nn.functional.linear(hidden, self.weight, self.bias)
        if scale != 1.0:
            made *= scale
        if softcap is not None:
            made.div_(softcap).tanh_().mul_(softcap)
        z = made.float()
        # log sum exp(z) = max z - log of the largest probability
        p = torch.softmax(z, 1, out=self.probabilities[: len(z)])
        losses = z.amax(1) - p.amax(1).log() - z.gather(1, labels)[:, 0]
        p.scatter_add_(1, labels, p.new_full((1, 1), -1.0).expand_as(labels))
        if softcap is not None:
            p.mul_(z.div_(softcap).square_().neg_().add_(1.0))
        if scale != 1.0:
            p.mul_(scale)
        self._keep(p.to(made.dtype), tile, hidden)
        return losses

    def _keep(self, slope: Tensor, tile: slice, hidden: Tensor) -> None:
        """slope: [t, V] the gradient with respect to h W^T + b."""
        if self.to_hidden is not None:
            self.to_hidden[tile] = slope @ self.weight
        if self.to_weight is not None:
            self.to_weight += slope.T @ hidden
        if self.to_bias is not None:
            self.to_bias += slope.sum(0)


def summed(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Sum of the cross-entropies of n positions: a float32 scalar.

    Args:
        hidden: [n, D] the head's input, in the head's dtype.
        weight: [V, D]; bias: [V] or None.
        labels: [n] int64.
        scale, softcap: as in `heads.LinearHead`.
    """
    found: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, (scale, softcap))  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class NextTokenLoss:
    """How a model's loss is computed from its head's input.

    Attributes:
        model: the model without wrappers and adapters around it; its forward calls head and loss.
        head: the module that it calls; `linear` is the one used in its place.
        scale, softcap: between the head and the loss, as in `heads.LinearHead`.
        summed: the sum of cross-entropies, as `summed`.
    """

    model: Any
    head: nn.Module
    linear: nn.Linear
    scale: float
    softcap: float | None
    summed: Callable[..., Tensor]

    @contextmanager
    def acting(self) -> Iterator[list[Tensor]]:
        """Inside, the model's forward returns this loss; its logits are those of one position and mean nothing.

        Yields the head's input.
        """
        read: list[Tensor] = []

        def head(hidden: Tensor) -> Tensor:
            read.append(hidden)
            with torch.no_grad():
                one: Tensor = nn.functional.linear(hidden[:1, -1:], self.linear.weight, self.linear.bias)
            return one

        def loss(
            logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None, **more: Any
        ) -> Tensor:
            usual = more.get("shift_labels") is None and more.get("ignore_index", IGNORED) == IGNORED
            if len(read) != 1 or not usual or logits.shape[-1] != vocab_size:
                raise NotOursError
            return self._of(read[0], labels, num_items_in_batch)

        with transformers_internals.replaced(self.model, self.head, head, loss):
            yield read

    def _of(self, hidden: Tensor, labels: Tensor, items: Any) -> Tensor:
        """Like transformers' ForCausalLMLoss: divided by `items`, or by the number of labels.

        Args:
            hidden: [B, L, D].
            labels: [B, L]; the label at position t is what position t - 1 predicts.
            items: divisor of the sum; None for the mean.
        """
        if hidden.shape[:2] != labels.shape:
            raise NotOursError
        targets = nn.functional.pad(labels[:, 1:].to(hidden.device), (0, 1), value=IGNORED).reshape(-1)
        at = (targets != IGNORED).nonzero()[:, 0]
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, at)
        total = self.summed(chosen, self.linear.weight, self.linear.bias, targets[at], self.scale, self.softcap)
        divisor = len(at) if items is None else items
        return total / (divisor.to(total.device) if isinstance(divisor, Tensor) else divisor)


def find(model: Any) -> NextTokenLoss | None:
    """How a model's loss can be computed; None if that cannot be verified, and the model keeps its own.

    Verification always uses the same tokens, so that a resumed run decides the same way.

    Args:
        model: as it is called in training; may be wrapped.
    """
    entry = unwrapped(model)
    inner = entry.get_base_model() if is_peft(entry) else entry
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    linear = peft_internals.acting(head)
    if head is None or not is_plain(inner, head, linear) or linear.weight.is_meta:
        return None
    ids = torch.arange(PROBE[0] * PROBE[1], device=inner.device).reshape(PROBE) % len(linear.weight)
    labels = ids.clone()
    labels[:, 2::3] = IGNORED  # like a prompt, which is not learned
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if transformers_internals.takes_loss_kwargs(inner):
        batch["num_items_in_batch"] = (labels != IGNORED).sum() + 1
    try:
        expected = _seen(entry, linear, batch, _recorded(inner, head))
        for candidate in _candidates(inner, head, linear, expected):
            if _agree(_seen(entry, linear, batch, candidate.acting()), expected):
                return candidate
    except FAILURES as error:
        log.debug("keeping the model's own loss: %s", error)
    log.info("%s trains with its own loss, since ours could not be verified to equal it", type(inner).__name__)
    return None


def is_plain(inner: Any, head: nn.Module, linear: Any) -> bool:
    """Whether the head is a plain linear layer, followed by transformers' usual loss."""
    if type(linear) is not nn.Linear:
        return False
    if type(linear.weight) is not nn.Parameter and type(linear.weight).__name__ != "FakeTensor":
        return False  # a fake tensor is a parameter of a model without values
    if linear.weight.dim() != 2 or not linear.weight.is_floating_point():
        return False
    # accelerate sets a forward of its own on a model that is spread over devices
    return not any("forward" in vars(part) for part in (head, linear)) and transformers_internals.has_usual_loss(inner)


@dataclass(frozen=True)
class _Seen:
    """One pass over the probe: the loss, its gradients, and the head's input and output."""

    loss: Tensor
    gradients: tuple[Tensor, ...]
    hidden: Tensor
    logits: Tensor


def _seen(
    entry: Any, linear: nn.Linear, batch: dict[str, Tensor], reading: AbstractContextManager[list[Tensor]]
) -> _Seen:
    """A pass as in training, always with the same random numbers; restores the random states."""
    device = linear.weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad(), reading as read:
        torch.manual_seed(0)
        out = entry(**batch)
    if len(read) != 1:
        raise NotOursError
    wanted = [tensor for tensor in (*read, linear.weight, linear.bias) if tensor is not None and tensor.requires_grad]
    gradients = torch.autograd.grad(out.loss, wanted)
    return _Seen(out.loss.detach(), gradients, read[0].detach(), out.logits.detach())


@contextmanager
def _recorded(model: Any, head: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the model is unchanged; yields its head's input."""
    read: list[Tensor] = []
    own = head.forward

    def forward(hidden: Tensor) -> Tensor:
        read.append(hidden)
        logits: Tensor = own(hidden)
        return logits

    with transformers_internals.replaced(model, head, forward, model.loss_function):
        yield read


def _candidates(inner: Any, head: nn.Module, linear: nn.Linear, seen: _Seen) -> Iterator[NextTokenLoss]:
    """Losses whose scale and softcap reproduce the model's logits, fastest first."""
    for form in heads.candidates(inner):
        if not isinstance(form, heads.LinearHead) or form.weight.data_ptr() != linear.weight.data_ptr():
            continue
        if heads.verified(form, seen.hidden.flatten(0, -2), seen.logits.flatten(0, -2)):
            for cross_entropies in _cross_entropies(linear.weight.device):
                yield NextTokenLoss(inner, head, linear, form.scale, form.softcap, cross_entropies)


def _agree(found: _Seen, expected: _Seen) -> bool:
    """Whether value and gradients are equal up to rounding of the logits' dtype."""
    whole = expected.logits.dtype in (torch.float32, torch.float64)
    tolerance = 1e-5 if whole else 2e-3
    if not bool((found.loss - expected.loss).abs() <= tolerance * expected.loss.abs()):
        return False
    pairs = zip(found.gradients, expected.gradients, strict=True)
    return all(bool((a - b).float().norm() <= 20 * tolerance * b.float().norm()) for a, b in pairs)


def _cross_entropies(device: torch.device) -> list[Callable[..., Tensor]]:
    """Functions that sum cross-entropies, fastest first."""
    if device.type != "cuda":
        return [summed]
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger
    except ImportError:
        return [summed]

    def by_liger(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        if scale != 1.0 or not len(labels):
            return summed(hidden, weight, bias, labels, scale, softcap)
        found: Tensor = liger(hidden, weight, labels, bias=bias, reduction="sum", softcap=softcap)
        return found

    return [by_liger, summed]
