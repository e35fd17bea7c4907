"""ForgettingController: steers your own training with transformers or TRL to a forgetting budget."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..config.arguments import checked, tokenizer_of
from ..data.windows import Windows
from ..display.numbers import several
from ..errors import UsageError
from ..measuring import base_targets, passes
from ..measuring.base_targets import BaseTargets
from ..measuring.callback import log_through, scheduled_rates, trainer_handler
from ..measuring.losses import forgetting_of
from ..measuring.reading import Text, read_windows, text_source
from ..measuring.verdict import check_budget
from ..models import adapters, causal, comparable, sharding, transformers_internals
from .mitigations.base_pass import own_positions
from .mitigations.divergence import GeneralDivergence
from .steering import SHORTEST, Steering

MEASURED = 4
"""If only one text is given, one document in this many is measured, and the penalty uses the others."""
TELLING = 16
"""Tokens of a window from which on an equal one is a copy."""


class ForgettingController(TrainerCallback, ExportableState):
    """Adds weight * KL(base || tuned) on general text to the loss, with the weight that ends at the budget.

    Before each update step, where gradients are zero, the penalty's gradient is added, so that accumulation and
    clipping work as for the loss alone. About 25 times in a run, forgetting is measured on a sample of the text, its
    value at the end is forecast, and the weight is adjusted (`tuning.steering`). The weight is 0 in the first third of
    the run, and is logged as `forgetting/weight` with `forgetting/forgetting`. The trainer's checkpoints contain the
    state, and a resumed run continues with it.

    It needs an adapter, whose base model is the same model with the adapter disabled, and one process.

    Args:
        text: general text that forgetting is measured on, as for `ForgettingCallback`; without `hold`, a quarter of
            its documents.
        budget: excess forgetting to end with, nats/token.
        hold: general text for the penalty, without documents of `text`; default: the other three quarters.
        windows: windows of `hold` per update step.
        tokens: size of the sample of `text`, in tokens.
        tokenizer: default: the trainer's.
        context: tokens per window; default 512, or the model's maximum if that is less.
        batch_tokens: tokens per forward pass when measuring; None is 512 on a CPU and 8,192 elsewhere.

    Raises:
        UsageError: an argument of the wrong type, or a number that is not positive. When training begins: a model
            without adapters, several processes or GPUs, DeepSpeed, FSDP, fp16 (whose gradients are scaled), fewer than
            8 update steps, one text with only one document, `hold` with windows of `text`, or a checkpoint that was
            written without it.

    Examples:
        >>> from forgetting import ForgettingController                   # doctest: +SKIP
        >>> trainer = SFTTrainer(..., callbacks=[ForgettingController("general.txt", budget=0.15)])    # doctest: +SKIP
    """

    @checked
    def __init__(
        self,
        text: Text = None,
        *,
        budget: float = 0.15,
        hold: Text = None,
        windows: int = 4,
        tokens: int = 6000,
        tokenizer: Any = None,
        context: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        check_budget(budget, 0.95)
        for name, value in (("budget", budget), ("windows", windows), ("tokens", tokens)):
            if value <= 0:
                raise UsageError(f"{name}={value}: must be above 0")
        self.text, self.hold = text_source(text), None if hold is None else text_source(hold)
        self.budget, self.windows, self.tokens = budget, windows, tokens
        self.tokenizer, self.context, self.wanted_batch = tokenizer_of(tokenizer), context, batch_tokens
        self.steering: Steering | None = None
        self._logger: Any = None

    def state(self) -> dict[str, Any]:
        """The state for the trainer's checkpoints."""
        return {"args": {}, "attributes": {"steering": None if self.steering is None else self.steering.state()}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse unsupported training, read the texts, and compute the base targets."""
        self._logger = trainer_handler()  # of this trainer; the callback may have been in another before
        model = adapters.unwrapped(kwargs["model"])
        _refuse(args, model)
        if state.max_steps < SHORTEST:
            raise UsageError(
                f"ForgettingController: {several(state.max_steps, 'update step')}; steering needs at least {SHORTEST}"
            )
        rates, _ = scheduled_rates(kwargs.get("lr_scheduler"), state.max_steps)
        self.steering = Steering(self.budget, state.max_steps, rates)
        if state.global_step > 0:
            if args.restore_callback_states_from_checkpoint:
                raise UsageError(
                    "ForgettingController: restore_callback_states_from_checkpoint would replace it by one with "
                    "default arguments; leave it out: the state is restored without it"
                )
            kept: Any = (state.stateful_callbacks or {}).get(type(self).__name__)
            if not kept or not kept["attributes"]["steering"]:
                raise UsageError("ForgettingController: the checkpoint was written without it; train from the start")
            self.steering.load(kept["attributes"]["steering"])
        self._read(model, args, state, self.tokenizer or kwargs.get("processing_class"))

    def _read(self, model: Any, args: TrainingArguments, state: TrainerState, tokenizer: Any) -> None:
        """Read the measured text, draw a sample of it, and read the text of the penalty."""
        whole, *_ = read_windows(self.text, tokenizer, [model], self.context)
        if self.hold is None:
            whole, held = _split(whole)
        else:
            held, *_ = read_windows(self.hold, tokenizer, [model], self.context)
            if shared := len(_contents(whole) & _contents(held)):
                raise UsageError(
                    f"ForgettingController: hold shares {several(shared, 'window')} with text; measured text must "
                    "not be trained on: give other text"
                )
        self.batch_tokens = passes.batch_size(model, self.wanted_batch)
        self.whole, self.sample = (self._with_targets(model, part) for part in (whole, whole.sample(self.tokens)))
        self.penalty = GeneralDivergence(held, self.windows, state.max_steps, args.seed, _base_logits)

    def _with_targets(self, model: Any, windows: Windows) -> tuple[Windows, BaseTargets]:
        arrays = base_targets.together_arrays(model, windows, self.batch_tokens)
        return windows, BaseTargets(**arrays, fingerprint=windows.fingerprint())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure and adjust the weight, if due; then add the penalty's gradient to the zero gradients of this step."""
        assert self.steering is not None
        model, step = adapters.unwrapped(kwargs["model"]), state.global_step
        if self.steering.due(step):
            self._steer(args, state, control, model)
        if self.steering.weight > 0:
            model.train()
            self.penalty.add(model, step, self.steering.weight, model.device)

    def _steer(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        assert self.steering is not None
        steering, step = self.steering, state.global_step
        whole = forgetting_of(model, *self.whole, self.batch_tokens)[0] if steering.whole_due(step) else None
        value, error = forgetting_of(model, *self.sample, self.batch_tokens)
        found = steering.measured(step, value, error, whole)
        logs: dict[str, float | None] = {"forgetting": value * steering.ratio, "weight": steering.weight}
        logs |= {name: number for name, number in found.logged().items() if name.startswith("forecast")}
        log_through(self._logger, args, state, control, {f"forgetting/{name}": one for name, one in logs.items()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the whole text once more, log the result, and warn if it is far from the budget."""
        assert self.steering is not None
        model = adapters.unwrapped(kwargs["model"])
        value, error = forgetting_of(model, *self.whole, self.batch_tokens)
        log_through(
            self._logger, args, state, control, {"forgetting/forgetting": value, "forgetting/forgetting_se": error}
        )
        self.steering.ended(state.global_step, value, error)


def _base_logits(model: Any, ids: Any, mask: Any) -> Any:
    """[B, L, V] of the base model, which is the model with its adapter disabled."""
    with adapters.undisturbed(model), adapters.as_base(model):
        return own_positions(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, ids)


def _contents(windows: Windows) -> set[bytes]:
    """The tokens of the windows that are too long to be equal by chance."""
    return {windows.window(i)[0].tobytes() for i in np.flatnonzero(windows.lengths >= TELLING).tolist()}


def _split(windows: Windows) -> tuple[Windows, Windows]:
    """Split by document: windows to measure on (one document in MEASURED), and the others, for the penalty."""
    documents = windows.distinct
    measured = np.isin(documents, np.unique(documents)[::MEASURED])
    if measured.all() or not measured.any():
        raise UsageError(
            "ForgettingController: text has one document; give a text with several, or another text as hold"
        )
    return windows.select(np.flatnonzero(measured)), windows.select(np.flatnonzero(~measured))


def _refuse(args: TrainingArguments, model: Any) -> None:
    """Refuse a training in which the penalty's gradient would be wrong."""
    causal.check_causal(model, "the model")
    what = ""
    if not adapters.is_peft(model):
        what = "a model without adapters, which overwrites its base model; train an adapter, or use replay"
    elif args.world_size > 1 or args.n_gpu > 1:
        what = f"{max(args.world_size, args.n_gpu)} processes or GPUs; train on one"
    elif sharding.is_sharded(model) or transformers_internals.deepspeed_shards() or args.deepspeed:
        what = "FSDP or DeepSpeed; train without them"
    elif args.fp16:
        what = "fp16, whose gradients are scaled; use bf16"
    if what:
        raise UsageError(f"ForgettingController does not work with {what}")
    comparable.check_live_adapter(
        model, "ForgettingController needs an adapter that leaves the base model as it is, for example a plain LoRA"
    )
