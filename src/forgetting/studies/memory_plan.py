"""Checks whether a study's runs fit the available memory, before the first of them begins."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..config.schema import RunConfig, StudyConfig
from ..display.numbers import number
from ..display.paths import shortener
from ..display.tables import Result, Shown
from ..errors import ForgettingError, UsageError
from ..models import memory
from ..models.failures import first_line
from ..tuning.mitigations import label
from .engines import Accelerate, Engine, Local, Ray
from .engines.local import count_cores
from .execute import SMALL_MODEL

if TYPE_CHECKING:
    import torch

    from ..models.skeleton import Skeleton
    from ..models.sources import Source
    from ..tuning.footprint import Footprint

log = logging.getLogger(__name__)
GB = 1e9
PROCESS = {"cpu": 0.5e9, "cuda": 0.6e9}
"""Bytes that a process takes in addition to its run: Python and the libraries, or CUDA's context on the GPU."""
SURELY = 0.5
"""If a generous bound is below this share of the free memory, the exact plan is skipped."""


@dataclass(frozen=True)
class Places:
    """How an engine uses a device for runs.

    Attributes:
        jobs: number of runs at a time; None: one per core if one thread per run is best, else 1.
        processes: number of processes per run.
        device: device of these processes; None for that of the model.
        sharded: whether each process holds a shard of every weight (FSDP2) instead of the whole model.
        memory: GB that Ray reserves for a run; None if it reserves none.
    """

    jobs: int | None = 1
    processes: int = 1
    device: str | None = None
    sharded: bool = False
    memory: float | None = None


def places_of(engine: Engine) -> Places:
    """How an engine uses a device."""
    if isinstance(engine, Local):
        return Places(jobs=engine.jobs)
    if not isinstance(engine, Accelerate | Ray):
        return Places()
    given = engine.memory if isinstance(engine, Ray) else None
    if (launch := engine.launch) is None:
        return Places(memory=given)
    return Places(processes=launch.processes, device=launch.device, sharded=launch.sharding is not None, memory=given)


@dataclass(frozen=True)
class Row:
    """The memory of one kind of run.

    Attributes:
        label: method, rank and mitigations.
        taken: memory that a run takes; None if unknown.
        why: why it is unknown; else empty.
        once: True for the measurement of the base model, which is done once before the runs.
    """

    label: str
    taken: Footprint | None
    why: str = ""
    once: bool = False


