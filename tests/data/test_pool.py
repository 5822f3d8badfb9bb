# SPDX-License-Identifier: Apache-2.0
"""The pool keeps out of the held-out splits, or says why it can't."""

from __future__ import annotations

import pytest
from array_folders import many_arrays, read_array, write_arrays

from monai_ssl.data import pool_fingerprint, prepare_store, pretraining_rows


def make_store(folder, splits, groups, **columns):
    table = write_arrays(folder / "images", many_arrays(len(splits)), split=splits, group_id=groups, **columns)
    return prepare_store(table, folder / "images", folder / "store", reader=read_array, num_workers=0, progress=False)


def test_pool_is_everything_but_the_held_out_splits(tmp_path):
    splits = ["train", "val", None, "test", "train"]
    store = make_store(tmp_path, splits, list("abcde"), source=["x", "x", "x", "x", "y"])
    assert pretraining_rows(store).tolist() == [0, 2, 4]
    assert pretraining_rows(store, held_out=("test",)).tolist() == [0, 1, 2, 4]
    assert pretraining_rows(store, where="source=x").tolist() == [0, 2]
    assert pretraining_rows(store, among=[4, 3, 2]).tolist() == [2, 4]


def test_a_patient_on_both_sides_is_refused(tmp_path):
    store = make_store(tmp_path, ["train", "test", "train"], ["a", "a", "b"])
    with pytest.raises(ValueError, match="disjoint by group_id"):
        pretraining_rows(store)
    # The image that shares a patient is filtered away on the pool's side: nothing is shared any more.
    assert pretraining_rows(store, where="path=deep002*").tolist() == [2]


def test_an_empty_pool_says_what_emptied_it(tmp_path):
    store = make_store(tmp_path, ["test", "test"], ["a", "b"])
    with pytest.raises(ValueError, match=r"2 of 2 meet .* held-out splits \['val', 'test'\]"):
        pretraining_rows(store)


def test_fingerprint_is_of_the_contents_not_the_order(tmp_path):
    store = make_store(tmp_path, ["train"] * 3, list("abc"))
    assert pool_fingerprint(store, [0, 1, 2]) == pool_fingerprint(store, [2, 0, 1])
    assert pool_fingerprint(store, [0, 1]) != pool_fingerprint(store, [0, 2])
