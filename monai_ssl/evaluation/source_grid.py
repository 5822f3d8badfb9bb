# SPDX-License-Identifier: Apache-2.0
"""Bring what was computed on a prepared volume back to the grid of its file: axes, spacing and crop undone."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_ssl.weights import atomic_file

__all__ = ["restore_class_numbers", "write_label_map"]

_EXACT = 1e-3  # voxels; grids that agree to this are one grid
_SLAB_VOXELS = 1 << 22
# A resampled grid ends at most a quarter of its voxel before the file's own: half a voxel more from its last centre.
_MARGIN = 0.75


def restore_class_numbers(
    logits: Tensor,
    stored_affine: np.ndarray,
    source_shape: Sequence[int],
    source_affine: np.ndarray,
) -> np.ndarray:
    """Return the classes of the source's voxels.

    Where both grids have the same voxels (turned, mirrored or cropped), the classes are copied. Else the probabilities
    are interpolated linearly at the source's voxels and the largest wins, which keeps outlines smooth. What lies
    outside the prepared volume (it was cropped) is background.

    Args:
        logits: (1 + K, D, H, W) of the prepared volume, background first.
        stored_affine: (4, 4), its voxels (d, h, w, 1) to mm.
        source_shape: of the source, in its own order of (D, H, W).
        source_affine: (4, 4), the source's voxels to the same mm.

    Returns:
        uint8 of shape ``source_shape``.
    """
    to_stored = np.linalg.inv(np.asarray(stored_affine, np.float64)) @ np.asarray(source_affine, np.float64)
    steps, offset = to_stored[:3, :3], to_stored[:3, 3]
    turned = np.round(steps)
    far = np.array(source_shape)
    same = np.abs((steps - turned) @ far).max() < _EXACT and np.abs(offset - offset.round()).max() < _EXACT
    if same and (np.abs(turned).sum(axis=0) == 1).all() and (np.abs(turned).sum(axis=1) == 1).all():
        return _copied(logits.argmax(0).to(torch.uint8).cpu().numpy(), turned, offset.round(), tuple(source_shape))
    return _interpolated(logits, to_stored, tuple(source_shape))


def _copied(numbers: np.ndarray, turned: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Copy along axes that are permuted, mirrored and shifted by whole voxels."""
    order = np.abs(turned).argmax(axis=0)  # the stored axis of each source axis
    places, inside = [], []
    for axis, stored in enumerate(order):
        place = (turned[stored, axis] * np.arange(shape[axis]) + offset[stored]).astype(np.int64)
        within = (place >= 0) & (place < numbers.shape[stored])
        places.append(place[within])
        inside.append(within)
    restored = np.zeros(shape, np.uint8)
    restored[np.ix_(*inside)] = numbers.transpose(order)[np.ix_(*places)]
    return restored


def _interpolated(logits: Tensor, to_stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    probabilities = logits.float().softmax(0)[None]  # (1, 1 + K, D, H, W)
    size = torch.tensor(probabilities.shape[2:], dtype=torch.float64)
    matrix = torch.from_numpy(to_stored)
    restored = np.zeros(shape, np.uint8)
    slab = max(1, _SLAB_VOXELS // (shape[1] * shape[2] * len(logits)))
    rest = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in shape[1:]), indexing="ij")
    for start in range(0, shape[0], slab):
        depth = torch.arange(start, min(start + slab, shape[0]), dtype=torch.float64)
        axes = (depth.view(-1, 1, 1), rest[0][None], rest[1][None])
        # (3, d, H, W): the place of every source voxel in the prepared volume
        place = torch.stack([sum(matrix[i, j] * axes[j] for j in range(3)) + matrix[i, 3] for i in range(3)])
        outside = ((place < -_MARGIN) | (place > size.view(3, 1, 1, 1) - 1 + _MARGIN)).any(0)
        scaled = 2 * place / (size.view(3, 1, 1, 1) - 1).clamp(min=1) - 1
        grid = scaled.flip(0).movedim(0, -1)[None].to(probabilities)
        sampled = F.grid_sample(probabilities, grid, mode="bilinear", padding_mode="border", align_corners=True)
        numbers = sampled[0].argmax(0).to(torch.uint8).cpu()
        restored[start : start + len(depth)] = numbers.masked_fill_(outside, 0).numpy()
    return restored


def write_label_map(path: str | os.PathLike, labels: np.ndarray, affine: np.ndarray) -> None:
    """Write a label map as compressed NIfTI, in the voxel order of the file that it belongs to.

    Volumes of this package have the axes of a NIfTI file backwards (slices first): they are turned round again.

    Args:
        path: of a ``.nii.gz``; its folder is made, and the file appears whole or not at all.
        labels: uint8 (D, H, W).
        affine: (4, 4), voxels (d, h, w, 1) to RAS mm.
    """
    reversed_affine = np.asarray(affine, np.float64)[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(np.ascontiguousarray(labels.T.astype(np.uint8)), reversed_affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(reversed_affine, 1)
    image.set_qform(reversed_affine, 1)
    with atomic_file(path) as file:
        file.write(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
