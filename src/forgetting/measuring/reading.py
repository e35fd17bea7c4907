"""General text as windows, from whatever names it."""

from __future__ import annotations

from typing import Any

from ..config.schema import TextConfig
from ..data.documents import load_corpus
from ..data.tokenizing import tokenize
from ..data.windows import Windows
from ..errors import UsageError
from ..models import adapters, comparable

WIKITEXT = TextConfig(source="Salesforce/wikitext", subset="wikitext-103-raw-v1", split="test", documents="wikitext")
"""The paper's text."""
DEFAULT_CONTEXT = 512
Text = str | TextConfig | Windows | None


def read_windows(
    text: Text, tokenizer: Any, model: Any, context: int | None, other_tokenizer: Any = None
) -> tuple[Windows, str, int | None, list[str]]:
    """The windows of a text, its name, the context, and notices.

    Args:
        text: a file, Hub id, TextConfig, or Windows as they are; None is the WikiText-103 test set.
        tokenizer: the base model's.
        model: the base model, for how many positions it was built.
        context: tokens a window; None is 512, or fewer where the model was built for fewer.
        other_tokenizer: the tuned model's own, to be checked on the text.

    Raises:
        UsageError: no tokenizer, a context too long, text that cannot be read, tokenizers that differ.
    """
    if isinstance(text, Windows):
        return text, "given windows", None, []
    if tokenizer is None:
        raise UsageError("live models need tokenizer=..., to read the text with")
    config = TextConfig(source=text) if isinstance(text, str) else (text or WIKITEXT)
    length = _context(model, context)
    documents = load_corpus(config)
    texts = [document.text for document in documents[:3] if document.text]
    notices = [] if other_tokenizer is None else comparable.check_tokenizers(tokenizer, other_tokenizer, texts)
    windows = tokenize(documents, tokenizer, length)
    return windows, config.source, length, [*notices, *windows.notices]


def _context(model: Any, context: int | None) -> int:
    config = (model.get_base_model() if adapters.is_peft(model) else model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if context is None:
        return min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT)
    if limit is not None and context > limit:
        raise UsageError(f"context {context}: the base model was built for {limit} tokens; give at most these")
    return context
