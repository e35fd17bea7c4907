"""What every section of a configuration is: immutable, strict, without unknown fields."""

from __future__ import annotations

import numbers
import re
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationInfo, field_validator

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A name that becomes part of a file name: no separators, so that no path leaves the study folder."""


def with_exponent(value: Any) -> Any:
    """A number of the form 1e-4, which YAML without a dot and a sign reads as text; anything else as it is."""
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


class Section(BaseModel):
    """Base of every section: immutable, unknown fields forbidden, no value taken for one of another kind.

    Fields name `default=`: type checkers without pydantic's plugin know no other default. A tuple has `strict=False`,
    so that a list is one; what is in it stays strict.
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
    """A whole number of NumPy as one of Python; anything else as it is."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value
