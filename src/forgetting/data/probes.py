"""Prompts whose answers by the base model are a text to measure on: files, the Hub, ours, and the miniature's.

An answer is cut at `max_new_tokens` and is in one window with its prompt; only the answer's tokens are targets.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..config.schema import ProbeConfig, TextConfig
from ..errors import ForgettingError, UsageError, did_you_mean
from .chats import Chats
from .formats import Document
from .readers import check_words, encodable
from .sources import read_rows
from .windows import Windows

DEFAULT, MINIATURE = "default", "miniature"
PROMPTS = ("prompt", "instruction", "question", "goal", "text")
"""Columns in which a prompt is looked for, after `messages`."""
KINDS = ("kind", "category", "type")
"""Columns in which its kind is looked for."""
OURS = Path(__file__).parent / "prompts.jsonl"
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Prompt:
    """What the base model is asked.

    Attributes:
        id: unique in its file.
        kind: what sort of prompt it is; empty where the file says none.
        messages: a conversation that ends before the answer.
    """

    id: str
    kind: str
    messages: tuple[Mapping[str, Any], ...]

    @property
    def text(self) -> str:
        """Its last message."""
        return str(self.messages[-1]["content"])


def read_probe(config: ProbeConfig) -> list[Prompt]:
    """The prompts of a probe, of one kind where it names one.

    Raises:
        UsageError: no such file, a row without a prompt, no prompt of that kind; names file and line.
        ForgettingError: the Hub cannot be reached.
    """
    prompts = _prompts(config.probe)
    if config.kind is None:
        return prompts
    chosen = [prompt for prompt in prompts if prompt.kind == config.kind]
    if not chosen:
        known = kinds_of(prompts)
        why = did_you_mean(config.kind, known) if known else "its prompts have no field `kind`"
        raise UsageError(f"{config.probe}: no prompt of kind '{config.kind}'; {why}")
    return chosen


def kinds_of(prompts: Sequence[Prompt]) -> list[str]:
    """The kinds that there are, in their order."""
    return [kind for kind in dict.fromkeys(prompt.kind for prompt in prompts) if kind]


def by_kind(name: str, config: ProbeConfig) -> dict[str, ProbeConfig]:
    """A probe as texts by name: one a kind where its prompts have kinds, else itself.

    Args:
        name: of the probe; a kind of ours or of the miniature has the kind's name, of another file NAME-KIND.
        config: without a kind it is taken apart; with one it stays as it is.

    Raises:
        UsageError: as `read_probe`, or some of the prompts have a kind and others none.
    """
    prompts = read_probe(config)
    kinds = kinds_of(prompts)
    if config.kind is not None or not kinds:
        return {name: config}
    if without := next((prompt for prompt in prompts if not prompt.kind), None):
        raise UsageError(f"{config.probe}: prompt '{without.id}' has no kind, and others have; give all or none one")
    before = "" if name in (DEFAULT, MINIATURE) else f"{name}-"
    return {before + re.sub(r"[^A-Za-z0-9_-]+", "-", kind): config.model_copy(update={"kind": kind}) for kind in kinds}


def _prompts(source: str) -> list[Prompt]:
    if source == MINIATURE:
        from .miniature import probe_rows

        rows: Iterator[tuple[int, Mapping[str, Any]]] = enumerate(probe_rows(), start=1)
    else:
        rows = _rows(source)
    found = [_prompt(row, number, source) for number, row in rows]
    if not found:
        raise UsageError(f"{source}: no prompt in it")
    counts = Counter(prompt.id for prompt in found)
    if twice := next((name for name, times in counts.items() if times > 1), None):
        raise UsageError(f"{source}: {counts[twice]} prompts have the id '{twice}'; give each its own")
    return found


def _rows(source: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows by line of a file, or by place in a data set."""
    path = OURS if source == DEFAULT else Path(source).expanduser()
    if path.suffix not in (".jsonl", ".csv", ".txt"):
        found, _ = read_rows(TextConfig(source=source))
        yield from enumerate(found, start=1)
        return
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if path.suffix == ".jsonl":
        yield from files.json_rows(path)
        return
    text = files.read_text(path, encoding="utf-8-sig")
    if path.suffix == ".txt":
        lines = enumerate(re.split(r"\r\n|[\r\n]", text), start=1)
        yield from ((number, {"prompt": line}) for number, line in lines if line.strip())
        return
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        files.check_table(len(reader.fieldnames or []), 0, source)
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UsageError(f"{source}, line {reader.line_num}: not CSV: {error}") from None


