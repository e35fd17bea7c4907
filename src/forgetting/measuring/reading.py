"""General text as windows, from whatever names it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.arguments import ColumnTable, RowTable, columns_of, path_of, rows_of, wrong_type
from ..config.schema import ProbeConfig, TextConfig
from ..data.documents import corpus_of
from ..data.prepared import Corpora
from ..data.readers import without_nulls
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
"""A file, Hub id, configuration or Windows; texts, one a document; a DataFrame, datasets.Dataset, columns or rows."""
ALLOWED = "a file, a Hub id, a TextConfig, a ProbeConfig, Windows, a list of texts, a datasets.Dataset, a DataFrame"


@dataclass(frozen=True)
class Rows:
    """Text that is no file: rows as a file would have them, and how they are read."""

    rows: list[dict[str, Any]]
    config: TextConfig


def text_source(text: Text | Rows) -> TextConfig | ProbeConfig | Windows | Rows:
    """Where a text comes from.

    Args:
        text: of any kind; None is the WikiText-103 test set.

    Raises:
        UsageError: something else, or no text in it.
    """
    if text is None:
        return WIKITEXT
    if isinstance(text, Windows | TextConfig | ProbeConfig | Rows):
        return text
    if isinstance(text, str | os.PathLike):
        return TextConfig(source=path_of("text", text, ALLOWED))
    if isinstance(text, list | tuple) and text and isinstance(text[0], str):
        for i, one in enumerate(text):
            if not isinstance(one, str):
                raise wrong_type(f"text[{i}]", one, "a text, as the first one is")
        single = TextConfig(source="given texts", documents="rows" if len(text) > 1 else "auto")
        return Rows([{single.text_column: str(one)} for one in text], single)
    columns = columns_of(text, "text")
    if columns is None:
        raise wrong_type("text", text, ALLOWED)
    rows = rows_of(columns)
    if not rows:
        raise UsageError("text: no row in it")
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
        text: of any kind; Windows as they are; None is the WikiText-103 test set.
        tokenizer: the base model's.
        models: those that are to run on it, for how many positions they were built.
        context: tokens a window; None is 512, or fewer where a model was built for fewer.
        other_tokenizer: the tuned model's own, to be checked on the text.
        cache_dir: where the windows of a large text are kept; None keeps none.

    Raises:
        UsageError: no tokenizer, a context too long, text that cannot be read, tokenizers that differ.
    """
    given = text_source(text)
    if isinstance(given, Windows):
        return given, "given windows", None, []
    if isinstance(given, ProbeConfig):
        raise UsageError(f"{given.source}: the base model's answers are for measure, check, profile and studies")
    _check_tokenizer(tokenizer)
    config = given.config if isinstance(given, Rows) else given
    length = window_length(models, context)
    if isinstance(given, Rows):
        documents = corpus_of(given.rows, config)
        beginnings = [document.text for document in documents[:3] if document.text]
        notices = compared(tokenizer, other_tokenizer, beginnings)
        windows = tokenize(documents, tokenizer, length)
    else:
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
    """As `read_windows`, but a large plain text is tokenised as its documents are drawn."""
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


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer is None:
        raise UsageError("live models need tokenizer=..., to read the text with")


def compared(tokenizer: Any, other: Any, beginnings: Sequence[str]) -> list[str]:
    """Notices of how two tokenizers differ on these texts; refuses those that differ. None is no tokenizer."""
    return [] if other is None else comparable.check_tokenizers(tokenizer, other, beginnings)


def window_length(models: Sequence[Any], context: int | None) -> int:
    """Tokens a window: as asked, else 512, or what the models were built for where that is less.

    Raises:
        UsageError: more than they were built for.
    """
    limit = min((limit for model in models if (limit := adapters.positions(model)) is not None), default=None)
    if context is None:
        return DEFAULT_CONTEXT if limit is None else min(DEFAULT_CONTEXT, limit)
    if limit is not None and context > limit:
        raise UsageError(f"context {context}: the models were built for {limit} tokens; give at most these")
    return context
