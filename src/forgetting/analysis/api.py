"""`fit`, `predict`, `plan` and `compare`: the Python functions behind the commands of the same names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np

from ..config.arguments import checked
from ..config.schema import StudyConfig
from ..errors import UsageError, did_you_mean
from ..store.axes import AXES, Axis
from ..store.folder import StudyFolder
from .compare import Comparison, any_tables, compare_tables, open_study
from .fit import Fit, GroupedFits, fit_groups, fit_law
from .fit.cells import Where, numbers
from .fit.data import column_names
from .laws import Law
from .laws.base import Variable
from .laws.choose import choose_law
from .plan import Cost, NextRun, Plan, Plans, costs_of, next_runs
from .plan.over import Along, Asked, asked_along, one_at_most
from .plan.predict import Predictions, predict_rows
from .plan.source import LawSource, laws_of, pick
from .selection import is_blank, row_numbers
from .sources import Source, paths_of, tables_to_fit
from .table_files import Table


class FitArguments(TypedDict, total=False):
    """Keyword arguments of `fit`, where they are explained."""

    dataset: str | None
    only: Mapping[str, Any] | None
    from_step: float | None
    columns: Mapping[str, str] | None
    run: str | Sequence[str]
    iid: bool
    objective: str
    delta: float
    weights: str
    intervals: str
    bootstrap: int
    confidence: float
    start: Mapping[str, float | tuple[float, float]] | None
    bounds: Mapping[str, tuple[float, float]] | None
    seed: int


@overload
def fit(
    table: Source, law: str | Law = "shifted_power", *, by: None = None, **options: Unpack[FitArguments]
) -> Fit: ...


@overload
def fit(
    table: Source, law: str | Law = "shifted_power", *, by: str | Sequence[str], **options: Unpack[FitArguments]
) -> GroupedFits: ...


@checked
def fit(
    table: Source,
    law: str | Law = "shifted_power",
    *,
    by: str | Sequence[str] | None = None,
    dataset: str | None = None,
    only: Mapping[str, Any] | None = None,
    from_step: float | None = None,
    columns: Mapping[str, str] | None = None,
    run: str | Sequence[str] = "run_id",
    iid: bool = False,
    objective: str = "least-squares",
    delta: float = 1e-3,
    weights: str = "none",
    intervals: str = "bootstrap",
    bootstrap: int = 200,
    confidence: float = 0.95,
    start: Mapping[str, float | tuple[float, float]] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
) -> Fit | GroupedFits:
    """Fit one law to the runs of one data set: global optimum, with intervals from resampling whole runs.

    From a study, plain runs of the first method are fitted; laws `replay` and `kl` add runs with only that mitigation.

    Args:
        table: paths of tables, a study folder or result, DataFrame, Dataset, columns or rows; one row per measurement.
        law: a law's name, a formula such as `loss = E + A/N**alpha`, or a law.
        by: one column or several; the rows of each group are fitted separately, such as each model's curve.
        dataset: name of the data set, if the table has several; with `by`, each data set is a group.
        only: by column, the value that kept rows have, or a list of allowed values; None stands for blank cells.
        from_step: leave out earlier steps; default: a study's own `measure_start`; all steps of another table are kept.
        columns: by variable or output of the law, the table's column, if its name differs.
        run: the column or columns that name the runs; rows that agree in them, as in `seed`, are resampled together.
        iid: treat every row as independent in the intervals, ignoring runs.
        objective: `least-squares`, `log-least-squares`, `huber`, `huber-log`; for the line also `errors-in-both`.
        delta: residual at which Huber's loss becomes linear, in the residual's unit.
        weights: `none`, or `se` to weight by the `..._se` columns.
        intervals: method for the parameters' intervals: `bootstrap`, or `profile` for profile likelihood.
        bootstrap: number of resamples of whole runs; 0 for no intervals.
        confidence: nominal coverage of the intervals.
        start: for a formula: by parameter, a starting value or a range to draw starting values from.
        bounds: for a formula: by parameter, its lowest and highest value.
        seed: random seed of starting values and resamples.

    Returns:
        The fit; with `by`, one fit per group, and the reason for each group that could not be fitted.

    Raises:
        UsageError: an unknown law, a mistake in the table or arguments, or several data sets without `dataset` or `by`.
    """
    given = tables_to_fit(table, only=only or {}, from_step=from_step, dataset=dataset)
    label, rows = next(iter(given.plain.items())) if by is not None else _one(given.plain)
    found = choose_law(law, [*(columns or {}), *column_names(rows)], start=start, bounds=bounds)
    tables = given.of(found)
    what: dict[str, Any] = {"columns": columns, "run": run, "iid": iid, "weights": weights}
    how: dict[str, Any] = {"objective": objective, "delta": delta, "seed": seed}
    sure: dict[str, Any] = {"intervals": intervals, "bootstrap": bootstrap, "confidence": confidence}
    fit_one: Callable[..., Fit] = partial(fit_law, found, **what, **how, **sure)
    return fit_one(tables[label], label=label) if by is None else fit_groups(found, tables, by, fit_one)


def _one(tables: dict[str, Any]) -> tuple[str, Any]:
    """The name of the only data set, and its table.

    Raises:
        UsageError: there are several data sets.
    """
    if len(tables) > 1:
        raise UsageError(f"table: it has several data sets; give dataset=, one of {', '.join(tables)}")
    return next(iter(tables.items()))


@checked
def predict(
    law: LawSource,
    *,
    ranks: float | Sequence[float] | None = None,
    steps: float | Sequence[float] | None = None,
    params: float | Sequence[float] | None = None,
    replay: float | Sequence[float] | None = None,
    kl: float | Sequence[float] | None = None,
    params_per_rank: float | None = None,
    model: str | None = None,
    target_modules: str | Sequence[str] | None = None,
    at: Mapping[str, float | Sequence[float]] | None = None,
    which: str | None = None,
    dataset: str | None = None,
) -> Predictions:
    """Predict losses with bands, and mark predictions outside the measured range.

    Args:
        law: a fit, a study's result or folder, a file of fits, or a published law's name.
        ranks: LoRA ranks, converted to trainable parameters.
        steps: update steps.
        params: trainable parameters, instead of ranks.
        replay, kl: shares of replay from 0 to below 1, or weights of KL, if the study varied them.
        params_per_rank: trainable parameters of rank 1, if the law does not know them.
        model: a folder or Hub id of the model whose configuration gives the trainable parameters of rank 1.
        target_modules: LoRA target modules for `model`; default all-linear.
        at: by variable of the law, its value or values.
        which: the law to use if there are several: `shifted_power`, `linear`, ...
        dataset: only this data set.

    Returns:
        One prediction for each data set and combination of the values, in nats/token.

    Raises:
        UsageError: no such law or data set, or a variable is missing, unknown, given twice or outside its domain.

    Examples:
        >>> import forgetting
        >>> made = forgetting.predict("kalajdzievski2024/openorca", ranks=[8, 64], steps=200)
        >>> made.to_frame()["forgetting_loss"].round(2).tolist()
        [0.86, 0.89]
    """
    given = {name: _numbers(values, f"at['{name}']") for name, values in (at or {}).items()}
    along = _along(replay=replay, kl=kl)
    other = {"step": steps, "trainable_params": params if ranks is None else ranks}
    for name, values in (other | {AXES[name].column: values for name, values in along.items()}).items():
        if values is not None and name in given:
            raise UsageError(f"at['{name}']: it is also given by another argument")
    if steps is not None:
        given["step"] = _numbers(steps, "steps")
    axis = asked_along(along, given)
    given |= {} if axis is None or axis.name not in along else {axis.column: along[axis.name]}
    grid, _ = _grid(ranks, params, model, target_modules, params_per_rank)
    surface = any(v is not None for v in (ranks, params, steps))
    found = {
        label: pick(laws, which, wants_surface=surface, along=axis) for label, laws in laws_of(law, dataset).items()
    }
    return Predictions(tuple(row for label, one in found.items() for row in predict_rows(one, label, given, **grid)))


@checked
def plan(
    law: LawSource,
    *,
    budget: float | None = None,
    target_loss: float | None = None,
    floor: float | None = None,
    ranks: float | Sequence[float] | None = None,
    params: float | Sequence[float] | None = None,
    replay: float | Sequence[float] | None = None,
    kl: float | Sequence[float] | None = None,
    params_per_rank: float | None = None,
    model: str | None = None,
    target_modules: str | Sequence[str] | None = None,
    batch: float | None = None,
    context: float | None = None,
    next_run: bool = False,
    max_steps: float | None = None,
    dataset: str | None = None,
) -> Plans:
    """Find the ranks and steps that use up a budget of forgetting, or that reach a fine-tuning loss, by data set.

    Args:
        law: a fit, a study's result or folder, a file of fits, or a published law's name.
        budget: allowed forgetting, in nats/token above the base model; give this or `target_loss`.
        target_loss: fine-tuning loss to reach with the least forgetting, in nats/token.
        floor: forgetting loss of the base model itself, in nats/token; default the study's.
        ranks: LoRA ranks to compare; default powers of two across the measured range.
        params: trainable parameters, instead of ranks.
        replay, kl: shares of replay or weights of KL to compare, if the study varied them; default any; 0 for none.
        params_per_rank: trainable parameters of rank 1, if the law does not know them.
        model: a folder or Hub id of the model whose configuration gives the trainable parameters of rank 1.
        target_modules: LoRA target modules for `model`; default all-linear.
        batch, context: sequences per step and tokens per sequence, for tokens and FLOPs; default as in the study.
        next_run: also find the runs that would narrow the answer most.
        max_steps: steps of a next run, and limit of those of a run with a mitigation; default the most measured steps.
        dataset: only this data set.

    Raises:
        UsageError: neither or both of budget and target_loss, no law over P and N, or an invalid number.

    Examples:
        >>> import forgetting
        >>> forgetting.plan("kalajdzievski2024/openorca", budget=0.85, ranks=8).to_frame()["step"].round().tolist()
        [182.0]
    """
    if (budget is None) == (target_loss is None):
        raise UsageError("give either budget or target_loss")
    _check_plan(
        target_loss, ranks, params, {"floor": floor, "batch": batch, "context": context, "max_steps": max_steps}
    )
    grid, model_params = _grid(ranks, params, model, target_modules, params_per_rank)
    asked = Asked(budget, target_loss, floor, grid, _along(replay=replay, kl=kl), max_steps, next_run)
    costs = _costs(law, batch, context, model_params)
    plans: dict[str, Plan] = {}
    for label, laws in laws_of(law, dataset).items():
        found, made = asked.plan(laws, partial(costs, label))
        made = replace(made, label=label, sentences=[*made.sentences, *_left_out(found)])
        plans[label] = replace(made, next_runs=_next(law, found, made, max_steps)) if next_run else made
    return Plans(plans)


def _along(**given: float | Sequence[float] | None) -> Along:
    """The given values of each mitigation's option, checked by `one_at_most`."""
    return one_at_most({name: _numbers(values, name) for name, values in given.items() if values is not None})


