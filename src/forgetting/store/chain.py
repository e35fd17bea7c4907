"""What a run's record keeps of its rows, so that lost, changed, doubled and misplaced ones are noticed.

A finished run's run.json has `measured`: the number of rows, a hash chain over them, and a sha256 of the file. In the
chain each row's hash includes the one before it. It leaves out times and memory, so that a run that was cut and resumed
ends in the chain of an uninterrupted one; the sha256 is over all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.schema import measured_steps
from .columns import COSTS


@dataclass(frozen=True)
class Chain:
    """A hash chain over rows.

    Attributes:
        rows: how many.
        head: the last row's hash; empty for none.
    """

    rows: int = 0
    head: str = ""

    def after(self, row: Mapping[str, Any]) -> Chain:
        """With one more row."""
        numbers = {name: value for name, value in row.items() if name not in COSTS}
        text = json.dumps(numbers, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return Chain(self.rows + 1, hashlib.sha256(f"{self.head}\n{text}".encode()).hexdigest())


def chain_of(rows: Iterable[Mapping[str, Any]]) -> Chain:
    """The chain over rows in their order."""
    chain = Chain()
    for row in rows:
        chain = chain.after(row)
    return chain


def seal(rows: Sequence[Mapping[str, Any]], content: bytes) -> dict[str, Any]:
    """What the record of a finished run keeps of its rows.

    Args:
        rows: as read.
        content: the whole lines that they were read from.
    """
    chain = chain_of(rows)
    return {"rows": chain.rows, "chain": chain.head, "sha256": hashlib.sha256(content).hexdigest()}


def broken(record: Mapping[str, Any], content: bytes) -> str:
    """How the whole lines of a finished run's file differ from what was written, in words; empty where they do not.

    A run that is not finished, or was by a version that kept no seal, has nothing to differ from.
    """
    sealed = record.get("measured")
    if record.get("status") != "done" or not isinstance(sealed, Mapping):
        return ""
    count = content.count(b"\n")
    if count != sealed.get("rows"):
        return f"measurements.jsonl has {count} rows, {sealed.get('rows')} were written"
    if hashlib.sha256(content).hexdigest() != sealed.get("sha256"):
        return f"measurements.jsonl has other content than the {count} rows that were written"
    return ""


def misplaced(record: Mapping[str, Any], rows: Sequence[tuple[Any, Any]]) -> str:
    """What is wrong with the steps of a run's rows, in words; empty where nothing is.

    Each step of the run's own grid comes once and in order, without a gap, and in a finished run to the last one.

    Args:
        record: run.json.
        rows: step and alpha of each, whole and number or None, in their order.
    """
    seen: dict[tuple[int, float | None], int] = {}
    for line, (step, alpha) in enumerate(rows, start=1):
        if step is None or step < 0:
            at = "whose step is blank" if step is None else f"at step {step}"
            return f"measurements.jsonl has a row {at}, in line {line}"
        if (step, alpha) in seen:
            return f"measurements.jsonl has step {step} twice, in lines {seen[step, alpha]} and {line}"
        seen[step, alpha] = line
    grid = grid_of(record)
    if grid is None:
        return ""
    came = [step for step, alpha in rows if alpha is None]
    if beside := sorted({step for step, _ in seen} - set(grid)):
        return f"measurements.jsonl has step {beside[0]}, at which this run is not measured"
    wanted = grid if record.get("status") == "done" else grid[: len(came)]
    if missing := [step for step in wanted if (step, None) not in seen]:
        return f"measurements.jsonl lacks step {missing[0]}"
    return "" if came == wanted else "measurements.jsonl has its steps in another order"


NEEDED = ("alpha", "finetune_loss", "forgetting_loss")
"""The columns that `unmeasured` looks at."""


def unmeasured(record: Mapping[str, Any], rows: Sequence[tuple[float | None, ...]]) -> str:
    """Which row of a finished run lacks a loss, in words; empty where none does.

    Args:
        record: run.json.
        rows: NEEDED of each, in their order.
    """
    for line, (alpha, *losses) in enumerate(rows, start=1):
        if record.get("status") == "done" and alpha is None and None in losses:
            return f"measurements.jsonl has no {NEEDED[1 + losses.index(None)]} in line {line}"
    return ""


def grid_of(record: Mapping[str, Any]) -> list[int] | None:
    """The steps at which a run is measured, by its own stored configuration; None where it has none."""
    try:
        config = record["config"]
        numbers = (config["training"]["steps"], config["measure"]["start"], config["measure"]["every"])
    except (KeyError, TypeError):
        return None
    if not all(type(number) is int and number >= 1 for number in numbers) or numbers[1] > numbers[0]:
        return None
    return measured_steps(*numbers)
