"""Reads general text as windows, from any kind of source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.arguments import ColumnTable, RowTable, columns_of, path_of, rows_of, wrong_type
from ..config.schema import ProbeConfig, TextConfig
from ..data.chats import NoTemplateError
from ..data.documents import corpus_of
from ..data.prepared import Corpora
from ..data.readers import without_nulls
from ..data.sources import is_hub_id
from ..data.tokenizing import tokenize
from ..data.untokenized import Untokenized, untokenized
from ..data.windows import Windows
from ..errors import UsageError
from ..models import adapters, comparable

WIKITEXT = TextConfig(source="Salesforce/wikitext", subset="wikitext-103-raw-v1", split="test", documents="wikitext")
"""The paper's text."""
DEFAULT_CONTEXT = 512
Text = (
    str
    | os.PathLike[str]
    | TextConfig
    | ProbeConfig
    | Windows
    | Sequence[str]
    | ColumnTable
    | RowTable
    | Mapping[str, Sequence[Any]]
    | Sequence[Mapping[str, Any]]
    | None
)
"""A file, Hub id, configuration or Windows; texts, one per document; a DataFrame, datasets.Dataset, columns or rows."""
ALLOWED = "a file, a Hub id, a TextConfig, a ProbeConfig, Windows, a list of strings, a datasets.Dataset, a DataFrame"


@dataclass(frozen=True)
class Rows:
    """Text that is not a file: rows as a file would have them, and how they are read."""

    rows: list[dict[str, Any]]
    config: TextConfig


def text_source(text: Text | Rows) -> TextConfig | ProbeConfig | Windows | Rows:
    """The source of a text.

    Args:
        text: any kind of source; None means the WikiText-103 test set.

    Raises:
        UsageError: another type, or no text in it.
    """
    if text is None:
        return WIKITEXT
    if isinstance(text, Windows | TextConfig | ProbeConfig | Rows):
        return text
    if isinstance(text, str) and (len(text) > 2000 or "\n" in text or (" " in text and is_hub_id(text))):
        raise UsageError(
            f"text: no file or folder here, and not a Hub id: {text!r:.60}; to measure a text itself, give a list in "
            "Python: text=[text]"
        )
    if isinstance(text, list | tuple) and not text:
        raise UsageError("text: an empty list; give at least one text")
    if isinstance(text, str | os.PathLike):
        return TextConfig(source=path_of("text", text, ALLOWED))
    if isinstance(text, list | tuple) and text and isinstance(text[0], str):
        for i, one in enumerate(text):
            if not isinstance(one, str):
                raise wrong_type(f"text[{i}]", one, "a string, like the first one")
        single = TextConfig(source="given texts", documents="rows" if len(text) > 1 else "auto")
        return Rows([{single.text_column: str(one)} for one in text], single)
    columns = columns_of(text, "text")
    if columns is None:
        raise wrong_type("text", text, ALLOWED)
    rows = rows_of(columns)
    if not rows:
        raise UsageError("text: it has no rows")
    return Rows([without_nulls(row) for row in rows], TextConfig(source="given table"))


def read_windows(
    text: Text | Rows,
    tokenizer: Any,
    models: Sequence[Any],
    context: int | None,
    other_tokenizer: Any = None,
    cache_dir: Path | None = None,
) -> tuple[Windows, str, int | None, list[str]]:
    """The windows of a text, its name, the context, and notices.

    Args:
        text: any kind of source; Windows are used unchanged; None means the WikiText-103 test set.
        tokenizer: the base model's.
        models: the models that will run on it, since they limit the positions.
        context: tokens per window; None means 512, or fewer if a model was built for fewer.
        other_tokenizer: the tuned model's own, to be checked on the text.
        cache_dir: where the windows of a large text are stored; None stores none.

    Raises:
        UsageError: no tokenizer, a context too long, text that cannot be read, tokenizers that differ.
    """
    given = text_source(text)
    if isinstance(given, Windows):
        return given, "given windows", None, []
    if isinstance(given, ProbeConfig):
        raise UsageError(
            f"{given.source}: the base model's answers can be measured only by measure, check, profile and studies"
        )
    _check_tokenizer(tokenizer)
    config = given.config if isinstance(given, Rows) else given
    length = window_length(models, context)
    if isinstance(given, Rows):
        documents = corpus_of(given.rows, config)
        beginnings = [document.text for document in documents[:3] if document.text]
        notices = compared(tokenizer, other_tokenizer, beginnings)
        with _template_told(other_tokenizer):
            windows = tokenize(documents, tokenizer, length)
    else:
        with _template_told(other_tokenizer):
            read = Corpora(tokenizer, length, cache_dir).text(config)
        notices = compared(tokenizer, other_tokenizer, read.beginnings)
        windows = read.windows
    return windows, config.source, length, [*notices, *windows.notices]


def read_to_sample(
    text: Text | Rows,
    tokenizer: Any,
    models: Sequence[Any],
    context: int | None,
    other_tokenizer: Any = None,
    cache_dir: Path | None = None,
) -> tuple[Windows | Untokenized, str, int | None, list[str]]:
    """Like `read_windows`, but a large plain text is tokenised as its documents are drawn."""
    given = text_source(text)
    if isinstance(given, TextConfig):
        _check_tokenizer(tokenizer)
        length = window_length(models, context)
        late = untokenized(given, tokenizer, length)
        if late is not None and late.largest < min(comparable.known_rows(model) for model in models):
            beginnings = [document.text for document in late.corpus[:3]]
            notices = compared(tokenizer, other_tokenizer, beginnings)
            return late, given.source, length, [*notices, *late.notices]
    return read_windows(given, tokenizer, models, context, other_tokenizer, cache_dir)


@contextmanager
def _template_told(other: Any) -> Iterator[None]:
    """Add to the error about a base model without a chat template that the tuned model has one."""
    try:
        yield
    except NoTemplateError as error:
        if not getattr(other, "chat_template", None):
            raise
        raise UsageError(f"{error}; the tuned model has one, so add that and give the copy as BASE") from None


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer is None:
        raise UsageError("loaded models need tokenizer=..., to read the text")


def compared(tokenizer: Any, other: Any, beginnings: Sequence[str]) -> list[str]:
    """Notices of how two tokenizers differ on these texts; refuses incompatible ones. None means no tokenizer."""
    return [] if other is None else comparable.check_tokenizers(tokenizer, other, beginnings)


def window_length(models: Sequence[Any], context: int | None) -> int:
    """Tokens per window: as given, or 512, or what the models were built for if that is less.

    Raises:
        UsageError: more than they were built for.
    """
    limit = min((limit for model in models if (limit := adapters.positions(model)) is not None), default=None)
    if context is None:
        return DEFAULT_CONTEXT if limit is None else min(DEFAULT_CONTEXT, limit)
    if limit is not None and context > limit:
        raise UsageError(f"context {context}: the models were built for {limit} tokens; give at most that many")
    return context
