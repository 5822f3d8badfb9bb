# SPDX-License-Identifier: Apache-2.0
"""EfficientNet as an encoder (Tan and Le, arXiv 1905.11946; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoders import ImageEncoder

__all__ = ["EfficientNetImageEncoder"]


class EfficientNetImageEncoder(
    ImageEncoder, wraps=nets.EfficientNet, names=tuple(f"efficientnet-b{size}" for size in range(9))
):
    """Global average after the 1x1 head convolution (F = 1280 for b0).

    The pyramid has the last block of each resolution (strides 2, 4, 8, 16, 32), the same maps as in MONAI's
    ``FlexibleUNet``; the head convolution is not part of it.
    """

    head_prefixes = ("_fc.",)
    stem_key = "_conv_stem.weight"

    @staticmethod
    def count_features(net: nn.Module) -> int:
        """Return the channels of the head convolution."""
        return net._conv_head.out_channels

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's EfficientNet; the encoder's linear layer is replaced by the identity."""
        net = nets.EfficientNetBN(
            architecture,
            pretrained=False,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes or 1,
            **network_args,
        )
        if num_classes is None:
            net._fc = nn.Identity()
        return net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        net = self.net
        x = net._blocks(self._stem(x))
        x = net._swish(net._bn1(net._conv_head(net._conv_head_padding(x))))
        return net._avg_pooling(x).flatten(1)  # (B, F, 1, 1[, 1]) -> (B, F)

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return five maps, one for each resolution."""
        x = self._stem(x)
        maps = []
        for index, stack in enumerate(self.net._blocks):
            x = stack(x)
            if index + 1 in self.net.extract_stacks:
                maps.append(x)
        return maps

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        net = self.net
        return net._swish(net._bn0(net._conv_stem(net._conv_stem_padding(x))))
