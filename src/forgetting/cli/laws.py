"""`forgetting fit`, `predict` and `plan`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display.commands import command
from ..errors import ForgettingError, UsageError, did_you_mean
from .options import expanded, pairs, several
from .printing import say

if TYPE_CHECKING:
    from ..analysis.fit import Fit, GroupedFits
    from ..analysis.laws import Law
    from ..analysis.sources import Tables
    from ..analysis.table_files import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on standard output.")]
Dataset = Annotated[str | None, typer.Option(help="Use only this data set of the study or file of fits.")]
Rank = Annotated[list[float] | None, typer.Option(help="LoRA rank. Repeat for several.")]
Params = Annotated[list[float] | None, typer.Option(help="Trainable parameters, instead of ranks. Repeat for several.")]
Replay = Annotated[
    list[float] | None, typer.Option(help="Share of replay, 0 to 1, if the study varied it. Repeat for several.")
]
Kl = Annotated[
    list[float] | None, typer.Option(help="Weight of KL, from 0, if the study varied it. Repeat for several.")
]
PerRank = Annotated[float | None, typer.Option(help="Trainable parameters of rank 1, if the law does not know it.")]
Model = Annotated[
    str | None, typer.Option(help="Count trainable parameters from this model's configuration: a folder or Hub id.")
]
Targets = Annotated[list[str] | None, typer.Option(help="LoRA target modules for --model. Default: all-linear.")]
By = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Fit each group of rows separately, one line per group. Repeat for several."),
]
Start = Annotated[
    list[str] | None,
    typer.Option(help="For a formula: starting value NAME=VALUE or range NAME=LOW:HIGH. Default: from the data."),
]


@dataclass(frozen=True)
class FitOptions:
    """How a law is fitted; see `fit_law`."""

    objective: Annotated[
        str,
        typer.Option(
            help="What the fit minimises: {objectives}. Use a -log one if the noise is a share of the value, huber if "
            "a few points are outliers, errors-in-both for the linear law if both losses have standard errors."
        ),
    ] = "least-squares"
    delta: Annotated[
        float, typer.Option(help="Huber's delta: larger residuals count linearly. Relative for huber-log.")
    ] = 1e-3
    run: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column that names the runs, or what runs share, such as seed: intervals resample these groups. "
            "Repeat if several columns name a run, such as rank and seed. Default: run_id.",
        ),
    ] = None
    iid: Annotated[
        bool, typer.Option("--iid", help="Treat every row as independent; only if no two rows are from the same run.")
    ] = False
    weights: Annotated[
        str, typer.Option(help="none, or se to weight rows by 1/se², from the outputs' ..._se columns.")
    ] = "none"
    intervals: Annotated[
        str,
        typer.Option(
            help="Intervals of parameters: bootstrap, or profile for profile likelihood, which may be asymmetric."
        ),
    ] = "bootstrap"
    bootstrap: Annotated[
        int, typer.Option(help="Bootstrap resamples of whole runs, at least 20; 0 for no intervals, which is fastest.")
    ] = 200
    confidence: Annotated[float, typer.Option(help="Nominal coverage of intervals and bands.")] = 0.95
    seed: Annotated[
        int, typer.Option(help="Seed of the starting points and resamples; the same seed gives the same fit.")
    ] = 0


@expanded
def fit_command(
    tables: Annotated[list[str], typer.Argument(help="Tables, study folders, PEFT results, W&B or MLflow exports.")],
    *,
    law: Annotated[
        list[str] | None,
        typer.Option(help="A law's name ({laws}), or a formula such as 'loss = E + A/N**alpha'. Repeat to compare."),
    ] = None,
    fitting: FitOptions,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="NAME=COLUMN: read this variable or output from this column."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: fit only these rows. Repeat for more values.")
    ] = None,
    from_step: Annotated[
        float | None, typer.Option(help="Leave out earlier steps. Default: the study's start.")
    ] = None,
    dataset: Dataset = None,
    by: By = None,
    start: Start = None,
    bound: Annotated[list[str] | None, typer.Option(help="For a formula: NAME=LOW:HIGH. Default: no bounds.")] = None,
    extrapolate: Annotated[bool, typer.Option(help="Test: fit small ranks and early steps, predict the rest.")] = False,
    out: Annotated[str | None, typer.Option(help="Also write the fits to this JSON file.")] = None,
    latex: Annotated[bool, typer.Option(help="Print LaTeX tables instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit laws to tables of runs: the best fit, intervals from whole runs, and what the data cannot determine."""
    from ..analysis.laws.choose import choose_law
    from ..analysis.sources import tables_to_fit

    columns, starts, bounds = pairs(mapping, "--map"), _starts(start), _bounds(bound)
    if by and (extrapolate or latex):
        raise UsageError("--by does not go with --extrapolate or --latex")

    def chosen(label: str, table: Table) -> dict[str, Law]:
        names = law or _default_laws(label, table, found, columns)
        return {name: choose_law(name, [*columns, *table], start=starts, bounds=bounds) for name in names}

    found = tables_to_fit(tables, only=several(only, "--only"), from_step=from_step, dataset=dataset)
    how = {"columns": columns, **asdict(fitting), "run": fitting.run or "run_id"}
    if by:
        _fit_by([*chosen(*next(iter(found.plain.items()))).values()], found, by, how, out=out, as_json=as_json)
        return
    fits, tests, failed = _fit_each(
        {label: (found, chosen(label, table)) for label, table in found.plain.items()}, how, extrapolate
    )
    if failed and not fits:
        raise failed[0]
    if out is not None:
        from ..analysis.fit import save_fits

        save_fits(fits, out)
    _show_fits(fits, tests, latex=latex, as_json=as_json)
    if not (latex or as_json) and (planned := _to_plan(fits, tables, out)):
        typer.echo(planned)
    _say(failed[:-1])
    if failed:
        raise failed[-1]


