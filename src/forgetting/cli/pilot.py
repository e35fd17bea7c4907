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
from .study import named_sources

if TYPE_CHECKING:
    from ..config.schema import StudyConfig
    from ..studies.engines import Event
    from ..studies.pilot_result import PilotStep


@dataclass(frozen=True)
class Limits:
    """When a pilot ends."""

    minutes: Annotated[
        float, typer.Option(help="Maximum time of all runs together, including those of earlier calls.")
    ] = 30.0
    tolerance: Annotated[
        float,
        typer.Option(help="Half width of the band of forgetting at which to stop, as a share of the budget."),
    ] = 0.1


@o.expanded
def pilot_command(
    config: Annotated[Path | None, typer.Argument(help="A study's YAML. Default: flags, or the miniature.")] = None,
    *,
    budget: Annotated[float, typer.Option(help="Allowed excess forgetting, nats/token.")],
    limits: Limits,
    out: o.Out = None,
    model: o.Model = None,
    train: Annotated[
        str | None, typer.Option(help="Fine-tuning data: a {files} file, a folder of them, or a Hub id.")
    ] = None,
    text: o.Text = None,
    method: Annotated[str | None, typer.Option(help="Fine-tuning method that has a rank.")] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Ranks to choose from; repeat for at least three. Default: 8, 16, 32, 64."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Maximum update steps of a run.")] = None,
    recipe: o.RecipeOptions,
    models: o.ModelOptions,
    as_json: o.AsJson = False,
) -> None:
    """Find the best rank and steps within a budget of forgetting, by short runs, one at a time.

    Each run is the one that narrows the forgetting band of the recommended run most per unit of time, until the band is
    within the tolerance or the time is up. Then it prints the rank and steps, with bands, and the command to run them.
    It can be stopped at any time; the same command continues. Its folder is a study folder. Exit code 1 if there is no
    plan.

    Without a model and data it uses the miniature (--train miniature:news for its other data set).
    """
    from ..studies.pilot import pilot

    whole = _resolved(recipe.given(models, model=model, text=text, steps=steps), config, train, method)
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
    """The study's configuration: from a file, from flags, or the miniature's."""
    from ..config.files import deep_merge, with_flags
    from ..studies.pilot_config import miniature_flags

    embedded = train is None or train.startswith("miniature:")
    if file is None and embedded and not {"model", "text"} & given.keys():
        return with_flags(deep_merge(miniature_flags(train), given), None, "miniature", method=method)
    if train is not None:
        given["datasets"] = {name: {"source": source} for name, source in named_sources([train]).items()}
    return with_flags(given, file, None, method=method)


class PilotProgress:
    """Shows on standard error each run of a pilot and its reason, the band so far, and the remaining time."""

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
        """Print the next run, or the runs to lengthen, before they start."""
        self.steps = step.following.steps
        self.bars.console.print(step.sentence(), highlight=False, markup=False, soft_wrap=True)

    def on_event(self, event: Event) -> None:
        """Handle an event: a run started, took a step, or ended."""
        match event.kind:
            case "started":
                self.bars.add_task(event.task.rsplit("-", 1)[0], total=self.steps or None)
            case "step" if self.bars.tasks:
                self.bars.update(self.bars.task_ids[-1], completed=event.step)
            case "ended" if self.bars.tasks:
                self.bars.remove_task(self.bars.task_ids[-1])
            case "held":
                say(f"{event.task}: held by {event.note}; waiting for it")
