"""Padding on the right against plain loops, and the same batches in training and measuring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forgetting.data.padding import IGNORED, right_padded
from forgetting.data.windows import Windows
from forgetting.measuring import batches
from forgetting.tuning.trainer import TrainingWindows, collate

LENGTHS = (5, 1, 9, 3)


def make_windows() -> Windows:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    predicted = random.random(offsets[-1]) < 0.7
    predicted[offsets[:-1]] = False
    ids = random.integers(1, 50, offsets[-1]).astype(np.int32)
    return Windows(ids, predicted, offsets, np.arange(4, dtype=np.int32), tuple("abcd"))


def slow(rows: list[list[int]], fill: int, width: int) -> list[list[int]]:
    return [row + [fill] * (width - len(row)) for row in rows]


@pytest.mark.parametrize("width", [None, 9, 12])
def test_rows_are_padded_on_the_right(width: int | None) -> None:
    windows = make_windows()
    rows = [windows.window(i)[0].tolist() for i in range(4)]
    labels = [
        [t if p else -100 for t, p in zip(*map(np.ndarray.tolist, windows.window(i)), strict=True)] for i in range(4)
    ]
    found = right_padded(rows, 7, labels=labels, width=width)
    assert list(found) == ["input_ids", "attention_mask", "labels"]
    assert all(array.dtype == np.int64 for array in found.values())
    longest = 9 if width is None else width
    assert found["input_ids"].tolist() == slow(rows, 7, longest)
    assert found["attention_mask"].tolist() == slow([[1] * len(row) for row in rows], 0, longest)
    assert found["labels"].tolist() == slow(labels, IGNORED, longest)
    assert [windows.labels(i).tolist() for i in range(4)] == labels
    by_torch = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=7)
    assert np.array_equal(right_padded(rows, 7)["input_ids"], by_torch.numpy())


def test_without_labels_there_are_none_and_wrong_ones_are_refused() -> None:
    assert list(right_padded([[1, 2]], 0)) == ["input_ids", "attention_mask"]
    with pytest.raises(AssertionError, match="different lengths"):
        right_padded([[1, 2]], 0, labels=[[1]])


def test_measuring_and_training_see_the_same_tokens_in_the_same_places() -> None:
    windows = make_windows()
    order = np.array([2, 0, 3, 1])
    batch = batches.build(windows, order)
    data = TrainingWindows(windows, order)
    trained = collate([data[i] for i in range(4)], 0)
    assert trained["input_ids"].dtype == trained["labels"].dtype == torch.int64
    assert np.array_equal(trained["input_ids"].numpy(), batch.input_ids)
    assert np.array_equal(trained["attention_mask"].numpy(), batch.mask.astype(int))
    assert trained["window"].tolist() == order.tolist()
    # what training predicts is what measuring reads: label at t + 1, logit at t
    flat = trained["labels"].numpy().ravel()
    assert np.array_equal(np.flatnonzero(flat != IGNORED) - 1, np.sort(batch.source))
    assert np.array_equal(flat[batch.source + 1], batch.token)
