# SPDX-License-Identifier: Apache-2.0
"""Grids of volumes: another spacing for images and label maps, a box cut out, and whether two grids are one.

Resampling goes along the array's own axes, so it is separable: one sparse matrix an axis. It is linear interpolation;
where voxels get larger by a factor r, it is the mean of that over a width of sqrt(r^2 - 1) old voxels, against
aliasing: the kernel has then the variance of the mean over a new voxel and one twelfth, and at r = 1 nothing is
averaged. A linear ramp stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, sparse

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


def resample_image(array: np.ndarray, affine: np.ndarray, shape: Sequence[int], new_affine: np.ndarray) -> np.ndarray:
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
    return _multiply(_axis_weights(array.shape, affine, shape, new_affine), array)


def resample_labels(labels: np.ndarray, affine: np.ndarray, shape: Sequence[int], new_affine: np.ndarray) -> np.ndarray:
    """Bring a label map to another grid as ``resample_image`` does an image: the label with the largest share wins.

    Each label's mask is resampled for itself (one-hot), so no new labels arise between two; of equal shares the
    smaller label wins.

    Args:
        labels: uint8 (D, H, W).
        affine, shape, new_affine: see ``resample_image``.

    Returns:
        uint8 of the new shape.
    """
    weights = _axis_weights(labels.shape, affine, shape, new_affine)
    result = np.zeros(shape, dtype=np.uint8)
    best = _multiply(weights, (labels == 0).astype(np.float32))
    for number, box in enumerate(ndimage.find_objects(labels)):
        if box is None:
            continue
        parts = [matrix[:, part] for matrix, part in zip(weights, box, strict=True)]
        touched = [np.flatnonzero(np.diff(part.indptr)) for part in parts]
        where = tuple(slice(rows[0], rows[-1] + 1) for rows in touched)
        parts = [part[rows] for part, rows in zip(parts, where, strict=True)]
        share = _multiply(parts, (labels[box] == number + 1).astype(np.float32))
        larger = share > best[where] + 1e-6
        result[where][larger] = number + 1
        np.maximum(best[where], share, out=best[where])
    return result


def _axis_weights(
    shape: Sequence[int], affine: np.ndarray, new_shape: Sequence[int], new_affine: np.ndarray
) -> list[sparse.csr_matrix]:
    """For each axis the matrix (new, old) that resamples it."""
    ratios = np.linalg.norm(new_affine[:3, :3], axis=0) / np.linalg.norm(affine[:3, :3], axis=0)
    return [
        sparse.identity(old, dtype=np.float32, format="csr")
        if old == new and abs(ratio - 1) < _SAME_SPACING
        else _weights(old, new, float(ratio))
        for old, new, ratio in zip(shape, new_shape, ratios, strict=True)
    ]


def _multiply(weights: list[sparse.csr_matrix], array: np.ndarray) -> np.ndarray:
    """Apply a matrix along each axis; those that shrink most go first: less is left for the others."""
    for axis in np.argsort([matrix.shape[0] / matrix.shape[1] for matrix in weights], kind="stable"):
        matrix = weights[axis]
        new, old = matrix.shape
        if new == old and matrix.nnz == old and (matrix.diagonal() == 1).all():
            continue
        lines = np.moveaxis(array, axis, 0)
        rest = lines.shape[1:]
        lines = matrix @ np.ascontiguousarray(lines).reshape(old, -1)
        array = np.moveaxis(lines.reshape(new, *rest), 0, axis)
    return np.ascontiguousarray(array, dtype=np.float32)


def _weights(old: int, new: int, ratio: float) -> sparse.csr_matrix:
    """Matrix (new, old) of the weights of the old voxels; each row sums to 1."""
    half = np.sqrt(max(ratio**2 - 1.0, 0.0)) / 2
    centres = _first_centre(old, new, ratio) + ratio * np.arange(new)
    first = np.floor(centres - half).astype(np.int64)
    taps = first[:, None] + np.arange(int(2 * half) + 3)  # (new, taps)
    away = taps - centres[:, None]
    if half < 1e-3:
        weights = np.clip(1.0 - np.abs(away), 0.0, None)
    else:
        weights = (_hat_integral(away + half) - _hat_integral(away - half)) / (2 * half)
    rows = np.repeat(np.arange(new), taps.shape[1])
    # Entries of one place add up: what would reach over the edge falls to the outermost voxel.
    entries = (weights.ravel().astype(np.float32), (rows, np.clip(taps, 0, old - 1).ravel()))
    matrix = sparse.csr_matrix(entries, shape=(new, old))
    matrix.eliminate_zeros()
    return matrix


def _hat_integral(t: np.ndarray) -> np.ndarray:
    """Integral from -1 to t of the hat 1 - abs(t) of linear interpolation."""
    t = np.clip(t, -1.0, 1.0)
    return np.where(t < 0, (1 + t) ** 2 / 2, 1 - (1 - t) ** 2 / 2)


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
