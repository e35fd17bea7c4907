"""The row formats in common use, and the documents that they stand for: text, chats, prompts with answers.

A format is recognised by its columns. If the configuration names none, a notice says which format and columns are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from .. import files
from ..config.schema import TextConfig
from ..display.numbers import several, share_of
from ..errors import UsageError

Row = dict[str, Any]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """One document: plain text, or a conversation whose assistant turns are the targets (`targets`).

    Attributes:
        id: unique in its corpus: a title, the row's own id, or its index.
        text: plain text, every token a target; empty for a conversation.
        messages: turns with `role`, `content`, and anything else that the chat template may read; empty for plain text.
        given: how many messages at the start are not targets, whoever wrote them.
        tools: the tools that the model may call, for the chat template.
        template_options: further variables for the chat template, such as `enable_thinking`.
        pair: a prompt and its completion, which can be joined without a chat template.
        where: its source and row, for messages.
    """

    id: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    given: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    pair: bool = False
    where: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """How messages name the document."""
        return self.where or f"document '{self.id}'"

    def targets(self) -> list[int]:
        """Indices of the targets: assistant turns after the given ones, unless marked as not to be trained on."""
        later = range(self.given, len(self.messages))
        return [i for i in later if self.messages[i]["role"] == "assistant" and not is_context(self.messages[i])]

    def content_hash(self) -> str:
        """A sha256 over text and turns, not the id: equal content has equal hashes."""
        return hashlib.sha256("\x1e".join([self.text, *self._turns()]).encode()).hexdigest()

    def spaceless_hash(self) -> str:
        """The same, ignoring white space: equal for copies that differ in line breaks or padding."""
        content = "\x1e".join(" ".join(part.split()) for part in [self.text, *self._turns()])
        return hashlib.sha256(content.encode()).hexdigest()

    def _turns(self) -> list[str]:
        turns = [f"{m['role']}\x1f{m.get('content') or ''}" for m in self.messages]
        more = [{k: v for k, v in m.items() if k not in ("role", "content")} for m in self.messages]
        if any(more) or self.tools or self.template_options:
            turns.append(json.dumps([more, self.tools, dict(self.template_options)], sort_keys=True, default=str))
        return turns


@dataclass(frozen=True)
class Pair:
    """Columns of one exchange: a prompt (possibly in two parts), its answer, and a system prompt if there is one."""

    name: str
    prompt: str
    answer: str
    more: str | None = None
    system: str | None = None


PAIRS = (
    Pair("alpaca", "instruction", "output", more="input", system="system"),
    Pair("dolly", "instruction", "response", more="context"),
    Pair("openorca", "question", "response", system="system_prompt"),
    Pair("qa", "question", "answer"),
    Pair("qa", "query", "response"),
    Pair("qa", "prompt", "response"),
)
"""Stanford Alpaca (with LLaMA-Factory's `system` and `history`), Databricks Dolly, OpenOrca, GSM8K, MetaMath."""
DPO_PROMPTS = ("prompt", "question", "instruction", "input")
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bard", "bing"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "function_call": "assistant",
}
"""ShareGPT's names of speakers, and the roles that they mean."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a message's content that are text; the last two are of OpenAI's Responses API."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


@dataclass(frozen=True)
class Shape:
    """A format, and the columns that it is read from.

    Attributes:
        kind: `text`, `chat`, `completion`, `sharegpt`, `dpo`, or the name of a Pair.
        columns: the columns that are read, required ones first.
        pair: the columns of a pair.
    """

    kind: str
    columns: tuple[str, ...]
    pair: Pair | None = None


def recognise(config: TextConfig, columns: Sequence[str]) -> tuple[Shape, list[str]]:
    """The format of rows with these columns, configured or guessed, and a notice if it was guessed.

    Raises:
        UsageError: no format has these columns; names them.
    """
    shapes = _shapes(config)
    if config.format != "auto":
        of_it = [shape for shape in shapes if shape.kind == config.format]
        fits = [shape for shape in of_it if _needed(shape) <= set(columns)]
        if not fits:
            needed = " or ".join(" and ".join(f"'{name}'" for name in sorted(_needed(shape))) for shape in of_it)
            raise UsageError(f"{config.source}: no column {needed} for format {config.format}; {_has(columns)}")
        return fits[0], []
    fits = [shape for shape in shapes if _needed(shape) <= set(columns)]
    if not fits:
        own = f"'{config.text_column}', '{config.messages_column}', '{config.prompt_column}'"
        raise UsageError(f"{config.source}: no column {own} with '{config.completion_column}'; {_has(columns)}")
    chosen = fits[0]
    others = sorted({shape.kind for shape in fits if _needed(shape) != _needed(chosen)} - {chosen.kind})
    if chosen.kind in ("chat", "completion", "text") and not others:
        return chosen, []
    used = [name for name in chosen.columns if name in columns]
    rest = [name for name in columns if name not in used]
    notice = f"read as {chosen.kind} from columns {', '.join(used)}"
    notice += f"; not used: {', '.join(map(str, rest[:8]))}" if rest else ""
    if others:
        notice += f"; could also be read as {', '.join(others)} (set `format`, as in --text-field format={others[0]})"
    return chosen, [notice]


def _shapes(config: TextConfig) -> list[Shape]:
    """All formats; the first that fits is used. Columns named in the configuration are looked up under those names."""
    messages = "conversations" if config.messages_column == "messages" else config.messages_column
    return [
        Shape("chat", (config.messages_column,)),
        Shape("completion", (config.prompt_column, config.completion_column)),
        Shape("text", (config.text_column,)),
        Shape("sharegpt", (messages, "system", "tools")),
        *(Shape(p.name, tuple(filter(None, (p.prompt, p.answer, p.more, p.system, "history"))), p) for p in PAIRS),
        Shape("dpo", ("chosen", *dict.fromkeys((config.prompt_column, *DPO_PROMPTS)), "system")),
    ]


def _needed(shape: Shape) -> set[str]:
    return set(shape.columns[: 2 if shape.pair or shape.kind == "completion" else 1])


def _has(columns: Sequence[str]) -> str:
    shown = ", ".join(map(str, columns[:20])) + (", ..." if len(columns) > 20 else "")
    return (
        f"columns: {shown}. Set which to read with text_column, messages_column, or prompt_column and "
        "completion_column: in a study's file next to `source`, with `measure` and `check` as "
        "--text-field text_column=NAME"
    )


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns of rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def conversations(config: TextConfig, rows: Sequence[Row], shape: Shape) -> tuple[list[Document], list[str]]:
    """Conversations; those without messages or an answer, or with a rejected one, are left out and counted.

    Raises:
        UsageError: a row does not match its columns, or no row has an assistant turn; names the row.
    """
    documents = []
    silent = empty = rejected = blank = context = 0
    roles: list[str] = []
    for i, row in enumerate(rows):
        if shape.pair is None and _is_rejected(row):
            rejected += 1
            continue
        if all(name in row and _is_blank(row[name], shape) for name in _needed(shape)):
            blank += 1
            continue
        document = _conversation(config, row, i, shape)
        targets = [document.messages[i] for i in document.targets()]
        context += sum(map(is_context, document.messages))
        if any(_says_something(turn) for turn in targets):
            documents.append(document)
        elif targets:
            empty += 1
        else:
            silent, roles = silent + 1, roles or [turn["role"] for turn in document.messages]
    if silent and not documents and not empty:
        raise UsageError(
            f"{config.source}: column '{shape.columns[0]}' has no assistant message to learn from; its roles: "
            f"{', '.join(roles[:8])}"
        )
    if rejected and not documents and not empty:
        raise UsageError(f"{config.source}: no answer with the label true in {several(len(rows), 'row')}")
    why = (
        (empty, "an empty answer"),
        (silent, "no assistant message"),
        (blank, "nothing in " + " and ".join(f"'{name}'" for name in sorted(_needed(shape)))),
        (rejected, "the label false (an answer that was rejected)"),
    )
    notices = [f"left out {n} of {several(len(rows), 'conversation')}, with {what}" for n, what in why if n]
    if context:
        notices.append(
            f"{several(context, 'assistant message')} with weight 0 or train false: part of the conversation, but not "
            "learned or measured"
        )
    return documents, notices


def is_context(turn: Message) -> bool:
    """Whether an assistant turn is marked as not to be trained on: OpenAI's `weight`, Axolotl's `train`, `training`."""
    if turn["role"] != "assistant":
        return False
    weight, flags = turn.get("weight"), [turn.get(name) for name in ("train", "training")]
    return (isinstance(weight, int | float | np.number) and weight == 0) or any(
        isinstance(flag, bool | np.bool_) and not flag for flag in flags
    )


def _is_rejected(row: Row) -> bool:
    """Whether a row has an answer that the model should not give (TRL's and LLaMA-Factory's formats for KTO)."""
    return any(isinstance(row.get(name), bool | np.bool_) and not row[name] for name in ("label", "kto_tag"))


def _says_something(turn: Message) -> bool:
    return bool(str(turn.get("content") or "").strip()) or any(
        turn.get(name) for name in ("tool_calls", "function_call", "reasoning_content", "thinking", "reasoning")
    )


def _conversation(config: TextConfig, row: Row, index: int, shape: Shape) -> Document:
    where = f"{config.source}: row {index + 1}"
    media = next((name for name in MEDIA if _holds(row.get(name))), None)
    if media is not None:
        raise UsageError(f"{where}: column '{media}' is not empty; only text conversations are supported")
    given, pair = 0, False
    if shape.pair is not None:
        turns = _exchange(row, where, shape.pair)
        pair = len(turns) == 2
    elif shape.kind == "completion":
        turns, given, pair = _completion(config, row, where)
    elif shape.kind == "dpo":
        turns, given, pair = _chosen(config, row, where)
    else:
        turns = messages_of(row.get(shape.columns[0]), where, shape.columns[0])
    if shape.kind in ("sharegpt", "dpo") and turns[0]["role"] != "system":
        turns, added = with_system(turns, row.get("system"))
        given, pair = given + added * bool(given), pair and not added
    tools = _json_column(row, "tools", list, where)
    options = _json_column(row, "chat_template_kwargs", dict, where)
    return Document(
        id=row_id(row, index),
        messages=tuple(turns),
        given=given,
        tools=tuple(tools or ()),
        template_options=options or {},
        pair=pair,
        where=where,
    )


def with_system(messages: list[Message], system: Any) -> tuple[list[Message], bool]:
    """The messages with the row's system prompt, if it has one, at the start; and whether it has one."""
    if not isinstance(system, str) or not system.strip():
        return messages, False
    return [{"role": "system", "content": system}, *messages], True


