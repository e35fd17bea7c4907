"""Atomic writing, and how a full disk is recognised."""

from __future__ import annotations

import errno

import pytest

from forgetting.errors import ForgettingError
from forgetting.files import no_room


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
    ids=["errno", "quota", "safetensors", "torch"],
)
def test_a_full_disk_is_recognised_by_its_error_number_and_by_messages_of_libraries(error: Exception) -> None:
    assert no_room(error)
    outer = ValueError("something else")
    outer.__cause__ = error
    assert no_room(outer)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("another"),
        OSError(errno.ENOENT, "No such file"),
        ForgettingError("notes.txt: its text says: no space left on device"),
    ],
    ids=["none", "other", "missing", "our own words"],
)
def test_other_errors_are_not_a_full_disk(error: Exception | None) -> None:
    assert not no_room(error)
