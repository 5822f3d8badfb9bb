# SPDX-License-Identifier: Apache-2.0
"""Labels of some sources take part in a mixture: the chosen ones are shown, all others are hidden."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ssl.data import ImageSource, mixture_dataset, probed_source
from monai_ssl.evaluation import (
    Preprocessing,
    classification_labels,
    mixture_label_maps,
    mixture_place_probe,
    supervised_task,
)
from monai_ssl.losses import IGNORED_LABEL
from monai_ssl.methods import ClassTask, FindingsTask

SIZE = (8, 8, 8)
CLASSES = {"ball": 1, "cube": 4}


@pytest.fixture(scope="module")
def volumes(volume_store):
    return {name: ImageSource(name, "volumes", "CT", volume_store, where) for name, where in (("a", None), ("b", None))}


def test_the_task_is_that_of_the_question(toy_store):
    classes = classification_labels(toy_store, "label")
    task = supervised_task(classes, class_weight_power=1.0)
    assert isinstance(task, ClassTask) and task.num_classes == 3
    findings = classification_labels(toy_store, ["spot_left", "spot_right"])
    task = supervised_task(findings)
    assert isinstance(task, FindingsTask) and task.num_findings == 2


@pytest.mark.parametrize("column", ["label", ["spot_left", "spot_right"]])
def test_images_show_the_labels_of_the_subset(toy_store, column):
    labels = classification_labels(toy_store, column, label_fraction=0.3)
    sources = {name: ImageSource(name, "images", None, toy_store) for name in ("known", "unknown")}
    mixture = mixture_dataset(sources, targets={"known": labels.pool_targets()})
    half = len(mixture) // 2
    for i in range(len(mixture)):
        item = mixture[i]
        _, row = mixture.locate_index(item["index"])
        shown = i < half and row in labels.rows["train"]
        assert np.array_equal(np.asarray(item["label"]), labels.targets[row] if shown else 0 * labels.targets[row] - 1)
    assert 0 < len(labels.rows["train"]) < half


def test_targets_that_do_not_fit_are_refused(toy_store):
    sources = {"a": ImageSource("a", "images", None, toy_store), "b": ImageSource("b", "images", None, toy_store)}
    count = len(toy_store)
    with pytest.raises(ValueError, match="'c'"):
        mixture_dataset(sources, targets={"c": np.zeros(count)})
    with pytest.raises(ValueError, match="3 targets"):
        mixture_dataset(sources, targets={"a": np.zeros(3)})
    with pytest.raises(ValueError, match="one question"):
        mixture_dataset(sources, targets={"a": np.zeros(count), "b": np.zeros((count, 2))})
    with pytest.raises(ValueError, match="spatial_dims=3"):
        mixture_dataset(sources, label_map_rows={"a": [0]})


def test_volumes_show_the_label_maps_of_the_subset(volumes):
    maps = mixture_label_maps(volumes, {"cube": 4}, names=["a"], label_fraction=0.5)
    assert maps.class_names == ["cube"] and list(maps.rows) == ["a"]
    mixture = mixture_dataset(volumes, spatial_dims=3, label_map_rows=maps.rows, label_lookup=maps.lookup())
    shown = 0
    for i in range(len(mixture)):
        item = mixture[i]
        source, row = mixture.locate_index(item["index"])
        labelled = source == 0 and row in maps.rows["a"]
        assert item["labelled"] == labelled
        assert set(item["label_map"].unique().tolist()) <= ({0, 1} if labelled else {IGNORED_LABEL})
        shown += labelled
    assert shown == len(maps.rows["a"]) < len(mixture.datasets[0])


def test_label_maps_of_several_sources_need_names_of_the_values(volumes, toy_store):
    with pytest.raises(ValueError, match="classes"):
        mixture_label_maps(volumes)
    with pytest.raises(ValueError, match=r"source 'a'.*lung"):
        mixture_label_maps(volumes, {"lung": 9})
    with pytest.raises(ValueError, match="has a label map"):
        mixture_label_maps({"chest": ImageSource("chest", "images", None, toy_store)})


def test_places_of_several_sources_are_one_question(volumes, toy_store):
    sources = {"chest": ImageSource("chest", "images", None, toy_store), **volumes}
    single = mixture_place_probe(sources, Preprocessing(SIZE), SIZE, CLASSES, names=["a"])
    probe = mixture_place_probe(sources, Preprocessing(SIZE), SIZE, CLASSES)
    assert len(probe.places) == 2 * len(single.places) == len(probe.labels.targets) == len(probe.labels.groups)
    for name in ("train", "val"):
        assert len(probe.labels.rows[name]) == 2 * len(single.labels.rows[name])
        for place in probe.labels.rows[name]:
            assert probe.places[int(place)]["label"] == probe.labels.targets[place]
    train, val = (set(probe.labels.groups[probe.labels.rows[name]]) for name in ("train", "val"))
    assert train and val and not train & val
    unnamed = mixture_place_probe(volumes, Preprocessing(SIZE), SIZE)
    assert unnamed.labels.class_names == ["none", "label 1", "label 4"]
    assert mixture_place_probe({"chest": sources["chest"]}, Preprocessing(SIZE), SIZE, CLASSES) is None
    with pytest.raises(ValueError, match="source 'a'"):
        mixture_place_probe(volumes, Preprocessing(SIZE), SIZE, {"lung": 9})


def test_the_probed_source_is_named_or_the_first_of_flat_images(volumes, toy_store):
    sources = {**volumes, "chest": ImageSource("chest", "images", None, toy_store)}
    assert probed_source(sources).name == "chest" and probed_source(volumes).name == "a"
    assert probed_source(sources, "b").name == "b"
    with pytest.raises(ValueError, match="did you mean 'chest'"):
        probed_source(sources, "chset")
