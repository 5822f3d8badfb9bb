# SPDX-License-Identifier: Apache-2.0
"""Label maps: read like a volume, checked against the volume they belong to, and sampled for patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.grids import corner_distance, same_place
from monai_ssl.data.volume_reader import open_volumes
from monai_ssl.data.volumes import Volume

# Enough places of a label that patches centred on them differ, few enough for a table of thousands of volumes.
_POINTS = 128


def read_label_map(path: str | Path, volume: Volume, orientation: str | None) -> np.ndarray:
    """Read the label map of a volume onto the volume's grid.

    Args:
        path: NIfTI, NRRD, MetaImage or one DICOM file that holds one volume.
        volume: the image, turned to ``orientation``.
        orientation: where the axes run to; the label map is turned to it before the grids are compared, so it may be
            stored in another order. None: they are compared as they are.

    Returns:
        uint8, of the volume's shape.

    Raises:
        UnreadableImageError: if it cannot be read, lies on another grid, or holds values that are no labels.
    """
    try:
        found = open_volumes(path).volumes
        if len(found) != 1:
            raise UnreadableImageError(f"its file holds {len(found)} volumes, not one")
        read = found[0].read()
        if orientation is not None:
            read = read.to_orientation(orientation)
    except FileNotFoundError:
        raise UnreadableImageError("its label map is gone since it was indexed; build the index again") from None
    except UnreadableImageError as error:
        raise UnreadableImageError(f"its label map cannot be used: {error.reason}") from error
    _check_grid(read, volume)
    return _as_labels(read)


def _check_grid(labels: Volume, volume: Volume) -> None:
    if labels.array.shape != volume.array.shape:
        raise UnreadableImageError(
            f"its label map lies on another grid: {_grid(labels)}, the volume {_grid(volume)} (D x H x W)"
        )
    if not same_place(volume.array.shape, labels.affine, volume.affine):
        away = corner_distance(volume.array.shape, labels.affine, volume.affine)
        raise UnreadableImageError(
            f"its label map lies on another grid: {_grid(labels)}, the volume {_grid(volume)} (D x H x W); "
            f"corners are up to {away:.3g} mm apart"
        )


def _grid(volume: Volume) -> str:
    sides = " x ".join(map(str, volume.array.shape))
    steps = " x ".join(f"{step:.3g}" for step in volume.spacing_mm)
    return f"{sides} voxels of {steps} mm, first one at ({', '.join(f'{mm:.1f}' for mm in volume.affine[:3, 3])}) mm"


def _as_labels(labels: Volume) -> np.ndarray:
    if labels.facts.get("nonfinite_fraction"):
        raise UnreadableImageError("its label map has values that are not finite")
    array = labels.array
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255:
        raise UnreadableImageError(f"its label map has values from {low:g} to {high:g}; labels are 0 to 255")
    whole = array.astype(np.uint8)
    if not np.array_equal(whole, array):
        raise UnreadableImageError("its label map has values that are not whole numbers: is it an image, or shares?")
    return whole


def check_label_values(values: Sequence[int], allowed: Sequence[int] | None) -> None:
    """Raise if a label map holds a label that may not occur; 0 always may.

    Raises:
        UnreadableImageError: ``"its label map has labels that are not among label_values: 7"``.
    """
    if allowed is None:
        return
    unknown = sorted(set(values) - set(allowed) - {0})
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (" ..." if len(unknown) > 8 else "")
        raise UnreadableImageError(f"its label map has labels that are not among label_values: {shown}")


def label_points(labels: np.ndarray, count: int = _POINTS) -> np.ndarray:
    """Choose voxels of each label but 0, the same ones each time.

    Args:
        labels: uint8 (D, H, W).
        count: at most so many of each label.

    Returns:
        (n, 4) int32: label, d, h, w; ordered by label.
    """
    random = np.random.default_rng(0)
    inside = np.flatnonzero(labels)
    values = labels.ravel()[inside]
    chosen = []
    for value in np.unique(values):
        places = inside[values == value]
        if len(places) > count:
            places = np.sort(random.choice(places, count, replace=False))
        where = np.stack(np.unravel_index(places, labels.shape), axis=1)
        chosen.append(np.concatenate([np.full((len(where), 1), value), where], axis=1))
    return np.concatenate(chosen).astype(np.int32) if chosen else np.zeros((0, 4), np.int32)
