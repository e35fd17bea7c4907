"""Undocumented parts of transformers that we use, collected in one place because an upgrade may break them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import private_names
from .private_names import PrivateName

if TYPE_CHECKING:
    import torch

SEEN = "5.6.0 to 5.24.0"


def _name(path: str, purpose: str) -> PrivateName:
    return PrivateName("transformers", path, purpose, SEEN)


GRAD_NORM = _name(
    # overridden by tuning.trainer: called once per update step, with or without clipping. The public event
    # on_pre_optimizer_step comes after clipping, which by then has turned an infinite gradient into zeros.
    "transformers:Trainer._get_grad_norm",
    "a diverged run would not be stopped",
)
LOAD_CHECKPOINT = _name(
    # overridden by tuning.trainer: PEFT makes every adapter that it loads trainable, and there is no event in between
    "transformers:Trainer._load_from_checkpoint",
    "a resumed run would train frozen parameters",
)
ACCEPTS = _name(
    "object:model_accepts_loss_kwargs",  # of a Trainer; set from the model's accepts_loss_kwargs or its forward
    "it is unknown whether a loss is averaged over the whole batch",
)
SETUP_DEVICES = _name(
    # the cached property behind TrainingArguments.device; there is no argument that names one GPU of several
    "transformers:TrainingArguments._setup_devices",
    "a run would train on all GPUs, each with its own batch",
)
N_GPU = _name("object:_n_gpu", "a run would train on all GPUs, each with its own batch")  # of TrainingArguments
ON_LOG = _name(
    # callbacks get no logger; the handler that calls them passes a row to every reporter
    "transformers.trainer_callback:CallbackHandler.on_log",
    "rows of ForgettingCallback do not reach the trainer's loggers",
)
CALL_EVENT = _name(
    "transformers.trainer_callback:CallbackHandler.call_event",
    "rows of ForgettingCallback do not reach the trainer's loggers",
)
ZERO3 = _name(
    "transformers.integrations.deepspeed:is_deepspeed_zero3_enabled",
    "parameters that DeepSpeed shards cannot be told from whole ones",
)
REMOTE_CODE_TIMEOUT = _name(
    # seconds that transformers waits for an answer on the terminal; at 0 it raises without asking
    "transformers.dynamic_module_utils:TIME_OUT_REMOTE_CODE",
    "a library that loads a model on its own could ask on the terminal whether to run the model's code",
)
NO_SPLIT = _name(
    # on a model: class names of its blocks, which accelerate also reads
    "object:_no_split_modules",
    "the blocks that FSDP gathers one after another are unknown",
)
TIED = _name(
    # on a model: which weights its class ties if the configuration says so; empty or None for a class that never does
    "object:_tied_weights_keys",
    "a head that should be the embeddings and differs from them is not noticed",
)
SAVE_OPTIMIZER = _name(
    # overridden by tuning.sharded, like the next and LOAD_CHECKPOINT; there are no events for these
    "transformers:Trainer._save_optimizer_and_scheduler",
    "a checkpoint of sharded weights would lack the optimiser's state",
)
LOAD_OPTIMIZER = _name(
    "transformers:Trainer._load_optimizer_and_scheduler",
    "a resumed run with sharded weights would start with a new optimiser",
)
ADAPTER_FINDERS = tuple(
    # both look into the model's folder; before 5.23 regardless of `adapter_kwargs`
    _name(f"transformers.{module}:find_adapter_config_file", "an adapter in a model's folder would be applied")
    for module in ("models.auto.auto_factory", "integrations.peft")
)
RENAMINGS = (
    # the second knows the renamings by what it returns; both are undocumented, and PEFT uses them too
    _name("transformers.conversion_mapping:get_model_conversion_mapping", "adapters with older names are refused"),
    _name("transformers.core_model_loading:rename_source_key", "adapters with older names are refused"),
)
GGUF_BAR = _name("transformers.modeling_gguf_pytorch_utils:tqdm", "a GGUF file would show a progress bar")
NAMES = (
    GRAD_NORM,
    LOAD_CHECKPOINT,
    SAVE_OPTIMIZER,
    LOAD_OPTIMIZER,
    SETUP_DEVICES,
    ON_LOG,
    CALL_EVENT,
    ZERO3,
    REMOTE_CODE_TIMEOUT,
    *ADAPTER_FINDERS,
    *RENAMINGS,
    GGUF_BAR,
)
"""Names on classes or modules; the others are on objects."""


@contextmanager
def never_asking() -> Iterator[None]:
    """Make transformers refuse code that comes with a model if a library loads it without the flag.

    By default it would ask on the terminal and read the answer from standard input.
    """
    from transformers import dynamic_module_utils

    before = REMOTE_CODE_TIMEOUT.value()
    setattr(dynamic_module_utils, REMOTE_CODE_TIMEOUT.name, 0)
    try:
        yield
    finally:
        setattr(dynamic_module_utils, REMOTE_CODE_TIMEOUT.name, before)


@contextmanager
def without_adapters() -> Iterator[None]:
    """Make transformers load only the model and ignore an adapter in its folder."""
    before = [name.value() for name in ADAPTER_FINDERS]
    modules = [importlib.import_module(name.path.partition(":")[0]) for name in ADAPTER_FINDERS]
    for name, module in zip(ADAPTER_FINDERS, modules, strict=True):
        setattr(module, name.name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, module, finder in zip(ADAPTER_FINDERS, modules, before, strict=True):
            setattr(module, name.name, finder)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide transformers' progress bar of dequantising, which its own switch does not affect."""
    from transformers import modeling_gguf_pytorch_utils as module

    before = GGUF_BAR.value()
    setattr(module, GGUF_BAR.name, lambda given, **_: given)
    try:
        yield
    finally:
        setattr(module, GGUF_BAR.name, before)


