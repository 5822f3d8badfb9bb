# SPDX-License-Identifier: Apache-2.0
"""A light decoder for encoders that have none: from all maps of the pyramid to an image of the full size.

As the all-MLP decoder of SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203, section 3.2), with a sum where that
concatenates and mixes::

    u_i = resize(conv_i(map_i), size of the finest map)        conv_i: 1 wide, to `width` channels
    y   = resize(conv(relu(norm(sum_i u_i))), image size)      conv: 1 wide, to `out_channels`
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn.functional import interpolate

__all__ = ["PyramidHead"]


class PyramidHead(nn.Module):
    r"""Bring a pyramid of maps (B, C_i, \*spatial_i) to an image (B, out_channels, \*spatial).

    Its norm is over groups of channels of one sample, so it does not depend on the batch.

    Args:
        map_channels: C_i of each map, finest first, see :func:`measure_maps`.
        out_channels: channels of the image.
        spatial_dims: 2 or 3.
        width: channels in between, a multiple of 8.

    Raises:
        ValueError: ``width`` is no multiple of 8.

    Example:
        >>> maps = [torch.rand(2, 8, 16, 16), torch.rand(2, 16, 4, 4)]
        >>> PyramidHead((8, 16), 3, spatial_dims=2)(maps, (32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, map_channels: Sequence[int], out_channels: int, spatial_dims: int, width: int = 64) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        conv = Conv[Conv.CONV, spatial_dims]
        self.levels = nn.ModuleList(conv(channels, width, 1, bias=False) for channels in map_channels)
        self.mix = nn.Sequential(nn.GroupNorm(8, width), nn.ReLU(), conv(width, out_channels, 1))

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """Return the image.

        Args:
            maps: the pyramid of an encoder, finest first.
            size: of the image, in voxels.
        """
        mode = "bilinear" if len(size) == 2 else "trilinear"
        finest = maps[0].shape[2:]
        narrow = [level(x) for level, x in zip(self.levels, maps, strict=True)]
        total = narrow[0]
        for x in narrow[1:]:
            total = total + (x if x.shape[2:] == finest else interpolate(x, size=finest, mode=mode))
        return interpolate(self.mix(total), size=tuple(size), mode=mode)