def _completion(config: TextConfig, row: Row, where: str) -> tuple[list[Message], int, bool]:
    """A prompt and its completion: two texts, or two lists of messages; the completion is learned."""
    prompt, answer = row.get(config.prompt_column), row.get(config.completion_column)
    if _is_list(prompt) and _is_list(answer):
        before = messages_of(prompt, where, config.prompt_column)
        return [*before, *messages_of(answer, where, config.completion_column)], len(before), False
    return (
        [
            {"role": "user", "content": text(prompt, where, config.prompt_column)},
            {"role": "assistant", "content": text(answer, where, config.completion_column, or_null=True)},
        ],
        0,
        True,
    )


def _chosen(config: TextConfig, row: Row, where: str) -> tuple[list[Message], int, bool]:
    """The preferred answer of a preference pair: messages, which include the prompt or not; or a text."""
    prompts = (config.prompt_column, *DPO_PROMPTS)
    prompt = next((row[name] for name in prompts if row.get(name) is not None), None)
    chosen = row.get("chosen")
    if _is_list(chosen):
        turns = messages_of(chosen, where, "chosen")
        if turns[0]["role"] != "assistant" or prompt is None:
            return turns, 0, False
        before = (
            messages_of(prompt, where, "prompt") if _is_list(prompt) else [{"role": "user", "content": str(prompt)}]
        )
        return [*before, *turns], len(before), False
    if prompt is None:
        raise UsageError(
            f"{where}: column 'chosen' is {_came(chosen)}, but there is no prompt in {', '.join(prompts[1:])}"
        )
    if _is_list(prompt):
        before = messages_of(prompt, where, "prompt")
        return [*before, {"role": "assistant", "content": text(chosen, where, "chosen")}], len(before), False
    return (
        [
            {"role": "user", "content": text(prompt, where, "prompt")},
            {"role": "assistant", "content": text(chosen, where, "chosen")},
        ],
        0,
        True,
    )