def _to_plan(fits: dict[str, dict[str, Fit]], tables: Sequence[str], out: str | None) -> str:
    """The command that plans with these fits, where they are stored and enough for it; empty otherwise."""
    from ..analysis.plan.source import EXAMPLE_BUDGET, can_plan

    source = out or (tables[0] if len(tables) == 1 and (Path(tables[0]) / "study.yaml").is_file() else None)
    if source is None or not any(map(can_plan, fits.values())):
        return ""
    return f"to plan a run within a budget: {command('plan', source, '--budget', EXAMPLE_BUDGET)}"


def _fit_each(
    found: dict[str, tuple[Tables, dict[str, Law]]], how: dict[str, Any], extrapolate: bool
) -> tuple[dict[str, dict[str, Fit]], list[dict[str, Any]], list[ForgettingError]]:
    """Fits by data set and law, tests of extrapolation, and the errors of fits and tests that failed."""
    from ..analysis.fit import fit_law

    fits: dict[str, dict[str, Fit]] = {}
    tests: list[dict[str, Any]] = []
    failed: list[ForgettingError] = []
    plain = (how["objective"], how["weights"], how["intervals"]) == ("least-squares", "none", "bootstrap")
    for label, (tables, laws) in found.items():
        for name, law in laws.items():
            table = tables.of(law)[label]
            try:
                used = how | {"columns": _used(law, laws.values(), how["columns"])}
                line = fits.get(label, {}).get("linear") if plain else None
                fits.setdefault(label, {})[name] = fit_law(law, table, label=label, **used, line=line)
                tests += _extrapolate(law, table, label, used) if extrapolate else []
            except ForgettingError as error:
                failed.append(error)
    return fits, tests, failed


def _say(failed: Sequence[ForgettingError]) -> None:
    for error in failed:
        for line in str(error).splitlines():
            say(f"error: {line}")


