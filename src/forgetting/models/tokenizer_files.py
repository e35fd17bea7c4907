"""Reads a tokenizer as its tokenizer.json describes it, after checking that file's numbers and texts.

The file must not make a library exhaust memory, and the library must not replace parts of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError
from . import failures

TOKENIZER = "tokenizer.json"
SAMPLE = "The old town's 2023 rivers,\n\n  near 650841823 fields: I'm (x=1)\tna\u00efve \u2014 \u65e5\u672c"
"""A text on which two readings of a tokenizer.json are compared, in addition to words of the vocabulary."""
WORDS = 64
"""About how many words of the vocabulary."""
MAX_TOKENIZER = 2**28
"""Maximum bytes of a tokenizer.json."""
MORE_IDS = 2**16
"""Limit of a token's id, in addition to eight times the number of tokens."""
MAX_GROWTH = 100
"""Maximum characters that a tokenizer's normaliser may make from one."""
MAX_CONTENT = 1000
"""Maximum characters that one step of a tokenizer may insert."""
_PUTS_IN = ("content", "prepend", "replacement")


def check_tokenizer(folder: Path, name: str) -> None:
    """Refuse a tokenizer.json with ids or replacements beyond any real one; the library reports other errors.

    Args:
        folder: the folder that may contain it.
        name: the model, for messages.

    Raises:
        UsageError: names the token or step; or not JSON.
    """
    file = folder / TOKENIZER
    if not file.is_file():
        return
    where = f"{name}: {TOKENIZER}"
    content = files.parse_json(
        files.read_text(file, limit=MAX_TOKENIZER), f"{name}: its tokenizer cannot be read: {file}"
    )
    if not isinstance(content, Mapping):
        return
    _check_ids(content, where)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(content.get(part)):
            for field in _PUTS_IN:
                text = step.get(field)
                if isinstance(text, str) and len(text) > MAX_CONTENT:
                    raise UsageError(f"{where}: {part}: {field}: {len(text):,} characters; at most {MAX_CONTENT:,}")
    if (growth := _growth(list(_steps(content.get("normalizer"))))) > MAX_GROWTH:
        raise UsageError(
            f"{where}: normalizer: its steps turn one character into {growth:,}; at most {MAX_GROWTH} are allowed"
        )


def read_tokenizer(folder: Path, name: str, *, code: bool) -> tuple[Any, list[str]]:
    """A folder's tokenizer, and a notice if transformers would have read its tokenizer.json differently.

    For some models AutoTokenizer chooses a class that replaces parts of tokenizer.json with its own, for example the
    rules by which text is split into words (transformers issues 45488, 45920 and 48206). The text then becomes other
    tokens than those that the model was trained on. Such a tokenizer is read from tokenizer.json alone.

    Args:
        folder: where its files are.
        name: the model, for messages.
        code: whether code that comes with it may run.

    Raises:
        UsageError: it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_tokenizer(folder, name)
    with failures.explained(name, lacking(folder)), failures.without_panics():
        chosen = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=code)
        own = type(chosen).__module__.startswith("transformers.models.")
        if not (own and chosen.is_fast and (folder / TOKENIZER).is_file()):
            return chosen, []
        with failures.quiet():
            plain = PreTrainedTokenizerFast.from_pretrained(str(folder), trust_remote_code=False)
        if _read_alike(chosen, plain):
            return chosen, []
    notice = f"{name}: {type(chosen).__name__}, which transformers chooses, reads text differently from {TOKENIZER}"
    return plain, [f"{notice}; {TOKENIZER} is used"]


def _read_alike(chosen: Any, plain: Any) -> bool:
    """Whether two tokenizers give the same tokens for the same text."""
    count = len(plain)
    text = plain.decode(range(0, count, max(1, count // WORDS)), skip_special_tokens=True)
    one, other = (
        [made(part, add_special_tokens=False, verbose=False)["input_ids"] for part in (SAMPLE, text)]
        for made in (chosen, plain)
    )
    return bool(one == other)


def lacking(folder: Path) -> str:
    """The error text for a tokenizer that cannot be loaded."""
    if (folder / TOKENIZER).is_file():
        return "its tokenizer cannot be read"
    return f"its tokenizer cannot be loaded: {TOKENIZER}, the file of a fast tokenizer, is missing"


def _check_ids(content: Mapping[str, Any], where: str) -> None:
    """Refuse large ids: libraries build a table as long as the largest id."""
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    added = [token for token in content.get("added_tokens") or () if isinstance(token, Mapping)]
    ids = {str(token.get("content")): token.get("id") for token in added}
    count = len(ids) + (len(vocabulary) if isinstance(vocabulary, Mapping | list) else 0)
    limit = 8 * count + MORE_IDS
    for tokens in (ids, vocabulary if isinstance(vocabulary, Mapping) else {}):
        for token, found in tokens.items():
            if type(found) is int and found >= limit:
                raise UsageError(
                    f"{where}: token {token!r:.60} has id {found:.20g}; with {count:,} tokens the limit is {limit:,}"
                )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder in order, including nested ones."""
    waiting = [part]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list):
            waiting = [*one, *waiting]
        elif isinstance(one, Mapping):
            yield one
            waiting = [*(value for value in one.values() if isinstance(value, list)), *waiting]


def _growth(steps: list[Mapping[str, Any]]) -> int:
    """Characters that the replacements may make from one; they multiply only if a later one can match an earlier's.

    A pattern can match what an earlier step inserted if it is a regular expression or shares a character with it.
    """
    made: list[tuple[str, int]] = []
    for step in steps:
        content, pattern = step.get("content"), step.get("pattern")
        if step.get("type") != "Replace" or not isinstance(content, str) or not isinstance(pattern, Mapping):
            continue
        text = pattern.get("String")
        if isinstance(text, str):
            factor = -(-len(content) // max(len(text), 1))
            before = [growth for earlier, growth in made if set(earlier) & set(text)]
        else:
            factor = len(content) + _finds_nothing(str(pattern.get("Regex")))
            before = [growth for _, growth in made]
        made.append((content, max(factor, 1) * max(before, default=1)))
    return max((growth for _, growth in made), default=1)


def _finds_nothing(pattern: str) -> int:
    """1 if a regular expression also matches between two characters and inserts something there, else 0."""
    try:
        return int(re.compile(pattern).match("") is not None)
    except (re.error, RecursionError, OverflowError):
        return 0
