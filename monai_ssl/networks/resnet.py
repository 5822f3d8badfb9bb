# SPDX-License-Identifier: Apache-2.0
"""ResNet as an encoder (He et al., arXiv 1512.03385; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoders import ImageEncoder

__all__ = ["ResNetImageEncoder"]

_NAMES = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200")


class ResNetImageEncoder(ImageEncoder, wraps=nets.ResNet, names=_NAMES):
    """Global average of the last block; the pyramid is the stem and the four stages.

    With the default stem (stride 2, then max pooling) the maps lie at strides 2, 4, 8, 16 and 32, the same as in
    MONAI's ``FlexibleUNet``. F is 512 (basic blocks: 10, 18, 34) or 2048 (bottleneck blocks).

    MONAI's ``FlexibleUNet`` builds its ResNet-18 and 34 with ``shortcut_type="A"`` (no weights in the shortcuts): give
    the same here when the weights are to end there.
    """

    head_prefixes = ("fc.",)
    stem_key = "conv1.weight"

    @staticmethod
    def count_features(net: nn.Module) -> int:
        """Return the channels of the last stage."""
        block = net.layer4[-1]
        return (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels

    @classmethod
    def complete_args(cls, spatial_dims: int, network_args: dict[str, Any]) -> dict[str, Any]:
        """Fill in the stem's stride of 2."""
        return {"conv1_t_stride": 2, **network_args}

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's ResNet."""
        head = {"feed_forward": False} if num_classes is None else {"num_classes": num_classes}
        build = getattr(nets, architecture)
        return build(spatial_dims=spatial_dims, n_input_channels=in_channels, **head, **network_args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        x = self._after_stem(self._stem(x))
        x = self.net.layer4(self.net.layer3(self.net.layer2(self.net.layer1(x))))
        return self.net.avgpool(x).flatten(1)  # (B, F, 1, 1[, 1]) -> (B, F)

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return five maps: after the stem's activation and after each stage."""
        maps = [self._stem(x)]
        x = self._after_stem(maps[0])
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.act(self.net.bn1(self.net.conv1(x)))

    def _after_stem(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.net.no_max_pool else self.net.maxpool(x)