def _exchange(row: Row, where: str, pair: Pair) -> list[Message]:
    """The turns of a pair; an `input` follows its `instruction` on a new line, as LLaMA-Factory reads Alpaca."""
    history = row.get("history")
    turns: list[Message] = []
    for exchange in history if _is_list(history) else ():
        if not _is_list(exchange) or len(exchange) != 2:
            raise UsageError(f"{where}: column 'history' must be a list of [prompt, answer], got {exchange!r:.60}")
        roles = zip(("user", "assistant"), exchange, strict=True)
        turns += [{"role": role, "content": text(said, where, "history")} for role, said in roles]
    asked = [text(row.get(pair.prompt), where, pair.prompt)]
    asked += [text(row.get(pair.more), where, pair.more, or_null=True)] if pair.more else []
    turns += [
        {"role": "user", "content": "\n".join(filter(None, asked))},
        {"role": "assistant", "content": text(row.get(pair.answer), where, pair.answer, or_null=True)},
    ]
    return with_system(turns, row.get(pair.system))[0] if pair.system else turns


def messages_of(value: Any, where: str, column: str) -> list[Message]:
    """The messages of a cell, each with role and content; also reads ShareGPT's `from` and `value`.

    Raises:
        UsageError: anything else; names the row and message.
    """
    where = f"{where}: column '{column}'"
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a CSV
        value = files.parse_json(value, where)
    if not _is_list(value) or not len(value):
        raise UsageError(f"{where} must be a list of {{role, content}}, got {_came(value)}")
    return [_turn(turn, f"{where}: message {i}") for i, turn in enumerate(value, start=1)]


