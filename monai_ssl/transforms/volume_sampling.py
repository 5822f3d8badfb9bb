# SPDX-License-Identifier: Apache-2.0
"""Sampling of volumes on a CPU by torch's kernel for images, which is vectorised; the one for volumes is not.

Two routes, both one linear interpolation along each axis, as ``grid_sample`` on the volume itself:

* ``sample_within_slices``, where slices stay slices (no turn, or a turn within them): along the depth first, then all
  slices as channels of one image. Three to four times as fast.
* ``sample_anywhere``, for any grid: a volume (D, H, W) is read as an image of D * H rows. The point (z, y, x) lies
  between the slices floor(z) and floor(z) + 1, at one place of both; those two are two channels of one view of the
  memory, shifted by a slice. Up to twice as fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

_SLAB_ELEMENTS = 1 << 18  # of the output: its coordinates and temporaries stay within the processor's cache
# A row's number passes through grid_sample's unit with an error below 2**-22 of the number of rows.
ROUNDING = 2.0**-22
MOST_ROWS = 1 << 17  # beyond, rows would be missed by more than 1/32 of a voxel


def slab_slices(size: Sequence[int]) -> int:
    """How many slices of an output (d, h, w) to compute at once."""
    return max(1, _SLAB_ELEMENTS // (size[1] * size[2]))


def sample_within_slices(
    source: torch.Tensor, depth: torch.Tensor, plane: torch.Tensor, interpolation: str
) -> torch.Tensor:
    """Sample volumes where depth and place within the slice do not depend on each other.

    Args:
        source: (N, C, D, H, W) on a CPU.
        depth: (N, d) positions along D in ``grid_sample``'s unit (``align_corners=False``), inside the volume.
        plane: (N, 2, h, w) x and y, likewise.
        interpolation: "bilinear" or "nearest".

    Returns:
        (N, C, d, h, w).
    """
    size = torch.tensor(source.shape[2:])
    out = source.new_empty(*source.shape[:2], depth.shape[1], *plane.shape[2:])
    slices = slab_slices(out.shape[2:])
    z = ((depth + 1) * (size[0] / 2) - 0.5).clamp_(0, size[0] - 1)
    first = (z.round() if interpolation == "nearest" else z.floor()).long()
    # Only the part of the slices that is needed: bounds in whole pixels, (N, 2) for y and x.
    y_x = (plane.flatten(2).flip(1) + 1) * (size[1:, None] / 2) - 0.5
    low = y_x.amin(2).floor().long().clamp_(min=0)
    high = torch.minimum(y_x.amax(2).ceil().long(), size[1:] - 1)
    for n in range(len(source)):
        (top, left), (rows, columns) = low[n].tolist(), (high[n] - low[n] + 1).tolist()
        part = source[n, :, :, top : top + rows, left : left + columns].contiguous()
        # x of the whole slice to x of its part, in grid_sample's unit.
        scale = size[[2, 1]] / torch.tensor([columns, rows])
        shift = (size[[2, 1]] - 2.0 * torch.tensor([left, top])) / torch.tensor([columns, rows]) - 1
        grid = torch.addcmul(shift[:, None, None], plane[n], scale[:, None, None]).movedim(0, -1)
        for start in range(0, len(z[n]), slices):
            here = slice(start, start + slices)
            image = part.index_select(1, first[n, here])  # (C, slab, rows, columns)
            if interpolation == "bilinear":
                after = part.index_select(1, (first[n, here] + 1).clamp_(max=int(size[0]) - 1))
                image.lerp_(after, (z[n, here] - first[n, here]).to(image.dtype)[:, None, None])
            image = image.flatten(0, 1)[None]
            sampled = F.grid_sample(image, grid[None].to(image.dtype), interpolation, "border", align_corners=False)
            out[n, :, here] = sampled.view_as(out[n, :, here])
    return out


def sample_anywhere(source: torch.Tensor, grid: torch.Tensor, interpolation: str) -> torch.Tensor:
    """Sample volumes at any points inside them.

    A row is met to within 2**-22 of the number of rows in the slices that a part of the output touches: some 1/1000 of
    a voxel. A volume with too many rows for that goes to ``grid_sample`` as it is.

    Args:
        source: (N, C, D, H, W) on a CPU.
        grid: (N, 3, d, h, w): x, y, z in ``grid_sample``'s unit (``align_corners=False``). It is overwritten.
        interpolation: "bilinear" or "nearest".

    Returns:
        (N, C, d, h, w).
    """
    out = source.new_empty(*source.shape[:2], *grid.shape[2:])
    slices = slab_slices(grid.shape[2:])
    for volume, points, result in zip(source, grid, out, strict=True):
        volume = volume.contiguous()
        for some, into in zip(points.split(slices, 1), result.split(slices, 1), strict=True):
            _sample_slab(volume, some, into, interpolation)
    return out


def _sample_slab(volume: torch.Tensor, points: torch.Tensor, out: torch.Tensor, interpolation: str) -> None:
    """Sample (C, D, H, W) at (3, d, h, w) into (C, d, h, w)."""
    depth, rows = volume.shape[1:3]
    _, y, z = points
    nearest = interpolation == "nearest"
    low, high = (((bound + 1) * (depth / 2) - 0.5).item() for bound in z.aminmax())
    low, high = max(int(low), 0), min(int(high) + 1, depth - 1)  # the slices that are needed, both included
    used = high - low + 1
    if used * rows > MOST_ROWS:
        grid = points.movedim(0, -1)[None].to(volume.dtype)
        out.copy_(F.grid_sample(volume[None], grid, interpolation, "border", align_corners=False)[0])
        return
    z.mul_(depth / 2).add_(depth / 2 - 0.5 - low)  # in voxels from the first slice used
    pairs = 1 if nearest or used == 1 else 2
    first = (z.round() if nearest else z.floor()).clamp_(0, used - pairs)
    count = used - pairs + 1  # slices of the image that is sampled
    edge = 2 * (0.5 / rows + ROUNDING * count) - 1
    y.clamp_(edge, -edge)  # the neighbouring slice's rows must not shine in
    # From outer edges, y is row (y + 1) / 2 of slice `first`: (first + (y + 1) / 2) / count of the image.
    y.add_(first, alpha=2).add_(1 - count).div_(count)
    grid = points[:2].movedim(0, -1).flatten(0, 1)[None].to(volume.dtype)  # (1, d * h, w, 2)
    for channel, into in zip(volume[:, low : high + 1], out, strict=True):
        # (used, H, W) -> (1, pairs, count * H, W), a view
        image = channel.unfold(0, pairs, 1).movedim(-1, 0).flatten(1, 2)[None]
        sampled = F.grid_sample(image, grid, interpolation, "border", align_corners=False)[0].view(pairs, *into.shape)
        if pairs == 1:
            into.copy_(sampled[0])
        else:
            torch.lerp(*sampled, z.sub_(first).to(into.dtype), out=into)
            z.add_(first)
