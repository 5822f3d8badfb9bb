# SPDX-License-Identifier: Apache-2.0
"""Grids of volumes: another spacing for images and label maps, a box cut out, and whether two grids are one.

Resampling goes along the array's own axes, so it is separable: one sparse matrix an axis. A new voxel is a weighted
mean under a triangle that reaches as far as the larger of the old and the new spacing on either side: linear
interpolation when voxels get smaller, and its usual widening against aliasing when they get larger.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from monai_ssl.data.volumes import check_size

_SAME_SPACING = 1e-3  # relative; below it an axis keeps its voxels, and whole numbers stay whole
_SAME_PLACE = 0.1  # of a voxel, how far the corners of two grids that count as one may lie apart


def resampled_grid(
    shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[tuple[int, ...], np.ndarray]:
    """Grid of another spacing that covers the same box, with the same centre and axes.

    Args:
        shape: (D, H, W).
        affine: (4, 4), voxel centres (d, h, w, 1) to mm.
        spacing_mm: of the new grid, along each array axis.

    Returns:
        The new shape, at least 1 along each axis, and the new affine.
    """
    old_mm = np.linalg.norm(affine[:3, :3], axis=0)
    new_mm = np.where(np.abs(np.asarray(spacing_mm) / old_mm - 1) < _SAME_SPACING, old_mm, spacing_mm)
    new_shape = tuple(max(1, round(side * old / new)) for side, old, new in zip(shape, old_mm, new_mm, strict=True))
    ratio = new_mm / old_mm
    turn = np.diag([*ratio, 1.0])
    turn[:3, 3] = [_first_centre(old, new, step) for old, new, step in zip(shape, new_shape, ratio, strict=True)]
    return new_shape, affine @ turn


def _first_centre(old: int, new: int, ratio: float) -> float:
    """Index on the old grid of the new grid's first voxel, such that both have one centre."""
    return (old - 1) / 2 - ratio * (new - 1) / 2


def resample(array: np.ndarray, affine: np.ndarray, shape: Sequence[int], new_affine: np.ndarray) -> np.ndarray:
    """Bring an image to a grid that ``resampled_grid`` gave; beyond the outermost voxels their value goes on.

    Args:
        array: float32 (D, H, W).
        affine: its grid's.
        shape: new shape.
        new_affine: the new grid's.

    Returns:
        float32 of the new shape.

    Raises:
        UnreadableImageError: if the new volume would be too large.
    """
    check_size(tuple(shape))
    ratios = np.linalg.norm(new_affine[:3, :3], axis=0) / np.linalg.norm(affine[:3, :3], axis=0)
    # Those that shrink most go first: less is left for the others.
    for axis in np.argsort([new / old for new, old in zip(shape, array.shape, strict=True)]):
        old, new = array.shape[axis], shape[axis]
        if old == new and abs(ratios[axis] - 1) < _SAME_SPACING:
            continue
        lines = np.moveaxis(array, axis, 0)
        rest = lines.shape[1:]
        lines = _weights(old, new, float(ratios[axis])) @ np.ascontiguousarray(lines).reshape(old, -1)
        array = np.moveaxis(lines.reshape(new, *rest), 0, axis)
    return np.ascontiguousarray(array, dtype=np.float32)


def resample_labels(labels: np.ndarray, affine: np.ndarray, shape: Sequence[int], new_affine: np.ndarray) -> np.ndarray:
    """Bring a label map to another grid as ``resample`` does an image: the label with the largest share wins.

    Each label's mask is resampled for itself (one-hot), so no new labels arise between two; of equal shares the
    smaller label wins.

    Args:
        labels: uint8 (D, H, W).
        affine, shape, new_affine: see ``resample``.

    Returns:
        uint8 of the new shape.
    """
    values = np.unique(labels)
    result = np.full(shape, values[0], dtype=np.uint8)
    if len(values) == 1:
        return result
    best = resample((labels == values[0]).astype(np.float32), affine, shape, new_affine)
    for value in values[1:]:
        share = resample((labels == value).astype(np.float32), affine, shape, new_affine)
        larger = share > best + 1e-6
        result[larger] = value
        np.maximum(best, share, out=best)
    return result


def _weights(old: int, new: int, ratio: float) -> sparse.csr_matrix:
    """Matrix (new, old) of the triangle's weights; each row sums to 1."""
    half = max(1.0, ratio)
    centres = _first_centre(old, new, ratio) + ratio * np.arange(new)
    first = np.floor(centres - half).astype(np.int64)
    taps = first[:, None] + np.arange(int(2 * half) + 3)  # (new, taps)
    weights = np.clip(1.0 - np.abs(taps - centres[:, None]) / half, 0.0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(new), taps.shape[1])
    # Entries of one place add up: what would reach over the edge falls to the outermost voxel.
    entries = (weights.ravel().astype(np.float32), (rows, np.clip(taps, 0, old - 1).ravel()))
    return sparse.csr_matrix(entries, shape=(new, old))


def crop_grid(affine: np.ndarray, box: Sequence[slice]) -> np.ndarray:
    """Affine of a box cut out of a grid."""
    shift = np.eye(4)
    shift[:3, 3] = [part.start or 0 for part in box]
    return affine @ shift


def corner_distance(shape: Sequence[int], one: np.ndarray, other: np.ndarray) -> float:
    """Greatest distance in mm between the same corner voxel on two grids of one shape."""
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape], indexing="ij")).reshape(3, -1)
    corners = np.concatenate([corners, np.ones((1, corners.shape[1]))])
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def same_place(shape: Sequence[int], one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two grids of one shape lie within a tenth of a voxel of each other, everywhere."""
    return corner_distance(shape, one, other) <= _SAME_PLACE * float(np.linalg.norm(one[:3, :3], axis=0).min())
