# SPDX-License-Identifier: Apache-2.0
"""Resampling keeps everything in its place, averages where voxels get larger and invents no labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F
from torch import from_numpy
from volume_folders import SPL

from monai_ssl.data import UnreadableImageError
from monai_ssl.data.grids import crop_grid, resample_image, resample_labels, resampled_grid

TURNED = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURNED * [3.0, 0.8, 1.1]
OBLIQUE[:3, 3] = [5, -7, 11]


def ramp(shape, affine) -> np.ndarray:
    """A linear function of the place in mm."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = grid @ affine[:3, :3].T + affine[:3, 3]
    return (mm @ [1.0, -2.0, 0.5]).astype(np.float32)


@pytest.mark.parametrize("affine", [SPL, OBLIQUE])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (4, 2, 3), (2.2, 0.7, 1.9)])
def test_a_linear_image_stays_the_same_function_of_the_place(affine, spacing):
    shape = (15, 40, 30)
    new_shape, new_affine = resampled_grid(shape, affine, spacing)
    np.testing.assert_allclose(np.linalg.norm(new_affine[:3, :3], axis=0), spacing)
    centre = affine @ (*((np.array(shape) - 1) / 2), 1)
    np.testing.assert_allclose(new_affine @ (*((np.array(new_shape) - 1) / 2), 1), centre)
    resampled = resample_image(ramp(shape, affine), affine, new_shape, new_affine)
    inside = tuple(slice(side // 4, side - side // 4) for side in new_shape)
    np.testing.assert_allclose(resampled[inside], ramp(new_shape, new_affine)[inside], atol=2e-3)


def test_the_same_spacing_changes_nothing():
    volume = np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype(np.float32)
    shape, affine = resampled_grid(volume.shape, SPL, (2.0004, 1.5, 0.9999))
    np.testing.assert_array_equal(resample_image(volume, SPL, shape, affine), volume)
    np.testing.assert_allclose(affine, SPL)
    shape, affine = resampled_grid(volume.shape, SPL, (2, 1.5, 2))
    assert shape == (5, 6, 4)
    np.testing.assert_allclose(
        resample_image(volume, SPL, shape, affine)[:, 2, 1],
        resample_image(volume[:, 2:3], SPL, (5, 1, 4), affine)[:, 0, 1],
    )


def test_enlarging_is_what_torch_does():
    image = np.random.default_rng(0).normal(size=(9, 12, 10)).astype(np.float32)
    shape, affine = resampled_grid(image.shape, np.eye(4), (0.5, 0.5, 0.5))
    theirs = F.interpolate(from_numpy(image)[None, None], scale_factor=2, mode="trilinear", align_corners=False)
    np.testing.assert_allclose(resample_image(image, np.eye(4), shape, affine), theirs[0, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.3])
def test_shrinking_averages_the_linear_interpolation(ratio):
    """Against a slow sum of many interpolated values over the width that the module names."""
    line = np.random.default_rng(0).normal(size=60).astype(np.float32)
    shape, affine = resampled_grid((1, 1, 60), np.eye(4), (1, 1, ratio))
    ours = resample_image(line[None, None], np.eye(4), shape, affine)[0, 0]
    offsets = (np.arange(4000) + 0.5) / 4000 - 0.5
    centres = (np.arange(shape[2]) - (shape[2] - 1) / 2) * ratio + 29.5
    slow = [np.interp(centre + offsets * np.sqrt(ratio**2 - 1), np.arange(60), line).mean() for centre in centres]
    np.testing.assert_allclose(ours, slow, atol=1e-4)


def test_fine_stripes_do_not_alias():
    stripes = np.tile(np.array([0.0, 1000.0], np.float32), 40)[None, None]
    shape, affine = resampled_grid(stripes.shape, np.eye(4), (1, 1, 3.1))
    resampled = resample_image(stripes, np.eye(4), shape, affine)[0, 0, 2:-2]
    assert np.abs(resampled - 500).max() < 100, "sampling every third value would swing from 0 to 1000"


def test_enlarging_beyond_the_memory_is_refused():
    shape, affine = resampled_grid((100, 100, 100), np.eye(4), (0.01, 0.01, 0.01))
    with pytest.raises(UnreadableImageError, match="exceeds"):
        resample_image(np.zeros((100, 100, 100), np.float32), np.eye(4), shape, affine)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 3, 3), (2, 1.5, 0.4), (5, 0.7, 2)])
def test_labels_are_the_largest_share_of_one_hot_images(spacing):
    random = np.random.default_rng(1)
    coarse = random.choice([0, 0, 0, 3, 7, 200], (4, 6, 5)).astype(np.uint8)
    labels = np.kron(coarse, np.ones((4, 4, 4), np.uint8))
    shape, affine = resampled_grid(labels.shape, SPL, spacing)
    result = resample_labels(labels, SPL, shape, affine)
    values = np.unique(labels)
    shares = np.stack([resample_image((labels == v).astype(np.float32), SPL, shape, affine) for v in values])
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    best = shares.max(0)
    own = np.take_along_axis(shares, np.searchsorted(values, result)[None], axis=0)[0]
    assert result.dtype == np.uint8 and set(np.unique(result)) <= set(values)
    np.testing.assert_allclose(own, best, atol=2e-6)


def test_labels_without_background():
    labels = np.full((4, 4, 4), 5, np.uint8)
    shape, affine = resampled_grid(labels.shape, np.eye(4), (2, 2, 2))
    assert (resample_labels(labels, np.eye(4), shape, affine) == 5).all()


def test_a_cropped_grid_keeps_voxels_in_their_place():
    np.testing.assert_allclose(
        crop_grid(OBLIQUE, [slice(2, 5), slice(1, 9), slice(4, 6)]) @ (0, 0, 0, 1), OBLIQUE @ (2, 1, 4, 1)
    )
