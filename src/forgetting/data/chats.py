"""Turns conversations into tokens with the model's chat template, and marks which tokens are answers.

A template is a program by the model's author. It may refuse a conversation, render earlier turns differently from the
last one, open a thought for the model, write the date, or leave out part of a message. None of this may change a
number without a notice.

Shapes: t tokens of a window.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..display.numbers import several, share_of
from ..errors import UsageError
from . import templates
from .formats import Document, Message
from .start_token import StartToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Encoded = tuple[NDArray[np.int32], NDArray[np.bool_]]

DAY = {
    **{"a": "Fri", "A": "Friday", "b": "Jul", "B": "July", "d": "26", "e": "26", "-d": "26", "j": "208"},
    **{"m": "07", "-m": "7", "y": "24", "Y": "2024", "F": "2024-07-26", "x": "07/26/24", "D": "07/26/24"},
    **{"H": "00", "I": "12", "M": "00", "S": "00", "p": "AM", "X": "00:00:00", "T": "00:00:00"},
}
"""What `strftime_now` gives for each of its codes: Llama 3.1's default date, so that numbers never change."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields that may have a message's reasoning; transformers fills some of them from the others."""


WITH_TEMPLATE = "a copy of the model's folder to which you add a chat_template.jinja (docs/faq.md)"


class NoTemplateError(UsageError):
    """A conversation, but the tokenizer has no chat template."""


class Chats:
    """The conversations of one corpus with one tokenizer; collects what to report about them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self.fast = bool(getattr(tokenizer, "is_fast", True))
        self.start = StartToken(tokenizer)
        self.counts: Counter[str] = Counter()
        self.now: dict[str, None] = {}
        self.documents = 0

    def encode(self, document: Document) -> list[Encoded]:
        """Token ids [t] and a mask of the answers [t]: one window, or more if earlier turns are rendered differently.

        Raises:
            UsageError: no template; it refuses the conversation; or no answer can be told apart from its prompt.
        """
        self.documents += 1
        self.now = {}
        windows = self._by_template(document) if self.has_template else [self._joined(document)]
        self.counts.update(list(self.now))
        return windows

    def prompt(self, document: Document) -> NDArray[np.int32]:
        """Token ids of a conversation up to its next answer; without a template, of a single plain message.

        Raises:
            UsageError: several turns without a template, or the template refuses them.
        """
        self.documents += 1
        if self.has_template:
            rendering = _Rendering(self.tokenizer, document, self.wants_parts)
            return _ids(self.tokenizer, rendering.text(len(document.messages), prompt=True))
        if len(document.messages) > 1:
            raise NoTemplateError(
                f"prompt '{document.id}': a conversation, but the model's tokenizer has no chat template; give single "
                f"prompts, or {WITH_TEMPLATE}"
            )
        self.counts["no chat template: answers continue the prompts as plain text"] += 1
        text = str(document.messages[0]["content"])
        self.start.count += self.start.begins(text)
        ids = self._with_special(text)
        return ids[:-1] if len(ids) > 1 and ids[-1] == getattr(self.tokenizer, "eos_token_id", None) else ids

    @functools.cached_property
    def _ends_texts(self) -> bool:
        """Whether the tokenizer itself writes an end token after each text."""
        ids = _ids(self.tokenizer, "a", special=True)
        return bool(len(ids) > 1 and ids[-1] == getattr(self.tokenizer, "eos_token_id", None))

    @functools.cached_property
    def wants_parts(self) -> bool:
        """Whether the template renders content only if it is a list of parts, as templates of vision models do."""

        def shown(content: Any) -> bool:
            try:
                probe = [{"role": "user", "content": content}]
                with templates.bounded("the model's chat template"):
                    return "probe" in str(self.tokenizer.apply_chat_template(probe, tokenize=False))
            except templates.TemplateLimitError:
                raise
            except Exception:  # a template is a program and may raise anything
                return False

        return not shown("probe") and shown([{"type": "text", "text": "probe"}])

    def check_answers(self, documents: Sequence[Document]) -> None:
        """Refuse a template that renders the same text for every answer of the assistant.

        Raises:
            UsageError: such a template; its other errors are reported where the text is rendered.
        """
        plain = (one for one in documents if one.messages and not any(m.get("tool_calls") for m in one.messages))
        first = next(plain, None) if self.has_template else None
        if first is None or not any(message["role"] == "assistant" for message in first.messages):
            return
        texts = set()
        for answer in ("one", "another"):
            messages = tuple({**m, "content": answer} if m["role"] == "assistant" else m for m in first.messages)
            try:
                texts.add(_Rendering(self.tokenizer, replace(first, messages=messages), self.wants_parts).whole())
            except UsageError:
                return
        if len(texts) == 1:
            raise UsageError(
                "the tokenizer's chat template does not render the assistant's answers: it gives the same text for any "
                "answer; give a tokenizer whose template renders them, or plain text"
            )

    def _by_template(self, document: Document) -> list[Encoded]:
        rendering = _Rendering(self.tokenizer, document, self.wants_parts)
        whole = rendering.whole()
        if "strftime_now" in rendering.template:
            self._note(f"the chat template writes the date; here it is always {DAY['F']}")
        if document.tools and "tools" not in rendering.template:
            self._note("the chat template leaves out the `tools` that {share_have}")
        turns = document.targets()
        spans = _spans(rendering, whole, turns) if self.fast else None
        encoded = self._masked(whole, spans) if spans is not None else self._generated(document, rendering)
        if encoded is None:
            return self._by_turns(document, rendering, whole, turns)
        self._look_over(rendering, turns, len(document.messages))
        return [encoded]

    def notices(self) -> list[str]:
        """What a reader of the numbers should know about these conversations."""
        return [text.format(**self._counted(n)) for text, n in self.counts.items()]

    def _counted(self, n: int) -> dict[str, str]:
        """The counts that notices name, each with its noun."""
        return {
            "share": f"{n:,} of {several(self.documents, 'conversation')}",
            "share_have": share_of(n, self.documents, "conversation", "has"),
            "answers": several(n, "answer"),
        }

    def _joined(self, document: Document) -> Encoded:
        """A prompt, its completion and the end token in sequence, as TRL joins them.

        The completion begins at the first token that differs from the tokens of the prompt alone.
        """
        if not document.pair:
            raise NoTemplateError(
                f"{document.place}: a conversation, but the model's tokenizer has no chat template; give plain "
                f"text (format: text), prompts with completions, or {WITH_TEMPLATE}"
            )
        self._note("no chat template: prompts and completions are joined directly, with the end token")
        prompt, completion = (str(message["content"]) for message in document.messages)
        end = str(getattr(self.tokenizer, "eos_token", None) or "")
        if not end:
            self._note("the tokenizer has no end token: answers end without one")
        self.start.count += self.start.begins(prompt)
        before = self._with_special(prompt)
        ids = self._with_special(prompt + completion + ("" if completion.endswith(end) else end))
        ids = ids[:-1] if end and self._ends_texts else ids  # one end token is enough
        return ids, np.arange(len(ids)) >= _common(before, ids)

    def _with_special(self, text: str) -> NDArray[np.int32]:
        """The tokens of a text with the special tokens that the tokenizer adds, the start token once."""
        return self.start.once(text, _ids(self.tokenizer, text, special=True))

    def _masked(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoded:
        """Tokens of a text; those with a character in one of the spans are answers.

        If the prompt ends with a space, the answer's first token may begin with that space.
        """
        # the template writes the special tokens itself
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts, ends = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        targets = np.zeros(len(starts), dtype=bool)
        for low, high in spans:
            targets |= (ends > low) & (starts < high)
        return np.asarray(encoded["input_ids"], dtype=np.int32), targets

    def _generated(self, document: Document, rendering: _Rendering) -> Encoded | None:
        """Tokens by the template's own `{% generation %}` marks; None if there are none or they do not fit."""
        if not self.fast or not GENERATION.search(rendering.template):
            return None
        found = rendering.marked()
        mask = np.asarray(found.get("assistant_masks", ()), dtype=bool)
        begins = np.flatnonzero(mask & ~np.concatenate([[False], mask[:-1]]))
        answers = [i for i, message in enumerate(document.messages) if message["role"] == "assistant"]
        learned = set(document.targets())
        if len(learned) < len(answers):
            if len(begins) != len(answers):
                return None
            for i, low, high in zip(answers, begins, [*begins[1:], len(mask)], strict=True):
                mask[low:high] &= i in learned
        return (np.asarray(found["input_ids"], dtype=np.int32), mask) if mask.any() else None

    def _by_turns(self, document: Document, rendering: _Rendering, whole: str, turns: Sequence[int]) -> list[Encoded]:
        """Find each answer by its tokens: in the whole conversation, or in a window that ends with it.

        An answer begins at the first token where the conversation up to it differs from its prompt. It counts as part
        of the whole conversation if that begins with the same tokens, except for what the template writes at its end.
        """
        ids = _ids(self.tokenizer, whole)
        targets = np.zeros(len(ids), dtype=bool)
        apart: list[Encoded] = []
        unknown = 0
        for turn in turns:
            found = self._answer(rendering, turn)
            if found is None:
                unknown += 1
                continue
            mine, start = found
            upto = turn + 1
            end = _common(mine, ids)
            rest = len(mine) - end
            if end > start and np.array_equal(mine[end:], ids[len(ids) - rest :] if rest else ids[:0]):
                targets[start : end if turn < len(document.messages) - 1 else len(ids)] = True
                upto = len(document.messages)
            else:
                apart.append((mine, np.arange(len(mine)) >= start))
            self._look_over(rendering, [turn], upto)
        if unknown == len(turns):
            raise UsageError(
                f"{document.place}: the chat template rewrites earlier turns, so the answer's tokens cannot be "
                "told from the prompt's; give a model whose template marks answers with {% generation %}, or plain text"
            )
        if apart:
            self._note(
                "in {share} the chat template renders an earlier turn differently from the last one, for "
                "example without its thinking; such an answer gets its own window, as its last turn"
            )
        if unknown:
            self.counts[
                "with this chat template, {answers} cannot be told from the prompt, and so cannot be measured"
            ] += unknown
        return [*([(ids, targets)] if targets.any() else []), *apart]

    def _answer(self, rendering: _Rendering, turn: int) -> tuple[NDArray[np.int32], int] | None:
        """Tokens of the conversation up to a turn, and where the turn begins; None if that cannot be told."""
        try:
            prompt, upto = rendering.text(turn, prompt=True), rendering.text(turn + 1)
            opened = upto.startswith(prompt)
            # the two may differ in what opens the answer, such as a thought, but not before it
            if not opened and _alike(prompt, upto) < _alike(prompt, rendering.text(turn)):
                return None
        except templates.TemplateLimitError:
            raise
        except UsageError:
            return None
        if not opened:
            self.counts[
                "the chat template begins {answers} differently from its generation prompt, for example without the "
                "thought that it opens; measured as in the conversation"
            ] += 1
        ids = _ids(self.tokenizer, upto)
        return ids, _common(_ids(self.tokenizer, prompt), ids)

    def _note(self, text: str) -> None:
        """Count this conversation for a notice, once."""
        self.now[text] = None

    def _look_over(self, rendering: _Rendering, turns: Sequence[int], upto: int) -> None:
        """Note what the template left out of these answers, in the first `upto` turns."""
        messages = rendering.document.messages
        written = "".join(rendering.text(upto).split())
        marked = {turn: _marked(messages[turn], turn) for turn in turns}
        shown = self._shown(rendering, {turn: message for turn, (message, *_) in marked.items()}, upto)
        for turn, (_, thoughts, calls) in marked.items():
            said = [messages[turn].get(name) for name in ("content", *REASONING)]
            if any("".join(str(part or "").split()) not in written for part in said) or _lacks(shown, thoughts):
                self._note(
                    "the chat template leaves out or changes part of an answer, such as its thinking, in {share}"
                )
            if _lacks(shown, calls):
                self._note("the chat template leaves out the tool calls that {share_have}")

    def _shown(self, rendering: _Rendering, changed: Mapping[int, Message], upto: int) -> str | None:
        """The first `upto` turns with some messages replaced; None if none differs or the template refuses them."""
        document = rendering.document
        if all(message == document.messages[turn] for turn, message in changed.items()):
            return None
        messages = tuple(changed.get(turn, message) for turn, message in enumerate(document.messages))
        other = _Rendering(self.tokenizer, replace(document, messages=messages), self.wants_parts)
        other.nulls = rendering.nulls
        try:
            return other.text(upto)
        except templates.TemplateLimitError:
            raise
        except UsageError:
            return None


def _marked(message: Message, turn: int) -> tuple[Message, list[str], list[str]]:
    """A message with a mark instead of each thought and of each called tool's name; the marks of both.

    A thought or name itself may occur elsewhere in the conversation, so finding it does not show that it was rendered.
    """
    changed = dict(message)
    thoughts: dict[str, str] = {}  # templates may read any of the fields, so equal thoughts have the same mark
    names: list[str] = []
    for name in REASONING:
        thought = message.get(name)
        if isinstance(thought, str) and thought.strip():
            changed[name] = thoughts.setdefault(thought, f"thought{turn}n{len(thoughts)}x")

    def renamed(call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": renamed(call["function"])}
        if "name" not in call:
            return call
        names.append(f"call{turn}n{len(names)}x")
        return {**call, "name": names[-1]}

    if isinstance(calls := message.get("tool_calls"), list):
        changed["tool_calls"] = [renamed(call) for call in calls]
    if "function_call" in message:
        changed["function_call"] = renamed(message["function_call"])
    return changed, list(thoughts.values()), names


def _lacks(text: str | None, marks: Sequence[str]) -> bool:
    """Whether a text, if it is known, lacks one of the marks."""
    return text is not None and any(mark not in text for mark in marks)


class _Rendering:
    """One conversation rendered by the chat template; the texts are cached, because they are needed repeatedly."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, document: Document, parts: bool) -> None:
        self.tokenizer = tokenizer
        self.document = document
        self.parts = parts
        self.nulls = True
        self.tools = [dict(tool) for tool in document.tools] or None
        self.template = self._call(lambda: str(tokenizer.get_chat_template(None, self.tools)))
        self.texts: dict[tuple[int, bool], str] = {}

    def whole(self) -> str:
        """All turns; null content, as in a turn that only calls a tool, is empty text if the template needs it.

        Raises:
            UsageError: the template refuses the conversation.
        """
        messages = self.document.messages
        try:
            return self.text(len(messages))
        except templates.TemplateLimitError:
            raise
        except UsageError:
            if all(message.get("content") is not None for message in messages):
                raise
            self.nulls = False
            return self.text(len(messages))

    def text(self, turns: int, *, prompt: bool = False) -> str:
        """The first `turns` turns, and with `prompt` also the opening of the next answer.

        Raises:
            UsageError: the template refuses them, or there are none.
        """
        if not turns:
            raise UsageError(f"{self.document.place}: begins with an answer; a conversation must begin with a prompt")
        key = (turns, prompt)
        if key not in self.texts:
            self.texts[key] = str(self._apply(turns, tokenize=False, add_generation_prompt=prompt))
        return self.texts[key]

    def marked(self) -> Mapping[str, Any]:
        """Token ids and the mask of the template's `{% generation %}` marks."""
        turns = len(self.document.messages)
        found: Mapping[str, Any] = self._apply(
            turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return found

    def _apply(self, turns: int, **options: Any) -> Any:
        messages = [{**message, "content": self._content(message)} for message in self.document.messages[:turns]]
        # newer transformers leaves out nulls itself
        messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
        options = {**self.document.template_options, **options}
        return self._call(
            lambda: self.tokenizer.apply_chat_template(
                messages, tools=self.tools, chat_template=_on_one_day(self.template), **options
            )
        )

    def _content(self, message: Message) -> Any:
        content = message.get("content")
        if content is None and not self.nulls:
            content = ""
        return [{"type": "text", "text": content}] if self.parts and content is not None else content

    def _call(self, apply: Any) -> Any:
        where = f"{self.document.place}: the model's chat template"
        try:
            with templates.bounded(where):
                found = apply()
            return templates.checked(found, where) if isinstance(found, str) else found
        except templates.TemplateLimitError:
            raise
        except ImportError as error:
            raise UsageError(f"{where} needs a package: {_first_line(error)}") from None
        except Exception as error:  # a template is a program and may raise anything
            raise UsageError(f"{where} refuses this conversation: {_first_line(error)}") from None


def _spans(rendering: _Rendering, whole: str, turns: Sequence[int]) -> list[tuple[int, int]] | None:
    """The characters of each answer with its end mark; None if first turns alone are rendered otherwise."""
    spans = []
    for turn in turns:
        try:
            before, after = rendering.text(turn, prompt=True), rendering.text(turn + 1)
        except templates.TemplateLimitError:
            raise
        except UsageError:
            return None
        if not (whole.startswith(before) and whole.startswith(after)):
            return None
        spans.append((len(before), len(after)))
    return spans


def _on_one_day(template: str) -> str:
    """A template whose `strftime_now` gives DAY, through a macro that shadows the function of that name."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f"|replace('%{sign}', '{value}')" for sign, value in DAY.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{- format{filters} -}}}}{{%- endmacro -%}}" + template


def _alike(a: str, b: str) -> int:
    """Length of the common prefix of two texts, in characters."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> NDArray[np.int32]:
    return np.asarray(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"], dtype=np.int32)


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Length of the common prefix of two sequences, in tokens."""
    n = min(len(a), len(b))
    apart = np.flatnonzero(a[:n] != b[:n])
    return int(apart[0]) if len(apart) else n


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
