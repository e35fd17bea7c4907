"""Documents to token windows: plain text as it is, conversations by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .documents import Document
from .windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenize(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, context: int) -> Windows:
    """Documents as windows of at most `context` tokens.

    Plain text is cut into consecutive windows, the last one shorter; every token but a window's first is predicted. A
    conversation is one window by the tokenizer's chat template, cut at `context`; the tokens of its assistant turns
    are predicted, with the end-of-turn mark.

    Raises:
        UsageError: the text is shorter than one window, the tokenizer has no chat template for a conversation, or
            no target is left.
    """
    ids: list[np.ndarray[Any, Any]] = []
    masks: list[np.ndarray[Any, Any]] = []
    owners: list[int] = []
    cut = 0
    for owner, document in enumerate(documents):
        tokens, targets = _encode(document, tokenizer)
        cut += bool(document.messages) and len(tokens) > context
        stop = min(len(tokens), context) if document.messages else len(tokens)
        for start in range(0, stop, context):
            window, mask = tokens[start : start + context], targets[start : start + context].copy()
            mask[:1] = False
            if mask.any():
                ids.append(window)
                masks.append(mask)
                owners.append(owner)
    _check_enough(documents, ids, context)
    offsets = np.concatenate([[0], np.cumsum([len(window) for window in ids])]).astype(np.int64)
    dropped = len(documents) - len(set(owners))
    notices = [f"{cut} of {len(documents)} conversations were cut at {context} tokens"] if cut else []
    notices += [f"{dropped} of {len(documents)} documents have no target within {context} tokens"] if dropped else []
    return Windows(
        input_ids=np.concatenate(ids).astype(np.int32),
        predicted=np.concatenate(masks),
        offsets=offsets,
        documents=np.asarray(owners, dtype=np.int32),
        document_ids=tuple(document.id for document in documents),
        notices=tuple(notices),
    )


def _check_enough(documents: Sequence[Document], windows: Sequence[np.ndarray[Any, Any]], context: int) -> None:
    total = sum(len(window) for window in windows)
    plain = all(not document.messages for document in documents)
    if plain and total < context:
        raise UsageError(
            f"the text has {total} tokens in {len(documents)} documents, fewer than one window of {context}; "
            "give more text or a smaller context"
        )
    if not windows:
        raise UsageError(f"no answer begins within {context} tokens in any conversation; give a larger context")


def _encode(
    document: Document, tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Token ids [t] and which are targets [t], of a whole document."""
    if not document.messages:
        ids = np.asarray(tokenizer(document.text, verbose=False)["input_ids"], dtype=np.int32)
        return ids, np.ones(len(ids), dtype=bool)
    rendered, spans = _render(document, tokenizer)
    # The template writes the special tokens itself.
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = np.asarray([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
    targets = np.zeros(len(starts), dtype=bool)
    for low, high in spans:
        targets |= (starts >= low) & (starts < high)
    return np.asarray(encoded["input_ids"], dtype=np.int32), targets


def _render(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[tuple[int, int]]]:
    """A conversation by the chat template, and the character spans of its assistant turns.

    The span of a turn is what the template adds after the generation prompt: it needs templates whose text for a
    conversation begins with the text for its first turns, and refuses others by name.
    """
    turns = [dict(turn) for turn in document.messages]
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the fine-tuning data are conversations, but the model's tokenizer has no chat template; "
            "give plain text (format: text), or a model that has one"
        )
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    spans = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = str(tokenizer.apply_chat_template(turns[:i], tokenize=False, add_generation_prompt=True))
        after = str(tokenizer.apply_chat_template(turns[: i + 1], tokenize=False))
        if not (whole.startswith(before) and whole.startswith(after)):
            raise UsageError(
                f"document '{document.id}': the chat template rewrites earlier turns, so the answer's tokens cannot "
                "be told from the prompt's; give conversations of one exchange"
            )
        spans.append((len(before), len(after)))
    return whole, spans
