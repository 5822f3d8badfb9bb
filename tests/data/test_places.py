# SPDX-License-Identifier: Apache-2.0
"""Labelled places of volumes: patches about a voxel of their class, drawn once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_volumes import make_toy_volumes, open_toy_volumes

from monai_ssl.data import LabelledPlaces

CLASSES = {"ball": 1, "cube": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    return open_toy_volumes(make_toy_volumes(root / "volumes"), root / "cache")


def test_the_middle_voxel_is_of_the_class_and_the_patch_is_the_stores(store):
    places = LabelledPlaces(store, range(len(store)), (5, 7, 6), CLASSES, per_class=3)
    assert set(places.labels.tolist()) == {0, 1, 2}
    for i in range(len(places)):
        item, row, centre = places[i], int(places.rows[i]), places.centres[i]
        value = int(store.read_label_map(row)[tuple(centre)])
        assert {1: 1, 4: 2}.get(value, 0) == item["label"]
        assert item["image"].shape == (1, 5, 7, 6)
        assert item["image"][0, 2, 3, 3] == pytest.approx(float(store.read(row)[tuple(centre)]))


def test_beyond_the_volume_there_are_zeros(store):
    places = LabelledPlaces(store, [0], (80, 80, 80), {"ball": 1}, per_class=1)
    image, whole = places[0]["image"][0], torch.from_numpy(store.read(0))
    assert image.sum() == pytest.approx(float(whole.sum()), rel=1e-5)
    assert (image > 0).sum() == (whole > 0).sum()


def test_places_depend_on_seed_and_volume_only(store):
    whole = LabelledPlaces(store, range(len(store)), (4, 4, 4), CLASSES, seed=1)
    alone = LabelledPlaces(store, [3], (4, 4, 4), CLASSES, seed=1)
    np.testing.assert_array_equal(whole.centres[whole.rows == 3], alone.centres)
    other = LabelledPlaces(store, [3], (4, 4, 4), CLASSES, seed=2)
    assert not np.array_equal(other.centres, alone.centres)


def test_joined_draws_follow_each_other(store):
    first, second = (LabelledPlaces(store, [row], (4, 4, 4), CLASSES) for row in (0, 1))
    both = first.joined(second)
    assert len(both) == len(first) + len(second)
    assert torch.equal(both[len(first)]["image"], second[0]["image"])
    assert both[len(first)]["index"] == len(first)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": {"bone": 9}}, "bone"),
        ({"classes": {}}, "classes"),
        ({"size": (4, 4)}, "three sides"),
        ({"per_class": 0}, "per_class"),
    ],
)
def test_wrong_arguments_are_named(store, options, said):
    given = {"size": (4, 4, 4), "classes": CLASSES} | options
    with pytest.raises(ValueError, match=said):
        LabelledPlaces(store, [0, 1], **given)
