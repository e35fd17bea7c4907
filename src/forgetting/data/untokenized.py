"""Large plain text whose documents are tokenised on demand, if tokenising all of them would take minutes.

A random order of documents requires knowing which ones have a target. A document has one if it is two or more tokens
long. For most texts this is clear without tokenising: no single token is that long, or has that content.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import TextConfig
from .documents import Corpus
from .large import is_large, read_texts
from .start_token import StartToken
from .texts import Texts, first_copies
from .tokenizing import Encoded, Gathered, copies_notice, dropped_notice, encode_plain, tokenize
from .windows import Windows

SHRINKS = 4
"""Maximum characters that Unicode's normal forms turn into one."""
BATCH = 1024
"""Documents tokenised at once."""


@dataclass(frozen=True)
class Untokenized:
    """Plain text of many documents.

    Attributes:
        corpus: its documents.
        tokenizer: the tokenizer.
        context: tokens per window.
        present: indices in the corpus of the documents that have a target, in order.
        first_copy: as in Windows.
        notices: the notices that its windows would have.
    """

    corpus: Corpus
    tokenizer: Any
    context: int
    present: NDArray[np.int64]
    first_copy: tuple[int, ...]
    notices: tuple[str, ...]

    @property
    def n_documents(self) -> int:
        """Number of different documents with a target."""
        return len(np.unique(np.asarray(self.first_copy)[self.present])) if self.first_copy else len(self.present)

    @property
    def largest(self) -> int:
        """The largest token id of the tokenizer."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return max(vocabulary.values())

    def encoded(self, places: NDArray[np.int64]) -> Iterator[list[Encoded]]:
        """The windows of each of these documents."""
        texts = [self.corpus[place].text for place in places.tolist()]
        return encode_plain(texts, self.tokenizer, self.context, StartToken(self.tokenizer))

    def windows(self, places: NDArray[np.int64], encoded: Iterable[list[Encoded]]) -> Windows:
        """The windows of these documents, in this order, with the same document indices as in the whole text."""
        gathered = Gathered(self.context)
        gathered.add(encoded)
        return gathered.windows(
            owners=places,
            document_ids=self.corpus.ids,
            notices=self.notices,
            first_copy=self.first_copy,
        )

    def whole(self) -> Windows:
        """The windows of the whole text."""
        return tokenize(self.corpus, self.tokenizer, self.context)


def untokenized(config: TextConfig, tokenizer: Any, context: int) -> Untokenized | None:
    """A large plain text.

    Returns:
        None if it is small or not plain text, has no target, or if this tokenizer could turn a text of any
        content into one token.
    """
    single = _SingleTokens.of(tokenizer) if is_large(config) else None
    found = None if single is None else read_texts(config)
    if single is None or found is None:
        return None
    texts, notices = found
    start = StartToken(tokenizer)
    present = _present(texts, single, tokenizer, start)
    if not len(present):  # `tokenize` reports it
        return None
    first_copy = first_copies(texts.spaceless)
    start.count = 0 if start.mark is None else texts.count_beginning(start.mark)
    own = [*dropped_notice(len(texts), len(present), context), *copies_notice(first_copy), *start.notice(len(texts))]
    return Untokenized(Corpus(*found), tokenizer, context, present, first_copy, (*notices, *own))


def _present(texts: Texts, single: _SingleTokens, tokenizer: Any, start: StartToken) -> NDArray[np.int64]:
    """Indices of the documents that are two or more tokens long."""
    has = np.frombuffer(texts.visible, np.int64) > SHRINKS * single.longest
    doubtful = []
    for place in np.flatnonzero(~has).tolist():
        if single.may_be(texts.text(place)):
            doubtful.append(place)
        else:
            has[place] = True
    for low in range(0, len(doubtful), BATCH):
        places = doubtful[low : low + BATCH]
        found = encode_plain([texts.text(place) for place in places], tokenizer, 2, start)
        counts = [sum(len(ids) for ids, _ in parts) for parts in found]
        has[places] = np.asarray(counts) > 1
    return np.flatnonzero(has)


@dataclass(frozen=True)
class _SingleTokens:
    """Which texts a tokenizer may turn into one token.

    Attributes:
        contents: the characters of such texts except white space, in one normal form.
        longest: characters of its longest token.
    """

    contents: frozenset[str]
    longest: int

    def may_be(self, text: str) -> bool:
        """Whether a text may be one token, or none."""
        content = _content(text)
        return not content or content in self.contents

    @classmethod
    def of(cls, tokenizer: Any) -> _SingleTokens | None:
        """The single tokens of a byte-level BPE, or one that falls back to bytes, whose normaliser keeps the content.

        None for other tokenizers, which may turn a text of any length into one unknown token.
        """
        if not getattr(tokenizer, "is_fast", False) or not type(tokenizer).__module__.startswith("transformers."):
            return None
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        model = backend["model"]
        if model["type"] != "BPE" or any(
            model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        ):
            return None
        before = [*_steps(backend["normalizer"], "normalizers"), *_steps(backend["pre_tokenizer"], "pretokenizers")]
        if not all(map(_keeps, before)):
            return None
        by_bytes = any(step["type"] == "ByteLevel" for step in before)
        alphabet = _byte_characters() if by_bytes else {f"<0x{byte:02X}>": byte for byte in range(256)}
        if not alphabet.keys() <= model["vocab"].keys() or not (by_bytes or model.get("byte_fallback")):
            return None
        added = [token["content"] for token in backend["added_tokens"]]
        longest = max(map(len, [*model["vocab"], *added]))
        pieces = [_decoded(piece, alphabet) if by_bytes else piece for piece in model["vocab"]]
        pieces += [*added, *map(chr, range(128))]
        return cls(frozenset(_content(piece) for piece in pieces if piece is not None), longest)


def _content(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split()).replace("▁", "")


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer as a list of its steps."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for one in part[inner] for step in _steps(one, inner)]
    return [part]


def _keeps(step: dict[str, Any]) -> bool:
    """Whether a step preserves a text's content, except white space and normal forms."""
    if step["type"] in ("NFC", "NFD", "NFKC", "NFKD", "ByteLevel", "Digits", "Metaspace"):
        return str(step.get("replacement", "▁")) == "▁"
    if step["type"] == "Prepend":
        return str(step["prepend"]).strip() in ("", "▁")
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == "▁")
    return bool(step["type"] == "Split" and step["behavior"] != "Removed")


def _byte_characters() -> dict[str, int]:
    """The character that byte-level tokenizers use for each byte (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _decoded(piece: str, alphabet: dict[str, int]) -> str | None:
    """The text of a byte-level token; None if it is only part of a character."""
    try:
        return bytes(alphabet[character] for character in piece).decode()
    except (KeyError, UnicodeDecodeError):
        return None
