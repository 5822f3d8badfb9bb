# SPDX-License-Identifier: Apache-2.0
"""Which cells of two views' feature maps show the same place, from where in the image each view was read.

The geometry of Xie et al., *Propagate Yourself*, CVPR 2021, arXiv 2011.10043, equation 1: two cells are a pair if the
distance of their centres in the image is at most a threshold times the diagonal of a cell there.

A view's positions are (B, n, \\*grid) as :meth:`monai_ssl.transforms.ViewChain.positions` gives them: for each cell
its place in pixels of the image, NaN outside. A cell's number counts in array order, last axis fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["cell_diagonal", "draw_overlapping_cells", "nearest_cells", "same_place"]

_FAR = 1e9  # pixels: where a cell outside the image is said to be
_MOST_COMPARED = 4096  # cells that each point is compared with at once


def cell_diagonal(positions: Tensor) -> Tensor:
    """Return the diagonal of a view's cells in the image, (B,) pixels: the mean over cells that have neighbours, of a
    large map over some thousand of them.

    Along an axis of one cell its side is not known and counts as 0.

    Example:
        >>> rows, columns = torch.meshgrid(torch.arange(3) * 3.0, torch.arange(4) * 4.0, indexing="ij")
        >>> cell_diagonal(torch.stack([rows, columns])[None])
        tensor([5.])
    """
    squares, step = [], _step(positions.shape[2:])
    for axis, cells in enumerate(positions.shape[2:], 2):
        if cells > 1:
            pairs = [positions.narrow(axis, start, cells - 1)[_every(step, positions.ndim)] for start in (0, 1)]
            squares.append((pairs[1] - pairs[0]).norm(dim=1).flatten(1).nanmean(1) ** 2)
    return torch.stack(squares).nansum(0).sqrt() if squares else positions.new_zeros(len(positions))


def draw_overlapping_cells(
    positions: Tensor, others: Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw cells of a view that lie within the bounding box of another view's, each with the same probability.

    Where there are fewer than ``count`` of them, others follow. Without a turn between the views the box is exactly
    what the other view shows.

    Args:
        positions: (B, n, \\*grid) of the view.
        others: (B, n, \\*grid') of the other one.
        count: P, cells to draw from each image, at most the number of cells.
        generator: source of randomness, on the same device; None is torch's global one.

    Returns:
        (B, P) numbers of cells, none twice.
    """
    flat, box = positions.flatten(2), others.flatten(2)
    low = box.nan_to_num(torch.inf).amin(2, keepdim=True)
    high = box.nan_to_num(-torch.inf).amax(2, keepdim=True)
    within = ((flat >= low) & (flat <= high)).all(1)
    lot = torch.rand(within.shape, generator=generator, device=within.device)
    return (lot + within).topk(count, dim=1).indices


def nearest_cells(points: Tensor, positions: Tensor) -> Tensor:
    """Find the cell of a view whose centre in the image is nearest to each point.

    Large maps are searched in two steps: some thousand cells on a regular lattice, then all cells around the nearest of
    these. That finds the nearest of all as long as the view is a box of the image, turned or not, or deformed without
    folds.

    Args:
        points: (B, n, P) places in pixels of the image.
        positions: (B, n, \\*grid) of the view.

    Returns:
        (B, P) numbers of cells. Of a point that is NaN it is any.
    """
    grid = positions.shape[2:]
    points = points.nan_to_num(_FAR)
    step = _step(grid)
    size = [-(-cells // step) for cells in grid]
    chosen = [
        (torch.arange(cells, device=points.device) * step + step // 2).clamp(max=most - 1)
        for cells, most in zip(size, grid, strict=True)
    ]
    lattice = positions
    for axis, index in enumerate(chosen, 2):
        lattice = lattice.index_select(axis, index)
    distance = torch.cdist(
        points.mT, lattice.flatten(2).mT.nan_to_num(_FAR), compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest = torch.unravel_index(distance.argmin(2), tuple(size))  # n of (B, P)
    nearest = [index[place] for index, place in zip(chosen, nearest, strict=True)]
    if step == 1:
        return _number(nearest, grid)
    reach = step // 2 + max(1, step // 4)  # half the lattice's spacing, and more where the view is deformed
    around = torch.arange(-reach, reach + 1, device=points.device)
    window = torch.stack(torch.meshgrid(*[around] * len(grid), indexing="ij")).flatten(1)  # (n, W)
    cells = [
        (place[..., None] + window[axis]).clamp_(0, grid[axis] - 1) for axis, place in enumerate(nearest)
    ]  # n of (B, P, W)
    number = _number(cells, grid)
    square = torch.zeros(number.shape, device=points.device)
    for axis in range(len(grid)):
        place = positions[:, axis].flatten(1).gather(1, number.flatten(1)).view_as(number)
        square += (place - points[:, axis, :, None]) ** 2
    return number.gather(2, square.nan_to_num(torch.inf).argmin(2, keepdim=True)).squeeze(2)


def same_place(points: Tensor, others: Tensor, distance: Tensor) -> Tensor:
    """Tell which points lie at most ``distance`` apart.

    Args:
        points: (B, n, P) places in pixels; NaN is nowhere.
        others: (B, n, Q).
        distance: (B,) pixels.

    Returns:
        (B, P, Q) booleans.
    """
    apart = torch.cdist(points.mT, others.mT, compute_mode="donot_use_mm_for_euclid_dist")
    return apart <= distance[:, None, None]


def _step(grid: Sequence[int]) -> int:
    """Spacing of a lattice of at most ``_MOST_COMPARED`` of the cells."""
    step = 1
    while math.prod(-(-cells // step) for cells in grid) > _MOST_COMPARED:
        step += 1
    return step


def _every(step: int, ndim: int) -> tuple[slice, ...]:
    """Index of the cells that are ``step`` apart, of (B, n, *grid)."""
    return (slice(None), slice(None), *[slice(None, None, step)] * (ndim - 2))


def _number(index: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Number of the cell at ``index``, one tensor for each axis."""
    number = index[0]
    for place, cells in zip(index[1:], grid[1:], strict=True):
        number = number * cells + place
    return number
