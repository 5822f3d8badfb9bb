# SPDX-License-Identifier: Apache-2.0
"""Shuffle the voxels within small windows.

Zhou, Sodha, Pang, Gotway, Liang, *Models Genesis*, Medical Image Analysis 2021, arXiv 2004.07882, "local pixel
shuffling".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import (
    BatchTransform,
    Params,
    chance,
    check_prob,
    drawing_device,
    on_selected,
    take,
)


class RandomLocalShuffle(BatchTransform):
    """Permute the voxels within windows of random sides, with probability ``prob`` per sample.

    The image is cut into windows by planes at random distances along each axis, U{1, ..., fraction * side} voxels; each
    window is shuffled with probability ``coverage``, all its channels alike. Every window keeps its histogram, and so
    does the image.

    Models Genesis draws windows one after the other, which may overlap. Its released code takes 10,000 windows for a
    crop of 64 x 64 x 32 voxels; of those sides they touch 0.85 of the voxels. The paper's text says 1,000 windows,
    which touch 0.17. A partition has the same windows and the same share at once for a whole batch.

    Args:
        prob: probability of a sample being changed (Models Genesis: 0.5).
        fraction: greatest side of a window as a share of the image's, within (0, 1].
        coverage: share of the windows that are shuffled.

    Raises:
        ValueError: a share or probability is out of its range.
    """

    def __init__(self, prob: float = 0.5, fraction: float = 0.1, coverage: float = 0.85) -> None:
        self.prob = check_prob("prob", prob)
        self.coverage = check_prob("coverage", coverage)
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be within (0, 1], got {fraction}")
        self.fraction = float(fraction)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``chosen`` (B,), ``order`` (B, voxels), ``lot`` (B, voxels), and for axis i ``start_i``, ``side_i``.

        The latter are (B, L_i) integers: where the window of each place along the axis begins, and how long it is.
        ``order`` sorts the voxels of a window; ``lot``, at a window's first voxel, decides whether it is shuffled.
        """
        device = drawing_device(generator, device)
        batch, spatial = shape[0], shape[2:]
        params = {"chosen": chance(batch, self.prob, generator, device)}
        voxels = 1
        for axis, length in enumerate(spatial):
            most = max(1, int(self.fraction * length + 1e-6))
            params[f"start_{axis}"], params[f"side_{axis}"] = _windows(batch, length, most, generator, device)
            voxels *= length
        for name in ("order", "lot"):
            params[name] = torch.rand(batch, voxels, generator=generator, device=device)
        return params

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            mine = {name: take(value, rows) for name, value in params.items()}
            source = self._source(part.shape[2:], mine)  # (B', voxels)
            return part.flatten(2).gather(2, source[:, None].expand(-1, part.shape[1], -1)).view(part.shape)

        return on_selected(x, params["chosen"], change)

    def _source(self, spatial: Sequence[int], params: Params) -> torch.Tensor:
        """(B, voxels): which voxel each place gets."""
        n = len(spatial)
        first = rank = None  # a window's first voxel; the voxel's place if windows, then their voxels, are in line
        for axis in reversed(range(n)):
            # Build from the innermost axis: within the windows' range of the outer axes, len(rest) voxels lie.
            view = [-1, *[spatial[axis] if i == axis else 1 for i in range(n)]]
            start = params[f"start_{axis}"].view(view)
            side = params[f"side_{axis}"].view(view)
            local = torch.arange(spatial[axis], device=start.device).view(1, *view[1:]) - start
            if first is None:
                first, base, inner, volume, size = start, start, local, side, spatial[axis]
                continue
            # Windows that come before along this axis hold `start * size` voxels; of this slab, `side` times the rest.
            first = start * size + first
            base = start * size + side * base
            inner = local * volume + inner
            volume = side * volume
            size *= spatial[axis]
        rank = (base + inner).expand(-1, *spatial).flatten(1)
        window = first.expand(-1, *spatial).flatten(1)
        shuffled = params["lot"].gather(1, window) < self.coverage
        # 24 bits of the random number decide within the window, the window's number above them.
        key = (window << 24) + torch.where(shuffled, (params["order"] * 2**24).long(), 0)
        return torch.argsort(key, dim=1, stable=True).gather(1, rank)


def _windows(
    batch: int, length: int, most: int, generator: torch.Generator | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, length) start and side of the window at each place of an axis cut at distances U{1, ..., most}."""
    sides = torch.randint(1, most + 1, (batch, length + most), generator=generator, device=device)
    shift = torch.randint(0, most, (batch, 1), generator=generator, device=device)  # the first one is cut anywhere
    stops = sides.cumsum(1) - shift
    places = torch.arange(length, device=device).expand(batch, -1).contiguous()
    window = torch.searchsorted(stops, places, right=True)  # windows that end at or before the place
    stop = stops.gather(1, window)
    start = (stop - sides.gather(1, window)).clamp_(min=0)
    return start, stop.clamp_(max=length) - start
