"""Prompts from files, the Hub or this package; the base model's answers to them are a text to measure on.

An answer is cut off at `max_new_tokens` and is in one window with its prompt; only the answer's tokens are targets.
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
from ..display.numbers import few, several, share_of
from ..errors import ForgettingError, UsageError, did_you_mean
from .chats import Chats
from .formats import ROLES, Document, empty_rows, joined, messages_of, with_system
from .readers import check_header, check_words, column_mark, encodable
from .readers import kind as file_kind
from .sources import read_rows
from .windows import Windows

DEFAULT, MINIATURE = "default", "miniature"
PROMPTS = ("prompt", "instruction", "question", "goal", "text")
"""Columns that may contain the prompt, in order of preference after `messages`."""
DIALOGUES = ("conversations", "turns")
"""Columns of whole dialogues, used last: ShareGPT's messages, and MT-bench's list of user messages."""
KINDS = ("kind", "category", "type")
"""Columns that may contain the kind of prompt, in order of preference."""
COLUMNS = frozenset(("messages", *PROMPTS, *DIALOGUES, *KINDS, "id", "input", "system"))
"""All columns that are read; their case is ignored."""
OURS = Path(__file__).parent / "prompts.jsonl"
"""The prompts of DEFAULT."""
BESIDE, BESIDE_TOKENS = 48, 64
"""Number of prompts whose answers are measured along with a text, and maximum tokens of each answer."""
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Prompt:
    """A prompt for the base model.

    Attributes:
        id: unique in its file.
        kind: its category; empty if the file has none.
        messages: a conversation that ends before the answer.
        place: its place in the file, such as `line 3`.
    """

    id: str
    kind: str
    messages: tuple[Mapping[str, Any], ...]
    place: str

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.messages[-1]["content"])


def read_probe(config: ProbeConfig) -> list[Prompt]:
    """The prompts of a probe, without copies; only those of `config.kind` if it is given.

    Raises:
        UsageError: no such file, a row without a prompt, or no prompt of that kind; names file and line.
        ForgettingError: the Hub cannot be reached.
    """
    return prompts_and_notices(config)[0]


def prompts_and_notices(config: ProbeConfig) -> tuple[list[Prompt], list[str]]:
    """Like `read_probe`, with notices about what is left out: empty rows of the file, and copies of earlier prompts."""
    prompts, notices = _prompts(config.probe)
    chosen = [prompt for prompt in prompts if config.kind in (None, prompt.kind)]
    if not chosen:
        known = kinds_of(prompts)
        why = did_you_mean(str(config.kind), known) if known else "its prompts have no field `kind`"
        raise UsageError(f"{config.probe}: no prompt of kind '{config.kind}'; {why}")
    distinct = list({_content(prompt): prompt for prompt in reversed(chosen)}.values())[::-1]
    if copies := len(chosen) - len(distinct):
        what = "a copy of another one" if copies == 1 else "copies of others"
        notices.append(f"{share_of(copies, len(chosen), 'prompt', 'is')} {what} and left out")
    return distinct, notices


def source_beside(base: str) -> str:
    """The source of the prompts that are answered along with a text: DEFAULT or MINIATURE, by the base model's name."""
    return MINIATURE if base == MINIATURE else DEFAULT


def kinds_beside(base: str) -> list[str]:
    """The kinds of the prompts that are answered along with a text, by the base model's name."""
    return kinds_of(_prompts(source_beside(base))[0])


