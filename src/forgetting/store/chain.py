"""What a run's record stores about its rows, so that lost, changed, repeated and misplaced rows are detected.

A finished run's run.json has `measured`: the number of rows, a hash chain over them, and a sha256 of the file. In the
chain, each row's hash includes the one before it. The chain ignores times and memory, so that an interrupted and
resumed run ends with the same chain as an uninterrupted one; the sha256 covers everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.schema import measured_steps
from ..display.numbers import several
from .columns import COSTS


@dataclass(frozen=True)
class Chain:
    """A hash chain over rows.

    Attributes:
        rows: number of rows.
        head: hash of the last row; empty if there are none.
    """

    rows: int = 0
    head: str = ""

    def after(self, row: Mapping[str, Any]) -> Chain:
        """The chain with one more row."""
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
    """What the record of a finished run stores about its rows.

    Args:
        rows: the rows as read.
        content: the complete lines that they were read from.
    """
    chain = chain_of(rows)
    return {"rows": chain.rows, "chain": chain.head, "sha256": hashlib.sha256(content).hexdigest()}


def broken(record: Mapping[str, Any], content: bytes, count: int) -> str:
    """How the complete lines of a finished run's file differ from what was written, in words; empty if they do not.

    Also empty for an unfinished run, and for one of an earlier version, which stored nothing to compare with.

    Args:
        record: run.json.
        content: the lines.
        count: their number.
    """
    sealed = record.get("measured")
    if record.get("status") != "done" or not isinstance(sealed, Mapping):
        return ""
    if count != sealed.get("rows"):
        return f"measurements.jsonl has {several(count, 'row')} instead of {sealed.get('rows')}"
    if hashlib.sha256(content).hexdigest() != sealed.get("sha256"):
        return f"measurements.jsonl was changed; it is not what was measured ({several(count, 'row')})"
    return ""


def misplaced(record: Mapping[str, Any], rows: Sequence[tuple[Any, Any]]) -> str:
    """What is wrong with the steps of a run's rows, in words; empty if nothing is.

    Each step of the run's own grid must occur once and in order, without gaps; in a finished run, all of them.

    Args:
        record: run.json.
        rows: step (int) and alpha (number or None) of each row, in order.
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
        return f"measurements.jsonl has step {beside[0]}, which is not a measured step of this run"
    wanted = grid if record.get("status") == "done" else grid[: len(came)]
    if missing := [step for step in wanted if (step, None) not in seen]:
        return f"measurements.jsonl lacks step {missing[0]}"
    return "" if came == wanted else "the steps in measurements.jsonl are out of order"


NEEDED = ("alpha", "finetune_loss", "forgetting_loss")
"""The columns that `unmeasured` checks."""


def unmeasured(record: Mapping[str, Any], rows: Sequence[tuple[float | None, ...]]) -> str:
    """Which row of a finished run lacks a loss, in words; empty if none does.

    Args:
        record: run.json.
        rows: the NEEDED columns of each row, in order.
    """
    for line, (alpha, *losses) in enumerate(rows, start=1):
        if record.get("status") == "done" and alpha is None and None in losses:
            return f"measurements.jsonl has no {NEEDED[1 + losses.index(None)]} in line {line}"
    return ""


def grid_of(record: Mapping[str, Any]) -> list[int] | None:
    """The measured steps of a run according to its own stored configuration; None if it has none."""
    try:
        config = record["config"]
        numbers = (config["training"]["steps"], config["measure"]["start"], config["measure"]["every"])
    except (KeyError, TypeError):
        return None
    if not all(type(number) is int and number >= 1 for number in numbers) or numbers[1] > numbers[0]:
        return None
    return measured_steps(*numbers)
