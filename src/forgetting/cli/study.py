"""`forgetting study`, `table` and `report`."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display.tables import Shown
from ..errors import UsageError
from . import options as o
from .printing import print_shown, say

if TYPE_CHECKING:
    import pandas as pd

    from ..analysis.study_table import LeftOut, StudyTable
    from ..config.schema import StudyConfig
    from ..studies.engines import Engine
    from ..studies.memory_plan import MemoryPlan


PRINTED = 10_000
"""Rows printed for reading; use a file for more."""
PIECE = 10_000
"""Rows of a table written as JSON at a time."""


@o.expanded
def study_command(
    config: o.Config = None,
    *,
    preset: o.Preset = None,
    out: o.Out = None,
    model: o.Model = None,
    train: o.Train = None,
    text: o.Text = None,
    method: o.Method = None,
    rank: o.Rank = None,
    seed: o.Seed = None,
    steps: o.Steps = None,
    recipe: o.RecipeOptions,
    models: o.ModelOptions,
    engine: o.EngineOption = o.EngineName.local,
    jobs: o.Jobs = None,
    accelerate_config: o.AccelerateConfig = None,
    machine_rank: o.MachineRank = None,
    ray: o.RayOptions,
    tracking: o.Tracking = None,
    prepare: o.Prepare = False,
    repeat: o.Repeat = None,
    as_json: o.AsJson = False,
) -> None:
    """Run or resume a study: fine-tune over a grid, measure forgetting during each run, fit the laws, write a report.

    Without arguments it runs the paper's study in miniature, in a few minutes on two CPU cores. Finished runs are
    skipped and interrupted runs resume, so the same command continues where it stopped.

    To extend a study, give its folder: --rank, --seed, --train and --method add runs, and --steps lengthens runs that
    have a constant learning rate. Changes that would alter stored numbers are refused.
    """
    datasets = {name: {"source": source} for name, source in named_sources(train or []).items()}
    given = recipe.given(models, model=model, text=text, steps=steps)
    given |= o.present(seeds=seed or None, tracking=tracking or None, datasets=datasets or None)
    if repeat is not None:
        _repeat(config, repeat, as_json, any((preset, out, prepare, accelerate_config, method, rank, given)))
        return
    where = _engine(engine.value, jobs, accelerate_config, machine_rank, ray.given())
    resolved = _resolved(given, config, preset, out, method, rank)
    folder = out or (config if config is not None and config.is_dir() else Path("studies") / resolved.name)
    if prepare:
        _prepare(resolved, folder, where, as_json)
    else:
        _study(resolved, folder, where, as_json)


def _resolved(
    given: dict[str, Any],
    config: Path | None,
    preset: str | None,
    out: Path | None,
    method: str | None,
    ranks: list[int] | None,
) -> StudyConfig:
    """The requested study; flags extend a study given by its folder."""
    from ..config.files import with_flags
    from ..config.growing import with_more
    from ..tuning.methods import default_rank

    if config is not None and config.is_dir() and preset is None and (out is None or out.resolve() == config.resolve()):
        return with_more(config, given, default_rank=default_rank, method=method, ranks=ranks)
    return with_flags(given, config, preset, method=method, ranks=ranks, default_rank=default_rank)


def _engine(name: str, jobs: int | None, accelerate: Path | None, machine: int | None, given: dict[str, Any]) -> Engine:
    """The engine that the flags ask for.

    Raises:
        UsageError: a flag of another engine.
    """
    from ..studies.engines import Local, Ray
    from ..studies.engines.accelerate import read_engine

    if accelerate is not None and jobs is not None:
        raise UsageError(
            f"--accelerate-config: does not go with --jobs {jobs}: its processes execute one run at a time"
        )
    if name == "ray":
        if jobs is not None:
            raise UsageError(
                "--jobs: not with --engine ray; --run-cpus, --run-gpus and --run-memory set how many runs fit at once"
            )
        if accelerate is None:
            return Ray(**given)
        launch = read_engine(accelerate, machine).launch
        if launch.machines > 1:
            raise UsageError(
                f"{accelerate}: num_machines {launch.machines}: on Ray, a run's processes are all on one node; give 1"
            )
        return Ray(**given, launch=launch)
    if given:
        option = next(iter(given))
        raise UsageError(f"--{'ray' if option == 'address' else 'run'}-{option}: needs --engine ray")
    if accelerate is None and machine is not None:
        raise UsageError("--machine-rank: needs --accelerate-config with num_machines above 1")
    return Local(jobs) if accelerate is None else read_engine(accelerate, machine)


def _repeat(study: Path | None, run_id: str, as_json: bool, more: bool) -> None:
    """Repeat a run; exit code 1 if its numbers differ by the rule of `forgetting.studies.repeat`."""
    from dataclasses import asdict

    if study is None or not study.is_dir() or more:
        raise UsageError("--repeat: give only the study folder: `forgetting study FOLDER --repeat RUN_ID`")
    from ..studies.repeat import repeat

    made = repeat(study, run_id)
    if as_json:
        typer.echo(json.dumps({**asdict(made), "folder": str(made.folder), "holds": made.holds}, indent=1, default=str))
    else:
        typer.echo(made.sentence())
    if not made.holds:
        raise typer.Exit(1)


def _prepare(config: StudyConfig, folder: Path, engine: Engine, as_json: bool) -> None:
    """Create the study folder and print the ids of the runs to do; their memory goes to standard error."""
    from ..studies.study import prepare

    plans: list[MemoryPlan] = []
    todo = prepare(config, folder, engine, on_memory=plans.append)
    if as_json:
        memory = plans[0].to_dict() if plans else None
        typer.echo(json.dumps({"folder": str(folder), "left": todo, "memory": memory}, indent=1))
        return
    for plan in plans:
        sys.stderr.write(f"{plan}\n")
    typer.echo("\n".join(todo))


def _study(config: StudyConfig, folder: Path, engine: Engine, as_json: bool) -> None:
    """Run a study and print the result; on a machine other than the first, do its part and print nothing."""
    from ..studies.conclude import run_study
    from ..studies.engines import Accelerate
    from ..studies.study import follow
    from .progress import StudyProgress

    if isinstance(engine, Accelerate) and engine.launch.machine:
        follow(folder, engine)
        return
    with StudyProgress(config, folder) as progress:
        result = run_study(config, folder, engine, on_event=progress.on_event, on_plan=progress.on_plan)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
    else:
        print_shown([*result.shown(), Shown(result.next_commands())])
    for run_id, why in result.failed.items():
        say(f"failed: {run_id}: {why}")
    _say(result.left)
    if result.failed or result.left.damaged:
        raise typer.Exit(1)


def named_sources(sources: list[str]) -> dict[str, str]:
    """Data sets given by flag, by name: the last part of a file name or id, plus the part before it if two are equal.

    Raises:
        UsageError: one is given twice.
    """
    stems = [_stem(source, 1) for source in sources]
    named: dict[str, str] = {}
    for source, stem in zip(sources, stems, strict=True):
        if sources.count(source) > 1:
            raise UsageError(f"--train {source}: given twice")
        name = stem if stems.count(stem) == 1 else _stem(source, 2)
        number = 2
        while name in named:
            name, number = f"{_stem(source, 2)[:60]}-{number}", number + 1
        named[name] = source
    return named


def _stem(source: str, parts: int) -> str:
    """The last parts of a file name or id, without the suffix, as a name."""
    last = "-".join(re.split(r"[/:]", source.rstrip("/"))[-parts:])
    stem = re.sub(r"\.(txt|md|jsonl|ndjson|json|csv|tsv|parquet)(\.gz|\.zst)?$", "", last)
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).strip("-._")[:64] or "data"


def table_command(
    study: o.Study,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list of objects.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    as_parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet; redirect it into a file.")] = False,
) -> None:
    """Print a study's measurements, one row each, on standard output."""
    if as_json + as_csv + as_parquet > 1:
        raise UsageError("--json, --csv, --parquet: give only one of them")
    if as_parquet and sys.stdout.isatty():
        raise UsageError("--parquet: writes binary data; redirect it, for example `> runs.parquet`")
    from ..analysis.study_table import read_study
    from ..config.bits import quantised_notes
    from ..store.table import records

    found = read_study(study)
    table = found.table
    if as_json:
        # in pieces, because a million rows as objects take more memory than the study; a large table is not indented,
        # because that takes ten times as long
        indent, edge = (1, 2) if len(table) <= PRINTED else (None, 1)
        parts = (records(table[at : at + PIECE]) for at in range(0, len(table), PIECE))
        pieces = (json.dumps(part, indent=indent)[edge:-edge] for part in parts)
        typer.echo("[")
        for number, piece in enumerate(pieces):
            typer.echo((",\n" if number else "") + piece, nl=False)
        typer.echo("\n]" if len(table) else "]")
    elif as_csv:
        write_csv(table)
    elif as_parquet:
        table.to_parquet(sys.stdout.buffer, index=False)
    else:
        _print_table(found)
    _say(found.left)
    if not (as_json or as_csv or as_parquet):
        for note in quantised_notes(found.config.model):
            say(f"note: {note}")


