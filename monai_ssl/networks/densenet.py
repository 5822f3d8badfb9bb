# SPDX-License-Identifier: Apache-2.0
"""DenseNet as an encoder (Huang et al., arXiv 1608.06993; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoders import ImageEncoder

__all__ = ["DenseNetImageEncoder"]

_CLASSES = {
    "densenet121": nets.DenseNet121,
    "densenet169": nets.DenseNet169,
    "densenet201": nets.DenseNet201,
    "densenet264": nets.DenseNet264,
}


class DenseNetImageEncoder(ImageEncoder, wraps=nets.DenseNet, names=tuple(_CLASSES)):
    """Global average of the activated last dense block (F = 1024 for DenseNet-121).

    The pyramid has the stem (stride 2) and the output of each dense block (strides 4, 8, 16, 32), the last one after
    its normalisation and activation.
    """

    head_prefixes = ("class_layers.",)
    stem_key = "features.conv0.weight"

    @staticmethod
    def count_features(net: nn.Module) -> int:
        """Return the channels that leave the last dense layer: what it reads and what it adds."""
        blocks = [module for name, module in net.features.named_children() if name.startswith("denseblock")]
        last = list(blocks[-1].children())[-1].layers
        return last.conv1.in_channels + last.conv2.out_channels

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's DenseNet; the encoder's linear layer is replaced by the identity."""
        net = _CLASSES[architecture](
            spatial_dims=spatial_dims, in_channels=in_channels, out_channels=num_classes or 1, **network_args
        )
        if num_classes is None:
            net.class_layers.out = nn.Identity()
        return net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        x = self.net.class_layers.relu(self.net.features(x))
        return self.net.class_layers.pool(x).flatten(1)  # (B, F, 1, 1[, 1]) -> (B, F)

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return five maps: after the stem's activation and after each dense block."""
        maps = []
        for name, module in self.net.features.named_children():
            x = module(x)
            if name == "relu0" or name.startswith("denseblock"):
                maps.append(x)
        maps[-1] = self.net.class_layers.relu(x)
        return maps
