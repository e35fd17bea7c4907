"""Tokens as text for the pages, so that no two different ones look alike or like nothing."""

from __future__ import annotations

from typing import Any

REPLACED = "\N{REPLACEMENT CHARACTER}"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space in a vocabulary."""


def token_text(token: int, tokenizer: Any) -> str:
    """A token as text.

    Bytes that are not text by themselves, and characters that are not printable, are shown as `<0xE4>`; line breaks
    are kept. A token without text is shown as its entry in the vocabulary, or, without one or without a tokenizer, as
    its id in brackets.
    """
    if tokenizer is None:
        return f"[{token}]"
    text, entry = str(tokenizer.decode([token])), tokenizer.convert_ids_to_tokens(token)
    spaced = (entry or "").replace(SPACE, " ")
    if text.lstrip(" ") == spaced.lstrip(" "):
        text = spaced  # a SentencePiece decoder removes the space before the first word
    if text and REPLACED not in text:
        return _printable(text)
    if not entry:
        return f"[{token}]"
    raw = _bytes_of(entry)
    if raw is not None and raw.decode("utf-8", "replace") == text:
        return _printable(raw.decode("utf-8", "surrogateescape"))
    return _printable(entry)


def _printable(text: str) -> str:
    """The text with the UTF-8 bytes of each unprintable character, and each lone byte, as `<0xE4>`."""
    return "".join(
        c
        if c.isprintable() or c == "\n"
        else "".join(f"<0x{byte:02X}>" for byte in c.encode("utf-8", "surrogateescape"))
        for c in text
    )


def _bytes_of(entry: str) -> bytes | None:
    """The bytes that an entry of a byte-level vocabulary stands for; None if it has a character of no byte.

    GPT-2 writes a printable byte as its Latin-1 character, and the others, in order, as the characters from 256.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return bytes(byte_of[c] for c in entry) if all(c in byte_of for c in entry) else None
