# SPDX-License-Identifier: Apache-2.0
"""Random low resolution: what a coarser scan, or one with thicker slices, would show."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import (
    BatchTransform,
    Params,
    chance,
    check_prob,
    check_range,
    drawing_device,
    on_selected,
    uniform,
)


class RandomLowResolution(BatchTransform):
    """Shrink and enlarge again, with probability ``prob`` per sample, else nothing.

    An axis of n pixels becomes ``m = max(1, round(zoom * n))`` pixels, each the mean of the n / m pixels it covers,
    parts of pixels included, and is brought back to n by linear interpolation. ``zoom ~ U(zoom)``, one for all axes;
    with probability ``one_axis_prob`` only one axis, drawn uniformly, is changed: thick slices.

    nnU-Net's simulation of low resolution (Isensee et al., Nature Methods 18, 2021, supplementary note 4) has this
    range and probability; it picks the nearest pixels and enlarges by cubic interpolation. The mean is what a thicker
    slice measures, and it does not alias.

    Args:
        zoom: least and greatest share of pixels that are kept along an axis, within (0, 1].
        prob: probability of a sample being changed.
        one_axis_prob: probability that a changed sample is changed along one axis alone.
    """

    def __init__(self, zoom: Sequence[float] = (0.5, 1.0), prob: float = 0.25, one_axis_prob: float = 0.0) -> None:
        self.zoom = check_range("zoom", zoom, 1e-3, 1.0)
        self.prob = check_prob("prob", prob)
        self.one_axis_prob = check_prob("one_axis_prob", one_axis_prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``zoom`` (B, n); 1 along the axes that stay as they are."""
        device = drawing_device(generator, device)
        batch, n = shape[0], len(shape) - 2
        changed = chance(batch, self.prob, generator, device)[:, None].expand(batch, n)
        zoom = uniform((batch, 1), *self.zoom, generator, device)
        one = chance(batch, self.one_axis_prob, generator, device)[:, None]
        axis = torch.randint(0, n, (batch, 1), generator=generator, device=device)
        changed = changed & (~one | (torch.arange(n, device=device) == axis))
        return {"zoom": torch.where(changed, zoom, 1.0)}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        zoom = params["zoom"]

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            for axis, own in enumerate(zoom[rows].unbind(1), start=2):
                if part.device.type == "cpu" and not (own < 1).any():
                    continue
                matrix = _there_and_back(own, part.shape[axis]).to(part.dtype)  # (B', n, n)
                last = axis == part.ndim - 1
                # One product of matrices for all that lies before the axis: (B', C * before, n, after)
                rows = part.flatten(1, -2) if last else part.flatten(1, axis - 1).flatten(3)
                rows = rows @ matrix.mT if last else matrix[:, None] @ rows
                part = rows.view(part.shape)
            return part

        return on_selected(x, (zoom < 1).any(1), change)


def _there_and_back(zoom: torch.Tensor, n: int) -> torch.Tensor:
    """(B, n, n) matrices that shrink n pixels to round(zoom * n) and enlarge them again."""
    m = (zoom * n).round().clamp(min=1)[:, None, None]
    width = n / m  # pixels in a cell
    i = torch.arange(n, dtype=zoom.dtype, device=zoom.device)
    cell, pixel = i[:, None], i[None, :]
    overlap = torch.minimum(pixel + 1, (cell + 1) * width) - torch.maximum(pixel, cell * width)
    mean = overlap.clamp(min=0) / width  # (B, cell, pixel)
    at = ((pixel.mT + 0.5) / width - 0.5).clamp(min=0).minimum(m - 1)  # where a pixel's centre lies among the cells'
    linear = (1 - (at - cell.mT).abs()).clamp(min=0) * (cell.mT < m)  # (B, pixel, cell)
    return linear @ mean
