"""`forgetting fit`, `predict` and `plan`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from ..analysis.fit import Fit
    from ..analysis.laws import Law
    from ..analysis.plan import Plan
    from ..analysis.tables import Table

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]
Dataset = Annotated[str | None, typer.Option(help="Only this data set of a study or file of fits.")]
Rank = Annotated[list[float] | None, typer.Option(help="LoRA rank; repeat for several.")]
Params = Annotated[list[float] | None, typer.Option(help="Trainable parameters, instead of ranks; repeat for several.")]
PerRank = Annotated[float | None, typer.Option(help="Trainable parameters of rank 1, where the law does not know it.")]
Model = Annotated[str | None, typer.Option(help="Count parameters from this model's configuration: folder or Hub id.")]
Targets = Annotated[list[str] | None, typer.Option(help="LoRA target modules for --model. Default: all-linear.")]


def fit_command(
    tables: Annotated[list[str], typer.Argument(help="Tables, study folders, PEFT results, W&B or MLflow exports.")],
    law: Annotated[
        list[str] | None,
        typer.Option(help="A law's name ({laws}), or a formula: 'loss = E + A/N**alpha'. Repeat to compare."),
    ] = None,
    objective: Annotated[str, typer.Option(help="least-squares, huber, huber-log, errors-in-both.")] = "least-squares",
    delta: Annotated[float, typer.Option(help="Huber's delta.")] = 1e-3,
    mapping: Annotated[list[str] | None, typer.Option("--map", help="NAME=COLUMN for a variable or output.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: fit only these rows.")] = None,
    from_step: Annotated[float | None, typer.Option(help="Leave out earlier steps. Default: a study's own.")] = None,
    dataset: Dataset = None,
    run: Annotated[str, typer.Option(help="Column that says which rows are one run.")] = "run_id",
    weights: Annotated[str, typer.Option(help="none, or se: weigh by the ..._se columns.")] = "none",
    intervals: Annotated[str, typer.Option(help="bootstrap, or profile for profile likelihood.")] = "bootstrap",
    bootstrap: Annotated[int, typer.Option(help="Resamples of whole runs; 0 for no intervals.")] = 200,
    confidence: Annotated[float, typer.Option(help="Nominal coverage of intervals.")] = 0.95,
    start: Annotated[list[str] | None, typer.Option(help="For a formula: NAME=VALUE or NAME=LOW:HIGH.")] = None,
    bound: Annotated[list[str] | None, typer.Option(help="For a formula: NAME=LOW:HIGH.")] = None,
    extrapolate: Annotated[bool, typer.Option(help="Fit small ranks and early steps, predict the rest.")] = False,
    seed: Annotated[int, typer.Option(help="Of starts and resamples.")] = 0,
    out: Annotated[str | None, typer.Option(help="Write the fits to this JSON file.")] = None,
    latex: Annotated[bool, typer.Option(help="Print LaTeX tables.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit laws to tables of runs: global optimum, intervals from whole runs, and what could not be identified."""
    from ..analysis.fit import fit_law

    columns = _pairs(mapping, "--map")
    options: dict[str, Any] = {
        "objective": objective,
        "delta": delta,
        "run": run,
        "weights": weights,
        "intervals": intervals,
        "bootstrap": bootstrap,
        "confidence": confidence,
        "seed": seed,
    }
    fits: dict[str, dict[str, Fit]] = {}
    tests = []
    for label, table in _tables(tables, _pairs(only, "--only"), from_step, dataset).items():
        for name in law or _default_laws(label, table, columns):
            one = _law(name, table, columns, start, bound)
            fits.setdefault(label, {})[name] = fit_law(one, table, label=label, columns=_used(one, columns), **options)
            if extrapolate:
                tests += _extrapolate(one, table, label, columns, run, seed)
    if out is not None:
        from ..analysis.fit import save_fits

        save_fits(fits, out)
    _show_fits(fits, tests, latex=latex, as_json=as_json)


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
    from ..analysis.plan import load_laws
    from ..analysis.plan.predict import predict_rows, rows_text

    given = {k: [_number(v, f"--set {k}")] for k, v in _pairs(assign, "--set").items()}
    if steps:
        given["step"] = list(steps)
    per_rank, _ = _counted(model, target_modules, params_per_rank)
    rows = []
    for label, laws in load_laws(law, dataset).items():
        fit = _pick(laws, name, wants_surface=bool(rank or params or steps))
        rows += predict_rows(fit, label, given, ranks=rank, params=params, params_per_rank=per_rank)
    if as_json:
        from ..analysis.fit import plain

        typer.echo(json.dumps(plain(rows), indent=1))
    else:
        typer.echo(rows_text(rows))


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
    from ..analysis.fit import plain
    from ..analysis.plan import load_laws, plan_budget, plan_target
    from ..analysis.plan.show import plan_dict, plan_text

    if (budget is None) == (target_loss is None):
        raise UsageError("give either --budget or --target-loss")
    per_rank, model_params = _counted(model, target_modules, params_per_rank)
    said: list[Any] = []
    for label, laws in load_laws(law, dataset).items():
        fit = _pick(laws, None, wants_surface=True)
        grid: dict[str, Any] = {"ranks": rank, "params": params, "params_per_rank": per_rank}
        cost = _cost(fit, batch, context, model_params)
        if budget is not None:
            plan = plan_budget(fit, budget, floor=floor, cost=cost, **grid)
        else:
            plan = plan_target(fit, target_loss or 0.0, cost=cost, **grid)
        runs = _next(fit, plan, max_steps) if next_run else []
        said.append(plan_dict(label, plan, runs) if as_json else plan_text(label, plan, runs))
    typer.echo(json.dumps(plain(said[0] if len(said) == 1 else said), indent=1) if as_json else "\n\n".join(said))


