# SPDX-License-Identifier: Apache-2.0
"""Random cutout: square (cubic) holes of a constant value (DeVries & Taylor, arXiv 1708.04552)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import BatchTransform, Params, drawing_device


class RandomCutout(BatchTransform):
    """Fill ``holes`` boxes per sample with a constant.

    Each hole's centre is uniform over all pixels; its side along axis i is round(fraction * side_i). Holes may overlap
    and are clipped at the border. Put it after standardisation, where the default fill of 0 is the mean. The default is
    C2L's (3 holes of 32 x 32 at 224 pixels); in 3D the same fraction holds along each axis.

    Args:
        holes: number of holes.
        fraction: hole side as a share of the image side, within (0, 1].
        fill: value of the holes.
    """

    def __init__(self, holes: int = 3, fraction: float = 1 / 7, fill: float = 0.0) -> None:
        if holes < 0 or not 0 < fraction <= 1:
            raise ValueError(f"holes must be >= 0 and fraction within (0, 1], got {holes} and {fraction}")
        self.holes = int(holes)
        self.fraction = float(fraction)
        self.fill = float(fill)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``center`` (B, holes, n): pixel indices."""
        device = drawing_device(generator, device)
        centers = [
            torch.randint(0, side, (shape[0], self.holes), generator=generator, device=device) for side in shape[2:]
        ]
        return {"center": torch.stack(centers, -1)}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        spatial, n = x.shape[2:], x.ndim - 2
        flat = torch.zeros((), dtype=torch.long, device=x.device)
        for i, side in enumerate(spatial):
            length = max(1, round(self.fraction * side))
            along = torch.arange(length, device=x.device) - length // 2
            # A hole that reaches beyond the border contains the border pixel: clamping clips it.
            index = (params["center"][..., i, None] + along).clamp_(0, side - 1)  # (B, holes, length)
            index = index.view(*index.shape[:2], *[length if j == i else 1 for j in range(n)])
            flat = flat * side + index  # (B, holes, length_0, ..., length_i, 1, ...)
        flat = flat.reshape(len(x), 1, -1).expand(-1, x.shape[1], -1)
        x = x.contiguous()
        x.view(*x.shape[:2], math.prod(spatial)).scatter_(2, flat, self.fill)
        return x