def _fit_by(
    laws: Sequence[Law],
    tables: Tables,
    by: Sequence[str],
    how: dict[str, Any],
    *,
    out: str | None,
    as_json: bool,
) -> None:
    """Fit each group separately; one summary per law."""
    from ..analysis.fit import fit_groups, fit_law, save_fits

    made: list[GroupedFits] = []
    failed: list[ForgettingError] = []
    saved: dict[str, dict[str, Fit]] = {}
    for one in laws:
        fit_one = partial(fit_law, one, **how | {"columns": _used(one, laws, how["columns"])})
        try:
            made.append(fit_groups(one, tables.of(one), by, fit_one))
        except ForgettingError as error:
            failed.append(error)
    for group, fits in ((group, fits) for grouped in made for group, fits in grouped.fits.items()):
        named = {fit.law_object.called if len(laws) > 1 else name: fit for name, fit in fits.items()}
        saved.setdefault(group, {}).update(named)
    if out is not None and saved:
        save_fits(saved, out)
    if as_json and made:
        parts = [grouped.to_dict() for grouped in made]
        content = {"by": parts[0]["by"]} | {key: [v for p in parts for v in p[key]] for key in ("fits", "failed")}
        typer.echo(json.dumps(content, indent=1))
    else:
        typer.echo("\n\n".join(str(grouped) for grouped in made))
    _say(failed if made else failed[:-1])
    if not made:
        raise failed[-1]


def predict_command(
    law: Annotated[str, typer.Argument(help="A published law, a file of fits, or a study folder.")],
    rank: Rank = None,
    steps: Annotated[list[float] | None, typer.Option(help="Update steps. Repeat for several.")] = None,
    params: Params = None,
    replay: Replay = None,
    kl: Kl = None,
    params_per_rank: PerRank = None,
    model: Model = None,
    target_modules: Targets = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE: set any variable of the law.")] = None,
    name: Annotated[
        str | None, typer.Option("--law", help="Which of a study's laws to use: shifted_power, linear, ...")
    ] = None,
    dataset: Dataset = None,
    as_json: AsJson = False,
) -> None:
    """Predict losses with bands, and say if a prediction is outside the measured range."""
    from ..analysis.api import predict

    given = {k: _number(v, f"--set {k}") for k, v in pairs(assign, "--set").items()}
    made = predict(
        law,
        ranks=rank or None,
        steps=steps or None,
        params=params or None,
        replay=replay or None,
        kl=kl or None,
        params_per_rank=params_per_rank,
        model=model,
        target_modules=target_modules,
        at=given,
        which=name,
        dataset=dataset,
    )
    typer.echo(json.dumps(made.to_dict()["predictions"], indent=1) if as_json else str(made))


