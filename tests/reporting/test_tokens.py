"""Tokens as text: bytes and control characters can be told apart."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from forgetting.reporting.tokens import token_text


def tokenizer(words: list[str], decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.decoder = decoder
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made)


BYTES = {
    "a": "a",
    "Ġthe": " the",
    "Ċ": "\n",
    "Ã": "<0xC3>",
    "¤": "<0xA4>",
    "Ġæ": " <0xE6>",
    "ä½ł": "你",
    "æī": "<0xE6><0x89>",
}
BYTES |= {
    "Ā": "<0x00>",
    "ĉ": "<0x09>",
    "ÂĊ": "<0xC2>\n",
    "ï¿½": "\N{REPLACEMENT CHARACTER}",
    "âĢĭ": "<0xE2><0x80><0x8B>",
}
PIECES = {"the": "the", "▁the": " the", "▁": " ", "▁▁": "  ", "<0xE4>": "<0xE4>", "<0x0A>": "\n", "<0x00>": "<0x00>"}


def pieces_decoder() -> decoders.Decoder:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(parts)


@pytest.mark.parametrize(
    ("words", "decoder"),
    [(BYTES, decoders.ByteLevel()), (PIECES, pieces_decoder())],
    ids=["byte level", "SentencePiece"],
)
def test_each_token_is_shown_by_its_text_or_its_bytes(words: dict[str, str], decoder: decoders.Decoder) -> None:
    made = tokenizer(list(words), decoder)
    shown = [token_text(i, made) for i in range(len(words) + 1)]
    assert shown == [*words.values(), "<|end|>"]
    assert len(set(shown)) == len(shown)
    assert token_text(len(words) + 7, made) == f"[{len(words) + 7}]"  # a row of the embedding without a token
