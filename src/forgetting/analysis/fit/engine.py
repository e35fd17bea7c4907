"""Fits a law to a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from forgetting.analysis.fit import summed
from forgetting.analysis.fit.bootstrap import MIN_RUNS, Draws, freedom, left_out_residuals, scheme_for, widen_by
from forgetting.analysis.fit.cells import first_step
from forgetting.analysis.fit.data import KEPT_ROWS, Data, read_data
from forgetting.analysis.fit.diagnostics import (
    diagnostics,
    fit_warnings,
    r_squared,
    refuse_unseen,
    rmse,
    undefined_row,
    worse_than_a_constant,
)
from forgetting.analysis.fit.estimate import Estimate
from forgetting.analysis.fit.identify import NONE, Lowest, identify
from forgetting.analysis.fit.information import Information, information
from forgetting.analysis.fit.intervals import (
    can_draw,
    draw,
    enough,
    estimates,
    loose,
    no_other,
    profiles,
    spare_values,
    stopped,
)
from forgetting.analysis.fit.line import OBJECTIVE as IN_BOTH
from forgetting.analysis.fit.line import fit_line
from forgetting.analysis.fit.misfit import alarms, misfits, plain_misfits
from forgetting.analysis.fit.objective import OBJECTIVES, Objective
from forgetting.analysis.fit.options import STARTS, Options
from forgetting.analysis.fit.places import alarms as missed_places
from forgetting.analysis.fit.places import few_steps, places, plain_places
from forgetting.analysis.fit.result import Fit, Fitted
from forgetting.analysis.fit.rivals import find_rivals
from forgetting.analysis.fit.runs import RUN
from forgetting.analysis.fit.search import Found, search
from forgetting.analysis.fit.shape import shape
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.fit.validate import leave_one_run_out, run_noise, scatter
from forgetting.analysis.laws import LAWS, PUBLISHED, FunctionLaw, Law
from forgetting.analysis.laws.base import Adapted, Array
from forgetting.analysis.laws.mitigated import CentredMitigated
from forgetting.analysis.laws.shifted_power import Centred, ShiftedPower
from forgetting.display.numbers import several
from forgetting.errors import ForgettingError, UsageError, did_you_mean

SLOPE = "c_fft"
"""Parameter of `linear` and `shifted_power`: the slope of Eq. 4."""


def fit_law(
    law: str | Law,
    table: Any,
    *,
    label: str = "",
    objective: str = "least-squares",
    delta: float = 1e-3,
    seed: int = 0,
    bootstrap: int = 200,
    confidence: float = 0.95,
    columns: Mapping[str, str] | None = None,
    run: str | Sequence[str] = RUN,
    iid: bool = False,
    weights: str = "none",
    intervals: str = "bootstrap",
    starts: int = STARTS,
    start: Sequence[float] | None = None,
    line: Fit | None = None,
) -> Fit:
    """Fit a law to a table: the global optimum, with intervals from resampling whole runs.

    Args:
        law: a name in `LAWS`, or a law.
        table: a DataFrame, or a mapping from column names to sequences; one row per measurement. Or data already read.
        label: name of the fit, for reports and messages.
        objective: `least-squares`, `log-least-squares`, `huber`, `huber-log`; for `linear` also `errors-in-both`.
        delta: Huber's delta, in nats (`huber`) or relative (`huber-log`).
        seed: seed of starts and resamples; the same seed gives the same fit.
        bootstrap: resamples of whole runs; 0 for no intervals.
        confidence: nominal coverage of intervals.
        columns: the table's column for a variable or output, if its name differs.
        run: the column, or columns, that identify runs; runs that agree in them, as in `seed`, are resampled together.
        iid: treat every row as independent, even rows of the same run.
        weights: `none`, or `se` for 1 / standard error squared (relative for logarithms) from the `..._se` columns.
        intervals: `bootstrap`, or for parameters `profile` likelihood (least squares only); bands use the bootstrap.
        starts: how many points to draw from the law's starting region; 0 uses only `start`.
        start: [K] an additional starting point, in the order of the law's parameters.
        line: fit of `linear` with the same table and options, for the slope of `shifted_power`; computed if None.

    Returns:
        The fit; if it did not converge or could not identify a parameter, it has warnings.

    Raises:
        UsageError: an unknown name, an invalid option, or a mistake in the table.
        ForgettingError: no finite objective or parameters were found, or one output is negligible next to another.
    """
    law = LAWS.find(law) if isinstance(law, str) else law
    if objective not in (*OBJECTIVES, IN_BOTH):
        raise UsageError(f"unknown objective '{objective}'; {did_you_mean(objective, [*OBJECTIVES, IN_BOTH])}")
    chosen = Objective("least-squares" if objective == IN_BOTH else objective, delta)
    given = None if start is None else tuple(float(v) for v in start)
    if seed < 0:
        raise UsageError(f"seed: got {seed}; give a whole number of 0 or more")
    options = Options(chosen, seed, bootstrap, confidence, intervals, starts, given)
    data = table if isinstance(table, Data) else read_data(law, table, columns=columns, label=label, run=run, iid=iid)
    if objective == IN_BOTH:
        if law.name != "linear" or intervals != "bootstrap":
            raise UsageError(f"objective '{IN_BOTH}' is for law 'linear' with bootstrap intervals")
        return fit_line(data, label, seed=seed, bootstrap=bootstrap, confidence=confidence)
    return fit_data(law, data, label, options, _weights(data, weights, label, chosen), line)


def fit_data(law: Law, data: Data, label: str, options: Options, weights: Array, line: Fit | None = None) -> Fit:
    """`fit_law` for data that were already read, with weights [O, n]."""
    adapted = law.adapt(data.x, data.y)
    problem = Problem(adapted.law, data.x, options.objective)
    _check(law, adapted.law, data, label, options)
    refuse_unseen(law, data, weights, label, options.objective)
    every = data, weights
    if summed.applies(data, options):
        few = summed.is_linear(problem) or len(data.cells[0]) <= summed.MOST_CELLS
        if few and not options.objective.log:
            return _fit_cells(law, data, label, options, weights, line)
        if data.n > (most := summed.most_rows(problem)):
            data, weights = summed.sample_runs(data, weights, most)
            adapted = law.adapt(data.x, data.y)
            problem = Problem(adapted.law, data.x, options.objective)
    rng = np.random.default_rng(options.seed)
    y, w = data.y.reshape(-1), weights.reshape(-1)
    first = None if options.start is None else np.array(options.start)
    found = search(problem, y, w, starts=options.starts, rng=rng, first=first)
    if not np.isfinite(found.cost):
        raise _lost(law, label, found, options, data)
    looks = shape(problem, found.theta, y, w)
    theta = adapted.public(found.theta[None], data.y[None], np.ones((1, data.n)))[0]
    warnings = [*data.warnings, *law.hints(data.x, data.y), *fit_warnings(problem, found, looks, options.starts)]
    spare = spare_values(problem, weights, looks.at_bounds)
    draws = draw(problem, found, data, weights, options.bootstrap, spare, rng, warnings)
    public = None if draws is None else adapted.public(draws.theta, draws.y, draws.weights)
    alone = scheme_for(problem, iid=data.iid) == "normal"
    degrees = float(max(spare, 1)) if alone else freedom(problem, found.theta, weights, data.run)
    widen = 1.0 if draws is None else widen_by(draws.scheme, len(data.runs), degrees, options.confidence)
    units = spare + 1 if alone else len(data.runs)
    lowest = Lowest(problem, found.theta, y, w, looks, _variance(found, problem, weights), units)
    grades = identify(law, adapted, lowest, None if draws is None else draws.theta, options.confidence)
    grades |= dict.fromkeys(law.undetermined(data.x), NONE)
    parameters = estimates(law, theta, public, options.confidence, widen, grades)
    parameters |= stopped(adapted, law, theta, looks.asks)
    parameters |= _of_the_line(law, data, options, parameters, line)
    if options.intervals == "profile":
        parameters |= profiles(problem, adapted, found, data, weights, parameters, options.confidence, warnings)
    warnings += loose(law, parameters, looks.flat)
    tests, warned = _tests(problem, found.theta, data, weights, every)
    validation = {
        "leave_one_run_out": leave_one_run_out(problem, found.theta, data, weights),
        "run_noise": run_noise(problem, found.theta, data),
        "scatter": _scatter(problem, found, data, weights, spare),
        "freedom": degrees,
        **tests,
    }
    learned = diagnostics(problem, adapted, data, found, looks, draws, weights, validation)
    fit = _fit(law, adapted, data, label, options, found, parameters, theta, draws, widen, warnings, learned)
    return _with_rivals(fit, law, data, weights, options, warned)


def _tests(
    problem: Problem, theta: Array, data: Data, weights: Array, every: tuple[Data, Array]
) -> tuple[dict[str, Any], list[str]]:
    """The tests of the law as diagnostics, and their warnings; `every` is the data before sampling, with weights."""
    bends, at = misfits(problem, theta, data, weights), places(problem, theta, *every)
    plain = {"misfit": plain_misfits(bends), "places": plain_places(at), "few_steps": few_steps(data)}
    return plain, [*alarms(bends), *missed_places(at)]


def _with_rivals(fit: Fit, law: Law, data: Data, weights: Array, options: Options, warned: Sequence[str]) -> Fit:
    """The fit with the rival laws that its bands outside the measured range include, and warnings of misfit."""
    fit.warnings.extend(warned)
    validated, log = fit.diagnostics["leave_one_run_out"], options.objective.log
    if not fit.draws or validated is None:
        return fit
    missed = validated["relative" if log else "rmse"]
    noise = fit.diagnostics["scatter"] or missed
    count, seed = len(fit.draws), options.seed
    return replace(
        fit, rivals=find_rivals(law, data, weights, missed=missed, noise=noise, count=count, seed=seed, log=log)
    )


def _fit_cells(law: Law, data: Data, label: str, options: Options, weights: Array, line: Fit | None) -> Fit:
    """`fit_data` for many rows, from sums over cells of rows; the results are equal up to rounding."""
    adapted = law.adapt(data.x, data.y)
    problem = Problem(adapted.law, data.x, options.objective)
    cells = summed.collapse(problem, data, weights)
    rng = np.random.default_rng(options.seed)
    found, looks = summed.find(cells, options, rng)
    if not np.isfinite(found.cost):
        raise _lost(law, label, found, options, data)
    theta = adapted.public(found.theta[None], data.y[None], np.ones((1, data.n)))[0]
    # a law that is linear in all parameters has a single minimum, so its share of starts means nothing
    starts = 0 if cells.linear else options.starts
    warnings = [*data.warnings, *law.hints(data.x, data.y), *fit_warnings(problem, found, looks, starts)]
    draws = public = residual = None
    able = can_draw(data, options.bootstrap, spare_values(problem, weights, looks.at_bounds), warnings)
    if able and no_other(data, summed.sole_unit(cells, found.theta), warnings):
        draws, signs, residual = summed.resample(cells, found.theta, options.bootstrap, rng)
        if enough(draws, options.bootstrap, warnings):
            public = summed.public_draws(cells, adapted, draws.theta, signs, residual, found.theta)
        else:
            draws = None
    degrees = summed.freedom(cells, found.theta)
    widen = 1.0 if draws is None else widen_by(draws.scheme, len(data.runs), degrees, options.confidence)
    variance = _variance(found, problem, weights)
    sums = (cells.y.reshape(-1), cells.mass.reshape(-1))
    lowest = Lowest(cells.problem, found.theta, *sums, looks, variance, len(data.runs))
    grades = identify(law, adapted, lowest, None if draws is None else draws.theta, options.confidence)
    grades |= dict.fromkeys(law.undetermined(data.x), NONE)
    parameters = estimates(law, theta, public, options.confidence, widen, grades)
    parameters |= stopped(adapted, law, theta, looks.asks)
    parameters |= _of_the_line(law, data, options, parameters, line)
    warnings += loose(law, parameters, looks.flat)
    tests, warned = _tests(problem, found.theta, data, weights, (data, weights))
    validation = {
        "leave_one_run_out": summed.leave_one_run_out(cells, found.theta),
        "run_noise": summed.run_noise(cells, found.theta, problem.law.outputs),
        "scatter": summed.scatter_of(cells, found.theta, residual),
        "freedom": degrees,
        **tests,
    }
    learned = diagnostics(problem, adapted, data, found, looks, draws, weights, validation)
    fit = _fit(law, adapted, data, label, options, found, parameters, theta, draws, widen, warnings, learned)
    return _with_rivals(fit, law, data, weights, options, warned)


def _of_the_line(
    law: Law, data: Data, options: Options, parameters: Mapping[str, Estimate], line: Fit | None
) -> dict[str, Estimate]:
    """The slope of Eq. 4 with the interval from the fit of `linear` to the same rows, so that both fits agree."""
    if law.name != ShiftedPower.name or math.isnan(parameters[SLOPE].low):
        return {}
    if line is None or line.n_points != data.n:
        line = _fit_of_line(law, data, options)
    own, value = line.parameters[SLOPE], parameters[SLOPE]
    # if forgetting does not grow as the loss falls, the law holds the slope at 1, and the two differ
    return {SLOPE: replace(value, low=own.low, high=own.high)} if np.isclose(own.value, value.value) else {}


def _fit_of_line(law: Law, data: Data, options: Options) -> Fit:
    """The fit of `linear` to the rows of a fit of both losses."""
    line = LAWS["linear"]
    x = {name: data.y[law.outputs.index(name)] for name in line.variable_names}
    rows = replace(data, x=x, y=data.y[1:], se=None)
    plain = replace(options, objective=Objective(), intervals="bootstrap", start=None)
    return fit_data(line, rows, "", plain, np.ones_like(rows.y))


def _lost(law: Law, label: str, found: Found, options: Options, data: Data) -> ForgettingError:
    """The error if no start has a finite objective."""
    where = f"table '{label}', " if label else ""
    if (row := undefined_row(law, data)) and not options.objective.log:
        return UsageError(
            f"{where}{row}: law '{law.called}' could not be evaluated there from any start; leave out the "
            f"row{_skip(data)}, write the law differently, or give other starts"
        )
    why = f": objective '{options.objective.name}' needs a law that is positive" if options.objective.log else ""
    return ForgettingError(
        f"law '{law.called}' could not be evaluated on '{label}' from any of {found.starts} starts{why}"
    )


def _skip(data: Data) -> str:
    """The option that leaves out rows of step 0, in brackets; empty without such rows, or without later ones."""
    steps = data.x.get("step")
    first = None if steps is None or steps.min() > 0 else first_step(steps)
    return "" if first is None else f" ({first})"


def _scatter(problem: Problem, found: Found, data: Data, weights: Array, spare: int) -> dict[str, float] | None:
    """`validate.scatter` of a least-squares fit to at least MIN_RUNS runs; None for other fits."""
    if not problem.objective.quadratic or len(data.runs) < MIN_RUNS or spare <= 0:
        return None
    if scheme_for(problem, iid=data.iid) == "normal":
        return {problem.law.outputs[0]: float(np.sqrt(found.cost / spare * np.mean(1 / weights[weights > 0])))}
    y, run = data.y.reshape(-1), np.tile(data.run, len(data.y))
    left_out = left_out_residuals(problem, found.theta, y, weights.reshape(-1), run).reshape(data.y.shape)
    residual = problem.objective.residual(y, problem.values(found.theta[None])[0]).reshape(data.y.shape)
    return scatter(residual, left_out, problem.law.outputs)


def _variance(found: Found, problem: Problem, weights: Array) -> float:
    """The residual variance of all rows, on the scale of the objective."""
    spare = int(np.sum(weights > 0)) - int(np.sum(~problem.fixed))
    return found.cost / max(spare, 1)


def _fit(
    law: Law,
    adapted: Adapted,
    data: Data,
    label: str,
    options: Options,
    found: Found,
    parameters: dict[str, Estimate],
    theta: Array,
    draws: Draws | None,
    widen: float,
    warnings: list[str],
    learned: dict[str, Any],
) -> Fit:
    fitted = Fitted(adapted.law, found.theta) if isinstance(adapted.law, Centred | CentredMitigated) else None
    if fitted is None and not np.isfinite(theta).all():
        raise ForgettingError(
            f"law '{law.called}' on '{label}': parameters of the best fit exceed the range of numbers; they are "
            f"not determined by {several(data.n, 'measurement')}"
        )
    if data.sampled_from is not None:
        learned = learned | {"sampled_from": dict(zip(("points", "runs"), data.sampled_from, strict=True))}
    # use the reported parameters if they are finite, so that R2 is exactly that of the printed numbers
    known = (law, data, theta) if np.isfinite(theta).all() else (adapted.law, data, found.theta)
    r2 = r_squared(*known)
    return Fit(
        law=law.name,
        label=label,
        parameters=parameters,
        objective=options.objective.name,
        objective_value=found.cost,
        r2=r2,
        n_points=data.n,
        n_runs=data.n_runs,
        measured_range={k: (float(v.min()), float(v.max())) for k, v in data.x.items()},
        confidence=options.confidence,
        warnings=[*warnings, *worse_than_a_constant(r2)],
        diagnostics=learned | {"rmse": rmse(*known)} | ({"iid": True} if data.iid else {}) | data.grouping,
        information=_information(adapted.law, found.theta, data),
        draws=[] if draws is None else draws.theta.tolist(),
        fitted=fitted,
        widen=widen,
        spec=law.spec,
        instance=law if isinstance(law, FunctionLaw) else None,
        data=data.sample(KEPT_ROWS),
    )


def _information(law: Law, theta: Array, data: Data) -> Information | None:
    """The information sums of a law that plans use; None for other laws."""
    if not isinstance(law, Centred):
        return None
    first, cell = data.cells
    problem = Problem(law, {k: v[first] for k, v in data.x.items()}, Objective())
    return information(problem, theta, data, cell)


def fit_from_published(name: str) -> Fit:
    """A law of `PUBLISHED` as a fit without intervals.

    Raises:
        UsageError: no published law has this name.
    """
    p = PUBLISHED.find(name)
    return Fit(
        law=p.law.name,
        label=name,
        parameters={k: Estimate(float(p.parameters[k])) for k in p.law.names},
        objective="published",
        objective_value=float("nan"),
        r2=dict(p.r2),
        n_points=0,
        n_runs=0,
        measured_range=dict(p.measured_range),
        confidence=0.95,
        warnings=[f"published without intervals: {p.source}"],
        diagnostics={"note": p.note, **p.constants},
    )


def _weights(data: Data, weights: str, label: str, objective: Objective) -> Array:
    """[O, n] weights of the rows."""
    if weights == "none":
        return np.ones_like(data.y)
    if weights != "se":
        raise UsageError(f"weights is '{weights}'; choices: none, se")
    if data.se is None:
        raise UsageError(f"weights 'se' needs a positive number in every ..._se column of the outputs of '{label}'")
    # the standard error of a logarithm is the relative standard error
    return np.asarray((data.y / data.se) ** 2 if objective.log else 1.0 / data.se**2)


def _check(law: Law, fitted: Law, data: Data, label: str, options: Options) -> None:
    """Refuse data and options that this law cannot be fitted with."""
    free = sum(p.gauge is None for p in fitted.parameters)
    if data.y.size < free:
        has = f"'{label}' has {several(data.y.size, 'measured value')}"
        raise UsageError(f"{has}; law '{law.called}' has {several(free, 'free parameter')}")
    if options.objective.log and (data.y <= 0).any():
        raise UsageError(f"'{label}' has outputs that are not positive; '{options.objective.name}' takes logarithms")
    if options.start is None:
        return
    if fitted is not law:
        raise UsageError(f"law '{law.name}' is fitted in its own coordinates and accepts no start")
    if len(options.start) != len(law.parameters):
        raise UsageError(f"start has {len(options.start)} values; law '{law.name}' has {', '.join(law.names)}")
