# SPDX-License-Identifier: Apache-2.0
"""Drop a random share of the image, block by block: the cutout of SwinUNETR's pretraining.

Tang, Yang, Li, Roth, Landman, Xu, Nath, Hatamizadeh, *Self-Supervised Pre-Training of Swin Transformers for 3D Medical
Image Analysis*, CVPR 2022, arXiv 2111.14791, section 3.2, with the numbers of the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from monai_ssl.transforms.base import BatchTransform, Params, check_range, drawing_device, uniform
from monai_ssl.transforms.box_mask import boxes_to_mask
from monai_ssl.transforms.intensity_map import check_value_range


class RandomBlockDrop(BatchTransform):
    """Replace boxes by noise or a constant until their volumes sum up to a share ``U(share)`` of the image.

    A box begins anywhere (uniform over the voxels, except for the last ``sides[0]`` of each axis), has sides uniform
    over the whole numbers within ``sides``, and is clipped at the far edge. Boxes may overlap, so that a little less
    than the drawn share is replaced. All as in the released code, which does it in a loop over images and boxes.

    Args:
        share: least and greatest share of the image to replace (released code: 0 to 0.3; the paper: 0.3).
        sides: least and greatest side of a box, as a share of the image's.
        fill: ``"noise"``, or the number that is put in. Noise is normal about the middle of ``value_range``, with a
            seventh of its width as deviation, and clipped to it: the released code stretches each box's noise from 0
            to 1, and the extremes of some thousand values lie about 7 deviations apart.
        value_range: range of the noise, in the image's unit.

    Raises:
        ValueError: a share is out of its range, or ``fill`` is neither a number nor ``"noise"``.
    """

    overwrites: ClassVar[bool] = False

    def __init__(
        self,
        share: Sequence[float] = (0.0, 0.3),
        sides: Sequence[float] = (0.05, 0.25),
        fill: str | float = "noise",
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        self.share = check_range("share", share, 0.0, 1.0)
        self.sides = check_range("sides", sides, 1e-3, 1.0)
        if isinstance(fill, str) and fill != "noise":
            raise ValueError(f'fill must be a number or "noise", got {fill!r}')
        self.fill = fill if isinstance(fill, str) else float(fill)
        self.value_range = check_value_range(value_range)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw K boxes, ``start`` and ``stop`` (B, K, n), ``used`` (B, K), and ``noise`` if it is asked for."""
        device = drawing_device(generator, device)
        batch, spatial = shape[0], shape[2:]
        boxes = self._count(len(spatial))
        starts, stops = [], []
        for length in spatial:
            least, most = (max(1, int(side * length + 1e-6)) for side in self.sides)
            size = (batch, boxes)
            side = torch.randint(least, max(least + 1, most), size, generator=generator, device=device)
            start = torch.randint(0, max(1, length - least), size, generator=generator, device=device)
            starts.append(start)
            stops.append((start + side).clamp_(max=length))
        start, stop = torch.stack(starts, 2), torch.stack(stops, 2)
        volume = (stop - start).prod(2).float()
        wanted = uniform((batch, 1), *self.share, generator, device) * math.prod(spatial)
        params = {"start": start, "stop": stop, "used": volume.cumsum(1) - volume < wanted}
        if self.fill == "noise":
            params["noise"] = torch.randn(*shape, generator=generator, device=device)
        return params

    def hidden(self, params: Params, spatial: Sequence[int]) -> torch.Tensor:
        """Return (B, 1, \\*spatial) bool, True where the image is replaced."""
        return boxes_to_mask(params["start"], params["stop"], spatial, params["used"])

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        hidden = self.hidden(params, x.shape[2:])
        if self.fill != "noise":
            return x.masked_fill(hidden, self.fill)
        low, high = self.value_range
        noise = params["noise"].to(x.dtype).mul(1 / 7).add_(0.5).clamp_(0, 1).mul_(high - low).add_(low)
        return torch.where(hidden, noise, x)

    def _count(self, axes: int) -> int:
        """Number of boxes that all but surely suffice: twice what boxes of the mean side would need, and some."""
        return math.ceil(2 * self.share[1] / (sum(self.sides) / 2) ** axes) + 8