def _next(fit: Fit, plan: Plan, max_steps: float | None) -> list[Any]:
    from ..analysis.plan import next_runs

    candidates = [(c.rank, c.trainable_params) for c in plan.frontier]
    return next_runs(fit, plan, candidates, max_steps=max_steps or fit.measured_range["step"][1])


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


def _tables(paths: Sequence[str], only: dict[str, str], from_step: float | None, dataset: str | None) -> dict[str, Any]:
    """The rows to fit, by data set; by file name where the table has no data sets.

    Of a study folder, as in its own report: the first method, from the first step that counts.
    """
    from pathlib import Path

    from ..analysis.tables import later, read_tables, split, split_frame

    if (Path(paths[0]) / "study.yaml").exists():
        from ..store.folder import StudyFolder
        from ..store.table import load_table

        config = StudyFolder.open(Path(paths[0])).config()
        if not only.keys() & {"method", "label", "mitigation"}:
            only = {"label": config.reference_label, "mitigation": ""} | only
        from_step = config.measure.start if from_step is None else from_step
        if len(paths) == 1:
            frame = load_table(Path(paths[0]))
            trained = frame["alpha"].isna() | ("alpha" in only)
            return split_frame(frame[trained & (frame["step"] >= from_step)], only, dataset)
    label = Path(paths[0]).stem if len(paths) == 1 else "tables"
    table = read_tables(paths)
    return split(table if from_step is None else later(table, from_step), label, only, dataset)


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


def _law(
    name: str, table: Table, columns: dict[str, str], start: Sequence[str] | None, bound: Sequence[str] | None
) -> Law:
    from ..analysis.laws import LAWS, FormulaLaw

    if "=" not in name:
        if start or bound:
            raise UsageError(f"--start and --bound are for formulas; law '{name}' has its own")
        if not name.isidentifier() and name not in LAWS:
            raise UsageError(f"law '{name}' is not known; a formula names its output: --law 'loss = {name}'")
        return LAWS.find(name)
    starts = {k: _span(v, "--start") for k, v in _pairs(start, "--start").items()}
    bounds = {}
    for key, value in _pairs(bound, "--bound").items():
        pair = _span(value, "--bound")
        if not isinstance(pair, tuple):
            raise UsageError(f"--bound {key}={value}: write NAME=LOW:HIGH")
        bounds[key] = pair
    return FormulaLaw(name, [*columns, *table], start=starts, bounds=bounds)


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
    from dataclasses import asdict

    from ..analysis.fit import extrapolation_tests

    tests = extrapolation_tests(law, table, columns=columns, label=label, run=run, seed=seed)
    return [{"dataset": label, "law": law.name, **asdict(test)} for test in tests]


def _show_fits(fits: dict[str, dict[str, Fit]], tests: list[dict[str, Any]], *, latex: bool, as_json: bool) -> None:
    from ..analysis.fit import plain, rank_laws

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


def _counted(
    model: str | None, targets: Sequence[str] | None, per_rank: float | None
) -> tuple[float | None, float | None]:
    """Parameters of rank 1, and of the model, as far as they are known."""
    if model is None:
        if targets:
            raise UsageError("--target-modules needs --model")
        return per_rank, None
    if per_rank is not None:
        raise UsageError("give --params-per-rank or --model, not both")
    from ..analysis.plan.count import ALL_LINEAR, count_model

    counted = count_model(model, tuple(targets or [ALL_LINEAR]))
    return float(counted.params_per_rank), float(counted.model_params)


def _pick(laws: dict[str, Fit], name: str | None, *, wants_surface: bool) -> Fit:
    if name is not None:
        if name not in laws:
            raise UsageError(f"no law '{name}' here; {did_you_mean(name, laws)}")
        return laws[name]
    if wants_surface and list(laws) == ["linear"]:
        why = [w for w in laws["linear"].warnings if "shifted_power" in w]
        raise UsageError("; ".join(["only the line of Eq. 4 is here, and it knows no ranks or steps", *why]))
    if len(laws) == 1:
        return next(iter(laws.values()))
    wanted = "shifted_power" if wants_surface else "linear"
    if wanted not in laws:
        raise UsageError(f"no law '{wanted}' here; choose one with --law; {did_you_mean(wanted, laws)}")
    return laws[wanted]


def _cost(fit: Fit, batch: float | None, context: float | None, model_params: float | None) -> Any:
    from ..analysis.plan import Cost

    known = fit.diagnostics
    batch, context = batch or known.get("batch"), context or known.get("context")
    return Cost(batch, context, model_params) if batch and context else None
