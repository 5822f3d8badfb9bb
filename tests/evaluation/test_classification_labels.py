# SPDX-License-Identifier: Apache-2.0
"""Label columns become classification questions, or a clear message."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from monai_ssl.data import PadCollate, StoreDataset
from monai_ssl.evaluation import LabelledStoreDataset, classification_labels


class ChangedStore:
    """A store with another table."""

    def __init__(self, store, **columns):
        self.folder, self.table = store.folder, store.table
        for name, values in columns.items():
            if name in self.table.column_names:
                self.table = self.table.drop_columns([name])
            if values is not None:
                self.table = self.table.append_column(name, pa.array(values))


def column(store, name):
    return np.array(store.table[name].to_pylist(), dtype=object)


def test_classes_splits_and_pool(toy_store):
    labels = classification_labels(toy_store, "label")
    assert (labels.task, labels.class_names) == ("multiclass", ["left", "normal", "right"])
    names = np.array(labels.class_names, dtype=object)
    assert (names[labels.targets] == column(toy_store, "label")).all()
    split = column(toy_store, "split")
    for name in ("train", "val", "test"):
        assert labels.rows[name].tolist() == np.flatnonzero(split == name).tolist()
    assert labels.rows["pool"].tolist() == labels.rows["train"].tolist()
    assert "train: 36 images of 18 patients (12 left, 12 normal, 12 right)" in labels.describe()


def test_binary_by_numbers_and_order_of_classes(toy_store):
    labels = classification_labels(toy_store, "sick")
    assert (labels.task, labels.class_names) == ("binary", ["0", "1"])
    turned = classification_labels(toy_store, "label", classes=["right", "left"])
    assert turned.task == "binary" and turned.class_names == ["right", "left"]
    assert (turned.targets == -1).sum() == (column(toy_store, "label") == "normal").sum()
    assert set(turned.targets[turned.rows["train"]]) == {0, 1}
    assert len(turned.rows["pool"]) > len(turned.rows["train"])  # images of other classes still belong to the pool


def test_findings_from_columns_and_from_text(toy_store):
    by_columns = classification_labels(toy_store, ["spot_left", "spot_right"])
    assert by_columns.task == "multilabel" and by_columns.targets.shape == (len(toy_store), 2)
    turned = classification_labels(toy_store, ["spot_left", "spot_right"], classes=["spot_right", "spot_left"])
    assert (turned.targets == by_columns.targets[:, ::-1]).all()
    text = [{"left": "spot_left", "right": "spot_right|spot_left", "normal": ""}[v] for v in column(toy_store, "label")]
    store = ChangedStore(toy_store, findings=[value or "none" for value in text])
    by_text = classification_labels(store, "findings", task="multilabel", classes=["spot_right", "spot_left"])
    assert (by_text.targets[:, 0] == by_columns.targets[:, 1]).all()
    assert (by_text.targets[:, 1] == (column(toy_store, "label") != "normal")).all()


def test_unknown_labels_stay_unknown(toy_store):
    values = [None if i % 7 == 0 else v for i, v in enumerate(column(toy_store, "spot_left"))]
    labels = classification_labels(ChangedStore(toy_store, spot_left=values), ["spot_left", "spot_right"])
    assert (labels.targets[::7, 0] == -1).all() and (labels.targets[::7, 1] >= 0).all()
    texts = [None if i % 7 == 0 else v for i, v in enumerate(column(toy_store, "label"))]
    single = classification_labels(ChangedStore(toy_store, label=texts), "label")
    used = np.concatenate([single.rows[s] for s in ("train", "val", "test")])
    assert not set(used) & set(range(0, len(toy_store), 7))
    assert set(single.rows["pool"]) & set(range(0, len(toy_store), 7))


def test_subsets_are_nested_and_saved(toy_store, tmp_path):
    small, middle, other = (
        classification_labels(toy_store, "label", label_fraction=f, seed=s, output_dir=tmp_path / f"{f}{s}")
        for f, s in ((0.2, 0), (0.5, 0), (0.2, 1))
    )
    assert (
        set(small.rows["train"])
        < set(middle.rows["train"])
        < set(classification_labels(toy_store, "label").rows["pool"])
    )
    assert set(small.rows["train"]) != set(other.rows["train"])
    assert small.split_hash == middle.split_hash == other.split_hash != ""
    assert len({small.subset_hash, middle.subset_hash, other.subset_hash}) == 3
    assert len(small.groups[small.rows["train"]]) == 2 * len(set(small.groups[small.rows["train"]]))
    saved = json.loads((tmp_path / "0.20/labelled_subset.json").read_text())
    assert saved["facts"] == {"seed": 0} and len(saved["subsets"]["0.2"]) == len(small.rows["train"])
    by_count = classification_labels(toy_store, "label", label_fraction=10)
    assert len(by_count.rows["train"]) == 10
    findings = classification_labels(toy_store, ["spot_left", "spot_right"], label_fraction=0.3)
    assert len(findings.rows["train"]) < 14


def test_filter_and_saved_split(toy_store, tmp_path):
    only = classification_labels(toy_store, "label", where="site=A", output_dir=tmp_path)
    site = column(toy_store, "site")
    assert all((site[rows] == "A").all() for rows in only.rows.values())
    moved = ChangedStore(toy_store, split=["test"] * len(toy_store))
    again = classification_labels(moved, "label", splits=["val"], split_file=tmp_path / "split.json")
    assert again.rows["val"].tolist() == only.rows["val"].tolist()
    everything = classification_labels(moved, "label", splits=["all"])
    assert len(everything.rows["all"]) == len(toy_store)
    with pytest.raises(ValueError, match="split=all"):
        classification_labels(moved, "label", splits=["val"], split_file=tmp_path / "none.json")


def test_dataset_gives_the_targets(toy_store):
    for question, kind in (("label", int), (["spot_left", "spot_right"], "tensor")):
        labels = classification_labels(toy_store, question)
        data = LabelledStoreDataset(toy_store, labels, "val")
        batch = PadCollate()(data.__getitems__([0, 5, 3]))
        assert batch["label"].shape == ((3,) if kind is int else (3, 2))
        assert (batch["label"].numpy() == labels.targets[batch["index"].numpy()]).all()
        assert batch["image"].shape[:2] == (3, 1)
    with pytest.raises(ValueError, match="no split 'vla'"):
        LabelledStoreDataset(toy_store, labels, "vla")


def test_weights_and_strata(toy_store):
    labels = classification_labels(toy_store, "sick")
    assert labels.class_weights(0.0) is None
    assert labels.class_weights(1.0)[0] > labels.class_weights(1.0)[1]
    assert labels.strata("val").tolist() == labels.targets[labels.rows["val"]].tolist()
    with pytest.raises(ValueError, match="balanced_sampling is for competing classes"):
        classification_labels(toy_store, ["spot_left", "spot_right"]).strata("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_column": "lable"}, "did you mean 'label'"),
        ({"label_column": "label", "classes": ["normal", "rihgt"]}, "did you mean 'right'"),
        ({"label_column": "label", "classes": ["left", "left"]}, "named twice"),
        ({"label_column": "label", "task": "binary"}, "two classes, these are 3"),
        ({"label_column": "label", "task": "ternary"}, "task must be"),
        ({"label_column": ["spot_left", "sick"], "classes": ["spot_lef"]}, "did you mean 'spot_left'"),
        ({"label_column": ["label", "sick"]}, "columns of findings hold 1, 0"),
        ({"label_column": ["sick"], "task": "binary"}, "several columns are findings"),
        ({"label_column": "label", "where": "site=C"}, "no row is left"),
        ({"label_column": "label", "splits": ["train", "valid"]}, "no labelled image is in the split 'valid'.*val"),
        ({"label_column": "label", "label_fraction": 0.05}, "too small"),
        ({"label_column": "label", "label_fraction": 0}, "label_fraction is 0"),
        ({"label_column": "label", "label_fraction": 2.5}, "whole number"),
    ],
)
def test_mistakes_are_named(toy_store, arguments, message):
    with pytest.raises(ValueError, match=message):
        classification_labels(toy_store, **arguments)


def test_class_absent_from_a_split(toy_store):
    label, split = column(toy_store, "label"), column(toy_store, "split")
    gone = [None if (v, s) == ("right", "val") else v for v, s in zip(label, split, strict=True)]
    with pytest.raises(ValueError, match="the split 'val' has no image of right"):
        classification_labels(ChangedStore(toy_store, label=gone), "label")
    always = [1 if s == "test" else v for v, s in zip(column(toy_store, "spot_left"), split, strict=True)]
    with pytest.raises(ValueError, match="'test' has no image without spot_left"):
        classification_labels(ChangedStore(toy_store, spot_left=always), ["spot_left", "spot_right"])


def test_patient_in_two_splits(toy_store):
    split = column(toy_store, "split")
    moved = [("val" if i == 1 and s == "train" else s) for i, s in enumerate(split)]
    assert list(split) != moved
    with pytest.raises(ValueError, match="'train' and 'val' share patients"):
        classification_labels(ChangedStore(toy_store, split=moved), "label")


@pytest.mark.parametrize("question", ["label", ["spot_left", "spot_right"]])
def test_pretraining_sees_the_labels_that_fine_tuning_sees(toy_store, question):
    """The pool shows the labels of the subset of the same fraction and seed, and of no image held out."""
    shown = []
    for fraction in (0.5, 1.0):
        labels = classification_labels(toy_store, question, label_fraction=fraction, seed=3)
        tuned = LabelledStoreDataset(toy_store, labels, "train")
        pool = LabelledStoreDataset(toy_store, labels, "pool")
        items = [pool[i] | {"label": np.asarray(pool[i]["label"])} for i in range(len(pool))]
        known = {item["index"] for item in items if np.min(item["label"]) >= 0}
        assert known == set(tuned.rows.tolist()) and len(items) == len(labels.rows["pool"])
        for item in items:
            if item["index"] in known:
                assert (item["label"] == labels.targets[item["index"]]).all()
        assert all(np.max(item["label"]) == -1 for item in items if item["index"] not in known)
        same = StoreDataset(toy_store, labels.rows["pool"], ["sick"], labelled_rows=labels.rows["train"])
        assert set(same.rows[same.labels["sick"] >= 0].tolist()) == known
        shown.append(known)
    assert shown[0] < shown[1]
    assert (column(toy_store, "split")[list(shown[1])] == "train").all()
