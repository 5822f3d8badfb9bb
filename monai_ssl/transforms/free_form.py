# SPDX-License-Identifier: Apache-2.0
"""Free-form deformation: a smooth displacement field from a coarse lattice of control points, by cubic B-splines.

Rueckert et al., *Nonrigid registration using free-form deformations*, IEEE TMI 18(8), 1999, equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# No fold appears as long as no control point moves by more than this share of the lattice's spacing along an axis:
# 1 / 2.479 in 3D and 1 / 2.046 in 2D by Choi & Lee, Injectivity conditions of 2D and 3D uniform cubic B-spline
# functions, Graphical Models 62, 2000.
GREATEST_SHARE = 0.4
BEYOND = 3  # control points of an axis are its cells and 3 more: a cubic B-spline reaches over 4 points


def spread(lattice: torch.Tensor, size: Sequence[int], first: slice = slice(None)) -> torch.Tensor:
    """Evaluate uniform cubic B-splines at all pixel centres.

    Args:
        lattice: (B, C, *lattice) coefficients. An axis with m of them is divided into m - 3 cells; coefficient i sits
            i - 1 cells from the outer edge of the first pixel.
        size: pixels along each axis.
        first: which part of the first axis to evaluate.

    Returns:
        (B, C, *size), the first axis being that part of it.

    >>> spread(torch.full((1, 1, 5, 6), 2.0), (3, 7)).sub(2).abs().max() < 1e-6
    tensor(True)
    """
    for axis, length in enumerate(size, start=2):
        weights = _weights(lattice.shape[axis] - BEYOND, length, lattice)  # (m, length)
        weights = weights[:, first] if axis == 2 else weights
        lattice = (lattice.movedim(axis, -1) @ weights).movedim(-1, axis)
    return lattice


def _weights(cells: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """(cells + 3, length) values of each control point's spline at each pixel's centre."""
    at = (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) * (cells / length)
    point = torch.arange(-1, cells + 2, dtype=like.dtype, device=like.device)
    far = (at - point[:, None]).abs()
    # The cubic B-spline: 2/3 - t^2 + t^3 / 2 up to one cell away, (2 - t)^3 / 6 up to two.
    return torch.where(far < 1, 2 / 3 - far**2 + far**3 / 2, (2 - far).clamp(min=0) ** 3 / 6)
