# SPDX-License-Identifier: Apache-2.0
"""Cut a turned, mirrored box out of every image of a batch and scale it to one size, by a single interpolation.

All geometry is in pixels of the array (never in normalised coordinates, where a turn would shear an image that is not
square). Position ``u`` counts from the array's outer edge: the centre of pixel ``p`` lies at ``p + 0.5``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from monai_ssl.transforms.base import Params, parts_of, take
from monai_ssl.transforms.free_form import spread
from monai_ssl.transforms.pyramid import AveragePyramid
from monai_ssl.transforms.volume_sampling import (
    MOST_ROWS,
    ROUNDING,
    sample_anywhere,
    sample_within_slices,
    slab_slices,
)

# A level may leave at most 2**0.75 = 1.68 source pixels between neighbouring samples along an axis.
_LEVEL_SLACK = 0.75


def sample_boxes(
    x: torch.Tensor,
    params: Params,
    size: tuple[int, ...],
    interpolation: str,
    padding: str,
    pyramid: AveragePyramid | None = None,
) -> torch.Tensor:
    """Sample the boxes that ``params`` describes.

    Output pixel ``k`` (an index vector) shows the source position ``u = center + R F S (k + 1/2 - size/2 + e(k))``: S
    scales by ``crop / size``, F mirrors the axes in ``flip``, R turns the content by ``angle_deg``, e is the elastic
    displacement, if there is one.

    Shrinking is anti-aliased: where neighbouring output pixels are ``s_i`` source pixels apart along source axis ``i``,
    they are interpolated in a pyramid level pooled ``l_i`` times, with a common ``l = round(mean log2 s_i)`` moved by
    as little as needed for ``s_i / 2**l_i <= 1.68`` and ``2**l_i / s_i <= 1.68`` (unless l_i would be negative).

    Args:
        x: (B, C, *spatial).
        params: ``center`` (B, n) and ``crop`` (B, n) in pixels, ``flip`` (B, n) booleans, ``angle_deg`` (B,), in 3D
            ``axis`` (B, 3) unit vectors, ``extent`` (B, n) valid pixels of each image; optionally ``elastic``
            (B, n, *lattice), see :func:`monai_ssl.transforms.free_form.spread`.
        size: output size.
        interpolation: "bilinear" or "nearest" (which never pools).
        padding: "border" repeats the nearest valid pixel beyond the extent, "zeros" fills in 0 there.
        pyramid: pyramid of this very ``x``, if one is at hand.

    Returns:
        (B, C, *size), of the type of ``x``.
    """
    matrix = _source_steps(params, size)
    extent = params["extent"]
    if interpolation == "nearest":
        level = torch.zeros_like(extent)
        groups = [((0,) * len(size), None)]
    else:
        level = _levels(matrix, extent)
        groups = _group_by_level(level, x.shape[2:], size)
    real = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if pyramid is None or real is not x:
        pyramid = AveragePyramid(real)
    places = _Places(matrix, params["center"], extent, level, params.get("elastic"), x.shape[2:], size)
    out = real.new_empty(*x.shape[:2], *size)
    for key, rows in groups:
        source = pyramid[key]
        for part in parts_of(rows, len(x), math.prod(size), x.device):
            out[part] = _sample(take(source, part), places[part], interpolation, padding)
    return out.to(x.dtype)


def box_positions(params: Params, size: tuple[int, ...], grid: tuple[int, ...]) -> torch.Tensor:
    """Where in the source the cells of a view lie: the formula of :func:`sample_boxes` itself, nothing is sampled.

    Args:
        params: as there.
        size: the view's size.
        grid: cells along each axis, which tile the view evenly; ``size`` for the pixels themselves.

    Returns:
        (B, n, *grid) float32: ``u`` of each cell's centre, NaN outside ``extent``.
    """
    n = len(grid)
    steps = _source_steps(params, grid)
    total = params["center"].view(-1, n, *[1] * n)
    for j, cells in enumerate(grid):
        k = torch.arange(cells, dtype=torch.float32, device=steps.device) + (0.5 - cells / 2)
        total = total + (steps[:, :, j, None] * k).view(-1, n, *[cells if i == j else 1 for i in range(n)])
    if "elastic" in params:
        cells_a_pixel = steps.new_tensor([cells / pixels for cells, pixels in zip(grid, size, strict=True)])
        moved = torch.einsum("bij,bj...->bi...", steps * cells_a_pixel, params["elastic"])
        total = total + spread(moved, grid)
    extent = params["extent"].to(total.dtype).view(-1, n, *[1] * n)
    outside = ((total < 0) | (total > extent)).any(1, keepdim=True)
    return total.masked_fill_(outside, torch.nan)


def rotation_matrix(angle_deg: torch.Tensor, axis: torch.Tensor | None) -> torch.Tensor:
    """(B, n, n) matrices that map output to source directions, in array axis order.

    2D: the content turns counter-clockwise on the screen for positive angles. 3D: Rodrigues' formula for the inverse of
    a right-handed turn about ``axis`` (depth, height, width); about (1, 0, 0) every slice turns as in 2D.
    """
    angle = torch.deg2rad(angle_deg)
    cos, sin = torch.cos(angle), torch.sin(angle)
    if axis is None:
        return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    zero = torch.zeros_like(cos)
    d, h, w = axis.unbind(-1)
    cross = torch.stack([zero, -w, h, w, zero, -d, -h, d, zero], -1).view(-1, 3, 3)
    outer = axis[:, :, None] * axis[:, None, :]
    cos, sin = cos[:, None, None], sin[:, None, None]
    return cos * torch.eye(3, device=axis.device) + (1 - cos) * outer - sin * cross


def _source_steps(params: Params, size: tuple[int, ...]) -> torch.Tensor:
    """(B, n, n) matrix R F S: column j is the source step, in pixels, of one output pixel along axis j."""
    step = torch.stack([params["crop"][:, j] / n for j, n in enumerate(size)], 1)
    step = torch.where(params["flip"], -step, step)
    return rotation_matrix(params["angle_deg"], params.get("axis")) * step[:, None, :]


def _levels(matrix: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """(B, n) pyramid level along each source axis, see ``sample_boxes``."""
    octaves = torch.linalg.vector_norm(matrix, dim=2).log2()  # (B, n)
    common = octaves.mean(1, keepdim=True).round()
    level = torch.maximum(common, (octaves - _LEVEL_SLACK).ceil())
    level = torch.minimum(level, (octaves + _LEVEL_SLACK).floor())
    # No level may be coarser than the whole image.
    return torch.minimum(level, extent.float().log2().floor()).clamp_(0).long()


def _group_by_level(
    level: torch.Tensor, spatial: Sequence[int], size: tuple[int, ...]
) -> list[tuple[tuple[int, ...], torch.Tensor | None]]:
    """Pairs (level, indices of its samples). One pair with None when all samples share a level."""
    most = max(math.log2(n / m) for n, m in zip(spatial, size, strict=True))
    if most + _LEVEL_SLACK < 1:  # nothing can shrink enough: no need to look, which would make the host wait
        return [((0,) * len(size), None)]
    keys, member = torch.unique(level, dim=0, return_inverse=True)
    keys = [tuple(key) for key in keys.tolist()]
    if len(keys) == 1:
        return [(keys[0], None)]
    return [(key, (member == i).nonzero().squeeze(1)) for i, key in enumerate(keys)]


@dataclass(frozen=True)
class _Places:
    """Where the output pixels of some samples lie in the source, each sample in its own pyramid level.

    Attributes:
        matrix: (B, n, n), see ``_source_steps``.
        center: (B, n) source pixels.
        extent: (B, n) valid source pixels.
        level: (B, n).
        elastic: (B, n, *lattice) displacements in output pixels, or None.
        spatial: size of the source.
        size: size of the output.
    """

    matrix: torch.Tensor
    center: torch.Tensor
    extent: torch.Tensor
    level: torch.Tensor
    elastic: torch.Tensor | None
    spatial: Sequence[int]
    size: tuple[int, ...]

    def __getitem__(self, part: torch.Tensor | slice) -> _Places:
        """Some of the samples."""
        elastic = None if self.elastic is None else self.elastic[part]
        own = (value[part] for value in (self.matrix, self.center, self.extent, self.level))
        return _Places(*own, elastic, self.spatial, self.size)

    def within_slices(self) -> bool:
        """Whether slices stay slices. Looks at values, which on an accelerator would make the host wait."""
        if len(self.size) != 3 or self.elastic is not None:
            return False
        return not (self.matrix[:, 0, 1:].any() or self.matrix[:, 1:, 0].any())

    def grid(self, axes: Sequence[int] | None = None, first: slice = slice(None)) -> torch.Tensor:
        """Coordinates in ``grid_sample``'s unit (``align_corners=False``), innermost axis first.

        Args:
            axes: output axes to go along, all by default; along the others the coordinates are those of the middle.
            first: which part of the first axis to go along.

        Returns:
            (B, n, *size), of size 1 along the axes left out.
        """
        n, size = len(self.size), self.size
        # center + sum over j of matrix[:, :, j] * (k_j + 1/2 - size_j / 2); the full-size sum comes last and only once.
        steps = (self.matrix * self._unit[:, :, None]).flip(1)
        total = self._placed(self.center)
        for j in range(n) if axes is None else axes:
            k = torch.arange(size[j], dtype=torch.float32, device=steps.device) + (0.5 - size[j] / 2)
            k = k[first] if j == 0 else k
            axis = [len(k) if i == j else 1 for i in range(n)]
            total = total + (steps[:, :, j, None] * k).view(-1, n, *axis)
        if self.elastic is not None:
            total += spread(torch.einsum("bij,bj...->bi...", steps, self.elastic), size, first)
        return total

    def beyond(self, grid: torch.Tensor) -> torch.Tensor:
        """Whether a place of the ``grid`` is beyond the valid region along each coordinate's axis."""
        return (grid < self._placed(torch.zeros_like(self.center))) | (grid > self._placed(self.extent.float()))

    def inside(self, grid: torch.Tensor) -> torch.Tensor:
        """Hold the ``grid`` within the centres of the outermost valid pixels; it is overwritten."""
        length, whole = self._length, (self.extent / self._pooled).floor()  # whole: pixels that hold no padding
        # The last valid pixel's neighbour is padding, where there is padding: stay clear of it by the rounding.
        rows = length.clone()
        if len(self.size) == 3:
            rows[:, 1] = (length[:, 0] * length[:, 1]).clamp_(max=MOST_ROWS)  # as sample_anywhere counts them
        nudge = 2 * ROUNDING * rows * (whole < length)
        torch.maximum(grid, self._placed(0.5 * self._pooled), out=grid)
        return torch.minimum(grid, self._placed((whole - 0.5 - nudge) * self._pooled), out=grid)

    @cached_property
    def _pooled(self) -> torch.Tensor:
        """(B, n) source pixels per pixel of the level."""
        return 2.0**self.level

    @cached_property
    def _length(self) -> torch.Tensor:
        """(B, n) pixels of the level's canvas."""
        return torch.stack([(n / self._pooled[:, i]).floor() for i, n in enumerate(self.spatial)], 1)

    @cached_property
    def _unit(self) -> torch.Tensor:
        """(B, n) of a source pixel in grid_sample's unit, where -1 and 1 are the outer edges of the level's canvas."""
        return 2 / (self._pooled * self._length)

    def _placed(self, u: torch.Tensor) -> torch.Tensor:
        """(B, n) source pixels -> (B, n, 1, ..., 1) in grid_sample's unit and order."""
        return (u * self._unit - 1).flip(1).view(-1, len(self.size), *[1] * len(self.size))