def write_csv(table: pd.DataFrame) -> None:
    """A table as CSV on standard output; a large one with Arrow, ten times as fast, with the same values."""
    if len(table) <= PRINTED:
        table.to_csv(sys.stdout, index=False)
        return
    import pyarrow as pa
    import pyarrow.csv

    sys.stdout.write(",".join(table.columns) + "\n")
    sys.stdout.flush()
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
    pyarrow.csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), sys.stdout.buffer, options)


def _say(left: LeftOut) -> None:
    """Name the runs that are left out of fits, comparisons and the report, on standard error."""
    for sentence in left.sentences():
        say(sentence)


def _print_table(found: StudyTable) -> None:
    """Print the rows of runs in the configuration, then those of other runs."""
    from ..store.columns import UNASKED
    from ..store.summary import measurements_shown

    table = found.table
    apart = table["status"] == UNASKED
    shown = [measurements_shown(part.head(PRINTED)) for part in (table[~apart], table[apart]) if len(part)]
    if apart.any():
        shown[-1] = replace(shown[-1], heading=["runs that the configuration no longer asks for (not used in fits):"])
    print_shown(shown)
    if len(table) > PRINTED:
        sys.stderr.write(
            f"only the first {PRINTED:,} of {len(table):,} rows are shown; --csv, --json or --parquet writes all\n"
        )


def report_command(
    study: o.Study,
    as_json: o.AsJson = False,
) -> None:
    """Refit the laws and rewrite the report from everything a study has measured so far."""
    from ..studies.conclude import report

    made = report(study)
    left = {"damaged": made.left.damaged, "unasked": list(made.left.unasked), "foreign": made.left.foreign}
    typer.echo(json.dumps({"report": str(made.report), **left}) if as_json else str(made.report))
    _say(made.left)
    if not as_json:
        for line in made.next_commands():
            say(line)
