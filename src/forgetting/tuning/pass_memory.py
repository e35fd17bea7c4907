"""Counts the memory of a pass through a model without values: its operations run on torch's fake tensors.

It counts what torch would allocate: each tensor that an operation creates, until nothing refers to it any more. This
includes what autograd stores for the backward pass, with or without gradient checkpointing, and temporary tensors. No
weights are read and nothing is computed.

Shapes: B windows of a pass, L their length, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..measuring import heads
from ..models import peft_internals, torch_internals, transformers_internals
from ..models.adapters import is_peft, needs_whole_forward
from . import fused_loss
from .folded_lora import FoldedLayers

SAVING = {"use_reentrant": False}
"""Options of gradient checkpointing, as the trainer sets them."""


class LiveBytes:
    """A context that counts the bytes of tensors created inside.

    Attributes:
        now: bytes currently in use.
        peak: the maximum so far.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        """Register the tensors that existed before; they are not counted."""
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        for tensor in before:
            self._known[tensor.untyped_storage()] = True
        self._seeing = _seeing(self.see)

    def __enter__(self) -> Self:
        self._seeing.__enter__()
        return self

    def __exit__(self, *how: object) -> None:
        self._seeing.__exit__(*how)

    def see(self, made: Any) -> None:
        """Count what an operation created: a tensor, several, or something else."""
        if isinstance(made, list | tuple):
            for one in made:
                self.see(one)
        if isinstance(made, Tensor) and (storage := made.untyped_storage()) not in self._known:
            self._known[storage] = True
            self._take(storage.nbytes())
            weakref.finalize(storage, self._take, -storage.nbytes())

    def _take(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)


def _seeing(see: Callable[[Any], None]) -> Any:
    """A context in which `see` receives the result of each torch operation."""
    kind = torch_internals.DISPATCH.value()

    class Seeing(kind):  # type: ignore[misc, valid-type]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            see(made)
            return made

    return Seeing()


def training_bytes(
    model: Any, windows: int, length: int, *, all_logits: bool, checkpointing: bool, accumulated: bool, on_gpu: bool
) -> int:
    """Maximum memory of a forward and backward pass beyond the weights, including the gradients that it creates.

    Args:
        model: on torch's device "meta", prepared by a method; changed, and not to be used again.
        windows: windows per pass.
        length: tokens of each.
        all_logits: whether something reads the logits of all positions, from which the loss is then computed.
        checkpointing: whether activations are recomputed for the backward pass.
        accumulated: whether gradients already exist; they are not counted.
        on_gpu: whether layers are computed as on a GPU.
    """
    with _faked(model):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=SAVING)
        for parameter in model.parameters():
            if accumulated and parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        batch = _batch(windows, length)
        with (
            FoldedLayers(model, verify=False, on_gpu=on_gpu).acting(),
            _loss(model, all_logits),
            _counted(model) as live,
        ):
            model(**batch).loss.backward()
    return live.peak


def measuring_bytes(model: Any, tokens: int, length: int, *, on_gpu: bool) -> int:
    """Maximum memory of a pass without gradients beyond the weights, up to the head's input.

    Args:
        model: as in `training_bytes`.
        tokens: tokens per pass.
        length: tokens per window.
        on_gpu: as in `training_bytes`.
    """
    whole = bool(needs_whole_forward(model))
    inner = model.get_base_model() if is_peft(model) else model
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
    with _faked(model), torch.no_grad():
        model.eval()
        batch = _batch(max(1, tokens // length), length)
        del batch["labels"]
        with FoldedLayers(model, verify=False, on_gpu=on_gpu).acting(), _counted(model) as live:
            made = (model if whole else decoder)(**batch, use_cache=False)
            del made
    return live.peak


@contextmanager
def _faked(model: nn.Module) -> Iterator[None]:
    """Inside, operations on the model run without values, as on a CPU; its parameters and buffers are replaced."""
    mode = torch_internals.FAKE.value()(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            one = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            made[id(tensor)] = nn.Parameter(one, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else one
        return made[id(tensor)]

    with torch.random.fork_rng(devices=[]), mode:
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                setattr(module, name, fake(parameter))
            for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
                setattr(module, name, fake(buffer))
        yield


def _counted(model: nn.Module) -> LiveBytes:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return LiveBytes([*model.parameters(), *model.buffers(), *gradients])


def _batch(windows: int, length: int) -> dict[str, Tensor]:
    ids = torch.zeros(windows, length, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids)}


def _loss(model: Any, all_logits: bool) -> Any:
    """A context in which the model's loss is computed as in a run: without all logits, if that is likely to work."""
    inner = model.get_base_model() if is_peft(model) else model
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    linear = peft_internals.acting(head)
    if all_logits or head is None or not fused_loss.is_plain(inner, head, linear):
        return nullcontext()
    form = next((form for form in heads.candidates(inner) if isinstance(form, heads.LinearHead)), None)
    if form is None:
        return nullcontext()
    read: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        read.append(hidden)
        return hidden.new_zeros(1, 1, len(linear.weight))

    def loss(*_: Any, **__: Any) -> Tensor:
        hidden = read.pop()
        flat = hidden.reshape(-1, hidden.shape[-1])
        at = torch.arange(len(flat))
        chosen = flat.index_select(0, at)
        return fused_loss.summed(chosen, linear.weight, linear.bias, at, form.scale, form.softcap)

    return transformers_internals.replaced(inner, head, forward, loss)