def _sample(source: torch.Tensor, places: _Places, interpolation: str, padding: str) -> torch.Tensor:
    """Sample (B, C, *spatial) at ``places``."""
    on_cpu = source.device.type == "cpu"
    if on_cpu and places.within_slices():
        line, plane = places.grid([0]), places.grid([1, 2])
        beyond = [places.beyond(line)[:, 2:], places.beyond(plane)[:, :2]] if padding == "zeros" else []
        line, plane = places.inside(line)[:, 2, :, 0, 0], places.inside(plane)[:, :2, 0]
        return _blank(sample_within_slices(source, line, plane, interpolation), beyond)
    if on_cpu and source.ndim == 5:
        out = source.new_empty(*source.shape[:2], *places.size)
        # Some slices at once, whose coordinates stay within the processor's cache.
        for start in range(0, places.size[0], count := slab_slices(places.size)):
            grid = places.grid(first=slice(start, start + count))
            beyond = [places.beyond(grid)] if padding == "zeros" else []
            sampled = sample_anywhere(source, places.inside(grid), interpolation)
            out[:, :, start : start + count] = _blank(sampled, beyond)
        return out
    grid = places.grid()
    beyond = [places.beyond(grid)] if padding == "zeros" else []
    grid = places.inside(grid).movedim(1, -1).to(source.dtype)  # (B, n, *size) -> (B, *size, n), a view
    return _blank(F.grid_sample(source, grid, interpolation, "border", align_corners=False), beyond)


def _blank(sampled: torch.Tensor, beyond: list[torch.Tensor]) -> torch.Tensor:
    """Fill in 0 where a place is beyond the image along any of the coordinates, in place."""
    for some in beyond:
        sampled.masked_fill_(some.any(1, keepdim=True), 0)
    return sampled
