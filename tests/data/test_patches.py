# SPDX-License-Identifier: Apache-2.0
"""Random patches of volumes: the same for any worker, in their place, in part, with their label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from array_folders import random_array, read_array, write_arrays
from torch.utils.data import DataLoader
from volume_folders import ct_volume, index_of, index_row, label_map, write_nifti, write_volumes

from monai_ssl.data import PadCollate, PatchSampler, VolumePatchDataset, prepare_store, prepare_volumes
from monai_ssl.data.items import read_item

SHAPES = [(12, 20, 16), (30, 24, 40), (8, 50, 34)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    rows = []
    for number, shape in enumerate(SHAPES):
        write_nifti(root / f"v{number}.nii", ct_volume(shape, number))
        write_nifti(root / f"v{number}-seg.nii.gz", label_map(shape))
        rows.append(index_row(root, [f"v{number}.nii"], label_map=f"v{number}-seg.nii.gz"))
    rows.append(index_row(root, ["v0.nii"], path="unlabelled"))
    index = index_of(rows, lesion=[1, 0, 1, 0], site=["a", "b", "a", "b"])
    return prepare_volumes(index, root, tmp_path_factory.mktemp("store"), num_workers=0, progress=False)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if torch.is_tensor(one[key]) else one[key] == other[key] for key in one
    )


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_patch_is_what_the_store_holds_at_its_place(store, cache):
    data = VolumePatchDataset(
        store, [2, 1], read_size=(10, 16, 16), label_maps=True, label_columns=["lesion", "site"], cache=cache
    )
    assert len(data) == 2
    for code in [0, 1, 2, 7, 2 * 10**9 + 1]:
        item, box = data[code], data.place(code)
        row = [2, 1][code % 2]
        assert item["index"] == row and item["lesion"] == [1, 0, 1][row] and item["site"] == [0, 1, 0][row]
        np.testing.assert_array_equal(item["image"][0], store.read(row, box))
        np.testing.assert_array_equal(item["label_map"][0], store.read_label_map(row, box))
        assert item["image"].dtype == torch.float32 and item["label_map"].dtype == torch.uint8
        assert (
            item["image"].shape
            == item["label_map"].shape
            == (1, *[min(a, b) for a, b in zip((10, 16, 16), SHAPES[row], strict=True)])
        )


def test_places_differ_between_draws_items_and_seeds_and_reach_both_edges(store):
    data = VolumePatchDataset(store, [1], read_size=12)
    places = [data.place(draw) for draw in range(400)]
    starts = np.array([[part.start for part in place] for place in places])
    assert len(np.unique(starts, axis=0)) > 350
    assert starts.min(0).tolist() == [0, 0, 0] and starts.max(0).tolist() == [18, 12, 28]
    # Each start is as likely as the others: 400 draws over 19, 13 and 29 of them.
    for axis, count in enumerate((19, 13, 29)):
        chi2 = ((np.bincount(starts[:, axis], minlength=count) - 400 / count) ** 2 / (400 / count)).sum()
        assert chi2 < 2.2 * count
    assert places != [VolumePatchDataset(store, [1], read_size=12, seed=1).place(draw) for draw in range(400)]


def test_whole_volumes_without_a_size(store):
    data = VolumePatchDataset(store)
    batch = PadCollate()(data.__getitems__([0, 1, 2, 3]))
    assert batch["image"].shape == (4, 1, 30, 50, 40) and batch["extent"].tolist() == [*map(list, SHAPES), [12, 20, 16]]
    np.testing.assert_array_equal(batch["image"][2, 0, :8, :50, :34], store.read(2))


def test_batches_pad_image_and_label_map_alike_however_they_are_made(store):
    data = VolumePatchDataset(store, [0, 1, 2], read_size=24, label_maps=True, label_columns=["lesion"])
    codes = [3, 1, 8]
    quick, plain = PadCollate()(data.__getitems__(codes)), PadCollate()([data[code] for code in codes])
    assert same(quick, plain)
    assert quick["image"].shape == quick["label_map"].shape == (3, 1, 24, 24, 24)
    assert quick["label_map"].dtype == torch.uint8 and quick["extent"][0].tolist() == [12, 20, 16]
    assert not quick["label_map"][0, :, 12:].any() and not quick["label_map"][0, :, :, 20:].any()
    assert quick["label_map"][0].any()
    with pytest.raises(ValueError, match="label_map of an item is"):
        PadCollate()([data[0] | {"label_map": torch.zeros(1, 2, 2, 2)}])


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_the_order_of_patches_does_not_depend_on_the_workers(store, cache):
    def batches(workers):
        data = VolumePatchDataset(store, [0, 1, 2], read_size=10, label_maps=True, foreground_prob=0.5, cache=cache)
        sampler = PatchSampler(len(data), 17, seed=4)
        return list(DataLoader(data, 4, sampler=sampler, num_workers=workers, collate_fn=PadCollate()))

    alone, shared = batches(0), batches(2)
    assert len(alone) == 5 and all(same(one, other) for one, other in zip(alone, shared, strict=True))


def test_patches_around_labels_hold_each_label_alike(store):
    data = VolumePatchDataset(store, [1], read_size=7, label_maps=True, foreground_prob=1.0)
    centres = [int(data[draw]["label_map"][0, 3, 3, 3]) for draw in range(200)]
    assert 0 not in centres and 70 < centres.count(1) < 130, "label 1 has 4 times the voxels of label 2"
    half = VolumePatchDataset(store, [1], read_size=7, label_maps=True, foreground_prob=0.5)
    inside = sum(int(half[draw]["label_map"][0, 3, 3, 3]) > 0 for draw in range(200))
    assert 75 < inside < 135


def test_patches_of_the_body(store):
    box = store.foreground(1)
    data = VolumePatchDataset(store, [1], read_size=5, foreground_prob=1.0)
    centres = np.array([[part.start + 2 for part in data.place(draw)] for draw in range(300)])
    assert (centres.min(0) == [part.start for part in box]).all() and (
        centres.max(0) == [p.stop - 1 for p in box]
    ).all()


def test_a_volume_without_labels_gives_patches_anywhere(tmp_path):
    write_nifti(tmp_path / "v" / "a.nii", ct_volume())
    write_nifti(tmp_path / "v" / "b.nii", np.zeros((12, 20, 16), np.uint8))
    index = index_of([index_row(tmp_path / "v", ["a.nii"], label_map="b.nii")])
    store = prepare_volumes(index, tmp_path / "v", tmp_path / "s", num_workers=0, progress=False)
    data = VolumePatchDataset(store, read_size=4, label_maps=True, foreground_prob=1.0)
    assert len({str(data.place(draw)) for draw in range(20)}) > 10 and data[3]["label_map"].sum() == 0


def test_a_patch_reads_only_the_blocks_it_touches(tmp_path):
    """Spoil the stored volume where no block of the patch lies: the patch must come out the same."""
    index = write_volumes(tmp_path / "v", 1, (64, 96, 96), labels=False)
    store = prepare_volumes(index, tmp_path / "v", tmp_path / "s", num_workers=0, progress=False)
    box = (slice(0, 16), slice(0, 32), slice(0, 32))
    first, whole = store.read(0, box), store.read(0)
    path = tmp_path / "s" / store.table["store_item"][0].as_py()
    data = bytearray(path.read_bytes())
    tail = slice(len(data) * 6 // 10, len(data) * 9 // 10)
    data[tail] = bytes(byte ^ 0xFF for byte in data[tail])
    path.write_bytes(data)
    np.testing.assert_array_equal(store.read(0, box), first)
    try:
        assert not np.array_equal(store.read(0), whole)
    except RuntimeError as error:
        assert "damaged" in str(error)


def test_the_cache_reads_each_volume_once(store, monkeypatch):
    reads = []

    def counted(path, box=None):
        reads.append(box)
        return read_item(path, box)

    monkeypatch.setattr("monai_ssl.data.store.read_item", counted)
    data = VolumePatchDataset(store, [0, 1], read_size=8, label_maps=True, cache="memory")
    for code in range(12):
        data[code]
    assert reads == [None] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_size": 0}, "read_size is 0"),
        ({"read_size": (3, 3)}, "three along"),
        ({"read_size": 2.5}, "whole number"),
        ({"foreground_prob": 1.5}, "foreground_prob 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"label_maps": True}, r"1 of 4 rows have no label map \(row 3 first\)"),
        ({"label_columns": ["lesoin"]}, "did you mean 'lesion'"),
        ({"cache": "disk"}, 'use "none" or "memory"'),
    ],
)
def test_wrong_arguments_say_what_is_right(store, options, message):
    with pytest.raises(ValueError, match=message):
        VolumePatchDataset(store, **options)


def test_negative_codes_and_stores_of_images_are_errors(store, tmp_path):
    with pytest.raises(IndexError, match="0 or more"):
        VolumePatchDataset(store)[-1]
    table = write_arrays(tmp_path / "images", {"deep": random_array((20, 30))})
    images = prepare_store(table, tmp_path / "images", tmp_path / "s", reader=read_array, num_workers=0, progress=False)
    with pytest.raises(ValueError, match="no store of volumes"):
        VolumePatchDataset(images)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_label_maps_outside_a_subset_are_hidden(store, cache):
    """Row 3 has no label map at all; row 1 has one that nobody shall see."""
    options = {"read_size": (10, 16, 16), "label_maps": True, "label_columns": ["site"], "cache": cache}
    data = VolumePatchDataset(store, [1, 2, 3], labelled_rows=[2, 0], foreground_prob=1.0, **options)
    for code in range(12):
        item, row = data[code], (1, 2, 3)[code % 3]
        assert item["labelled"] == int(row == 2) and item["site"] == (0 if row == 2 else -1)
        shown = store.read_label_map(row, data.place(code)) if row == 2 else np.full(item["label_map"].shape[1:], 255)
        np.testing.assert_array_equal(item["label_map"][0], shown)
        np.testing.assert_array_equal(item["image"][0], store.read(row, data.place(code)))
        if row == 2:
            assert item["label_map"].any(), "patches are centred on a label where there is one"
    body = [store.foreground(row) for row in (1, 3)]
    for code in range(0, 120, 3):  # and in the body elsewhere
        middle = [(part.start + part.stop) // 2 for part in data.place(code)]
        edges = zip(middle, body[0], (10, 16, 16), strict=True)
        assert all(part.start - side // 2 <= place <= part.stop + side // 2 for place, part, side in edges)
    batch = PadCollate()(data.__getitems__([0, 1, 2]))
    assert batch["labelled"].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="1 of 3 rows have no label map"):
        VolumePatchDataset(store, [1, 2, 3], labelled_rows=[2, 3], **options)
