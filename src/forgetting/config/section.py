"""The base of every configuration section: immutable, strict, no unknown fields."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationInfo, field_validator

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A name that becomes part of a file name; it has no separators, so no path can leave the study folder."""


def with_exponent(value: Any) -> Any:
    """A number such as 1e-4, which YAML reads as text for lack of a dot or sign; anything else unchanged."""
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


class Section(BaseModel):
    """Base of every section: immutable, no unknown fields, no conversion between types.

    Fields write `default=` because type checkers without pydantic's plugin know no other default. A tuple has
    `strict=False`, so that a list is accepted; its items stay strict.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _python_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if float in (annotation, *get_args(annotation)):
            return with_exponent(value)
        return [_python_number(one) for one in value] if isinstance(value, list | tuple) else _python_number(value)


def _python_number(value: Any) -> Any:
    """A NumPy integer as a Python int; anything else unchanged."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def as_stored(value: Any) -> Any:
    """A value as a study stores it and reads it back: tuples as lists, numbers and arrays of NumPy as Python's."""
    if isinstance(value, Mapping):
        return {key: as_stored(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_stored(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
