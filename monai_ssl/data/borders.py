# SPDX-License-Identifier: Apache-2.0
"""Uniform borders around a radiograph: collimator shadow, film frame, letter boxes burnt into an export."""

from __future__ import annotations

import numpy as np

_TOLERANCE = 0.02  # of the value range: noise and JPEG ringing of a uniform area stay below it
_AGREEING = 0.95  # share of a line that must be uniform: leaves room for a burnt-in side marker
_LEAST_SIDE = 0.25  # a crop below this share of a side is not believed


def find_border_box(image: np.ndarray, value_range: tuple[float, float]) -> tuple[int, int, int, int]:
    """Find the part of an image inside its uniform borders.

    From each side, whole lines are taken off while at least 95 % of their pixels lie within 2 % of the value range
    around the level of that side's outermost line. If less than a quarter of a side would be left, nothing is cut.

    Args:
        image: (rows, columns).
        value_range: (low, high) of the display, which gives the tolerance its scale.

    Returns:
        ``(first row, row after the last, first column, column after the last)``.

    >>> picture = np.zeros((8, 10)); picture[2:7, 3:8] = np.arange(25).reshape(5, 5) + 1
    >>> find_border_box(picture, (0, 25))
    (2, 7, 3, 8)
    """
    tolerance = _TOLERANCE * (value_range[1] - value_range[0])
    rows, columns = image.shape
    top, bottom = _uniform_lines(image, tolerance), _uniform_lines(image[::-1], tolerance)
    inner = image[top : rows - bottom] if top + bottom < rows else image
    left, right = _uniform_lines(inner.T, tolerance), _uniform_lines(inner.T[::-1], tolerance)
    if rows - top - bottom < _LEAST_SIDE * rows or columns - left - right < _LEAST_SIDE * columns:
        return 0, rows, 0, columns
    return top, rows - bottom, left, columns - right


def _uniform_lines(image: np.ndarray, tolerance: float) -> int:
    """Number of leading lines at the level of the first one."""
    level = np.median(image[0])
    for count, line in enumerate(image):
        if np.mean(np.abs(line - level) <= tolerance) < _AGREEING:
            return count
    return len(image)
