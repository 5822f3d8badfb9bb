# SPDX-License-Identifier: Apache-2.0
"""Random in-painting and out-painting: noise inside some boxes, or everywhere but inside.

Zhou, Sodha, Pang, Gotway, Liang, *Models Genesis*, Medical Image Analysis 2021, arXiv 2004.07882, "out-painting and
in-painting"; numbers of the boxes, and their sides, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from monai_ssl.transforms.base import (
    BatchTransform,
    Params,
    chance,
    check_prob,
    check_range,
    drawing_device,
    per_sample,
)
from monai_ssl.transforms.box_mask import boxes_to_mask
from monai_ssl.transforms.intensity_map import check_value_range

_BOXES = 5
_MARGIN = 3  # voxels between a box and the image's edge, where the image is large enough


class RandomPainting(BatchTransform):
    """Replace the inside of some boxes, or all that is outside of them, by noise, with probability ``prob`` per sample.

    Of the changed samples ``outer_share`` are out-painted. Up to five boxes may overlap: after each one another follows
    with probability 0.95 (out-painting always has one). A box's sides are uniform over the whole numbers within the
    given shares of the image's, independently for each axis; it is placed uniformly, 3 voxels away from the edge. The
    noise is uniform in ``value_range``, independent for each voxel and channel.

    Args:
        prob: probability of a sample being changed (Models Genesis: 0.9).
        outer_share: share of out-painting among the changed samples (Models Genesis: 0.8).
        inner_sides: least and greatest side of an in-painted box, as a share of the image's.
        outer_sides: likewise of the boxes that out-painting leaves.
        value_range: range of the noise, in the image's unit.

    Raises:
        ValueError: a share or probability is out of its range.
    """

    overwrites: ClassVar[bool] = False

    def __init__(
        self,
        prob: float = 0.9,
        outer_share: float = 0.8,
        inner_sides: Sequence[float] = (1 / 6, 1 / 3),
        outer_sides: Sequence[float] = (3 / 7, 4 / 7),
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        self.prob = check_prob("prob", prob)
        self.outer_share = check_prob("outer_share", outer_share)
        self.inner_sides = check_range("inner_sides", inner_sides, 0.0, 1.0)
        self.outer_sides = check_range("outer_sides", outer_sides, 0.0, 1.0)
        self.value_range = check_value_range(value_range)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``chosen`` and ``outer`` (B,), ``start`` and ``stop`` (B, 5, n), ``used`` (B, 5), and ``noise``."""
        device = drawing_device(generator, device)
        batch = shape[0]
        outer = chance(batch, self.outer_share, generator, device)
        starts, stops = [], []
        for length in shape[2:]:
            start, stop = self._draw_boxes(batch, length, outer, generator, device)
            starts.append(start)
            stops.append(stop)
        more = torch.rand(batch, _BOXES, generator=generator, device=device) < 0.95
        more[:, 0] |= outer
        low, high = self.value_range
        return {
            "chosen": chance(batch, self.prob, generator, device),
            "outer": outer,
            "start": torch.stack(starts, 2),
            "stop": torch.stack(stops, 2),
            "used": more.int().cumprod(1).bool(),
            "noise": torch.rand(*shape, generator=generator, device=device).mul_(high - low).add_(low),
        }

    def hidden(self, params: Params, spatial: Sequence[int]) -> torch.Tensor:
        """Return (B, 1, \\*spatial) bool, True where the image is replaced."""
        inside = boxes_to_mask(params["start"], params["stop"], spatial, params["used"])
        ndim = inside.ndim
        return (inside ^ per_sample(params["outer"], ndim)) & per_sample(params["chosen"], ndim)

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        return torch.where(self.hidden(params, x.shape[2:]), params["noise"].to(x.dtype), x)

    def _draw_boxes(
        self, batch: int, length: int, outer: torch.Tensor, generator: torch.Generator | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, boxes) start and stop along one axis."""
        least, most = (
            [max(1, int(share * length + 1e-6)) for share in sides]
            for sides in zip(self.inner_sides, self.outer_sides, strict=True)
        )
        least, most = (torch.where(outer, pair[1], pair[0])[:, None] for pair in (least, most))
        lot = torch.rand(2, batch, _BOXES, generator=generator, device=device)
        side = least + (lot[0] * (most - least + 1)).long().minimum(most - least)
        margin = ((length - side) // 2).clamp(max=_MARGIN)
        room = length - side - 2 * margin  # places beside the first one
        start = margin + (lot[1] * (room + 1)).long().minimum(room)
        return start, start + side
