# SPDX-License-Identifier: Apache-2.0
"""Predictions go back to the voxels of their file: flipped, permuted, oblique, resampled, cropped, NIfTI and DICOM."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot
from toy_volumes import make_toy_volumes, open_toy_volumes

from monai_ssl.evaluation import restore_class_numbers, write_label_map
from monai_ssl.evaluation.segmentation_writer import label_map_names


def as_logits(numbers: np.ndarray, classes: int = 5) -> torch.Tensor:
    return one_hot(torch.from_numpy(numbers.astype(np.int64)), classes).movedim(-1, 0).float() * 8


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_toy_volumes(tmp_path_factory.mktemp("data"), num_patients=4)


@pytest.mark.parametrize("crop", [False, True])
def test_same_voxels_come_back_exactly(folder, tmp_path, crop):
    store = open_toy_volumes(folder, tmp_path / "cache", crop_foreground=crop)
    for row in range(len(store)):
        shape, affine = store.source_grid(row)
        restored = restore_class_numbers(as_logits(store.read_label_map(row)), store.affine(row), shape, affine)
        write_label_map(tmp_path / "a" / "seg.nii.gz", restored, affine)
        written = nib.load(tmp_path / "a" / "seg.nii.gz")
        source = nib.load(folder / store.table["path"][row].as_py())
        truth = nib.load(folder / store.table["label_map"][row].as_py())
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(truth.dataobj))
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
        assert written.header.get_xyzt_units()[0] == "mm" and written.get_data_dtype() == np.uint8
        assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 1
    assert not crop or store.shape(0) != tuple(store.source_grid(0)[0])


def test_resampled_volumes_come_back_smoothly(folder, tmp_path):
    store = open_toy_volumes(folder, tmp_path / "cache", spacing_mm=(0.8, 0.9, 1.1), crop_foreground=True)
    for row in range(len(store)):
        shape, affine = store.source_grid(row)
        restored = restore_class_numbers(as_logits(store.read_label_map(row)), store.affine(row), shape, affine)
        truth = np.asarray(nib.load(folder / store.table["label_map"][row].as_py()).dataobj).T
        assert restored.shape == truth.shape
        for value in np.unique(truth[truth > 0]):
            assert dice(restored == value, truth == value) > 0.93


def test_a_plane_stays_where_it_is_in_millimetres():
    """Between two known grids: a step at 21 mm along the patient's left-right axis."""
    stored = np.zeros((4, 4, 20))
    stored[..., 10:] = 1
    stored_affine = np.array([[0, 0, -2.0, 40], [0, 3.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])  # x = 40 - 2 w
    source_affine = np.array([[1.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])  # x = d
    restored = restore_class_numbers(as_logits(stored, 2), stored_affine, (60, 4, 4), source_affine)
    x = np.flatnonzero(restored[:, 1, 1])
    assert (x.min(), x.max()) == (1, 20)  # w = 10 .. 19 is x = 20 .. 2, and 0.75 of a stored voxel more
    other = np.flatnonzero(
        restore_class_numbers(as_logits(1 - stored, 2), stored_affine, (60, 4, 4), source_affine)[:, 1, 1]
    )
    assert (other.min(), other.max()) == (22, 41)  # at 21 mm both are as likely: background


def test_slabs_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, 6, 7, 8)).astype(np.float32))
    turn = np.diag([0.7, 0.8, 0.9, 1.0])
    whole = restore_class_numbers(logits, np.eye(4), (8, 8, 8), turn)
    monkeypatch.setattr("monai_ssl.evaluation.source_grid._SLAB_VOXELS", 1)
    np.testing.assert_array_equal(restore_class_numbers(logits, np.eye(4), (8, 8, 8), turn), whole)


def test_names_of_label_maps():
    paths = ["a/x.nii.gz", "a/X.nrrd", "dicom/series", "four.nii#0", "four.nii#1", ".", "v1.2/scan.DCM"]
    assert label_map_names(paths) == [
        "a/x_seg.nii.gz",
        "a/X_2_seg.nii.gz",
        "dicom/series_seg.nii.gz",
        "four_0_seg.nii.gz",
        "four_1_seg.nii.gz",
        "volume_seg.nii.gz",
        "v1.2/scan_seg.nii.gz",
    ]