def _left_out(law: Fit) -> list[str]:
    """The law's warnings about rows and runs left out of its fit."""
    return [warning for warning in law.warnings if "left out" in warning]


@checked
def compare(
    source: Source,
    reference: str | Sequence[str] | Mapping[str, Any] | None = None,
    *,
    dataset: str | None = None,
    only: Mapping[str, Any] | None = None,
    by: str | None = None,
    direction: str | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compare methods and mitigations: does one forget less than the reference at equal fine-tuning loss?

    A method that only forgets less because it learned less saves nothing: stopping the reference early would do the
    same.

    Args:
        source: a study's folder or result, the path of a table, a DataFrame, a datasets.Dataset, a dictionary of
            columns, or a list of rows.
        reference: the runs that the others are compared with: a label, whose runs without mitigations are used;
            `COLUMN=VALUE`; a list of these, where a run must match every column, with any of the values given for it;
            or a dictionary of values by column. Default: a study's first method.
        dataset: only this data set.
        only: by column, the value that kept rows have, or a list of allowed values; None stands for blank cells.
        by: the column to hold equal; default `test_accuracy` if the table has it (PEFT's results), else
            `finetune_loss`.
        direction: whether `lower` or `higher` is better; needed for columns other than these two.
        confidence: nominal coverage of each interval.

    Returns:
        Savings with intervals, costs, the Pareto frontier and the paper's Appendix B, by data set.

    Raises:
        UsageError: a mistake in the table or arguments, or nothing to compare.
    """
    start, paths = 0.0, paths_of(source)
    if paths is not None and len(paths) == 1 and (paths[0] / "study.yaml").exists():
        config, tables = open_study(paths[0], only)
        reference, start = reference or config.reference_label, float(config.measure.start)
    else:
        tables = any_tables(source, only)
        reference, start = _own(tables, reference)
    if dataset is not None and dataset not in tables:
        raise UsageError(f"no data set '{dataset}'; {did_you_mean(dataset, tables)}")
    chosen = tables if dataset is None else {dataset: tables[dataset]}
    return compare_tables(chosen, reference, by=by, direction=direction, confidence=confidence, start=start)


def _check_plan(target_loss: float | None, ranks: Any, params: Any, given: Mapping[str, float | None]) -> None:
    """Refuse numbers that are not positive (a floor may be 0), and ranks together with parameters."""
    for name, value in given.items():
        floor = name == "floor"
        if value is not None and not (np.isfinite(value) and (value >= 0 if floor else value > 0)):
            raise UsageError(f"{name}: got {value}; give a {'number from 0 up' if floor else 'positive number'}")
    if target_loss is not None and not (np.isfinite(target_loss) and target_loss > 0):
        raise UsageError(f"target_loss: got {target_loss}; give a positive number of nats/token")
    if ranks is not None and params is not None:
        raise UsageError("give ranks or trainable parameters (params), not both")


def _own(tables: Mapping[str, Table], reference: Any) -> tuple[Any, float]:
    """The reference and the first step that counts; by default those in the columns of a study's table."""
    said = {str(cell) for table in tables.values() for cell in table.get("reference", []) if not is_blank(cell)}
    starts = [start for name, table in tables.items() for start in _starts(table, name)]
    return reference or (said.pop() if len(said) == 1 else None), max(starts, default=0.0)


def _starts(table: Table, name: str) -> list[float]:
    """The first steps that count, from the column `measure_start`; blank cells say nothing.

    Raises:
        UsageError: a cell that is not a number.
    """
    at = [i for i, cell in enumerate(table.get("measure_start", [])) if not is_blank(cell)]
    where, kind = Where(f"'{name}'", row_numbers(table)), Variable("measure_start", positive=False)
    return numbers(table["measure_start"], "measure_start", np.array(at), where, kind).tolist() if at else []


def _numbers(values: Any, name: str) -> list[float]:
    """One number or several as a list.

    Raises:
        UsageError: there is no value, or one is not a number.
    """
    several = [values] if isinstance(values, int | float) else list(values)
    try:
        found = [float(value) for value in several]
    except (TypeError, ValueError):
        raise UsageError(f"{name}: must be numbers, got {values!r:.60}") from None
    if not found:
        raise UsageError(f"{name}: it has no value")
    return found


def _grid(
    ranks: Any, params: Any, model: str | None, targets: str | Sequence[str] | None, per_rank: float | None
) -> tuple[dict[str, Any], float | None]:
    """Arguments for the grid of ranks or parameters, and the model's number of parameters if it was counted.

    Raises:
        UsageError: `targets` without a model, both `per_rank` and a model, a `per_rank` that is not positive, or a
            model that cannot be counted.
    """
    counted = None
    if per_rank is not None and not (np.isfinite(per_rank) and per_rank > 0):
        raise UsageError(f"params_per_rank (--params-per-rank): got {per_rank}; give a positive number")
    if model is None and targets:
        raise UsageError("target_modules: needs a model to count parameters in (model=, --model)")
    if model is not None:
        from .plan.count import ALL_LINEAR, count_model

        if per_rank is not None:
            raise UsageError("give the parameters of a rank or a model to count, not both")
        counted = count_model(model, (targets,) if isinstance(targets, str) else tuple(targets or [ALL_LINEAR]))
        per_rank = float(counted.params_per_rank)
    grid = {
        "ranks": None if ranks is None else _numbers(ranks, "ranks"),
        "params": None if params is None else _numbers(params, "params"),
        "params_per_rank": per_rank,
    }
    return grid, None if counted is None else float(counted.model_params)


def _costs(
    source: LawSource, batch: float | None, context: float | None, model_params: float | None
) -> Callable[[str, Fit, Axis | None], Cost | None]:
    """A function that gives the cost of one step: from the study's runs, else from the arguments or the law.

    Raises:
        UsageError: (the function) only one of batch and context is given, and the other is not known.
    """
    measured, asked = cache(partial(costs_of, source)), {"batch": batch, "context": context}
    config = _config_of(source)
    own: dict[str, float] = {} if config is None else {"batch": config.training.batch_size, "context": config.context}

    def cost_of(label: str, law: Fit, axis: Axis | None) -> Cost | None:
        known = measured(axis).get(label)
        size = known.model_params if known is not None and model_params is None else model_params
        if known is not None and not any(asked.values()):
            return replace(known, model_params=size)
        of: dict[str, Any] = {
            name: given or own.get(name) or law.diagnostics.get(name) for name, given in asked.items()
        }
        if any(asked.values()) and (lacking := [name for name, value in of.items() if not value]):
            raise UsageError(
                f"'{label}' does not know its {lacking[0]}, which tokens need, too: give {lacking[0]} as well"
            )
        slower = (np.nan, np.nan) if axis is not None and axis.slower else None
        return Cost(of["batch"] * of["context"], size, mitigated=slower) if all(of.values()) else None

    return cost_of


def _config_of(source: LawSource) -> StudyConfig | None:
    """The configuration of a study's folder or result; None if the source is neither."""
    if isinstance(source, str | os.PathLike):
        return StudyFolder.open(Path(source)).config() if (Path(source) / "study.yaml").is_file() else None
    return getattr(source, "config", None)


def _next(source: LawSource, law: Fit, made: Plan, max_steps: float | None) -> list[NextRun]:
    """Candidates for the next run, best first; for a study folder, with the commands that add them."""
    candidates = [(c.rank, c.trainable_params) for c in made.frontier]
    found = next_runs(law, made, candidates, max_steps=max_steps or law.measured_range["step"][1])
    if isinstance(source, str | os.PathLike) and (Path(source) / "study.yaml").is_file():
        from .plan.adding import with_commands

        found = with_commands(Path(source), found)
    return found
