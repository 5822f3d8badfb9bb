# SPDX-License-Identifier: Apache-2.0
"""Folders of small volumes: DICOM series, NIfTI files, label maps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from synthetic_series import expected_affine

VOLUME_SHAPE = (6, 10, 8)


def smooth_voxels(seed: int, shape=VOLUME_SHAPE) -> np.ndarray:
    """Whole numbers, (D, H, W), different for each seed."""
    ramp = np.add.outer(np.add.outer(np.arange(shape[0]) * 20, np.arange(shape[1]) * 7), np.arange(shape[2]) * 3)
    return (ramp + np.random.default_rng(seed).integers(0, 50, shape)).astype(np.int16)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, codes: str | None = None) -> Path:
    """Write (D, H, W) or (entries, D, H, W) voxels, with an affine of (D, H, W), as NIfTI keeps them: W first.

    ``codes`` turns the axes of the file before, the place of each voxel stays.
    """
    affine = expected_affine() if affine is None else affine
    image = nib.Nifti1Image(voxels.T, affine[:, [2, 1, 0, 3]])
    if codes:
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
        image = image.as_reoriented(turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def label_voxels(seed: int = 0, shape=VOLUME_SHAPE) -> np.ndarray:
    """A box of ones within zeros, uint8."""
    labels = np.zeros(shape, np.uint8)
    labels[2:4, 3 : 6 + seed % 3, 2:5] = 1
    return labels


def rows_by_path(table) -> dict[str, dict]:
    return {row["path"]: row for row in table.to_pylist()}