def plan_command(
    law: Annotated[str, typer.Argument(help="A published law, a file of fits, or a study folder.")],
    budget: Annotated[float | None, typer.Option(help="Excess forgetting allowed, nats/token.")] = None,
    target_loss: Annotated[
        float | None, typer.Option(help="Fine-tuning loss to reach with the least forgetting.")
    ] = None,
    floor: Annotated[float | None, typer.Option(help="Forgetting loss of the base model itself (its floor).")] = None,
    rank: Rank = None,
    params: Params = None,
    replay: Replay = None,
    kl: Kl = None,
    params_per_rank: PerRank = None,
    model: Model = None,
    target_modules: Targets = None,
    batch: Annotated[
        float | None,
        typer.Option(help="Sequences per step, to count tokens and FLOPs. Default: from the study."),
    ] = None,
    context: Annotated[
        float | None, typer.Option(help="Tokens per sequence, for the same. Default: from the study.")
    ] = None,
    next_run: Annotated[
        bool, typer.Option(help="Also recommend the next run: the one that would narrow the answer most.")
    ] = False,
    max_steps: Annotated[
        float | None,
        typer.Option(help="Most steps of the next run, or of one with a mitigation. Default: the most measured."),
    ] = None,
    dataset: Dataset = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run: the ranks and steps that stay within a forgetting budget, or that reach a fine-tuning loss."""
    from ..analysis.api import plan

    if (budget is None) == (target_loss is None):
        raise UsageError("give either --budget or --target-loss")
    plans = plan(
        law,
        budget=budget,
        target_loss=target_loss,
        floor=floor,
        ranks=rank or None,
        params=params or None,
        replay=replay or None,
        kl=kl or None,
        params_per_rank=params_per_rank,
        model=model,
        target_modules=target_modules,
        batch=batch,
        context=context,
        next_run=next_run,
        max_steps=max_steps,
        dataset=dataset,
    )
    made = list(plans.to_dict().values())
    typer.echo(json.dumps(made[0] if len(made) == 1 else made, indent=1) if as_json else str(plans))


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: '{text}' is not a number") from None


def _default_laws(label: str, table: Table, found: Tables, columns: dict[str, str]) -> list[str]:
    """The paper's two laws, if the table has their columns; a law left out is reported on standard error.

    The laws over the share of replay and the weight of KL as well, if these were varied.
    """
    from ..analysis.fit import unfit
    from ..analysis.laws import LAWS
    from ..store.axes import AXES

    def there(law: Law) -> bool:
        return all(columns.get(name, name) in table for name in (*law.variable_names, *law.outputs))

    names = [name for name in ("linear", "shifted_power") if there(LAWS[name])]
    if "shifted_power" in names and not columns and unfit(table):
        say(f"{label}: shifted_power was not fitted: {unfit(table)}")
        names.remove("shifted_power")
    for name, axis in AXES.items():
        if there(LAWS[name]) and not columns and not unfit(found.of(LAWS[name])[label], axis):
            names.append(name)
    if not names:
        raise UsageError(f"which law? give --law with one of {', '.join(LAWS)}, or a formula")
    return names


def _starts(given: Sequence[str] | None) -> dict[str, float | tuple[float, float]]:
    return {k: _span(v, "--start") for k, v in pairs(given, "--start").items()}


def _bounds(given: Sequence[str] | None) -> dict[str, tuple[float, float]]:
    bounds = {}
    for key, value in pairs(given, "--bound").items():
        pair = _span(value, "--bound")
        if not isinstance(pair, tuple):
            raise UsageError(f"--bound {key}={value}: write NAME=LOW:HIGH")
        bounds[key] = pair
    return bounds


def _span(text: str, option: str) -> float | tuple[float, float]:
    low, colon, high = text.partition(":")
    return (_number(low, option), _number(high, option)) if colon else _number(low, option)


def _used(law: Law, laws: Iterable[Law], columns: dict[str, str]) -> dict[str, str]:
    """The part of --map that one of the fitted laws needs.

    Raises:
        UsageError: a name that none of the laws has.
    """
    needed = (*law.variable_names, *law.outputs)
    known = {name for one in laws for name in (*one.variable_names, *one.outputs)}
    if unknown := [name for name in columns if name not in known]:
        raise UsageError(f"--map {unknown[0]}: law '{law.called}' has no such name; {did_you_mean(unknown[0], needed)}")
    return {name: column for name, column in columns.items() if name in needed}


def _extrapolate(law: Law, table: Table, label: str, how: dict[str, Any]) -> list[dict[str, Any]]:
    from ..analysis.fit import extrapolation_tests

    tests = extrapolation_tests(law, table, label=label, **how)
    return [{"dataset": label, "law": law.called, **asdict(test)} for test in tests]


def _show_fits(fits: dict[str, dict[str, Fit]], tests: list[dict[str, Any]], *, latex: bool, as_json: bool) -> None:
    from ..analysis.fit import rank_laws
    from ..display.numbers import plain

    every = [fit for laws in fits.values() for fit in laws.values()]
    if as_json:
        stored = ("draws", "rivals", "information")
        shown = [{k: v for k, v in fit.to_dict().items() if k not in stored} for fit in every]
        ranked = {label: rank_laws(list(laws.values())) for label, laws in fits.items()}
        content: dict[str, Any] = shown[0] if len(shown) == 1 else {"fits": shown, "comparison": ranked}
        typer.echo(json.dumps(plain(content | ({"extrapolation": tests} if tests else {})), indent=1))
        return
    from ..analysis.fit.show import comparison_text, extrapolation_text

    for fit in every:
        if latex:
            typer.echo(fit.to_latex())
        elif sys.stdout.isatty():
            from rich.console import Console

            Console().print(fit)
        else:
            typer.echo(f"{fit}\n")
    for label, laws in fits.items():
        if len(laws) > 1 and not latex:
            typer.echo(comparison_text(label, rank_laws(list(laws.values()))))
    if tests and not latex:
        typer.echo(extrapolation_text(tests))
