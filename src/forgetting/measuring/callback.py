"""ForgettingCallback: measures forgetting during training with transformers.Trainer, TRL's SFTTrainer and the like.

It needs no second model in memory: for an adapter, the base model is the same model with the adapter disabled; for
full fine-tuning, the base targets are computed before the first step. Measuring leaves training unchanged, bit for bit.

Shapes: N predicted positions of the text.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
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
"""File in the trainer's output directory with the base targets of full fine-tuning, for resuming the run."""
OURS = "forgetting/"
"""Prefix of the measured quantities among an evaluation's metrics."""
IDENTITY = 1e-3
"""Forgetting in nats/token above which an untrained adapter counts as not being the identity."""


class ForgettingCallback(TrainerCallback):
    """Measures forgetting on general text during training, and logs it as `forgetting/...` to the trainer's reporters.

    Rows are also kept in `rows` and in the trainer's log history. Works with gradient accumulation and on several
    processes, with whole weights in each (DDP) or sharded weights (FSDP2): batches are distributed over the processes
    and the sums are exact, so the numbers are the same as on one process.

    The last row measures the model that training ends with: the last one within the budget or, with
    `load_best_model_at_end`, that of the best step. If this is not the model of the last step, it is measured again,
    its row has `kept` set, and it is logged as `forgetting_of_kept/...`. In mixed precision, the weights are measured
    in their own dtype, without autocast, as `measure` does with the saved model.

    With each measurement, the forgetting at the last step is forecast from the measurements so far and logged as
    `forgetting/forecast`, with the bounds of its 95 % band as `..._low` and `..._high`. With a budget, the step at
    which it is exceeded is logged as `forgetting/crossing` with `_low` and `_high`, if there is such a step.

    Each quantity can be the trainer's metric, as in `metric_for_best_model="forgetting/agreement"`, for
    `load_best_model_at_end` and early stopping: it is then added to the metrics of each evaluation.

    Args:
        text: general text: a file, Hub id, TextConfig or Windows; a list of strings; a datasets.Dataset or DataFrame.
            Default: the WikiText-103 test set.
        texts: further texts by name, if `text` is given. They are measured at the same steps and logged as
            `forgetting/NAME/...`; their columns in `rows` are `forgetting[NAME]` etc.
        every: number of steps between measurements; None measures after 1, 2, 4, 8, ... steps. In both cases the model
            is also measured before the first step and after the last.
        budget: allowed excess forgetting on `text`, nats/token. Training stops at the first measurement above it, and
            the model of the last measurement within it is restored (the trained weights are copied to the CPU at each
            measurement within the budget). With `load_best_model_at_end`, the best evaluated model within it is
            restored, by `metric_for_best_model`.
        tokenizer: default: the trainer's.
        context: tokens per window; default 512, or the model's maximum if that is less.
        batch_tokens: tokens per forward pass; None means 512 on a CPU and 8,192 elsewhere.

    Raises:
        UsageError: an argument that is out of range or cannot be read. When training begins: an adapter that cannot be
            disabled to obtain its base model; parameters sharded over processes by the first version of FSDP or by
            DeepSpeed ZeRO 3; full fine-tuning resumed without its base targets; a `metric_for_best_model` of
            `forgetting/...` that is not measured, or with the wrong `greater_is_better`.

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
                "ForgettingCallback: texts without text: the budget applies to text, and texts are measured in "
                "addition to it; give text=... too"
            )
        self.text, self.every, self.budget = text_source(text), every, budget
        self.texts = {name: _source(name, one) for name, one in (texts or {}).items()}
        self.tokenizer, self.context, self.wanted_batch = tokenizer_of(tokenizer), context, batch_tokens
        self.rows: list[dict[str, Any]] = []
        """One per measurement: the model's `step`, whether it was `kept` instead of a later model, and each quantity
        with its standard error as `..._se` (None for a single document)."""
        self.seconds = 0.0
        """Time spent measuring, including base targets, in seconds."""
        self.forecast: Forecast | None = None
        """The newest forecast; it prints as a line of text."""
        self._rates: tuple[list[float] | None, str] = None, ""
        self._logger: Any = None
        self._kept: keeping.Kept | None = None
        self._training = False

    def to_frame(self) -> pd.DataFrame:
        """The measurements, one row each."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the texts, compute the base targets, and measure the model before the first step."""
        began = time.perf_counter()
        self._logger = trainer_handler()  # of this trainer; the callback may have been in another before
        _check_metric(args, self.texts)
        _go_before_early_stopping(self, self._logger)
        _refuse_sharded(kwargs["model"])
        model = adapters.unwrapped(kwargs["model"])
        causal.check_causal(model, "the model")
        if adapters.is_peft(model):
            checkpoints = f"forgetting measure BASE {args.output_dir} --text ..."
            comparable.check_live_adapter(model, f"train without ForgettingCallback, then measure: {checkpoints}")
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
        """For each text by name: its windows, base targets, and [N] the document of each target."""
        for name, text in {"": self.text, **self.texts}.items():
            windows, *_ = read_windows(text, tokenizer, [model], self.context)
            targets = self._base_targets(model, windows, name, args, state)
            self.measured[name] = windows, targets, windows.token_documents()
        self.rows = [row for row in self.rows if row["step"] < state.global_step and not row["kept"]]
        self._kept = self.forecast = None
        self._rates = scheduled_rates(kwargs.get("lr_scheduler"), state.max_steps)
        if self.budget is not None and state.global_step > 0:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            kept = keeping.read(checkpoint, model, sharded=sharding.is_sharded(model))
            if kept is not None and _logged(state).get(kept.step, (0.0, None))[0] <= self.budget:
                self._kept = kept  # the budget may be lower than when it was stored
        self._training = True
        self.seconds += time.perf_counter() - began
        forgetting = self._measure(args, state, control, model)
        resumed_at_best = args.load_best_model_at_end and 0 < state.global_step == state.best_global_step
        if resumed_at_best and self._kept is not None and self._kept.step == state.global_step:
            self._kept.score = _score(args, state.best_metric)  # its checkpoint contains no second copy with a score
        if adapters.is_peft(model) and state.global_step == 0 and abs(forgetting) > IDENTITY:
            log.warning(
                "the untrained adapter is not the identity: it differs from the base model by %.4f nats/token; "
                "forgetting is measured against the base model",
                forgetting,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure if this step is on the grid, and stop training if the budget is exceeded."""
        step = state.global_step
        on_grid = step & (step - 1) == 0 if self.every is None else step % self.every == 0
        if on_grid or step == state.max_steps or control.should_training_stop:
            self._measure(args, state, control, adapters.unwrapped(kwargs["model"]))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add this step's quantities to the evaluation's metrics; measure them first if the trainer needs them."""
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
        value = metrics.get(f"eval_{_metric(args)}")
        if args.load_best_model_at_end and value is not None and not math.isnan(value):
            self._keep(state, model, _score(args, value))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Store the model to restore, if it is of an earlier step or has a score, in this step's checkpoint."""
        if self._kept is None or (self._kept.step == state.global_step and self._kept.score is None):
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            keeping.write(self._kept, folder, sharded=sharding.is_sharded(adapters.unwrapped(kwargs["model"])))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the model within the budget, and measure the final model if it is not the last one measured."""
        model = adapters.unwrapped(kwargs["model"])
        step = state.global_step
        if args.load_best_model_at_end and state.best_model_checkpoint:
            step = _step_of(state.best_model_checkpoint)
        elif self.rows[-1]["step"] != step:  # stopped between two measurements; it may be within the budget
            self._measure(args, state, control, model)
        if self._kept is not None and self._kept.step != step:
            step = self._restore(model, step)
        elif step != state.global_step:
            log.warning("load_best_model_at_end: the model of step %d is kept, and the last row measures it", step)
        if self.budget is not None and self._kept is None:
            log.warning("no model inside the budget of %g nats/token was measured", self.budget)
        if step != state.global_step or self.rows[-1]["step"] != step:
            self._measure(args, state, control, model, kept=step if step != state.global_step else None)
        self._training, self._kept = False, None

    def _restore(self, model: Any, step: int) -> int:
        """Replace the model of `step` with the kept one; returns the step of the model that is in place then."""
        assert self._kept is not None
        best = "last" if self._kept.score is None else "best"
        which = f"the {best} measured one inside the budget of {self.budget:g} nats/token"
        if not keeping.put_back(self._kept, model):
            log.warning(
                "the model of step %d is kept: that of step %d, %s, cannot be restored, because other weights were "
                "trained then",
                *(step, self._kept.step, which),
            )
            return step
        log.warning("restored the model of step %d, %s", self._kept.step, which)
        return self._kept.step

    def _keep(self, state: TrainerState, model: Any, score: float | None = None) -> None:
        """Copy the model if it is within the budget and better than the one kept so far."""
        forgetting = self.rows[-1]["forgetting"]
        if self.budget is None or forgetting is None or forgetting > self.budget:
            return
        if self._kept is not None and self._kept.step == state.global_step:
            if score is not None:
                self._kept.score = score
        elif self._kept is None or not self._kept.is_better_than(score):
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
        """Measure the quantities that need one pass of the tuned model, log them as a row, and return the forgetting.

        `kept` is the step of a model that was restored; None means the model of the current step.
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
            if not forgetting <= self.budget:  # NaN (training diverged) counts as above the budget
                log.warning(
                    "forgetting %.4f is above the budget of %g nats/token: stopping training at step %d",
                    *(forgetting, self.budget, step),
                )
                control.should_training_stop = True
        self.seconds += time.perf_counter() - began
        return forgetting

    def _forecast(self, state: TrainerState, row: Mapping[str, Any]) -> dict[str, float]:
        """Forecast the last step from the measurements so far, including those before a resumed run was interrupted."""
        if not 0 < state.global_step < state.max_steps:
            return {}
        points = {step: point for step, point in _logged(state).items() if step < state.global_step}
        points[state.global_step] = row["forgetting"], row["forgetting_se"]
        if row["forgetting"] is None:
            return {}
        values, errors = zip(*points.values(), strict=True)
        how: dict[str, Any] = {"budget": self.budget, "rates": self._rates[0], "note": self._rates[1]}
        self.forecast = replace(forecast([*points], values, errors, end=state.max_steps, **how), guide=True)
        log.info("%s", self.forecast)
        return self.forecast.logged()

    def _log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, row: dict[str, Any], under: str
    ) -> None:
        """Log as Trainer.log does: to the log history and to every reporter."""
        logs = {f"{under}/{logged(name)}": value for name, value in _columns(row).items()}
        log_through(self._logger, args, state, control, logs)