def _prompt(row: Mapping[str, Any], line: int, source: str) -> Prompt:
    where = f"{source}, line {line}"
    row = encodable(dict(row))
    kind = next((row[name] for name in KINDS if row.get(name)), "")
    if not isinstance(kind, str):
        raise UsageError(f"{where}: kind: got {kind!r:.60}; a text is needed")
    given = row.get("id")
    return Prompt(str(line if given in (None, "") else given), kind.strip(), _messages(row, where))


def _messages(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    if row.get("messages") is not None:
        return _turns(row["messages"], where)
    column = next((name for name in PROMPTS if name in row), None)
    if column is None:
        raise UsageError(f"{where}: no prompt; fields: {', '.join(map(str, row))[:200]}; give one of messages, "
                         f"{', '.join(PROMPTS)}")  # fmt: skip
    value = row[column]
    if isinstance(value, list):
        return _turns(value, where)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: {column}: got {value!r:.60}; a text is needed")
    more = row.get("input") if column == "instruction" else None  # Alpaca's
    if isinstance(more, str) and more.strip():
        value = f"{value}\n\n{more}"
    check_words(value, where)
    return ({"role": "user", "content": value},)


def _turns(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Messages up to the last of the user."""
    fine = isinstance(value, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
    if not fine:
        raise UsageError(f"{where}: messages: got {value!r:.60}; a list of {{role, content}} is needed")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in value]
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or not turns[-1]["content"].strip():
        raise UsageError(f"{where}: messages: no turn of the user to answer")
    check_words(turns[-1]["content"], where)
    return tuple(turns)


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any) -> tuple[list[Ids], list[str]]:
    """The tokens of each prompt up to where its answer begins, and notices.

    Raises:
        UsageError: a conversation of several turns without a chat template, or one that the template refuses.
    """
    chats = Chats(tokenizer)
    ids = [chats.prompt(Document(id=prompt.id, messages=prompt.messages)) for prompt in prompts]
    return ids, chats.notices()


def answer_windows(prompts: Sequence[Ids], answers: Sequence[Ids], names: Sequence[str]) -> Windows:
    """One window a prompt: the prompt, then its answer, whose tokens are the targets; a prompt twice is a copy.

    Args:
        prompts, answers: [n] tokens of each, none empty.
        names: [n] of the prompts.
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    first: dict[bytes, int] = {}
    copies = [first.setdefault(prompt.tobytes(), i) for i, prompt in enumerate(prompts)]
    parts = [part for pair in zip(prompts, answers, strict=True) for part in pair]
    masks = [np.full(len(part), place % 2 == 1) for place, part in enumerate(parts)]
    return Windows(
        input_ids=np.concatenate(parts).astype(np.int32),
        predicted=np.concatenate(masks),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        documents=np.arange(len(prompts), dtype=np.int32),
        document_ids=tuple(names),
        first_copy=tuple(copies) if len(first) < len(prompts) else (),
    )


def dump_answers(key: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Answers as JSON lines, the first of which says what they are of and has a hash of the others."""
    body = "".join(json.dumps(row) + "\n" for row in rows)
    return json.dumps({"answers": key, "sha256": hashlib.sha256(body.encode()).hexdigest()}) + "\n" + body


def load_answers(path: Path, key: str) -> list[Ids] | None:
    """The tokens of stored answers; None where there are none, of another key, or damaged."""
    try:
        head, _, body = files.read_text(path).partition("\n")
        whole = {"answers": key, "sha256": hashlib.sha256(body.encode()).hexdigest()}
        if files.parse_json(head, str(path)) != whole:
            return None
        return [np.asarray(files.parse_json(row, str(path))["answer_ids"], np.int32) for row in body.splitlines()]
    except (ForgettingError, OSError, KeyError, TypeError, ValueError):
        return None
