"""`forgetting fit`, `predict` and `plan`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ForgettingError, UsageError, did_you_mean
from .options import expanded

if TYPE_CHECKING:
    from ..analysis.fit import Fit
    from ..analysis.laws import Law
    from ..analysis.table_files import Table

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]
Dataset = Annotated[str | None, typer.Option(help="Only this data set of a study or file of fits.")]
Rank = Annotated[list[float] | None, typer.Option(help="LoRA rank; repeat for several.")]
Params = Annotated[list[float] | None, typer.Option(help="Trainable parameters, instead of ranks; repeat for several.")]
PerRank = Annotated[float | None, typer.Option(help="Trainable parameters of rank 1, where the law does not know it.")]
Model = Annotated[str | None, typer.Option(help="Count parameters from this model's configuration: folder or Hub id.")]
Targets = Annotated[list[str] | None, typer.Option(help="LoRA target modules for --model. Default: all-linear.")]


@dataclass(frozen=True)
class FitOptions:
    """How a law is fitted; see `fit_law`."""

    objective: Annotated[str, typer.Option(help="What is minimised: {objectives}.")] = "least-squares"
    delta: Annotated[float, typer.Option(help="Huber's delta.")] = 1e-3
    run: Annotated[str, typer.Option(help="Column that says which rows are one run.")] = "run_id"
    weights: Annotated[str, typer.Option(help="none, or se: weigh by the ..._se columns.")] = "none"
    intervals: Annotated[str, typer.Option(help="bootstrap, or profile for profile likelihood.")] = "bootstrap"
    bootstrap: Annotated[int, typer.Option(help="Resamples of whole runs; 0 for no intervals.")] = 200
    confidence: Annotated[float, typer.Option(help="Nominal coverage of intervals.")] = 0.95
    seed: Annotated[int, typer.Option(help="Of starts and resamples.")] = 0


@expanded
def fit_command(
    tables: Annotated[list[str], typer.Argument(help="Tables, study folders, PEFT results, W&B or MLflow exports.")],
    *,
    law: Annotated[
        list[str] | None,
        typer.Option(help="A law's name ({laws}), or a formula: 'loss = E + A/N**alpha'. Repeat to compare."),
    ] = None,
    fitting: FitOptions,
    mapping: Annotated[list[str] | None, typer.Option("--map", help="NAME=COLUMN for a variable or output.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: fit only these rows.")] = None,
    from_step: Annotated[float | None, typer.Option(help="Leave out earlier steps. Default: a study's own.")] = None,
    dataset: Dataset = None,
    start: Annotated[list[str] | None, typer.Option(help="For a formula: NAME=VALUE or NAME=LOW:HIGH.")] = None,
    bound: Annotated[list[str] | None, typer.Option(help="For a formula: NAME=LOW:HIGH.")] = None,
    extrapolate: Annotated[bool, typer.Option(help="Fit small ranks and early steps, predict the rest.")] = False,
    out: Annotated[str | None, typer.Option(help="Write the fits to this JSON file.")] = None,
    latex: Annotated[bool, typer.Option(help="Print LaTeX tables.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit laws to tables of runs: global optimum, intervals from whole runs, and what could not be identified."""
    from ..analysis.fit import fit_law
    from ..analysis.laws.choose import choose_law
    from ..analysis.sources import tables_to_fit

    columns, starts, bounds = _pairs(mapping, "--map"), _starts(start), _bounds(bound)
    fits: dict[str, dict[str, Fit]] = {}
    tests = []
    failed: list[ForgettingError] = []
    found = tables_to_fit(tables, only=_pairs(only, "--only"), from_step=from_step, dataset=dataset)
    for label, table in found.items():
        for name in law or _default_laws(label, table, columns):
            one = choose_law(name, [*columns, *table], start=starts, bounds=bounds)
            try:
                made = fit_law(one, table, label=label, columns=_used(one, columns), **asdict(fitting))
            except ForgettingError as error:
                failed.append(error)
                continue
            fits.setdefault(label, {})[name] = made
            if extrapolate:
                tests += _extrapolate(one, table, label, columns, fitting.run, fitting.seed)
    if failed and not fits:
        raise failed[0]
    if out is not None:
        from ..analysis.fit import save_fits

        save_fits(fits, out)
    _show_fits(fits, tests, latex=latex, as_json=as_json)
    for one_of in failed[:-1]:
        sys.stderr.write(f"error: {one_of}\n")
    if failed:
        raise failed[-1]


