# SPDX-License-Identifier: Apache-2.0
"""Where the body is in a volume: a threshold between air and tissue, and the box around what lies above it."""

from __future__ import annotations

import numpy as np

# Halfway between air (-1000 HU by definition) and water (0 HU by definition).
BODY_HU = -500.0
SPECKS = 1e-4  # share of a plane that must be above the threshold: noise and wires are not the body
_BINS = 256
_OUTLIERS = 99.9  # percentile; a few hot voxels must not stretch the histogram until all else is in one bin


def otsu_threshold(values: np.ndarray) -> float:
    """Threshold that parts grey values into two classes with the greatest variance between them.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979), equations 14 and 18, on a
    histogram of 256 bins from the smallest value to the 99.9th percentile.

    Args:
        values: finite, any shape.

    Returns:
        The threshold, in the values' unit; values above it are the bright class. The one value of a constant image.
    """
    values = np.asarray(values).ravel()
    low, high = float(values.min()), float(np.percentile(values, _OUTLIERS))
    if not low < high:
        return low
    counts, edges = np.histogram(np.minimum(values, high), bins=_BINS, range=(low, high))
    share = counts / counts.sum()
    centres = (edges[:-1] + edges[1:]) / 2
    dark = np.cumsum(share)[:-1]  # omega(k)
    moment = np.cumsum(share * centres)  # mu(k); the last one is the mean of all
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * dark - moment[:-1]) ** 2 / (dark * (1 - dark))
    between[~np.isfinite(between)] = 0.0
    # A gap in the histogram gives a flat top: the middle of it, not its first bin.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[1 + int(best[(len(best) - 1) // 2])])


def body_threshold(array: np.ndarray, modality: str | None) -> float:
    """Value above which a voxel is taken for the body: -500 HU in CT, Otsu's threshold elsewhere."""
    return BODY_HU if modality == "CT" else otsu_threshold(array)


def foreground_box(array: np.ndarray, threshold: float, specks: float = SPECKS) -> tuple[slice, ...]:
    """Smallest box around the planes that hold tissue.

    Args:
        array: (D, H, W), or any number of axes.
        threshold: a voxel above it is tissue.
        specks: share of a plane's voxels that must be tissue; one voxel at least.

    Returns:
        A slice for each axis, from the first to the last plane with so much tissue. The whole array if there is none.
    """
    tissue = array > threshold
    box = []
    for axis, side in enumerate(array.shape):
        others = tuple(other for other in range(array.ndim) if other != axis)
        count = np.count_nonzero(tissue, axis=others)
        planes = np.flatnonzero(count >= max(1.0, specks * array.size / side))
        if not len(planes):
            return tuple(slice(0, whole) for whole in array.shape)
        box.append(slice(int(planes[0]), int(planes[-1]) + 1))
    return tuple(box)
