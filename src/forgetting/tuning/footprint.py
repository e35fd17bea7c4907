"""Predicts the memory that a run will use on its device, from its configuration, before loading anything.

Permanent memory is counted exactly: weights (packed if quantised), what the method adds, gradients, and the optimiser's
states. AdamW keeps two numbers per trained parameter; Adafactor keeps, for a matrix, one per row and one per column
(Shazeer and Stern 2018, arXiv:1804.04235). Temporary memory is counted by passes through a model without values
(`pass_memory`). If a model cannot be run that way, passes are estimated by the formula of Korthikanti et al. 2022
(arXiv:2205.05198, section 4.1): 34 s b h bytes per layer in 16 bits, without attention scores, which current kernels do
not store, or 2 s b h with gradient checkpointing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from ..config.schema import RunConfig
from ..data.windows import Windows
from ..errors import ForgettingError
from ..measuring import heads
from ..models.skeleton import Skeleton, acting
from . import fused_loss, pass_memory
from .methods import METHODS, Context, Method
from .methods.lora import Lora
from .mitigations import Takes, parse_together, with_recipe

KEPT, KEPT_CHECKPOINTING = 17, 1
"""Numbers that a layer stores per number of its input, without and with gradient checkpointing: 34 and 2 bytes in 16
bits."""
ADAFACTOR_MOMENT = 2
"""Temporary copies of the largest gradient, in float32, during a step."""
LOGIT_COPIES = 4
"""Copies of the logits that a mitigation reads: float32, log-probabilities of both models, and their gradient."""
GAPS = 1.1
"""Bytes that allocators hold per byte of temporary memory requested (docs/benchmarks.md)."""
CPU_BUFFERS = 48 * 2**20
"""Bytes that matrix products and the C library keep for themselves (docs/benchmarks.md)."""
TILE_COPIES = 3
"""Copies of the tile of logits that measuring works on."""
CUDA_LOGITS = 2 * 4 * fused_loss.CUDA_TILE_LOGITS
"""Bytes of the tiles in which the loss computes logits on a GPU, beyond those on a CPU."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run uses on its device, not counting the libraries themselves.

    Attributes:
        weights: the base model's weights, and what the method adds.
        gradients: gradients of the trained parameters.
        optimiser: the optimiser's states.
        held: copies that mitigations keep.
        passes: maximum temporary memory beyond all of the above, including buffers and what allocators waste.
        trained: number of trained parameters.
        counted: whether `passes` was counted on a model without values, rather than by the formula.
    """

    weights: int
    gradients: int
    optimiser: int
    held: int
    passes: int
    trained: int
    counted: bool

    @property
    def parameters(self) -> int:
        """What a smaller batch does not reduce: weights, gradients and optimiser."""
        return self.weights + self.gradients + self.optimiser

    @property
    def total(self) -> int:
        """All of the memory."""
        return self.parameters + self.held + self.passes


class UncountableError(ForgettingError):
    """A method cannot be applied to a model without values."""


@dataclass(frozen=True)
class Passes:
    """How much text passes through the model at once.

    Attributes:
        windows: windows per forward pass in training.
        length: tokens of the longest.
        accumulated: whether gradients of earlier passes of the step are in memory.
        device: `cpu` or `cuda`.
    """

    windows: int
    length: int
    accumulated: bool
    device: str


def passes_of(run: RunConfig, processes: int, longest: int | None, device: str) -> Passes:
    """How a run passes its text through the model.

    Args:
        run: the run.
        processes: number of processes that share each batch.
        longest: tokens of its longest training window; None means the context.
        device: `cpu` or `cuda`.
    """
    share = max(1, run.training.batch_size // processes)
    micro = min(run.training.micro_batch_size or share, share)
    return Passes(micro, min(longest or run.context, run.context), share > micro, device)


def footprint(run: RunConfig, base: Skeleton, passes: Passes) -> Footprint:
    """The memory that a run uses.

    Args:
        run: the run.
        base: its base model.
        passes: as from `passes_of`.

    Raises:
        UncountableError: its method needs the weights themselves.
        UsageError: its method or a mitigation refuses the model.
    """
    together = parse_together(run)
    run = with_recipe(run, together)
    model = prepared(run, base)
    for mitigation in together:
        mitigation.adapt(model)
    takes = _sum(mitigation.takes(run, model, base.bytes) for mitigation in together)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.itemsize for p in trained)
    weights = base.bytes + _bytes(model) - _bytes(base.model)
    moment, counted = _passes(run, model, passes, takes, gradients, _step_bytes(run, trained))
    optimiser = sum(_state_bytes(run, p) for p in trained)
    # before training there are neither gradients nor states
    files = base.mapped if passes.device == "cpu" else 0
    before = base.bytes + max(takes.before, files) - weights - gradients - optimiser - takes.held
    count = sum(p.numel() for p in trained)
    beyond = round(GAPS * max(moment - gradients, before, 0)) + (files if base.stays else 0)
    beyond += CPU_BUFFERS if passes.device == "cpu" else 0
    return Footprint(weights, gradients, optimiser, takes.held, beyond, count, counted)


def prepared(run: RunConfig, base: Skeleton) -> Any:
    """A copy of the base model without values, prepared by the run's method.

    Raises:
        UncountableError: the method needs the weights themselves.
        UsageError: it refuses the model.
    """
    method = METHODS.parse(run.method)
    context = context_of(run)
    with acting():
        try:
            return method.prepare(base.copied(), context)
        except Exception as error:  # whatever PEFT or torch raise when they read values
            like = _like(method)
            if like is None:
                raise UncountableError(
                    f"methods.{method.name} needs the weights themselves, so its memory cannot be counted"
                ) from error
            return like.prepare(base.copied(), context)


def context_of(run: RunConfig) -> Context:
    """What a method knows about its run when no text has been read."""
    return Context(run.seed, cast(Windows, None), cast(Windows, None), cast(Any, None), run.context)


def _like(method: Method) -> Method | None:
    """A method with the same shapes that reads no weights and no data; LoRA for those that start from them."""
    rank = getattr(method, "rank", None)
    if method.name not in ("pissa", "olora", "corda", "eva", "mica") or rank is None:
        return None
    fields = {name: getattr(method, name) for name in ("target_modules", "layers") if hasattr(method, name)}
    return Lora(rank=rank, **fields)


def _bytes(model: nn.Module) -> int:
    return sum(one.numel() * one.itemsize for one in (*model.parameters(), *model.buffers()))


def _state_bytes(run: RunConfig, parameter: nn.Parameter) -> int:
    """Bytes of the optimiser's states for one parameter."""
    shape = parameter.shape
    if run.training.optimizer == "adamw":
        return 2 * parameter.numel() * parameter.itemsize
    if len(shape) < 2:
        return 4 * parameter.numel()
    return 4 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1])


