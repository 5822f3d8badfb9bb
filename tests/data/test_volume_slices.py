# SPDX-License-Identifier: Apache-2.0
"""Single slices of volumes: the right ones, by code alone, read in part, and ready for the views of CT and MR."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from array_folders import random_array, read_array, write_arrays
from volume_folders import write_volumes

from monai_ssl.data import CTIntensity, PadCollate, VolumeSliceDataset, prepare_store, prepare_volumes
from monai_ssl.data.items import read_item
from monai_ssl.transforms import IntensityStandardize, RandomBiasField, RandomGamma, RandomWindow, volume_views


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("slices")
    index = write_volumes(root / "v", 3)
    return prepare_volumes(
        index, root / "v", root / "s", policy=CTIntensity(name="ct_wide"), num_workers=0, progress=False
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_a_plane_of_the_volume(store, axis):
    data = VolumeSliceDataset(store, axis=axis, label_maps=True, valid_above=0.2)
    kept = [other for other in range(3) if other != axis]
    for code in (0, 1, 7, 29):
        item, box = data[code], data.place(code)
        row = code % 3
        assert item["index"] == row and box[axis].stop == box[axis].start + 1
        plane = np.take(store.read(row), box[axis].start, axis)
        assert item["image"].shape == (1, *(store.shape(row)[other] for other in kept))
        np.testing.assert_array_equal(item["image"][0], plane)
        np.testing.assert_array_equal(item["label_map"][0], np.take(store.read_label_map(row), box[axis].start, axis))
        np.testing.assert_array_equal(item["valid"][0], plane > 0.2)
    batch = PadCollate()(data.__getitems__([0, 4, 8]))
    assert batch["image"].ndim == 4 and batch["extent"].shape == (3, 2)
    assert batch["label_map"].shape == batch["image"].shape == batch["valid"].shape


def test_slices_are_drawn_by_seed_draw_and_item_alone(store):
    data, again = VolumeSliceDataset(store, seed=5), VolumeSliceDataset(store, [2, 1], seed=5)
    assert [data.place(code) for code in range(30)] == [data.place(code) for code in range(30)]
    assert [data.place(code)[0] for code in range(30)] != [VolumeSliceDataset(store).place(c)[0] for c in range(30)]
    assert again[3]["index"] == 1 and len(again) == 2
    with pytest.raises(IndexError, match="0 or more"):
        data[-1]


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_of_the_body_only(store, axis):
    body = store.foreground(1)[axis]
    side = store.shape(1)[axis]
    assert body.start > 0 and body.stop < side
    within = [VolumeSliceDataset(store, [1], axis=axis).place(draw)[axis].start for draw in range(400)]
    counts = np.bincount(within, minlength=side)
    assert set(np.flatnonzero(counts)) == set(range(body.start, body.stop))
    assert counts[counts > 0].min() > 400 / (body.stop - body.start) / 2, "all alike"
    anywhere = VolumeSliceDataset(store, [1], axis=axis, within_body=False)
    assert {anywhere.place(draw)[axis].start for draw in range(400)} == set(range(side))


def test_only_the_slice_is_read(store, monkeypatch):
    boxes = []

    def counted(path, box=None):
        boxes.append(box)
        return read_item(path, box)

    monkeypatch.setattr("monai_ssl.data.store.read_item", counted)
    VolumeSliceDataset(store)[0]
    assert len(boxes) == 1 and boxes[0][0].stop - boxes[0][0].start == 1
    boxes.clear()
    data = VolumeSliceDataset(store, [0], cache="memory")
    slices = [data[code]["image"] for code in range(4)]
    assert boxes == [None], "the whole volume, once"
    assert torch.equal(slices[2], VolumeSliceDataset(store, [0])[2]["image"])


def test_clear_errors(store, tmp_path):
    with pytest.raises(ValueError, match="axis is 3"):
        VolumeSliceDataset(store, axis=3)
    table = write_arrays(tmp_path / "images", {"deep": random_array((20, 30))})
    images = prepare_store(table, tmp_path / "images", tmp_path / "s", reader=read_array, num_workers=0, progress=False)
    with pytest.raises(ValueError, match="no store of volumes"):
        VolumeSliceDataset(images)


def test_a_window_of_slices_is_in_hounsfield_units(store):
    """The store's own limits and a window's give the values that clipping the volume's HU gives."""
    limits = store.policy.window_hu
    data = VolumeSliceDataset(store, seed=1)
    image = PadCollate()(data.__getitems__([0, 1, 2]))["image"]
    window = RandomWindow(limits, width_hu=(400, 400), level_hu=(40, 40), prob=1)
    got = window(image)
    for i in range(3):
        hu = limits[0] + store.read(i, data.place(i))[0] * (limits[1] - limits[0])
        np.testing.assert_allclose(got[i, 0], np.clip((hu + 160) / 400, 0, 1), atol=1e-4)


def test_mr_changes_of_slices_keep_air_dark_and_differ(store):
    image = PadCollate()(VolumeSliceDataset(store).__getitems__([0, 1, 2]))["image"]
    seed = torch.Generator().manual_seed(0)
    field = RandomBiasField((0.2, 0.4), prob=1)(image, seed)
    log = (field[image > 0.01] / image[image > 0.01]).log()
    assert 0.05 < log.abs().max() <= 0.45 and torch.equal(field == 0, image == 0)
    gamma = RandomGamma((1.5, 2.0), prob=1)(image, seed)
    assert (gamma <= image + 1e-6).all() and gamma.min() >= 0
    for modality in ("CT", "MR"):
        limits = store.policy.window_hu if modality == "CT" else None
        views = volume_views(16, modality, 2, limits_hu=limits, standardize=IntensityStandardize(mean=0, std=1))
        first, second = views(image, seed)
        assert first.shape == (3, 1, 16, 16) and first.isfinite().all() and not torch.equal(first, second)
