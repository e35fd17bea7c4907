"""Arguments checked against annotations, and tables of any kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from forgetting.config.arguments import checked, columns_of, rows_of, tokenizer_of
from forgetting.errors import UsageError


@checked
def sample(
    whole: int,
    *,
    number: float | None = None,
    several: float | Sequence[float] | None = None,
    path: str | Path = "x",
    mapping: Mapping[str, float | tuple[float, float]] | None = None,
    choice: Literal["a", 4] = "a",
    call: Callable[[], None] | None = None,
    flag: bool = False,
) -> str:
    """Say hello."""
    return "hello"


RIGHT: list[dict[str, Any]] = [
    {"number": 1},
    {"number": np.float32(0.5)},
    {"several": [1, 2.5]},
    {"several": range(3)},
    {"several": np.arange(3)},
    {"several": pd.Series([1.0, 2.0])},
    {"path": Path("x")},
    {"mapping": {"a": 1.0, "b": (0, 1)}},
    {"choice": 4},
    {"call": 3},  # annotations of other kinds are not checked
    {"flag": True},
]


@pytest.mark.parametrize("given", RIGHT, ids=str)
def test_right_arguments_pass(given: dict[str, Any]) -> None:
    assert sample(np.int64(3), **given) == "hello"


WRONG = [
    ({"whole": 1.5}, "whole: got float 1.5; allowed: a whole number"),
    ({"whole": True}, "whole: got bool True; allowed: a whole number"),
    ({"number": "1"}, "number: got str '1'; allowed: a number, None"),
    ({"several": "12"}, "several: got str '12'; allowed: a number, a list of numbers, None"),
    ({"several": [1, "2"]}, "several[1]: got str '2'; allowed: a number"),
    ({"path": 3}, "path: got int 3; allowed: a string, a path"),
    ({"mapping": {"a": (1,)}}, "mapping['a']: got tuple; allowed: a number, a pair of numbers"),
    ({"choice": "b"}, "choice: got str 'b'; allowed: 'a', 4"),
    ({"flag": 1}, "flag: got int 1; allowed: True or False"),
    ({"numbr": 1}, "sample: no argument 'numbr'; did you mean 'number'"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample(**({"whole": 1} | given))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_function_is_still_itself() -> None:
    assert list(inspect.signature(sample).parameters)[:2] == ["whole", "number"]
    assert sample.__doc__ == "Say hello."
    with pytest.raises(TypeError, match="missing a required argument: 'whole'"):
        sample()  # type: ignore[call-arg]


def test_rows_and_columns() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2}]
    columns = {"a": [1, 2], "b": ["x", None]}
    assert columns_of(rows, "t") == columns
    assert columns_of(pd.DataFrame({"a": [1, 2]}), "t") == {"a": [1, 2]}
    assert rows_of(columns) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert columns_of("path", "t") is None
    assert columns_of(3, "t") is None


@pytest.mark.parametrize("given", ["gpt2", Path("gpt2"), 3, str.upper])
def test_an_object_that_is_not_a_tokenizer_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match=r"^tokenizer: got .*; allowed: None, or a tokenizer such as"):
        tokenizer_of(given)


def test_a_frame_with_two_columns_of_one_name_is_refused() -> None:
    with pytest.raises(UsageError, match="table: two columns are called 'step'; rename one of them"):
        columns_of(pd.DataFrame([[1, 2]], columns=["step", "step"]), "table")


def test_rows_whose_keys_are_not_texts_keep_their_cells() -> None:
    assert columns_of([{1: "a", "b": 2}, {1: "c"}], "table") == {"1": ["a", "c"], "b": [2, None]}
