"""Checks the types and ranges of the fields of adapter_config.json before PEFT uses them.

PEFT accepts any value: text in place of a number fails much later, and text in place of a flag counts as true.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UsageError
from .bounds import MAX_NUMBER

_DROPOUT = re.compile(r"dropout(_p)?$")
_RANK_ZERO = ("OFT", "ADAMSS", "MISS")
"""Adapter types in which a rank of 0 means that another field sets it."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


def _are_tokens_by_module(value: Any) -> bool:
    return all(map(_are_tokens, value.values())) if isinstance(value, dict) else _are_tokens(value)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_NUMBER


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


NUMBER = f"a number of at most {MAX_NUMBER:,}"
RANK = "a whole number of at least 1"
Rule = tuple[Callable[[Any], bool], str]
"""A test for a field's value, and what is allowed, in words."""

READ: dict[str, Rule] = {
    "base_model_name_or_path": (_is_text, "a folder or a Hub id"),
    "revision": (_is_text, "a commit, tag or branch"),
    "alora_invocation_tokens": (_are_tokens, "a list of token ids"),
    "token_indices": (_are_tokens, "a list of token ids"),
    "trainable_token_indices": (_are_tokens_by_module, "a list of token ids, or one list per module"),
}
"""Fields that are checked here for every type of adapter."""
PATTERNS: dict[str, Rule] = {"rank_pattern": (_is_rank, RANK), "alpha_pattern": (_is_number, NUMBER)}
"""Fields with a value for each pattern of modules."""


def check_fields(given: Mapping[str, Any], where: str) -> None:
    """Refuse a value of the wrong type or out of range.

    Args:
        given: the fields as in the file.
        where: the adapter's file, for messages.

    Raises:
        UsageError: names the field, what came, and what is allowed.
    """
    kind = str(given.get("peft_type") or "LORA").upper()
    for field, value in given.items():
        if field in PATTERNS and kind != "OSF":
            _check_pattern(field, value, where)
    for field, (rule, optional) in _rules(kind).items():
        if field not in given or (optional and given[field] is None):
            continue
        fits, allowed = rule
        if not fits(given[field]):
            raise _refused(where, field, given[field], allowed)
    if given.get("init_lora_weights") == "loftq" and not given.get("loftq_config"):
        raise UsageError(
            f"{where}: init_lora_weights: 'loftq' needs loftq_config, which is empty; LoftQ changes the base model's "
            "weights: give the base model that LoftQ wrote, and set init_lora_weights to true"
        )


def _rules(kind: str) -> dict[str, tuple[Rule, bool]]:
    """The rule of each field of one adapter type, and whether the field may be null."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    rules: dict[str, tuple[Rule, bool]] = {field: (rule, True) for field, rule in READ.items()}
    known: Any = next((made for name, made in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name == kind), None)
    for field in () if known is None else dataclasses.fields(known):
        typed = getattr(field.type, "__name__", None) or str(field.type)
        if field.name == "r" and typed == "int" and kind not in _RANK_ZERO:
            rules["r"] = (_is_rank, RANK), False
        elif typed == "bool":
            rules[field.name] = (_is_flag, "true or false"), True
        elif _DROPOUT.search(field.name) and typed in ("int", "float"):
            rules[field.name] = (_is_share, "a number from 0 to 1"), False
        elif typed in ("int", "float") and not re.search(r"seed|prng|key", field.name):
            rules[field.name] = (_is_number, NUMBER), False
    return rules


def _check_pattern(field: str, value: Any, where: str) -> None:
    fits, allowed = PATTERNS[field]
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise _refused(where, field, value, "an object with a number for each pattern")
    for pattern, one in value.items():
        if not fits(one):
            raise _refused(where, f"{field}.{pattern:.60}", one, allowed)


def _refused(where: str, field: str, value: Any, allowed: str) -> UsageError:
    return UsageError(f"{where}: {field}: got {_shown(value)}; allowed: {allowed}")


def _shown(value: Any) -> str:
    """A value as JSON writes it."""
    import json

    return f"{json.dumps(value, ensure_ascii=False, default=str):.60}"