def _turn(turn: Any, where: str) -> Message:
    """One message with its role, its content as text, and every other field that is not null."""
    fields = dict(turn) if isinstance(turn, Mapping) else {}
    role, content = fields.pop("role", None), fields.pop("content", None)
    if role is None and "from" in fields:
        speaker, content = fields.pop("from"), fields.pop("value", None)
        speaker = speaker.lower() if isinstance(speaker, str) else speaker
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise UsageError(f"{where} is from {speaker!r:.40}; allowed: {', '.join(ROLES)}")
        if speaker == "function_call":
            fields["tool_calls"], content = [_called(content, where)], None
    rest = {key: value for key, value in fields.items() if value is not None}
    if _is_list(content):
        content = joined(content, where)
    if not isinstance(role, str) or not (isinstance(content, str) or (content is None and _says_something(rest))):
        raise UsageError(f"{where}: each message needs the texts `role` and `content`, got {turn!r:.60}")
    return {"role": role, "content": content, **rest}


def _called(value: Any, where: str) -> Mapping[str, Any]:
    """ShareGPT's tool call, which is JSON text, as one of `tool_calls`."""
    call = files.parse_json(value, where) if isinstance(value, str) else value
    if not isinstance(call, Mapping) or "name" not in call:
        raise UsageError(f"{where}: a function_call must be JSON with `name` and `arguments`, got {value!r:.60}")
    return {"type": "function", "function": dict(call)}


def joined(parts: Sequence[Any], where: str) -> str:
    """The text of a content that is a list of parts.

    Raises:
        UsageError: a part that is not text, such as an image; names its type.
    """
    texts = []
    for part in parts:
        found = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") in TEXT_PARTS else part
        if not isinstance(found, str):
            sort = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UsageError(f"{where} has a part of type {sort!r:.30}; only {', '.join(TEXT_PARTS)} are supported")
        texts.append(found)
    return "".join(texts)


def _json_column(row: Row, name: str, sort: type, where: str) -> Any:
    """A column with a list or an object, or one as JSON text; None if it is missing or empty."""
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        value = files.parse_json(value, f"{where}: column '{name}'")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not value:
        return None
    if not isinstance(value, sort) or (_is_list(value) and not all(isinstance(item, Mapping) for item in value)):
        needed = "a list of objects" if sort is list else "an object"
        raise UsageError(f"{where}: column '{name}' must be {needed}, got {_came(value)}")
    return value


def text(value: Any, where: str, column: str, *, or_null: bool = False) -> str:
    """A cell that must be text; null counts as empty text if allowed.

    Raises:
        UsageError: anything else; names the row and column.
    """
    if or_null and (value is None or value != value):  # NaN is pandas' null
        return ""
    if not isinstance(value, str):
        raise UsageError(f"{where}: column '{column}' must be text, got {_came(value)}")
    return value


def row_id(row: Row, index: int) -> str:
    """A row's own id, or its index."""
    return f"row-{index}" if row.get("id") is None else str(row["id"])


def empty_rows(count: int, empty: int) -> list[str]:
    """A notice about empty rows, which are left out."""
    return [f"{share_of(empty, count, 'row', 'is')} empty and left out"] if empty else []


def _is_blank(value: Any, shape: Shape) -> bool:
    """Whether a cell is null, white space, or a list without items, for messages also as the JSON text of a CSV."""
    if isinstance(value, str):
        return value.strip() in (("", "[]") if shape.kind in ("chat", "sharegpt") else ("",))
    return not len(value) if _is_list(value) else value is None or value != value


def _holds(value: Any) -> bool:
    return bool(len(value)) if _is_list(value) or isinstance(value, str) else value is not None


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple | np.ndarray)


def _came(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r:.40}"
