"""lm-eval's backends for completion servers, with the tokenisation of its Hugging Face wrapper. Imports lm-eval."""

from __future__ import annotations

import copy
import json
from typing import Any

from lm_eval.models.api_models import JsonChatStr  # type: ignore[import-untyped]
from lm_eval.models.openai_completions import (  # type: ignore[import-untyped]
    LocalChatCompletion as Chat,
)
from lm_eval.models.openai_completions import LocalCompletionsAPI


class Completions(LocalCompletionsAPI):  # type: ignore[misc]
    """Tokenises like lm-eval's Hugging Face wrapper: with special tokens, unless the text begins with them.

    lm-eval's own backend omits the beginning-of-text token, so a served model would get another prompt than the same
    model loaded locally.
    """

    def tok_encode(
        self,
        string: str | list[str] | tuple[str, ...],
        left_truncate_len: int | None = None,
        add_special_tokens: bool | None = None,
        **_: Any,
    ) -> list[Any]:
        """The tokens of a text, or of several."""
        if not isinstance(string, str):
            return [self.tok_encode(one, left_truncate_len, add_special_tokens) for one in string]
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        first = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None and first and string.startswith(first):
            special = {"add_special_tokens": False}
        found: list[int] = self.tokenizer.encode(string, **special)
        return found[-left_truncate_len:] if left_truncate_len else found


def completions(tokenizer: Any, folder: str, **how: Any) -> Completions:
    """The backend for completions with a loaded tokenizer."""
    made = Completions(tokenizer_backend="huggingface", tokenizer=folder, add_bos_token=None, **how)
    made.tokenizer = tokenizer
    return made


def as_messages(request: Any) -> Any:
    """A request in the format of lm-eval's chat backend: messages as JSON; other text becomes one user message."""
    made = copy.copy(request)
    prompt = str(request.args[0])
    try:
        found = json.loads(prompt)
    except ValueError:
        found = None
    held = isinstance(found, list) and bool(found) and all(isinstance(m, dict) and "role" in m for m in found)
    text = prompt if held else json.dumps([{"role": "user", "content": prompt}], ensure_ascii=False)
    made.arguments = (JsonChatStr(text), *request.args[1:])
    return made


__all__ = ["Chat", "Completions", "as_messages", "completions"]
