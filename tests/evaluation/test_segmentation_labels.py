# SPDX-License-Identifier: Apache-2.0
"""Label maps become a question: classes by value, splits by patient, nested subsets, patches of class numbers."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from monai_ssl.evaluation import LabelledVolumes, segmentation_labels

CLASSES = {"ball": 1, "cube": 4}


def test_classes_by_name_value_and_default(volume_store):
    labels = segmentation_labels(volume_store, CLASSES)
    assert labels.classes == {"ball": [1], "cube": [4]}
    assert [len(labels.rows[split]) for split in ("train", "val", "test")] == [6, 2, 2]
    assert labels.lookup()[[0, 1, 2, 4]].tolist() == [0, 1, 0, 2]
    assert labels.present.all(axis=0).tolist() == [True, False]
    assert "3 with cube" in labels.describe() and "6 patients" in labels.describe()
    assert segmentation_labels(volume_store).classes == {"label_1": [1], "label_4": [4]}
    assert segmentation_labels(volume_store, ["ball"]).classes == {"ball": [1]}
    merged = segmentation_labels(volume_store, {"bright": [1, 4]})
    assert merged.lookup()[[1, 4]].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ball", "cube"], "no label map has a voxel of cube; the values that occur are 1, 4"),
        ({"ball": 1, "cube": 1}, "each in one class"),
        ({"ball": 0}, "from 1 to 255"),
        (["ball", "ball"], "named twice"),
        ("ball", "must be a list of names"),
    ],
)
def test_wrong_classes(volume_store, classes, message):
    with pytest.raises(ValueError, match=message):
        segmentation_labels(volume_store, classes)


def test_subsets_are_nested_whole_and_have_every_class(volume_store):
    subsets = [
        set(segmentation_labels(volume_store, CLASSES, label_fraction=n, seed=3).rows["train"].tolist())
        for n in (2, 0.5, 5, 1.0)
    ]
    assert [len(rows) for rows in subsets] == [2, 3, 5, 6]
    assert all(small < large for small, large in itertools.pairwise(subsets))
    present = segmentation_labels(volume_store, CLASSES).present
    assert present[sorted(subsets[0])].any(axis=0).all()
    one_class = segmentation_labels(volume_store, ["ball"], label_fraction=0.2)  # every volume has it
    assert len(one_class.rows["train"]) == 1
    with pytest.raises(ValueError, match="share above 0 to 1, or a whole number"):
        segmentation_labels(volume_store, CLASSES, label_fraction=0)


def test_files_and_following_an_earlier_split(volume_store, tmp_path):
    labels = segmentation_labels(volume_store, CLASSES, label_fraction=0.5, output_dir=tmp_path)
    assert len(labels.split_hash) == len(labels.subset_hash) == 16
    written = json.loads((tmp_path / "split.json").read_text())
    assert written["facts"]["classes"] == {"ball": [1], "cube": [4]}
    again = segmentation_labels(volume_store, CLASSES, splits=["test"], split_file=tmp_path / "split.json")
    assert again.rows["test"].tolist() == labels.rows["test"].tolist()
    everything = segmentation_labels(volume_store, CLASSES, splits=["all"], where="site=B")
    assert len(everything.rows["all"]) == 5


def test_a_class_that_the_training_lacks(volume_store):
    paths = volume_store.table["path"].to_pylist()
    splits = volume_store.table["split"].to_pylist()
    cubes = segmentation_labels(volume_store, CLASSES).present[:, 1]
    gone = [path for path, split, cube in zip(paths, splits, cubes, strict=True) if cube and split == "train"]
    with pytest.raises(ValueError, match="none of the 3 labelled training volumes has cube"):
        segmentation_labels(volume_store, CLASSES, where=f"path!={'|'.join(gone)}")
    with pytest.raises(ValueError, match="no labelled image is in the split 'val'"):
        segmentation_labels(volume_store, CLASSES, where="split!=val")


def test_patches_hold_class_numbers(volume_store):
    labels = segmentation_labels(volume_store, CLASSES)
    whole = LabelledVolumes(volume_store, labels, "train")
    rows = labels.rows["train"]
    for i in range(len(whole)):
        stored = volume_store.read_label_map(int(rows[i]))
        expected = np.where(stored == 4, 2, stored)
        np.testing.assert_array_equal(whole[i]["label_map"][0].numpy(), expected)
    cubes = segmentation_labels(volume_store, {"cube": 4})
    patches = LabelledVolumes(volume_store, cubes, "train", read_size=5, foreground_prob=1.0)
    for code in range(5 * len(patches)):
        item = patches[code]
        with_cube = cubes.present[int(item["index"]), 0]
        assert bool(item["label_map"].any()) == with_cube  # never centred on the ball, which is background here
    with pytest.raises(ValueError, match="there is no split 'tset'"):
        LabelledVolumes(volume_store, labels, "tset")


def test_pretraining_sees_the_label_maps_that_fine_tuning_sees(volume_store):
    labels = segmentation_labels(volume_store, CLASSES, label_fraction=0.5, seed=3)
    assert set(labels.rows["train"]) < set(labels.rows["pool"])
    assert not set(labels.rows["pool"]) & {*labels.rows["val"], *labels.rows["test"]}
    tuned, pool = LabelledVolumes(volume_store, labels, "train"), LabelledVolumes(volume_store, labels, "pool")
    maps = {int(row): tuned[i]["label_map"] for i, row in enumerate(tuned.rows)}
    assert len(pool) == 6
    for i, row in enumerate(pool.rows):
        item = pool[i]
        assert item["labelled"] == int(int(row) in maps)
        assert (item["label_map"] == maps.get(int(row), 255)).all()
