"""ForgettingCallback: what a model forgets while transformers.Trainer, TRL's SFTTrainer or their kin train it.

It needs no second model in memory: for an adapter the base model is the same model with the adapter disabled, and for
full fine-tuning the base targets are taken before the first step. Training is bit for bit what it is without it.

Shapes: N predicted positions of the text.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..config.arguments import checked, tokenizer_of
from ..config.bits import quantised as in_words
from ..config.schema import ProbeConfig
from ..config.steps import NAME
from ..data import array_cache
from ..data.windows import Windows
from ..errors import ForgettingError, UsageError, did_you_mean
from ..models import adapters, causal, comparable, quantised, sharding, transformers_internals
from . import base_targets, keeping, passes, quantities
from .forecast import Forecast, forecast
from .losses import whole_losses
from .quantities import ONE_PASS, logged, means, not_finite, of_text, values
from .reading import Text, read_windows, text_source
from .verdict import check_budget

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
STORED = "forgetting-base.safetensors"
"""In the trainer's output directory: base targets of a fully fine-tuned model, for a run that is resumed."""
OURS = "forgetting/"
"""How the names of what is measured begin among an evaluation's metrics."""
IDENTITY = 1e-3
"""nats/token by which an adapter may differ from the base model before it is trained."""


class ForgettingCallback(TrainerCallback):
    """Measures forgetting on general text during training, and logs it as `forgetting/...` to what report_to names.

    Rows are also kept in `rows` and in the trainer's log history. Works under gradient accumulation and on several
    processes (batches are shared out and the sums are exact, so that the numbers are those of one process), with whole
    weights in each (DDP) or sharded ones (FSDP2).

    The last row is of the model that training leaves: the last one inside the budget, or under
    `load_best_model_at_end` that of the best step. If that is not the last step's, it is measured again, its row has
    `kept` set, and it is logged as `forgetting_of_kept/...`. Under mixed precision the weights are measured in their
    own dtype, without autocast, as `measure` does with the saved model.

    With each measurement the forgetting at the last step is forecast from those so far, and logged as
    `forgetting/forecast` with `_low` and `_high`, the bounds of its 95 % band; with a budget also the step at which it
    is crossed, as `forgetting/crossing` with `_low` and `_high`, where there is one.

    Each quantity may be `metric_for_best_model`, as in `metric_for_best_model="forgetting/agreement"`: evaluations then
    have it, for `load_best_model_at_end` and for early stopping.

    Args:
        text: general text: a file, Hub id, TextConfig or Windows; a list of texts; a datasets.Dataset or DataFrame.
            Default: the WikiText-103 test set.
        texts: further ones beside a `text` that is given, by name, measured at the same steps and logged as
            `forgetting/NAME/...`; in `rows` their columns are such as `forgetting[NAME]`.
        every: measure every so many steps; None measures after 1, 2, 4, 8, ... steps. Both measure before the first
            step and after the last.
        budget: excess forgetting on `text` that is allowed, nats/token. Training stops at the first measurement above
            it, and the model of the last one inside it is handed back (its trained weights are copied to the CPU at
            each); under `load_best_model_at_end` the best evaluated one inside it, by `metric_for_best_model`.
        tokenizer: default the trainer's.
        context: tokens a window; default 512, or what the model was built for.
        batch_tokens: tokens a forward pass; None is 512 on a CPU and 8,192 elsewhere.

    Raises:
        UsageError: when training begins: an adapter whose base model cannot be had by disabling it; parameters that
            are sharded over processes by FSDP's first version or DeepSpeed ZeRO 3; a fully fine-tuned run that is
            resumed without its base targets; a `metric_for_best_model` of `forgetting/...` that is not measured, or
            with the wrong `greater_is_better`.

    Examples:
        >>> from forgetting import ForgettingCallback                     # doctest: +SKIP
        >>> trainer = SFTTrainer(..., callbacks=[ForgettingCallback("general.txt", every=50)])    # doctest: +SKIP
    """

    @checked
    def __init__(
        self,
        text: Text = None,
        *,
        texts: Mapping[str, Text] | None = None,
        every: int | None = None,
        budget: float | None = None,
        tokenizer: Any = None,
        context: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise UsageError(f"every={every}: must be at least 1 step; None measures after 1, 2, 4, 8, ... steps")
        if budget is not None:
            check_budget(budget, 0.95)
        if text is None and texts:
            raise UsageError(
                "ForgettingCallback: texts without text: they are measured beside it, and the budget is of it; give "
                "text=... too"
            )
        self.text, self.every, self.budget = text_source(text), every, budget
        self.texts = {name: _source(name, one) for name, one in (texts or {}).items()}
        self.tokenizer, self.context, self.wanted_batch = tokenizer_of(tokenizer), context, batch_tokens
        self.rows: list[dict[str, Any]] = []
        """One a measurement: `step` of the model, whether it is the one `kept` in place of a later one, each quantity,
        and its `..._se`, None where there is none (one document)."""
        self.seconds = 0.0
        """Time spent measuring, base targets included."""
        self.forecast: Forecast | None = None
        """The newest; it prints as a line of text."""
        self._rates: tuple[list[float] | None, str] = None, ""
        self._logger: Any = None
        self._kept: keeping.Kept | None = None
        self._training = False

    def to_frame(self) -> pd.DataFrame:
        """The measurements, one row each."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Find the trainer's callback handler, through which its own logs go."""
        self._logger = trainer_handler()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the text, take the base targets, and measure the starting point."""
        began = time.perf_counter()
        self._logger = self._logger or trainer_handler()
        _check_metric(args, self.texts)
        _go_before_early_stopping(self, self._logger)
        _refuse_sharded(kwargs["model"])
        model = adapters.unwrapped(kwargs["model"])
        causal.check_causal(model, "the model")
        if adapters.is_peft(model):
            comparable.check_live_adapter(model)
        if (bits := quantised.bits_of(model.config)) is not None:
            log.warning(
                "the base model is %s: forgetting is measured against it, with the adapter off",
                in_words(bits),
            )
        if sharding.is_sharded(model) and (args.bf16 or args.fp16):
            log.warning(
                "the weights are sharded by FSDP under mixed precision: measured in %s, the dtype of training; "
                "`forgetting measure` on the saved model uses their own dtype",
                "bfloat16" if args.bf16 else "float16",
            )
        tokenizer = self.tokenizer or kwargs.get("processing_class")
        self.batch_tokens = passes.batch_size(model, self.wanted_batch)
        self.measured: dict[str, tuple[Windows, base_targets.BaseTargets, NDArray[np.int32]]] = {}
        """By the text's name: its windows, base targets, and [N] the document of each target."""
        for name, text in {"": self.text, **self.texts}.items():
            windows, *_ = read_windows(text, tokenizer, [model], self.context)
            targets = self._base_targets(model, windows, name, args, state)
            self.measured[name] = windows, targets, windows.token_documents()
        self.rows = [row for row in self.rows if row["step"] < state.global_step and not row["kept"]]
        self._kept = self.forecast = None
        self._rates = _rates(kwargs.get("lr_scheduler"), state.max_steps)
        if self.budget is not None and state.global_step > 0:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._kept = keeping.read(checkpoint, model, sharded=sharding.is_sharded(model))
        self._training = True
        self.seconds += time.perf_counter() - began
        forgetting = self._measure(args, state, control, model)
        if adapters.is_peft(model) and state.global_step == 0 and abs(forgetting) > IDENTITY:
            log.warning(
                "the untrained adapter is not the identity: it differs from the base model by %.4f nats/token; "
                "forgetting is measured against the base model",
                forgetting,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, where this step is on the grid, and stop where the budget is spent."""
        step = state.global_step
        on_grid = step & (step - 1) == 0 if self.every is None else step % self.every == 0
        if on_grid or step == state.max_steps or control.should_training_stop:
            self._measure(args, state, control, adapters.unwrapped(kwargs["model"]))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add what was measured at this step to the evaluation's metrics; measure, where these are asked for it."""
        metrics: dict[str, float] | None = kwargs.get("metrics")
        if not self._training or metrics is None:
            return
        model = adapters.unwrapped(kwargs["model"])
        best_inside = self.budget is not None and args.load_best_model_at_end
        if self.rows[-1]["step"] != state.global_step and (best_inside or _asks_for_ours(args)):
            self._measure(args, state, control, model)
        row = self.rows[-1]
        if row["step"] != state.global_step:
            return
        metrics |= _numbers({f"eval_{OURS}{logged(name)}": value for name, value in _columns(row).items()})
        if args.load_best_model_at_end and (value := metrics.get(f"eval_{_metric(args)}")) is not None:
            self._keep(state, model, value if args.greater_is_better else -value)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Store the model to hand back with the checkpoint of a later step."""
        if self._kept is None or self._kept.step == state.global_step:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            keeping.write(self._kept, folder, sharded=sharding.is_sharded(adapters.unwrapped(kwargs["model"])))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand back the model inside the budget; measure the model that is kept, if it is not the last measured."""
        model = adapters.unwrapped(kwargs["model"])
        step = state.global_step
        if args.load_best_model_at_end and state.best_model_checkpoint:
            step = state.best_global_step
        if self._kept is not None and self._kept.step != step:
            step = self._hand_back(model, step)
        elif step != state.global_step:
            log.warning("load_best_model_at_end: the model of step %d is kept, and the last row is about it", step)
        if self.budget is not None and self._kept is None:
            log.warning("no model inside the budget of %g nats/token was measured", self.budget)
        if step != state.global_step or self.rows[-1]["step"] != step:
            self._measure(args, state, control, model, kept=step if step != state.global_step else None)
        self._training, self._kept = False, None

    def _hand_back(self, model: Any, step: int) -> int:
        """Put the kept model in place of that of `step`; the step of the one that is there now."""
        assert self._kept is not None
        best = "last" if self._kept.score is None else "best"
        which = f"the {best} measured one inside the budget of {self.budget:g} nats/token"
        if not keeping.put_back(self._kept, model):
            log.warning(
                "the model of step %d stays, not that of step %d, %s: different weights train now than then",
                *(step, self._kept.step, which),
            )
            return step
        log.warning("restored the model of step %d, %s", self._kept.step, which)
        return self._kept.step

    def _keep(self, state: TrainerState, model: Any, score: float | None = None) -> None:
        """Copy the model, where it is inside the budget and better than the one that is kept so far."""
        forgetting = self.rows[-1]["forgetting"]
        if self.budget is None or forgetting is None or forgetting > self.budget:
            return
        if self._kept is None or self._kept.step == state.global_step or not self._kept.is_better_than(score):
            self._kept = keeping.copied(model, state.global_step, score, self._kept)

    def _base_targets(
        self, model: Any, windows: Windows, name: str, args: TrainingArguments, state: TrainerState
    ) -> base_targets.BaseTargets:
        path = Path(args.output_dir) / (STORED.replace(".", f"-{name}.") if name else STORED)
        fingerprint = windows.fingerprint()
        full = not adapters.is_peft(model)
        if full and state.global_step > 0:
            stored = array_cache.read(path, fingerprint, base_targets.base_spec(windows))
            if stored is None:
                raise UsageError(
                    f"{path}: the base model's targets on this text are missing, and the resumed model is "
                    "no longer the base model; train from the start with the callback on, or use `forgetting measure`"
                )
            return base_targets.BaseTargets(**stored.arrays(), fingerprint=fingerprint)
        arrays = base_targets.together_arrays(model, windows, self.batch_tokens)
        if full and args.process_index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            array_cache.write(path, arrays, fingerprint)
        return base_targets.BaseTargets(**arrays, fingerprint=fingerprint)

    def _measure(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any,
        *,
        kept: int | None = None,
    ) -> float:
        """Keep and log one row, the quantities that need one pass of the tuned model; returns the forgetting.

        `kept` is the model's step, if not the present one.
        """
        began = time.perf_counter()
        step = state.global_step if kept is None else kept
        forgetting = math.nan
        row: dict[str, Any] = {"step": step, "kept": kept is not None}
        for name, (windows, targets, documents) in self.measured.items():
            losses = whole_losses(model, windows, targets, batch_tokens=self.batch_tokens)
            found = means(values(ONE_PASS, losses.per_token(targets)), documents)
            for quantity, value in not_finite(found).items():
                log.warning("%s is %s at step %d: training diverged", of_text(quantity, name), value, step)
            row |= {of_text(column, name): value for column, value in quantities.row(found).items()}
            forgetting = found["forgetting"].value if not name else forgetting
        self.rows.append(row)
        forecasts = self._forecast(state, row) if kept is None else {}
        self._log(args, state, control, row | forecasts, "forgetting" if kept is None else "forgetting_of_kept")
        if kept is None and self.budget is not None:
            self._keep(state, model)
            if not forgetting <= self.budget:  # NaN, after training diverged, is above it
                log.warning(
                    "forgetting %.4f is above the budget of %g nats/token: stopping training at step %d",
                    *(forgetting, self.budget, step),
                )
                control.should_training_stop = True
        self.seconds += time.perf_counter() - began
        return forgetting

    def _forecast(self, state: TrainerState, row: Mapping[str, Any]) -> dict[str, float]:
        """The forecast of the last step from what was measured so far, a resumed run's first part included."""
        if not 0 < state.global_step < state.max_steps:
            return {}
        key = f"{OURS}forgetting"
        points = {x["step"]: (x[key], x.get(f"{key}_se")) for x in state.log_history if x.get(key) is not None}
        points = {step: point for step, point in points.items() if step < state.global_step}
        points[state.global_step] = row["forgetting"], row["forgetting_se"]
        if row["forgetting"] is None:
            return {}
        values, errors = zip(*points.values(), strict=True)
        how: dict[str, Any] = {"budget": self.budget, "rates": self._rates[0], "note": self._rates[1]}
        self.forecast = forecast([*points], values, errors, end=state.max_steps, **how)
        log.info("%s", self.forecast)
        return self.forecast.logged()

    def _log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, row: dict[str, Any], under: str
    ) -> None:
        """Log as Trainer.log does: to the log history and to every reporter, which take numbers only."""
        logs = {f"{under}/{logged(name)}": value for name, value in _columns(row).items()}
        log_through(self._logger, args, state, control, logs)


def _rates(scheduler: Any, last: int) -> tuple[list[float] | None, str]:
    """The learning rate of each step, in units of the largest; None where the schedule does not say, with a note."""
    factors = getattr(scheduler, "lr_lambdas", None)
    if not factors or last < 1:
        return None, "were the learning rate constant"
    return [float(factors[0](step)) for step in range(last)], ""


def _source(name: str, text: Text) -> Any:
    """Where a further text comes from; a name that is a part of a file's name and of a logger's key."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"texts: got the name {name!r:.60}; letters, digits, '_' and '-' only")
    if text is None:
        raise UsageError(f"texts: '{name}' is None; give a text")
    if isinstance(text, ProbeConfig):
        raise UsageError(
            f"texts: '{name}': the base model's answers work only with measure, check, profile and studies"
        )
    try:
        return text_source(text)
    except UsageError as error:
        raise UsageError(f"texts: '{name}': {error}") from None


def trainer_handler() -> Any:
    """The trainer's CallbackHandler, which is calling us and passes logs on to every reporter; None with a warning."""
    try:
        found = transformers_internals.calling_handler()
    except ForgettingError as gone:  # training goes on
        log.warning("rows only go to the log history: %s", gone)
        return None
    if found is None:
        log.warning("no trainer's loggers found: rows only go to the log history")
    return found


def log_through(
    handler: Any,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    logs: Mapping[str, float | None],
) -> None:
    """Log to the log history, and by a trainer's handler to every reporter, which take numbers only."""
    state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
    if handler is None:
        return
    due = control.should_log  # the handler clears it, and the training loss of this step is still to be logged
    handler.on_log(args, state, control, _numbers(logs))
    control.should_log = due


def _columns(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What was measured: a row without what says of which model."""
    return {name: value for name, value in row.items() if name not in ("step", "kept")}


def _numbers(logs: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in logs.items() if value is not None}


def _metric(args: TrainingArguments) -> str:
    """The trainer's `metric_for_best_model`, which may or may not be given with its prefix."""
    return (args.metric_for_best_model or "").removeprefix("eval_")


def _asks_for_ours(args: TrainingArguments) -> bool:
    return _metric(args).startswith(OURS)


def _check_metric(args: TrainingArguments, texts: Iterable[str]) -> None:
    """Refuse a metric of ours that is not there, or in the wrong direction, before an hour's training ends in it."""
    if not _asks_for_ours(args):
        return
    metric = _metric(args)
    names = [f"{OURS}{logged(of_text(quantity.name, text))}" for text in ("", *texts) for quantity in ONE_PASS]
    if metric not in names:
        raise UsageError(f"metric_for_best_model='{metric}': {did_you_mean(metric, names)}")
    greater = metric.endswith("/agreement")
    if bool(args.greater_is_better) != greater:
        raise UsageError(
            f"metric_for_best_model='{metric}' with greater_is_better={args.greater_is_better} keeps the model that "
            f"forgot most; set greater_is_better={greater}"
        )


def _go_before_early_stopping(callback: TrainerCallback, handler: Any) -> None:
    """Callbacks are called in turn, and early stopping reads the metrics that this one adds."""
    if handler is None:
        return
    order = handler.callbacks
    at = order.index(callback)
    first = next((i for i, other in enumerate(order[:at]) if isinstance(other, EarlyStoppingCallback)), at)
    order.insert(first, order.pop(at))


def _refuse_sharded(model: Any) -> None:
    """Refuse weights that are shared out in a way in which a part of the model cannot be called."""
    first = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if first or transformers_internals.deepspeed_shards():
        what = "FSDP's first version" if first else "DeepSpeed ZeRO 3"
        raise UsageError(
            f"ForgettingCallback: parameters sharded over processes by {what} are not supported; use FSDP with "
            "fsdp_version: 2, or DDP, or `forgetting measure` on the saved model"
        )