@dataclass(frozen=True)
class MemoryPlan(Result):
    """The memory that a study's runs need.

    Attributes:
        rows: the smallest and the largest rank of each method and its mitigations.
        room: memory of the device; None if unknown.
        device: torch's device type, such as `cpu` or `cuda`.
        at_once: number of runs, or of processes of one run, on the device at a time.
        places: how the engine uses the device.
    """

    rows: tuple[Row, ...]
    room: memory.Room | None
    device: str
    at_once: int
    places: Places = Places()

    def _need(self, row: Row) -> float:
        """Bytes of all runs of this kind at a time, including their processes."""
        assert row.taken is not None
        count = 1 if row.once else self.at_once
        return count * (row.taken.total + PROCESS.get(self.device, 0.0))

    def check(self) -> None:
        """Refuse runs whose weights, gradients and optimiser state alone exceed the device's memory.

        Raises:
            UsageError: names the run and both sizes.
        """
        count = self.places.processes if self.device == "cpu" else 1
        for row in self.rows:
            if row.taken is None or self.room is None or count * row.taken.parameters <= self.room.total:
                continue
            parts = (
                ("weights", row.taken.weights),
                ("gradients", row.taken.gradients),
                ("optimiser", row.taken.optimiser),
            )
            shown = ", ".join(f"{name} {_gb(value)}" for name, value in parts if value)
            times = f" in each of {count} processes" if count > 1 else ""
            raise UsageError(
                f"memory: {row.label} needs {_gb(row.taken.parameters)} GB{times} ({shown}) before reading any text, "
                f"but {self.room.where} has only {_gb(self.room.total)} GB; {_less(row.taken)}"
            )

    def verdict(self, row: Row) -> tuple[Literal["works", "note", "broken"], str]:
        """Whether one kind of run fits, and what to change if it does not."""
        assert row.taken is not None
        if self.room is None or self._need(row) <= self.room.free:
            return "works", ""
        return "broken" if row.taken.parameters > self.room.total else "note", _less(row.taken)

    def sentence(self, row: Row) -> str:
        """The memory that one kind of run takes, and the free memory, in words."""
        taken = row.taken
        assert taken is not None
        parts = {
            "weights": taken.weights,
            "gradients": taken.gradients,
            "optimiser": taken.optimiser,
            "copies": taken.held,
            "passes": taken.passes,
        }
        shown = ", ".join(f"{name} {_gb(value)}" for name, value in parts.items() if value)
        times = f", {self.at_once} at once {_gb(self._need(row))}" if self.at_once > 1 and not row.once else ""
        there = "" if self.room is None else f"; {self.room.where} has {_gb(self.room.free)} GB free"
        return f"{_gb(taken.total)} GB ({shown}){times}{there}"

    def warnings(self) -> list[str]:
        """One line if the largest run takes more than the free memory, and one if more than Ray reserves for it."""
        known = [row for row in self.rows if row.taken is not None]
        if not known:
            return []
        most = max(known, key=self._need)
        need = self._need(most)
        assert most.taken is not None
        times = f", {self.at_once} at once {_gb(need)} GB" if self.at_once > 1 and not most.once else ""
        said = f"memory: {most.label} needs about {_gb(need if not times else most.taken.total)} GB{times}"
        found = []
        if self.room is not None and need > self.room.free:
            fewer = "use fewer --jobs, or " if times and self.places.processes == 1 else ""
            found.append(
                f"{said}, but {self.room.where} has {_gb(self.room.free)} GB free of {_gb(self.room.total)}: a run may "
                f"fail; {fewer}{_less(most.taken)}"
            )
        reserved = self.places.memory if self.device == "cpu" else None  # what Ray reserves is not on the GPU
        if reserved is not None and need > reserved * GB:
            found.append(f"{said}, but --run-memory reserves {reserved:g} GB")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain objects; sizes in bytes."""
        room = None if self.room is None else asdict(self.room)
        return {"device": self.device, "at_once": self.at_once, "there": room, "runs": self._as_rows()}

    def _as_rows(self) -> list[dict[str, Any]]:
        names = ("weights", "gradients", "optimiser", "held", "passes", "total", "trained", "counted")
        return [
            {"run": row.label, "why": row.why or None}
            | {name: None if row.taken is None else getattr(row.taken, name) for name in names}
            for row in self.rows
        ]

    def shown(self) -> Sequence[Shown]:
        """The plan as a table; sizes in GB."""
        there = "its memory is unknown"
        if self.room is not None:
            there = f"{self.room.where} has {_gb(self.room.free)} GB free of {_gb(self.room.total)}"
        once = f", {self.at_once} at once" if self.at_once > 1 else ""
        rows = []
        for row in self.rows:
            if row.taken is None:
                rows.append((row.label, *["–"] * 7))
                continue
            one = row.taken
            parts = (one.weights, one.gradients, one.optimiser, one.held, one.passes, one.total)
            rows.append((row.label, f"{one.trained:,}", *map(_gb, parts)))
        notes = [f"{row.label}: {row.why}" for row in self.rows if row.why]
        if any(row.taken is not None and not row.taken.counted for row in self.rows):
            notes.append("passes estimated by a formula, because the model cannot be run without its weights")
        columns = ("run", "trained", "weights", "gradients", "optimiser", "copies", "passes", "total")
        return [
            Shown([f"memory of a run, GB, on {self.device}{once}; {there}"], columns, rows, [*notes, *self.warnings()])
        ]


def _gb(count: float) -> str:
    """Bytes as a number of GB, without the unit."""
    return number(count / GB, 2 if count < 100 * GB else 3) if count >= 0.0005 * GB else "0"


def _less(taken: Footprint) -> str:
    """Advice on how to make a run smaller."""
    if taken.passes > taken.parameters:
        return "use a smaller training.micro_batch_size, or training.gradient_checkpointing: true"
    if taken.gradients + taken.optimiser > taken.weights / 2:
        return "use a smaller rank, fewer trained layers, or training.optimizer: adafactor"
    return "use model.dtype: bfloat16, or model.bits (--bits 4)"


def plan(
    config: StudyConfig,
    runs: Sequence[RunConfig],
    source: Source,
    places: Places,
    longest: Mapping[str, int] | None = None,
) -> MemoryPlan:
    """Plan the memory of a study's runs.

    Args:
        config: the study's configuration.
        runs: the study's runs.
        source: where the base model is; its weights are not read.
        places: how the engine uses the device.
        longest: length of the longest training window of each data set, in tokens; None uses the context length.

    Raises:
        UsageError: the model's configuration cannot be read.
    """
    from ..models.skeleton import skeleton

    device = device_of(config, places)
    base = skeleton(config.model, source)
    chosen = list(_chosen(runs, longest or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries repeat their warnings when the model is loaded
        rows = [_row(run, base, places, (longest or {}).get(run.dataset_name), device.type) for run in chosen]
        if config.model.reference == "full":
            rows.append(_reference(config, base, source))
    at_once = min(_at_once(places, device, base), max(1, len(runs))) if places.processes == 1 else places.processes
    if device.type != "cpu" and places.processes > 1:
        at_once = 1  # each process has its own GPU
    short = shortener(row.label for row in rows)
    rows = [replace(row, label=short(row.label)) for row in rows]
    return MemoryPlan(tuple(rows), memory.room(device), device.type, at_once, places)


def device_of(config: StudyConfig, places: Places) -> torch.device:
    """The device that runs use."""
    from ..models.loading import pick_device

    return pick_device(places.device or config.model.device)


def _at_once(places: Places, device: torch.device, base: Skeleton) -> int:
    """Number of runs at a time, as `Local` decides it."""
    if places.jobs is not None:
        return places.jobs
    count = sum(p.numel() for p in base.model.parameters())
    return count_cores() if device.type == "cpu" and count < SMALL_MODEL else 1


def _chosen(runs: Sequence[RunConfig], longest: Mapping[str, int]) -> Iterator[RunConfig]:
    """For each method and its mitigations, the runs of smallest and largest rank on the longest windows."""
    kinds: dict[str, list[RunConfig]] = {}
    for run in runs:
        options = {name: value for name, value in run.method.options.items() if name not in ("rank", "learning_rate")}
        together = [mitigation.model_dump(mode="json") for mitigation in run.mitigations]
        key = json.dumps([run.method.name, run.method.label, options, together], sort_keys=True, default=str)
        kinds.setdefault(key, []).append(run)
    for kind in kinds.values():
        ordered = sorted(kind, key=lambda run: (_rank(run), longest.get(run.dataset_name, 0)))
        small, large = ordered[0], ordered[-1]
        if _rank(small) != _rank(large):
            yield next(run for run in reversed(ordered) if _rank(run) == _rank(small))
        yield large


def _rank(run: RunConfig) -> int:
    rank = run.method.options.get("rank")
    return rank if isinstance(rank, int) else 0


def _row(run: RunConfig, base: Skeleton, places: Places, longest: int | None, device: str) -> Row:
    from ..tuning import footprint

    rank = f" r {_rank(run)}" if _rank(run) else ""
    with_these = f" + {label(run.mitigations)}" if run.mitigations else ""
    name = f"{run.method.label or run.method.name}{rank}{with_these}"
    try:
        passes = footprint.passes_of(run, places.processes, longest, device)
        found = footprint.footprint(run, base, passes)
        return Row(name, _part(found, places.processes, base) if places.sharded else found)
    except ForgettingError as error:
        return Row(name, None, first_line(error))
    except Exception as error:  # libraries raise many kinds of errors on a model without weights
        log.debug("%s: %s", name, error)
        return Row(name, None, "cannot be counted without the weights")


def _part(whole: Footprint, processes: int, base: Skeleton) -> Footprint:
    """The memory of one of several processes: its shard of every weight, and one whole layer."""
    layers = max(1, int(getattr(base.model.config.get_text_config(), "num_hidden_layers", 1) or 1))
    gathered = max(base.largest, whole.weights // layers)
    return replace(
        whole,
        weights=-(-whole.weights // processes) + gathered,
        gradients=-(-whole.gradients // processes),
        optimiser=-(-whole.optimiser // processes),
    )


def _reference(config: StudyConfig, base: Skeleton, source: Source) -> Row:
    """The memory while the model in full precision is measured, with the quantised one loaded as well."""
    from ..models.skeleton import skeleton
    from ..tuning import pass_memory
    from ..tuning.footprint import Footprint

    name = "once: the base model in full precision, in addition"
    try:
        full = skeleton(config.model.measured_against(), source)
        passes = pass_memory.measuring_bytes(full.copied(), config.measure.batch_tokens, config.context, on_gpu=False)
    except Exception as error:
        log.debug("%s: %s", name, error)
        return Row(name, None, "cannot be counted without the weights", once=True)
    return Row(name, Footprint(base.bytes + full.bytes, 0, 0, 0, passes, 0, True), once=True)


def surely_fits(config: StudyConfig, runs: Sequence[RunConfig], source: Source, places: Places) -> bool:
    """Whether a generous bound on the runs' memory, from the weights' shapes alone, is far below the free memory.

    False if the shapes are unknown. True if the free memory is unknown, as there is nothing to compare with.
    """
    from ..models import weights

    room = memory.room(device_of(config, places))
    if room is None:
        return True  # nothing to compare with
    shapes = [] if source.local is None else [one.shape for one in weights.of_folder(source.local).values()]
    if not shapes:
        return False
    numbers = sum(map(math.prod, shapes))
    widths = sum(sum(shape) for shape in shapes if len(shape) > 1)
    tallest = max(max(shape, default=1) for shape in shapes)
    rank = max((n for run in runs for n in _whole_numbers(run.method.options)), default=1)
    tokens = max(_tokens(config, places), config.measure.batch_tokens)
    bound = 4 * (8 * numbers + 6 * rank * widths + 8 * tokens * (widths + tallest))
    count = max(places.jobs or count_cores(), places.processes)
    return count * (bound + PROCESS["cpu"]) < SURELY * room.free


def _tokens(config: StudyConfig, places: Places) -> int:
    """Tokens in one pass of one process."""
    share = max(1, config.training.batch_size // places.processes)
    return config.context * min(config.training.micro_batch_size or share, share)


def _whole_numbers(value: Any) -> Iterator[int]:
    """All integers in a method's options; one of them is its rank, whatever the option's name."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _whole_numbers(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _whole_numbers(one)
    elif type(value) is int:
        yield value


def look_ahead(
    config: StudyConfig,
    runs: Sequence[RunConfig],
    source: Source,
    places: Places,
    longest: Mapping[str, int],
    *,
    always: bool,
) -> MemoryPlan | None:
    """The memory plan of a study about to begin; None if everything surely fits, or if planning fails.

    Args:
        config, runs, source, places, longest: see `plan`.
        always: make the plan even if everything surely fits.

    Raises:
        UsageError: the weights, gradients and optimiser state of a run alone do not fit.
    """
    try:
        if not always and surely_fits(config, runs, source, places):
            return None
        found = plan(config, runs, source, places, longest)
    except Exception as error:  # loading the model will give a better message
        log.debug("no plan of the memory: %s", error)
        return None
    found.check()
    return found
