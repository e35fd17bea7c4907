"""`forgetting pilot`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from ..errors import ForgettingError
from . import options as o
from .printing import print_shown, say
from .study import named_sources, present

if TYPE_CHECKING:
    from ..config.schema import StudyConfig
    from ..studies.engines import Event
    from ..studies.pilot_result import PilotStep


@dataclass(frozen=True)
class Limits:
    """When a pilot ends."""

    minutes: Annotated[float, typer.Option(help="For all runs together, those of earlier calls among them.")] = 30.0
    tolerance: Annotated[
        float, typer.Option(help="Half width of the band of forgetting, as a share of the budget, that is enough.")
    ] = 0.1


@o.expanded
def pilot_command(
    config: Annotated[Path | None, typer.Argument(help="A study's YAML. Default: flags, or the miniature.")] = None,
    *,
    budget: Annotated[float, typer.Option(help="Forgetting allowed, nats/token above the base model's.")],
    limits: Limits,
    out: o.Out = None,
    model: o.Model = None,
    train: Annotated[
        str | None, typer.Option(help="Fine-tuning data: a {files} file, a folder of them, or a Hub id.")
    ] = None,
    text: o.Text = None,
    method: Annotated[str | None, typer.Option(help="Fine-tuning method; one that has a rank.")] = None,
    rank: Annotated[
        list[int] | None, typer.Option(help="Rank that may be run; repeat, for three at least. Default: 8, 16, 32, 64.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="The most update steps that a run may take.")] = None,
    batch_size: o.BatchSize = None,
    context: o.Context = None,
    learning_rate: o.LearningRate = None,
    measure_start: o.MeasureStart = None,
    measure_every: o.MeasureEvery = None,
    batch_tokens: o.BatchTokens = None,
    models: o.ModelOptions,
    as_json: o.AsJson = False,
) -> None:
    """From nothing to a plan: short runs, one at a time, until it is clear what spends a budget of forgetting.

    Each run is the one that narrows the band of forgetting at the recommended run most for its time, until the band is
    within the tolerance or the time is up. Then it prints the rank and steps, with bands, and the command to run them.
    Stop it whenever you like: the same command goes on. Its folder is a study's. Exit code 1 where there is no plan.

    Without a model and data it is of the miniature (--train miniature:news for its other data set).
    """
    from ..studies.pilot import pilot

    flags: dict[str, Any] = {
        "model": present(source=model, **models.given()),
        "text": present(source=text),
        "context": context,
        "training": present(steps=steps, batch_size=batch_size, learning_rate=learning_rate),
        "measure": present(start=measure_start, every=measure_every, batch_tokens=batch_tokens),
    }
    whole = _resolved({name: value for name, value in flags.items() if value}, config, train, method)
    with PilotProgress() as progress:
        hear, see = progress.on_event, progress.on_step
        found = asdict(limits)
        result = pilot(whole, out, budget=budget, ranks=rank or None, on_event=hear, on_step=see, **found)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
    else:
        print_shown(result.shown())
    if not result.planned:
        raise ForgettingError(f"no plan: {result.why}")


def _resolved(given: dict[str, Any], file: Path | None, train: str | None, method: str | None) -> StudyConfig:
    """The study that is meant: of a file, of flags, or the miniature."""
    from ..config.files import deep_merge, with_flags
    from ..studies.pilot_config import miniature_flags

    embedded = train is None or train.startswith("miniature:")
    if file is None and embedded and not {"model", "text"} & given.keys():
        return with_flags(deep_merge(miniature_flags(train), given), None, "miniature", method=method)
    if train is not None:
        given["datasets"] = {name: {"source": source} for name, source in named_sources([train]).items()}
    return with_flags(given, file, None, method=method)


class PilotProgress:
    """Shows on standard error which run a pilot does and why, the band so far, and the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console

        from .progress import run_bars

        self.bars = run_bars(Console(stderr=True), transient=True)
        self.steps = 0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def on_step(self, step: PilotStep) -> None:
        """A run, or longer runs, are about to begin."""
        self.steps = step.following.steps
        self.bars.console.print(step.sentence(), highlight=False, markup=False, soft_wrap=True)

    def on_event(self, event: Event) -> None:
        """A run started, took a step, or ended."""
        match event.kind:
            case "started":
                self.bars.add_task(event.task.rsplit("-", 1)[0], total=self.steps or None)
            case "step" if self.bars.tasks:
                self.bars.update(self.bars.task_ids[-1], completed=event.step)
            case "ended" if self.bars.tasks:
                self.bars.remove_task(self.bars.task_ids[-1])
            case "held":
                say(f"{event.task}: held by {event.note}; waiting for it")