def _logged(state: TrainerState) -> dict[int, tuple[float, float | None]]:
    """Forgetting by step and its standard error, as logged here; also before a resumed run was interrupted.

    ForgettingController logs the forgetting on its own sample under the same name, but nothing else that is measured.
    """
    key = f"{OURS}forgetting"
    rows = (x for x in state.log_history if x.get(key) is not None and f"{OURS}agreement" in x)
    return {x["step"]: (x[key], x.get(f"{key}_se")) for x in rows}


def scheduled_rates(scheduler: Any, last: int) -> tuple[list[float] | None, str]:
    """[last] Learning rate of each step as a factor of the base rate; None and a note if the schedule has no lambda."""
    factors = getattr(scheduler, "lr_lambdas", None)
    if not factors or last < 1:
        return None, "assuming a constant learning rate"
    return [float(factors[0](step)) for step in range(last)], ""


def _source(name: str, text: Text) -> Any:
    """The source of a further text. Its name becomes part of a file name and of a logger's key, so it is checked."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"texts: got the name {name!r:.60}; letters, digits, '_' and '-' only")
    if text is None:
        raise UsageError(f"texts: '{name}' is None; give a text")
    if isinstance(text, ProbeConfig):
        raise UsageError(
            f"texts: '{name}': the base model's answers can be measured only by measure, check, profile and studies"
        )
    try:
        return text_source(text)
    except UsageError as error:
        raise UsageError(f"texts: '{name}': {error}") from None


def trainer_handler() -> Any:
    """The trainer's CallbackHandler, which passes logs to every reporter; None, with a warning, if it is not found."""
    try:
        found = transformers_internals.calling_handler()
    except ForgettingError as gone:  # training goes on
        log.warning("rows only go to the log history: %s", gone)
        return None
    if found is None:
        log.warning("the trainer's loggers were not found: rows only go to the log history")
    return found