def _step_bytes(run: RunConfig, trained: Sequence[nn.Parameter]) -> int:
    """Temporary memory of the optimiser's step; AdamW works in place with a single call."""
    if run.training.optimizer == "adamw":
        return 0
    copies = (ADAFACTOR_MOMENT + (0 if p.itemsize >= 4 else 2) for p in trained)
    return max((4 * count * p.numel() for count, p in zip(copies, trained, strict=True)), default=0)


def _passes(run: RunConfig, model: Any, passes: Passes, takes: Takes, gradients: int, step: int) -> tuple[int, bool]:
    """Maximum temporary memory, including gradients; and whether passes were counted."""
    vocabulary = _vocabulary(model)
    tokens = passes.windows * passes.length
    try:
        training, measuring = _counted(run, model, passes, takes, gradients)
        counted = True
    except Exception:  # a model whose forward reads values
        training, measuring = formula(run, model, tokens, takes.reads_logits) + gradients, 0
        counted = False
    if takes.reads_logits:
        training += LOGIT_COPIES * 4 * tokens * vocabulary
    height = heads.TILE_ROWS if passes.device == "cpu" else heads.CUDA_TILE_ROWS
    measuring += TILE_COPIES * 4 * heads.CHUNK_POSITIONS * min(height, vocabulary)
    most = max(training, gradients + max(step, takes.step), measuring, measuring + takes.after)
    return most, counted


def _counted(run: RunConfig, model: Any, passes: Passes, takes: Takes, gradients: int) -> tuple[int, int]:
    """Bytes for training, including gradients, and for measuring; counted by passes."""
    saving, on_gpu = run.training.gradient_checkpointing, passes.device != "cpu"

    def train(windows: int, length: int, *, logits: bool, accumulated: bool) -> int:
        there = gradients if accumulated else 0
        how = {"all_logits": logits, "checkpointing": saving, "accumulated": accumulated, "on_gpu": on_gpu}
        return pass_memory.training_bytes(copy.deepcopy(model), windows, length, **how) + there

    training = train(passes.windows, passes.length, logits=takes.reads_logits, accumulated=passes.accumulated)
    if on_gpu and not takes.reads_logits:
        training += CUDA_LOGITS
    if takes.windows:
        beside = train(takes.windows, run.context, logits=True, accumulated=True)
        training = max(training, beside + LOGIT_COPIES * 4 * takes.windows * run.context * _vocabulary(model))
    batch = run.measure.batch_tokens, run.context
    return training, pass_memory.measuring_bytes(copy.deepcopy(model), *batch, on_gpu=on_gpu)


def formula(run: RunConfig, model: Any, tokens: int, reads_logits: bool) -> int:
    """Bytes for training, without gradients: activations by Korthikanti et al., and all logits if they are read."""
    config = model.config.get_text_config()
    width, layers = int(getattr(config, "hidden_size", 0)), int(getattr(config, "num_hidden_layers", 0))
    size = max(2, next((p.itemsize for p in model.parameters() if p.dim() == 2), 4))
    kept = KEPT_CHECKPOINTING * layers + KEPT if run.training.gradient_checkpointing else KEPT * layers
    logits = 4 * 4 * tokens * _vocabulary(model) if reads_logits else 0
    return kept * tokens * width * size + logits


def _vocabulary(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "vocab_size", 0) or 0)


def _sum(takes: Iterable[Takes]) -> Takes:
    """The needs of mitigations used together."""
    every = list(takes)
    return Takes(
        held=sum(one.held for one in every),
        before=max((one.before for one in every), default=0),
        step=max((one.step for one in every), default=0),
        after=max((one.after for one in every), default=0),
        reads_logits=any(one.reads_logits for one in every),
        windows=max((one.windows for one in every), default=0),
    )