def predict_command(
    law: Annotated[str, typer.Argument(help="A published law, a file of fits, or a study folder.")],
    rank: Rank = None,
    steps: Annotated[list[float] | None, typer.Option(help="Update steps; repeat for several.")] = None,
    params: Params = None,
    params_per_rank: PerRank = None,
    model: Model = None,
    target_modules: Targets = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE for any variable of the law.")] = None,
    name: Annotated[str | None, typer.Option("--law", help="Which law of a study: shifted_power, linear, ...")] = None,
    dataset: Dataset = None,
    as_json: AsJson = False,
) -> None:
    """Predict losses with bands, and say where a prediction lies outside the measured range."""
    from ..analysis.api import predict

    given = {k: _number(v, f"--set {k}") for k, v in _pairs(assign, "--set").items()}
    made = predict(
        law,
        ranks=rank or None,
        steps=steps or None,
        params=params or None,
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
    budget: Annotated[float | None, typer.Option(help="Forgetting allowed, nats/token above the base model's.")] = None,
    target_loss: Annotated[float | None, typer.Option(help="Fine-tuning loss to reach with least forgetting.")] = None,
    floor: Annotated[float | None, typer.Option(help="Forgetting loss of the base model itself.")] = None,
    rank: Rank = None,
    params: Params = None,
    params_per_rank: PerRank = None,
    model: Model = None,
    target_modules: Targets = None,
    batch: Annotated[float | None, typer.Option(help="Sequences a step, for tokens and FLOPs.")] = None,
    context: Annotated[float | None, typer.Option(help="Tokens a sequence, for tokens and FLOPs.")] = None,
    next_run: Annotated[bool, typer.Option(help="Also say which run would narrow the answer most.")] = False,
    max_steps: Annotated[float | None, typer.Option(help="What one next run may take. Default: as measured.")] = None,
    dataset: Dataset = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run: the ranks and steps that spend a budget of forgetting, or that reach a fine-tuning loss."""
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


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    out = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise UsageError(f"{option} '{text}': write NAME=VALUE")
        out[name.strip()] = value.strip()
    return out


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: '{text}' is not a number") from None


def _default_laws(label: str, table: Table, columns: dict[str, str]) -> list[str]:
    """The paper's two laws, as far as the table carries them; what it does not carry is said on standard error."""
    from ..analysis.fit import unfit
    from ..analysis.laws import LAWS

    def there(law: Law) -> bool:
        return all(columns.get(name, name) in table for name in (*law.variable_names, *law.outputs))

    found = [name for name in ("linear", "shifted_power") if there(LAWS[name])]
    if "shifted_power" in found and not columns and unfit(table):
        sys.stderr.write(f"{label}: shifted_power was not fitted: {unfit(table)}\n")
        found.remove("shifted_power")
    if not found:
        raise UsageError(f"which law? give --law with one of {', '.join(LAWS)}, or a formula")
    return found


def _starts(given: Sequence[str] | None) -> dict[str, float | tuple[float, float]]:
    return {k: _span(v, "--start") for k, v in _pairs(given, "--start").items()}


def _bounds(given: Sequence[str] | None) -> dict[str, tuple[float, float]]:
    bounds = {}
    for key, value in _pairs(given, "--bound").items():
        pair = _span(value, "--bound")
        if not isinstance(pair, tuple):
            raise UsageError(f"--bound {key}={value}: write NAME=LOW:HIGH")
        bounds[key] = pair
    return bounds


def _span(text: str, option: str) -> float | tuple[float, float]:
    low, colon, high = text.partition(":")
    return (_number(low, option), _number(high, option)) if colon else _number(low, option)


def _used(law: Law, columns: dict[str, str]) -> dict[str, str]:
    """The part of --map that this law needs; with one law, what it does not need is a mistake that fit_law names."""
    needed = (*law.variable_names, *law.outputs)
    unknown = [name for name in columns if name not in needed]
    if unknown:
        raise UsageError(f"--map {unknown[0]}: law '{law.name}' has no such name; {did_you_mean(unknown[0], needed)}")
    return columns


def _extrapolate(
    law: Law, table: Table, label: str, columns: dict[str, str], run: str, seed: int
) -> list[dict[str, Any]]:
    from ..analysis.fit import extrapolation_tests

    tests = extrapolation_tests(law, table, columns=columns, label=label, run=run, seed=seed)
    return [{"dataset": label, "law": law.name, **asdict(test)} for test in tests]


def _show_fits(fits: dict[str, dict[str, Fit]], tests: list[dict[str, Any]], *, latex: bool, as_json: bool) -> None:
    from ..analysis.fit import rank_laws
    from ..display.numbers import plain

    every = [fit for laws in fits.values() for fit in laws.values()]
    if as_json:
        shown = [{k: v for k, v in fit.to_dict().items() if k != "draws"} for fit in every]
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
