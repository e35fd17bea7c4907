"""ForgettingCallback: what a model forgets while transformers.Trainer, TRL's SFTTrainer or their kin train it.

It needs no second model in memory: for an adapter the base model is the same model with the adapter disabled, and for
full fine-tuning the base targets are taken before the first step. Training is bit for bit what it is without it.

Shapes: N predicted positions of the text.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..config.arguments import checked, tokenizer_of
from ..config.bits import quantised as in_words
from ..data import array_cache
from ..errors import ForgettingError, UsageError
from ..models import adapters, causal, comparable, quantised, sharding, transformers_internals
from . import base_targets, passes, quantities
from .losses import whole_losses
from .quantities import ONE_PASS, means, not_finite, values
from .reading import Text, read_windows, text_source

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
STORED = "forgetting-base.safetensors"
"""In the trainer's output directory: base targets of a fully fine-tuned model, for a run that is resumed."""
IDENTITY = 1e-3
"""nats/token by which an adapter may differ from the base model before it is trained."""


class ForgettingCallback(TrainerCallback):
    """Measures forgetting on general text during training, and logs it as `forgetting/...` to what report_to names.

    Rows are also kept in `rows` and in the trainer's log history. Works under gradient accumulation and on several
    processes (batches are shared out and the sums are exact, so that the numbers are those of one process), with whole
    weights in each (DDP) or sharded ones (FSDP2).

    The last row is of the model that training leaves: under `load_best_model_at_end` that of the best step, logged as
    `forgetting_of_kept/...`. Under mixed precision the weights are measured in their own dtype, without autocast, as
    `measure` does with the saved model.

    Args:
        text: general text: a file, Hub id, TextConfig or Windows; a list of texts; a datasets.Dataset or DataFrame.
            Default: the WikiText-103 test set.
        every: measure every so many steps; None measures after 1, 2, 4, 8, ... steps. Both measure before the first
            step and after the last.
        budget: stop training at the first measurement whose excess forgetting is above this, nats/token.
        tokenizer: default the trainer's.
        context: tokens a window; default 512, or what the model was built for.
        batch_tokens: tokens a forward pass; None is 512 on a CPU and 8,192 elsewhere.

    Raises:
        UsageError: when training begins: an adapter whose base model cannot be had by disabling it; parameters that
            are sharded over processes by FSDP's first version or DeepSpeed ZeRO 3; a fully fine-tuned run that is
            resumed without its base targets.

    Examples:
        >>> from forgetting import ForgettingCallback                     # doctest: +SKIP
        >>> trainer = SFTTrainer(..., callbacks=[ForgettingCallback("general.txt", every=50)])    # doctest: +SKIP
    """

    @checked
    def __init__(
        self,
        text: Text = None,
        *,
        every: int | None = None,
        budget: float | None = None,
        tokenizer: Any = None,
        context: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise UsageError(f"every={every}: must be at least 1 step; None measures after 1, 2, 4, 8, ... steps")
        self.text, self.every, self.budget = text_source(text), every, budget
        self.tokenizer, self.context, self.wanted_batch = tokenizer_of(tokenizer), context, batch_tokens
        self.rows: list[dict[str, Any]] = []
        """One a measurement: `step`, each quantity, and its `..._se`, None where there is none (one document)."""
        self.seconds = 0.0
        """Time spent measuring, base targets included."""
        self._logger: Any = None

    def to_frame(self) -> pd.DataFrame:
        """The measurements, one row each."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Find the trainer's callback handler, through which its own logs go."""
        self._logger = _caller()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the text, take the base targets, and measure the starting point."""
        began = time.perf_counter()
        self._logger = self._logger or _caller()
        _refuse_sharded(kwargs["model"])
        model = adapters.unwrapped(kwargs["model"])
        causal.check_causal(model, "the model")
        if adapters.is_peft(model):
            comparable.check_live_adapter(model)
        if (bits := quantised.bits_of(model.config)) is not None:
            log.warning(
                "the base model is %s: forgetting is counted from it, the model with its adapter off",
                in_words(bits),
            )
        if sharding.is_sharded(model) and (args.bf16 or args.fp16):
            log.warning(
                "the weights are sharded by FSDP under mixed precision: they are measured in %s, as they are trained; "
                "`forgetting measure` on the saved model takes them in their own dtype",
                "bfloat16" if args.bf16 else "float16",
            )
        tokenizer = self.tokenizer or kwargs.get("processing_class")
        self.windows, *_ = read_windows(self.text, tokenizer, [model], self.context)
        self.documents = self.windows.token_documents()
        self.batch_tokens = passes.batch_size(model, self.wanted_batch)
        self.targets = self._base_targets(model, args, state)
        self.rows = [row for row in self.rows if row["step"] < state.global_step]
        self.seconds += time.perf_counter() - began
        forgetting = self._measure(args, state, control, model)
        if adapters.is_peft(model) and state.global_step == 0 and abs(forgetting) > IDENTITY:
            log.warning(
                "the untrained adapter is not the identity: it differs from the base model by %.4f nats/token; "
                "forgetting is counted from the base model",
                forgetting,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, where this step is on the grid, and stop where the budget is spent."""
        step = state.global_step
        on_grid = step & (step - 1) == 0 if self.every is None else step % self.every == 0
        if on_grid or step == state.max_steps or control.should_training_stop:
            forgetting = self._measure(args, state, control, adapters.unwrapped(kwargs["model"]))
            if self.budget is not None and not forgetting <= self.budget:  # NaN, after training diverged, is above it
                log.warning(
                    "forgetting %.4f is above the budget of %g nats/token: training stops at step %d",
                    *(forgetting, self.budget, step),
                )
                control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the model that is kept, if it was not the last to be measured."""
        model = adapters.unwrapped(kwargs["model"])
        kept = state.best_global_step if args.load_best_model_at_end and state.best_model_checkpoint else None
        if kept is not None and kept != state.global_step:
            log.warning(
                "load_best_model_at_end: the model that is kept is that of step %d, and the last row is of it", kept
            )
            self._measure(args, state, control, model, kept=kept)
        elif self.rows and self.rows[-1]["step"] != state.global_step:
            self._measure(args, state, control, model)

    def _base_targets(self, model: Any, args: TrainingArguments, state: TrainerState) -> base_targets.BaseTargets:
        path = Path(args.output_dir) / STORED
        fingerprint = self.windows.fingerprint()
        full = not adapters.is_peft(model)
        if full and state.global_step > 0:
            stored = array_cache.read(path, fingerprint, base_targets.base_spec(self.windows))
            if stored is None:
                raise UsageError(
                    f"{path}: the base model's targets on this text are not there, and the model that is resumed is "
                    "no longer the base model; train from the start with the callback on, or use `forgetting measure`"
                )
            return base_targets.BaseTargets(**stored.arrays(), fingerprint=fingerprint)
        arrays = base_targets.together_arrays(model, self.windows, self.batch_tokens)
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
        losses = whole_losses(model, self.windows, self.targets, batch_tokens=self.batch_tokens)
        found = means(values(ONE_PASS, losses.per_token(self.targets)), self.documents)
        for name, value in not_finite(found).items():
            log.warning("%s is %s at step %d: training diverged", name, value, step)
        row = {"step": step, **quantities.row(found)}
        self.rows.append(row)
        self.seconds += time.perf_counter() - began
        self._log(args, state, control, row, "forgetting" if kept is None else "forgetting_of_kept")
        return found["forgetting"].value

    def _log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, row: dict[str, Any], under: str
    ) -> None:
        """Log as Trainer.log does: to the log history and to every reporter, which take numbers only."""
        logs = {f"{under}/{name}": value for name, value in row.items() if name != "step"}
        state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
        if self._logger is None:
            return
        due = control.should_log  # the handler clears it, and the training loss of this step is still to be logged
        numbers = {name: value for name, value in logs.items() if value is not None}
        self._logger.on_log(args, state, control, numbers)
        control.should_log = due


def _caller() -> Any:
    """The trainer's CallbackHandler, which is calling us and passes logs on to every reporter; None with a warning."""
    try:
        found = transformers_internals.calling_handler()
    except ForgettingError as gone:  # training goes on
        log.warning("rows go to the log history only: %s", gone)
        return None
    if found is None:
        log.warning("no trainer's loggers found: rows go to the log history only")
    return found


def _refuse_sharded(model: Any) -> None:
    """Refuse weights that are shared out in a way in which a part of the model cannot be called."""
    first = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if first or transformers_internals.deepspeed_shards():
        what = "FSDP's first version" if first else "DeepSpeed ZeRO 3"
        raise UsageError(
            f"ForgettingCallback: parameters sharded over processes by {what} are not supported; use FSDP with "
            "fsdp_version: 2, or DDP, or `forgetting measure` on the saved model"
        )