def log_through(
    handler: Any,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    logs: Mapping[str, float | None],
) -> None:
    """Log to the log history and, through a trainer's handler, to every reporter; reporters get no missing values."""
    state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
    if handler is None:
        return
    due = control.should_log  # the handler clears it, but the training loss of this step still has to be logged
    handler.on_log(args, state, control, _numbers(logs))
    control.should_log = due


def _columns(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The quantities of a row, without `step` and `kept`."""
    return {name: value for name, value in row.items() if name not in ("step", "kept")}


def _numbers(logs: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in logs.items() if value is not None}


def _metric(args: TrainingArguments) -> str:
    """The trainer's `metric_for_best_model` without the optional prefix `eval_`."""
    return (args.metric_for_best_model or "").removeprefix("eval_")


def _score(args: TrainingArguments, metric: float) -> float:
    """A value of the trainer's metric such that higher is better."""
    return metric if args.greater_is_better else -metric


def _step_of(checkpoint: str) -> int:
    """The step of the trainer's folder `checkpoint-N`; the best evaluated step may have no checkpoint."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def _asks_for_ours(args: TrainingArguments) -> bool:
    return _metric(args).startswith(OURS)


def _check_metric(args: TrainingArguments, texts: Iterable[str]) -> None:
    """Refuse, before training, a `forgetting/...` metric that is not measured or whose direction is wrong."""
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
    """Move the callback before early stopping, which reads the metrics that it adds; callbacks are called in order."""
    if handler is None:
        return
    order = handler.callbacks
    at = order.index(callback)
    first = next((i for i, other in enumerate(order[:at]) if isinstance(other, EarlyStoppingCallback)), at)
    order.insert(first, order.pop(at))


def _refuse_sharded(model: Any) -> None:
    """Refuse kinds of sharding in which parts of the model cannot be called on their own."""
    first = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if first or transformers_internals.deepspeed_shards():
        what = "FSDP's first version" if first else "DeepSpeed ZeRO 3"
        raise UsageError(
            f"ForgettingCallback: parameters sharded over processes by {what} are not supported; use FSDP with "
            "fsdp_version: 2, or DDP, or `forgetting measure` on the saved model"
        )
