"""The token that many tokenizers write before each text, such as `<s>`, written once if the text begins with it.

Texts that were rendered with a chat template begin with this token. A second one would be a target in every document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..display.numbers import share_of


class StartToken:
    """A tokenizer's start token, and how many documents begin with it."""

    def __init__(self, tokenizer: Any) -> None:
        """Find the token that the tokenizer writes before texts; none is usual, too."""
        self.mark = _mark(tokenizer)
        """The token as text, if a text that begins with it would get it twice."""
        self.count = 0

    def begins(self, text: str) -> bool:
        """Whether a text already has the start token."""
        return self.mark is not None and text.startswith(self.mark)

    def once(self, text: str, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The tokens of a text [t], without the start token that the tokenizer wrote before the text's own."""
        return ids[1:] if self.begins(text) and len(ids) > 1 and ids[0] == ids[1] else ids

    def notice(self, texts: int, noun: str = "document") -> list[str]:
        """What a reader should know if some of the texts already have the start token."""
        if not self.count:
            return []
        have = share_of(self.count, texts, noun, "has")
        return [f"{have} the tokenizer's start token {self.mark} in the text already; it is not added again"]


def _mark(tokenizer: Any) -> str | None:
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return None
    first = _ids(tokenizer, "a")[:1]
    if not first or first == _ids(tokenizer, "a", add_special_tokens=False)[:1]:
        return None
    mark = str(tokenizer.convert_ids_to_tokens(first[0]))
    return mark if _ids(tokenizer, mark + "a")[:2] == [first[0], first[0]] else None


def _ids(tokenizer: Any, text: str, **how: Any) -> Sequence[int]:
    return list(tokenizer(text, verbose=False, **how)["input_ids"])
