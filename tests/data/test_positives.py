# SPDX-License-Identifier: Apache-2.0
"""Who is whose positive by columns of a table, and that sampler, dataset and batch agree about it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from monai_ssl.data import EpochSampler, PadCollate, StoreDataset, positive_groups

TABLE = pa.table(
    {
        "group_id": ["p", "p", "p", "p", "q", "q", "r", None],
        "study": ["s1", "s1", "s2", "s2", "s3", "s3", "s4", "s4"],
        "laterality": ["L", "R", "L", "L", "R", "R", "L", "R"],
        "view": ["CC", "CC", "MLO", "CC", "CC", None, "CC", "CC"],
        "spacing": [[0.1, 0.1], [0.1, 0.1], [0.2, 0.2], None, [0.1, 0.1], [0.1, 0.1], [0.3, 0.3], [0.1, 0.1]],
    }
)


def sets(codes: np.ndarray) -> list[list[int]]:
    """Rows that belong together, those that stand alone left out."""
    return [rows for code in dict.fromkeys(codes.tolist()) if len(rows := np.flatnonzero(codes == code).tolist()) > 1]


@pytest.mark.parametrize(
    ("same", "different", "expected"),
    [
        (["group_id"], [], [[0, 1, 2, 3], [4, 5]]),
        ("group_id", (), [[0, 1, 2, 3], [4, 5]]),
        (["group_id", "study"], [], [[0, 1], [2, 3], [4, 5]]),
        (["study"], [], [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (["group_id"], ["laterality"], [[0, 1]]),  # of three left images and one right one
        (["group_id"], ["view"], [[0, 2]]),  # the other two have no partner, one of q's views is not known
        (["group_id"], ["laterality", "view"], [[0, 1, 2]]),  # any two differ in one of the columns
        (["group_id", "spacing"], [], [[0, 1], [4, 5]]),
    ],
)
def test_sets_of_positives(same, different, expected):
    codes = positive_groups(TABLE, same=same, different=different)
    assert codes.dtype == np.int64 and codes.shape == (8,)
    assert sets(codes) == expected
    for rows in expected:  # the promise itself
        values = {name: TABLE[name].to_pylist() for name in TABLE.column_names}
        for a, b in itertools.combinations(rows, 2):
            assert all(values[name][a] == values[name][b] for name in ([same] if isinstance(same, str) else same))
            assert not different or any(values[name][a] != values[name][b] for name in different)


def test_as_many_pairs_as_there_can_be():
    table = pa.table({"group_id": ["p"] * 7, "laterality": ["L", "L", "L", "R", "R", "L", "R"]})
    codes = positive_groups(table, different="laterality")
    assert sorted(len(rows) for rows in sets(codes)) == [2, 2, 2]


def test_rows_are_the_datasets():
    assert positive_groups(TABLE, [4, 2, 5, 0]).tolist() == [0, 1, 0, 1]
    mask = np.arange(8) < 3
    assert positive_groups(TABLE, mask).tolist() == positive_groups(TABLE, [0, 1, 2]).tolist() == [0, 0, 0]
    assert positive_groups(SimpleNamespace(table=TABLE)).tolist() == positive_groups(TABLE).tolist()


def test_empty_text_and_nan_are_missing():
    table = pa.table({"a": ["", "", "x", "x"], "b": [1.0, 1.0, float("nan"), float("nan")]})
    assert sets(positive_groups(table, same="a")) == [[2, 3]]
    assert sets(positive_groups(table, same="b")) == [[0, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same": ["pateint"]}, "no column 'pateint'"),
        ({"different": ["lateralty"]}, "did you mean 'laterality'"),
        ({"same": []}, "same needs a column"),
        ({"same": ["view"], "different": ["view"]}, "none that different names too"),
        ({"rows": [8]}, "rows reach from 8 to 8"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        positive_groups(TABLE, **options)


class FakeStore:
    """Eight small images with the table's rows."""

    folder = "store"
    table = TABLE

    def __len__(self) -> int:
        return len(TABLE)

    def shape(self, row: int) -> tuple[int, int]:
        return (4, 4)

    def levels(self, row: int) -> np.float32:
        return np.float32(255)

    def dtype(self, row: int) -> np.dtype:
        return np.dtype(np.uint8)

    def read_stored(self, row: int) -> np.ndarray:
        return np.full((4, 4), row, np.uint8)


def test_the_batch_says_who_belongs_together():
    store, rows = FakeStore(), [0, 1, 2, 3, 4, 5]
    codes = positive_groups(store, rows, different="laterality")
    dataset = StoreDataset(store, rows, label_columns=["group_id"], positives=codes)
    sampler = EpochSampler(len(dataset), seed=1, groups=codes)
    batch = PadCollate()(dataset.__getitems__(list(sampler)))
    places = batch["index"].tolist()
    assert abs(places.index(0) - places.index(1)) == 1, "the pair lies side by side"
    assert batch["positive_id"].tolist() == [codes[place] for place in places]
    assert batch["positive_id"].dtype == batch["group_id"].dtype
    assert batch["group_id"].tolist() == [0 if place < 4 else 1 for place in places]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positives": [0, 1]}, "one integer for each of 8 items"),
        ({"positives": np.zeros(8)}, "float64"),
    ],
)
def test_numbers_that_do_not_fit_the_dataset(options, message):
    with pytest.raises(ValueError, match=message):
        StoreDataset(FakeStore(), **options)
