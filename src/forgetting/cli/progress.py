"""Progress of a study on standard error: a bar per run and the remaining time; plain lines if it is not a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..config.schema import RunConfig, StudyConfig
from ..display.numbers import several
from ..errors import ForgettingError, visible
from ..store.folder import RunFolder
from ..studies.engines import Event


def run_bars(console: Console, **options: Any) -> Progress:
    """Bars of update steps, hidden if standard error is not a terminal; `options` are those of rich's Progress."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        disable=not sys.stderr.isatty(),
        **options,
    )


class StudyProgress:
    """Shows what a study is doing, from its plan and its events."""

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.console = Console(stderr=True)
        self.bars = run_bars(self.console)
        self.tasks: dict[str, TaskID] = {}
        self.steps: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.pending = 0
        self.ended: set[str] = set()
        self.runs: dict[str, RunConfig] = {}
        self.measured = frozenset(config.measured_steps())
        self.forecast: set[str] = set()
        self.began = time.monotonic()

    def __enter__(self) -> Self:
        self.say(f"study {self.config.name} in {self.folder}: reading text, loading {self.config.model.source}")
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def say(self, line: str) -> None:
        """Print one line on standard error."""
        self.console.print(visible(line), highlight=False, markup=False, soft_wrap=True)

    def on_plan(self, runs: list[RunConfig], pending: list[str]) -> None:
        """The study is ready to run."""
        self.pending = len(pending)
        self.runs = {run.run_id(): run for run in runs}
        skipped = len(runs) - len(pending)
        self.say(
            f"{several(len(runs), 'run')} of {several(self.config.training.steps, 'step')}"
            + (f", {skipped} done before" if skipped else "")
        )
        self.began = time.monotonic()
        if pending:
            self.tasks["all"] = self.bars.add_task("all runs", total=len(pending) * self.config.training.steps)

    def on_event(self, event: Event) -> None:
        """Handle an event: a run started, took a step, or ended."""
        match event.kind:
            case "started":
                if event.task not in self.tasks:
                    self.tasks[event.task] = self.bars.add_task(_short(event.task), total=self.config.training.steps)
                self._advance(event.task, 0)
            case "step":
                self.first.setdefault(event.task, event.step - 1)
                self._advance(event.task, event.step)
                if event.step - 1 in self.measured - {0}:  # its row is on disk by now
                    self._forecast(event.task, event.step - 1)
            case "ended":
                self._advance(event.task, self.config.training.steps)
                if event.task in self.tasks:
                    self.bars.remove_task(self.tasks.pop(event.task))
                self.ended.add(event.task)
                self._line(event.task)
            case "retried":
                self.say(f"{_short(event.task)}: {event.note}; trying again")
            case "held":
                self.ended.discard(event.task)
                self.say(f"{_short(event.task)}: held by {event.note}; waiting for it")

    def _forecast(self, task: str, step: int) -> None:
        """Say where a run will end: next to its bar, or without bars on one line, once, when a third is done."""
        from ..studies.forecasting import of_run

        found = None
        with suppress(ForgettingError, OSError):
            found = of_run(RunFolder(self.folder / "runs" / task), self.runs[task])
        if found is None or found.value is None:
            return
        if task in self.tasks:
            self.bars.update(self.tasks[task], description=f"{_short(task)}, {visible(str(found))}")
        if self.bars.disable and task not in self.forecast and 3 * step >= self.config.training.steps:
            self.forecast.add(task)
            self.say(f"{_short(task)}, measured at step {found.step}; {found}")

    def _advance(self, task: str, step: int) -> None:
        self.steps[task] = step
        self.bars.update(self.tasks["all"], completed=sum(self.steps.values()))
        if task in self.tasks:
            self.bars.update(self.tasks[task], completed=step)

    def _line(self, task: str) -> None:
        # steps that a resumed run skipped took no time
        done = sum(self.steps.values()) - sum(self.first.values())
        total = self.pending * self.config.training.steps - sum(self.first.values())
        left = (time.monotonic() - self.began) / max(done, 1) * (total - done)
        when = f", about {left / 60:.1f} min left" if left >= 60 else ", less than a minute left" if left else ""
        self.say(f"[{len(self.ended)}/{self.pending}] {_short(task)}{when}")


def _short(run_id: str) -> str:
    """A run id without its hash."""
    return run_id.rsplit("-", 1)[0]
