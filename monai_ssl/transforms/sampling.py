# SPDX-License-Identifier: Apache-2.0
"""Cut a turned, mirrored box out of every image of a batch and scale it to one size, by a single interpolation.

All geometry is in pixels of the array (never in normalised coordinates, where a turn would shear an image that is not
square). Position ``u`` counts from the array's outer edge: the centre of pixel ``p`` lies at ``p + 0.5``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from monai_ssl.transforms.base import Params, parts_of, take
from monai_ssl.transforms.pyramid import AveragePyramid

# A level may leave at most 2**0.75 = 1.68 source pixels between neighbouring samples along an axis.
_LEVEL_SLACK = 0.75
# Share of the canvas, some float32 roundings; keeps the last valid pixel's neighbour, which is padding, out.
_NUDGE = 2.0**-21
_FAR = 1e7  # multiplies the distance from the valid region: off the canvas, where grid_sample fills in zeros


def sample_boxes(
    x: torch.Tensor,
    params: Params,
    size: tuple[int, ...],
    interpolation: str,
    padding: str,
    pyramid: AveragePyramid | None = None,
) -> torch.Tensor:
    """Sample the boxes that ``params`` describes.

    Output pixel ``k`` (an index vector) shows the source position ``u = center + R F S (k + 1/2 - size/2)``: S scales
    by ``crop / size``, F mirrors the axes in ``flip``, R turns the content by ``angle_deg``.

    Shrinking is anti-aliased: where neighbouring output pixels are ``s_i`` source pixels apart along source axis ``i``,
    they are interpolated in a pyramid level pooled ``l_i`` times, with a common ``l = round(mean log2 s_i)`` moved by
    as little as needed for ``s_i / 2**l_i <= 1.68`` and ``2**l_i / s_i <= 1.68`` (unless l_i would be negative).

    Args:
        x: (B, C, *spatial).
        params: ``center`` (B, n) and ``crop`` (B, n) in pixels, ``flip`` (B, n) booleans, ``angle_deg`` (B,), in 3D
            ``axis`` (B, 3) unit vectors, ``extent`` (B, n) valid pixels of each image.
        size: output size.
        interpolation: "bilinear" or "nearest" (which never pools).
        padding: "border" repeats the nearest valid pixel beyond the extent, "zeros" fills in 0 there.
        pyramid: pyramid of this very ``x``, if one is at hand.

    Returns:
        (B, C, *size), of the type of ``x``.
    """
    matrix = _source_steps(params, size)
    center, extent = params["center"], params["extent"]
    if interpolation == "nearest":
        level = torch.zeros_like(extent)
        groups = [((0,) * len(size), None)]
    else:
        level = _levels(matrix, extent)
        groups = _group_by_level(level, x.shape[2:], size)
    real = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if pyramid is None or real is not x:
        pyramid = AveragePyramid(real)
    out = real.new_empty(*x.shape[:2], *size)
    for key, rows in groups:
        source = pyramid[key]
        for part in parts_of(rows, len(x), math.prod(size), x.device):
            grid = _grid(matrix[part], center[part], extent[part], level[part], x.shape[2:], size, padding)
            out[part] = F.grid_sample(
                take(source, part), grid.to(real.dtype), mode=interpolation, padding_mode=padding, align_corners=False
            )
    return out.to(x.dtype)


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


def _grid(
    matrix: torch.Tensor,
    center: torch.Tensor,
    extent: torch.Tensor,
    level: torch.Tensor,
    spatial: Sequence[int],
    size: tuple[int, ...],
    padding: str,
) -> torch.Tensor:
    """(B, *size, n) coordinates for grid_sample, each sample's in its own pyramid level and within its own extent."""
    n = len(size)
    pooled = 2.0**level  # (B, n) source pixels per pixel of the level
    length = torch.stack([(spatial[i] / pooled[:, i]).floor() for i in range(n)], 1)  # pixels of the level's canvas
    whole = (extent / pooled).floor()  # those that hold no padding
    unit = 2 / (pooled * length)  # grid_sample's: -1 and 1 are the outer edges of the level's canvas

    def placed(u: torch.Tensor) -> torch.Tensor:
        """(B, n) source pixels -> (B, n, 1, ..., 1) in grid_sample's unit and order, innermost axis first."""
        return (u * unit - 1).flip(1).view(-1, n, *[1] * n)

    # center + sum over j of matrix[:, :, j] * (k_j + 1/2 - size_j / 2); the full-size sum comes last and only once.
    steps = (matrix * unit[:, :, None]).flip(1)
    total = placed(center)
    for j in range(n):
        k = torch.arange(size[j], dtype=torch.float32, device=level.device) + (0.5 - size[j] / 2)
        axis = [size[j] if i == j else 1 for i in range(n)]
        total = total + (steps[:, :, j, None] * k).view(-1, n, *axis)

    outside = None
    if padding == "zeros":
        within = torch.maximum(total, placed(torch.zeros_like(center)))
        outside = total - torch.minimum(within, placed(extent.float()), out=within)
    torch.maximum(total, placed(0.5 * pooled), out=total)
    torch.minimum(total, placed((whole - 0.5 - _NUDGE * length * (whole < length)) * pooled), out=total)
    if outside is not None:
        total.add_(outside, alpha=_FAR)
    return total.movedim(1, -1)  # (B, n, *size) -> (B, *size, n), a view