def beside(source: str) -> list[Prompt]:
    """The prompts that are answered along with a text: equally many of each kind, evenly spaced in the file.

    Args:
        source: DEFAULT or MINIATURE.
    """
    prompts, _ = _prompts(source)
    kinds = kinds_of(prompts)
    count = BESIDE // len(kinds)
    found = []
    for kind in kinds:
        mine = [prompt for prompt in prompts if prompt.kind == kind]
        found += [mine[i * len(mine) // count] for i in range(count)]
    return found


def _content(prompt: Prompt) -> str:
    return json.dumps(prompt.messages, sort_keys=True, default=str)


def kinds_of(prompts: Sequence[Prompt]) -> list[str]:
    """The distinct kinds of prompts, in order of first occurrence."""
    return [kind for kind in dict.fromkeys(prompt.kind for prompt in prompts) if kind]


def by_kind(name: str, config: ProbeConfig) -> dict[str, ProbeConfig]:
    """A probe as one text per kind of prompt, by name; the probe itself if its prompts have no kinds.

    Args:
        name: name of the probe. A text is named KIND for the prompts shipped here, and NAME-KIND for others.
        config: the probe; if it names a kind, it is returned unchanged.

    Raises:
        UsageError, ForgettingError: see `read_probe`; or some prompts have a kind and others do not, or two kinds give
            the same name.
    """
    prompts, _ = _prompts(config.probe)
    kinds = kinds_of(prompts)
    if config.kind is not None or not kinds:
        return {name: config}
    if without := next((prompt for prompt in prompts if not prompt.kind), None):
        raise UsageError(
            f"{config.probe}, {without.place}: no kind, and other prompts have one ({few(kinds)}); give all or none one"
        )
    before = "" if name in (DEFAULT, MINIATURE) else f"{name}-"
    named: dict[str, str] = {}
    for kind in kinds:
        same = named.setdefault(before + re.sub(r"[^A-Za-z0-9_-]+", "-", kind), kind)
        if same != kind:
            raise UsageError(
                f"{config.probe}: the kinds '{same}' and '{kind}' give the same name of a text, because only ASCII "
                "letters, digits, _ and - are kept; rename one of them"
            )
    return {name: config.model_copy(update={"kind": kind}) for name, kind in named.items()}


def _prompts(source: str) -> tuple[list[Prompt], list[str]]:
    """All prompts of a source, including copies, and a notice if it has empty rows."""
    if source == MINIATURE:
        from .miniature import probe_rows

        unit, rows = "row", list[tuple[int, Mapping[str, Any]]](enumerate(probe_rows(), start=1))
    else:
        unit, found_rows = _rows(source)
        rows = list(found_rows)
    found = [prompt for number, row in rows if (prompt := _prompt(row, number, unit, source)) is not None]
    if not found:
        what = f": {several(len(rows), 'row')}, none with text" if rows else ""
        raise UsageError(f"{source}: no prompt in it{what}")
    distinct = {(prompt.kind, _content(prompt)): prompt.id for prompt in found}
    counts = Counter(distinct.values())
    if twice := next((name for name, times in counts.items() if times > 1), None):
        raise UsageError(f"{source}: {counts[twice]} prompts have the id '{twice}'; give each its own")
    return found, empty_rows(len(rows), len(rows) - len(found))


def _rows(source: str) -> tuple[str, Iterator[tuple[int, Mapping[str, Any]]]]:
    """Numbered rows, and what the numbers count: `line` or `row`."""
    path = OURS if source == DEFAULT else Path(source).expanduser()
    suffix = file_kind(path)
    if path.is_dir() or suffix not in (".jsonl", ".ndjson", ".csv", ".tsv", ".txt"):
        found, _ = read_rows(TextConfig(source=source))
        return "row", enumerate(found, start=1)
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if suffix in (".jsonl", ".ndjson"):
        return "line", files.json_rows(path)
    text = files.read_text(path)
    if suffix == ".txt":
        lines = enumerate(re.split(r"\r\n|[\r\n]", text), start=1)
        return "line", ((number, {"prompt": line}) for number, line in lines if line.strip())
    return "line", _table(text, path)


def _table(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a CSV or TSV file."""
    mark = column_mark(text, path)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        files.check_table(len(reader.fieldnames or []), 0, str(path))
        check_header(text, mark, path)
        for row in reader:
            if not _blank(row.pop(None, [])):
                raise UsageError(
                    f"{path}, line {reader.line_num}: more fields than the header; texts that hold {mark!r} need quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UsageError(f"{path}, after line {reader.line_num}: not read as a table: {error}") from None


def _prompt(row: Mapping[str, Any], number: int, unit: str, source: str) -> Prompt | None:
    """The prompt of a row; None if the row is empty."""
    where = f"{source}, {unit} {number}"
    row = _in_small_letters(encodable(dict(row)), where)
    messages = _messages(row, where)
    if messages is None:
        return None
    kind = next((row[name] for name in KINDS if row.get(name)), "")
    if not isinstance(kind, str):
        raise UsageError(f"{where}: kind: got {kind!r:.60}; give a string")
    given = row.get("id")
    return Prompt(str(number if given in (None, "") else given), kind.strip(), messages, f"{unit} {number}")


def _in_small_letters(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row with lower-case names of the columns that are read: `Prompt` becomes `prompt` if there is no `prompt`."""
    found = dict(row)
    for name in row:
        small = name.lower()
        if small not in COLUMNS or small in row:
            continue
        same = [other for other in row if other.lower() == small]
        if len(same) > 1:
            raise UsageError(f"{where}: columns {' and '.join(same)} differ in case only; name the right one '{small}'")
        found[small] = found.pop(name)
    return found


def _messages(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...] | None:
    if not _blank(row.get("messages")):
        return _asked(row["messages"], where)
    column = next((name for name in (*PROMPTS, *DIALOGUES) if not _blank(row.get(name))), None)
    if column is None:
        if row.keys() & {"messages", *PROMPTS, *DIALOGUES} or all(map(_blank, row.values())):
            return None
        raise UsageError(f"{where}: no prompt; fields: {', '.join(map(str, row))[:200]}; give one of messages, "
                         f"{', '.join((*PROMPTS, *DIALOGUES))}, in any case")  # fmt: skip
    value = row[column]
    if column == "conversations":
        messages = messages_of(value, where, column)
        return _asked(
            messages if messages[0]["role"] == "system" else with_system(messages, row.get("system"))[0], where
        )
    if column == "turns" and isinstance(value, list) and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, list):
        return _asked(value, where)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: {column}: got {value!r:.60}; give a string")
    more = row.get("input") if column == "instruction" else None  # Alpaca's format
    if isinstance(more, str) and more.strip():
        value = f"{value}\n\n{more}"
    check_words(value, where)
    return ({"role": "user", "content": value},)


def _blank(value: Any) -> bool:
    """Whether a cell is empty: null, white space, or messages with nothing else."""
    if isinstance(value, list):
        return all(map(_blank, value))
    if isinstance(value, Mapping):
        said = [value[name] for name in ("content", "value") if name in value]
        return bool(said) and all(map(_blank, said))
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _asked(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The messages without trailing ones of the assistant, so that they end with the message to answer."""
    fine = isinstance(value, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str | list)
        for turn in value
    )
    if not fine:
        raise UsageError(f"{where}: messages: got {value!r:.60}; a list of {{role, content}} is needed")
    for role in (turn["role"] for turn in value):
        meant = ROLES.get(role.lower())
        if meant in ("user", "assistant") and role != meant:  # an answer of another name would be part of the prompt
            raise UsageError(f"{where}: messages: role '{role}'; write {meant}, or give `conversations` (ShareGPT)")
    messages = [{"role": turn["role"], "content": _said(turn["content"], where)} for turn in value]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or not messages[-1]["content"].strip():
        raise UsageError(f"{where}: messages: no turn of the user to answer")
    check_words(messages[-1]["content"], where)
    return tuple(messages)


def _said(content: str | list[Any], where: str) -> str:
    """A message's content as text."""
    return content if isinstance(content, str) else joined(content, f"{where}: messages: a message")


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any) -> tuple[list[Ids], list[str]]:
    """The tokens of each prompt up to the start of its answer, and notices.

    Raises:
        UsageError: a conversation of several turns without a chat template, one that the template refuses, or a
            template that leaves the prompts out.
    """
    chats = Chats(tokenizer)
    ids = [chats.prompt(Document(id=prompt.id, messages=prompt.messages)) for prompt in prompts]
    if len(ids) > 1 and chats.has_template and all(list(one) == list(ids[0]) for one in ids):
        raise UsageError(
            f"the tokenizer's chat template does not render the prompts: it gives the same text for all {len(ids)}; "
            "give a tokenizer whose template renders them"
        )
    return ids, [*chats.start.notice(len(ids), "prompt"), *chats.notices()]


def answer_windows(prompts: Sequence[Ids], answers: Sequence[Ids], names: Sequence[str]) -> Windows:
    """One window per prompt: the prompt, then its answer, whose tokens are the targets. Equal prompts are copies.

    Args:
        prompts, answers: [n] tokens of each, none empty.
        names: [n] ids of the prompts.
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
    """Answers as JSON lines; the first line has their key and a hash of the other lines."""
    body = "".join(json.dumps(row) + "\n" for row in rows)
    return json.dumps({"answers": key, "sha256": hashlib.sha256(body.encode()).hexdigest()}) + "\n" + body


def load_answers(path: Path, key: str) -> list[Ids] | None:
    """The tokens of stored answers; None if the file is missing, damaged, or has another key."""
    try:
        head, _, body = files.read_text(path).partition("\n")
        whole = {"answers": key, "sha256": hashlib.sha256(body.encode()).hexdigest()}
        if files.parse_json(head, str(path)) != whole:
            return None
        return [np.asarray(files.parse_json(row, str(path))["answer_ids"], np.int32) for row in body.splitlines()]
    except (ForgettingError, OSError, KeyError, TypeError, ValueError):
        return None
