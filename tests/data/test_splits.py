from __future__ import annotations

import collections

import numpy as np
import pyarrow as pa
import pytest

from monai_ssl.data import assert_classes, assert_disjoint, assign_splits, load_split, save_split, split_rows


def table_of(groups, **columns):
    count = len(groups)
    base = {
        "path": [f"{i}.png" for i in range(count)],
        "group_id": groups,
        "content_hash": [f"{i:032x}" for i in range(count)],
        "perceptual_hash": [f"{i * 0x0123456789ABCDEF % 2**64:016x}" for i in range(count)],
        "status": ["ok"] * count,
    }
    return pa.table(base | columns)


PATIENTS = table_of([f"p{i // 3}" for i in range(3000)])


def split_of(table):
    return dict(zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def test_groups_stay_together_and_shares_are_met():
    table = assign_splits(PATIENTS, seed=1)
    by_group = collections.defaultdict(set)
    for group, split in zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        by_group[group].add(split)
    assert all(len(splits) == 1 for splits in by_group.values())
    counts = collections.Counter(split_of(table).values())
    for split, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert abs(counts[split] / 1000 - share) < 4 * np.sqrt(share * (1 - share) / 1000)
    assert split_of(assign_splits(PATIENTS, seed=1)) == split_of(table)
    assert split_of(assign_splits(PATIENTS, seed=2)) != split_of(table)


def test_more_patients_move_nobody():
    few, many = assign_splits(PATIENTS.slice(0, 900)), assign_splits(PATIENTS)
    assert split_of(few).items() <= split_of(many).items()


def test_splits_do_not_depend_on_the_salt_or_the_order():
    salted = PATIENTS.set_column(1, "group_id", pa.array([f"x{g}" for g in PATIENTS["group_id"].to_pylist()]))
    assert assign_splits(salted)["split"].to_pylist() == assign_splits(PATIENTS)["split"].to_pylist()
    turned = PATIENTS.take(pa.array(range(len(PATIENTS) - 1, -1, -1)))
    assert split_of(assign_splits(turned)) == split_of(assign_splits(PATIENTS))


def test_given_splits_are_kept_for_the_whole_group():
    table = table_of(["a", "a", "b", None, None, *[f"p{i}" for i in range(200)]])
    table = table.append_column("split", pa.array([None, "extra", None, "train", None] + [None] * 200, pa.string()))
    splits = assign_splits(table)["split"].to_pylist()
    assert splits[:2] == ["extra", "extra"] and splits[3] == "train" and None not in splits


def test_splits_that_cannot_be():
    with pytest.raises(ValueError, match=r"no image falls into the split .*another seed or larger fractions"):
        assign_splits(table_of(["a"] * 5))
    assert len(set(assign_splits(table_of(["a"] * 5), allow_empty=True)["split"].to_pylist())) == 1
    with pytest.raises(ValueError, match="add up to 1"):
        assign_splits(PATIENTS, {"train": 0.5, "test": 0.4})
    with pytest.raises(ValueError, match="no column 'groupid'; did you mean 'group_id'"):
        assign_splits(PATIENTS, group="groupid")
    torn = table_of(["a", "a"], split=["train", "test"])
    with pytest.raises(ValueError, match="in the splits 'train' and 'test'"):
        assign_splits(torn)


def test_rows_of_a_split():
    table = table_of(list("abcd"), split=["train", "test", "train", None])
    table = table.set_column(4, "status", pa.array(["ok", "ok", "refused", "ok"]))
    assert split_rows(table, "train").tolist() == [0]
    with pytest.raises(ValueError, match="no image is in the split 'val'; there are: test, train"):
        split_rows(table, "val")
    with pytest.raises(ValueError, match="no column 'split'"):
        split_rows(PATIENTS, "train")


def test_a_class_absent_from_a_split_is_named():
    table = table_of(list("abcde"), split=["train"] * 3 + ["test"] * 2, label=["x", "y", "z", "x", None])
    assert_classes(table, "label", ["train"])
    assert_classes(table, "label", ["train", "test"], classes=["x"])
    with pytest.raises(ValueError, match=r"the split 'test' has no image of label y, z; it has x\."):
        assert_classes(table, "label", ["train", "test"])


def test_disjoint_tables_pass_and_shared_patients_do_not():
    a, b = PATIENTS.slice(0, 30), PATIENTS.slice(30, 30)
    assert_disjoint(a, b, by=("group_id", "content_hash", "perceptual_hash"))
    b = PATIENTS.slice(28, 30)  # rows 28 and 29 are there twice, and share the patient of row 27
    with pytest.raises(
        ValueError, match=r"not disjoint by group_id: 2 images of the second, e\.g\. 27\.png and 28\.png"
    ):
        assert_disjoint(a, b)
    with pytest.raises(ValueError, match=r"by content_hash: 2 images of the second, e\.g\. 28\.png and 28\.png"):
        assert_disjoint(a, b, by=("content_hash",))


def test_look_alikes_are_found_by_their_bits():
    a = table_of(["a", "b"], perceptual_hash=["ffff000000000000", "123456789abcdef0"])
    b = table_of(["c", "d"], perceptual_hash=["ffff000000000007", None])
    assert_disjoint(a, b, by=("perceptual_hash",), max_distance=2)
    with pytest.raises(ValueError, match="by perceptual_hash: 1 images"):
        assert_disjoint(a, b, by=("perceptual_hash",), max_distance=3)


def test_what_cannot_prove_anything_is_an_error_and_refused_rows_do_not_count():
    a = table_of(["a", "b"])
    nobody = table_of([None, None]).set_column(1, "group_id", pa.nulls(2, pa.string()))
    with pytest.raises(ValueError, match="the second table has no value in the column 'group_id'"):
        assert_disjoint(a, nobody)
    refused = table_of(["b", "c"]).set_column(4, "status", pa.array(["refused", "ok"]))
    assert_disjoint(a, refused, by=("group_id",))


def test_a_split_file_finds_its_images_again(tmp_path):
    path = tmp_path / "split.json"
    digest = save_split(path, PATIENTS, {0.1: [5, 3, 8], "all": np.arange(20)}, seed=7)
    assert len(digest) == 64
    loaded = load_split(path, PATIENTS)
    assert loaded["0.1"].tolist() == [5, 3, 8] and loaded["all"].tolist() == list(range(20))
    shuffled = PATIENTS.take(pa.array(np.random.default_rng(0).permutation(len(PATIENTS))))
    rows = load_split(path, shuffled)["0.1"]
    assert [shuffled["path"][row].as_py() for row in rows] == ["5.png", "3.png", "8.png"]
    renamed = PATIENTS.set_column(0, "path", pa.array([f"moved/{i}.png" for i in range(len(PATIENTS))]))
    assert load_split(path, renamed)["0.1"].tolist() == [5, 3, 8]
    assert save_split(tmp_path / "again.json", PATIENTS, {0.1: [5, 3, 8], "all": np.arange(20)}, seed=7) == digest


def test_equal_images_are_told_apart_by_their_path(tmp_path):
    table = table_of(["a", "b", "c"], content_hash=["0f"] * 3)
    save_split(tmp_path / "split.json", table, {"x": [1]})
    assert load_split(tmp_path / "split.json", table)["x"].tolist() == [1]


def test_split_files_that_do_not_fit(tmp_path):
    path = tmp_path / "split.json"
    save_split(path, PATIENTS, {"x": [1, 2]})
    with pytest.raises(
        ValueError, match=r"2 of its images are not in the table or have other pixels, e\.g\. 1\.png, 2"
    ):
        load_split(path, table_of(list("ab"), content_hash=["aa", "bb"]))
    path.write_text(path.read_text().replace("1.png", "7.png"))
    with pytest.raises(ValueError, match="was changed after it was written"):
        load_split(path, PATIENTS)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a split file"):
        load_split(path, PATIENTS)
    with pytest.raises(FileNotFoundError, match="no such split file"):
        load_split(tmp_path / "none.json", PATIENTS)