def check_overridden() -> None:
    """Check that Trainer still has the methods that ours overrides; an override that is never called fails silently.

    Raises:
        ForgettingError: names the method that is gone.
    """
    private_names.check((GRAD_NORM, LOAD_CHECKPOINT, SAVE_OPTIMIZER, LOAD_OPTIMIZER))


def accepts_loss_kwargs(trainer: Any) -> bool:
    """Whether a trainer's loss is averaged over the tokens of the whole step, rather than of each batch."""
    return bool(ACCEPTS.of(trainer))


def takes_loss_kwargs(model: Any) -> bool:
    """`accepts_loss_kwargs` for a model, as Trainer decides it: by that attribute, or by its forward's arguments."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return bool(getattr(model, "accepts_loss_kwargs", inspect.Parameter.VAR_KEYWORD in kinds))


def loader_of(config: Any) -> Any:
    """The class that loads the language model of a configuration.

    Models that also read images (LLaVA, Qwen2-VL, Mistral 3) have no causal class of their own in transformers; given
    text alone, the whole model is a left-to-right language model.
    """
    import transformers

    texts, images = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or texts.__name__ in (
        getattr(config, "auto_map", None) or ()
    ):
        return texts
    return images if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else texts


def renaming(model: Any) -> Callable[[str], str]:
    """What transformers calls a weight of a model whose files were written by an older version."""
    from transformers.core_model_loading import WeightRenaming

    conversions, rename = (name.value() for name in RENAMINGS)
    renamings = [entry for entry in conversions(model) if isinstance(entry, WeightRenaming)]
    return lambda name: str(rename(name, renamings, [])[0])


def block_classes(model: Any) -> tuple[str, ...]:
    """Class names of a model's blocks; empty if it does not say."""
    return tuple(getattr(model, NO_SPLIT.name, None) or ())


def ties_weights(model: Any) -> bool:
    """Whether a model's class ties its head to the embeddings if the configuration says so."""
    return bool(getattr(model, TIED.name, None))


def has_usual_loss(model: Any) -> bool:
    """Whether a model's loss is transformers' next-token cross-entropy, and can be replaced."""
    try:
        from transformers.loss.loss_utils import ForCausalLMLoss
    except ImportError:
        return False
    return getattr(model, "loss_function", None) is ForCausalLMLoss


@contextmanager
def replaced(model: Any, head: Any, forward: Any, loss: Any) -> Iterator[None]:
    """Inside, a model's forward calls these instead of its head's forward and its loss function."""
    before = model.loss_function
    head.forward, model.loss_function = forward, loss
    try:
        yield
    finally:
        del head.forward
        model.loss_function = before


def use_one_gpu(arguments: Any, device: torch.device) -> None:
    """Make a Trainer train on one GPU only; by default it uses all that it sees."""
    SETUP_DEVICES.value()
    N_GPU.of(arguments)
    arguments.__dict__[SETUP_DEVICES.name] = device
    setattr(arguments, N_GPU.name, 1)


def calling_handler() -> Any | None:
    """The CallbackHandler of the trainer that is calling this callback, from the call stack; None if there is none.

    transformers gives callbacks no other access to its loggers.
    """
    private_names.check((ON_LOG, CALL_EVENT))
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if hasattr(found, CALL_EVENT.name) and hasattr(found, ON_LOG.name):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


def deepspeed_shards() -> bool:
    """Whether DeepSpeed shards parameters over processes (ZeRO 3)."""
    return bool(ZERO3.value()())
