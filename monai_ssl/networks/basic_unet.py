# SPDX-License-Identifier: Apache-2.0
"""BasicUNet as an encoder (Falk et al., Nature Methods 2019; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoder_decoder import EncoderDecoder

__all__ = ["BasicUNetClassifier", "BasicUNetImageEncoder"]


class BasicUNetImageEncoder(EncoderDecoder, wraps=nets.BasicUNet, names=("basicunet",)):
    """Mean of the deepest map (F = ``features[4]``); the five maps lie at strides 1, 2, 4, 8 and 16.

    The file of such an encoder has the keys ``conv_0`` and ``down_1`` to ``down_4``, with a decoder also ``upcat_4`` to
    ``upcat_1``; ``final_conv``, which depends on the task, is left out.
    """

    head_prefixes = ("final_conv.", "classification_head.")
    decoder_prefixes = ("upcat_4.", "upcat_3.", "upcat_2.", "upcat_1.")
    decoder_modules = ("upcat_4", "upcat_3", "upcat_2", "upcat_1", "final_conv")
    stem_key = "conv_0.conv_0.conv.weight"

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the channels of the five levels."""
        levels = (net.conv_0, *(down.convs for down in (net.down_1, net.down_2, net.down_3, net.down_4)))
        return [level.conv_1.conv.out_channels for level in levels]

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the last convolution; None without a decoder."""
        return getattr(net.final_conv, "out_channels", None)

    def measure_stride(self, net: nn.Module) -> list[int]:
        """Four poolings by two."""
        return [16] * self.spatial_dims

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's BasicUNet with or without its decoder, or :class:`BasicUNetClassifier`."""
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **network_args}
        return cls.build_network(nets.BasicUNet, BasicUNetClassifier, num_classes, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        x = self.net.down_2(self.net.down_1(self.net.conv_0(x)))
        return self.net.down_4(self.net.down_3(x)).flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The two convolutions in full resolution and the four steps down."""
        return [self.net.conv_0, self.net.down_1, self.net.down_2, self.net.down_3, self.net.down_4]

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run the four steps up and the last convolution."""
        x = maps[4]
        steps = (self.net.upcat_4, self.net.upcat_3, self.net.upcat_2, self.net.upcat_1)
        for step, skip in zip(steps, maps[3::-1], strict=True):
            x = step(x, skip)
        return self.net.final_conv(x)


class BasicUNetClassifier(nets.BasicUNet):
    """MONAI's BasicUNet without its decoder, with a linear classifier on the mean of its deepest map.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.BasicUNet``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, **network_args: Any) -> None:
        super().__init__(**network_args)
        BasicUNetImageEncoder.drop_decoder(self)
        features = BasicUNetImageEncoder.count_features(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        x = self.down_4(self.down_3(self.down_2(self.down_1(self.conv_0(x)))))
        return self.classification_head(x.flatten(2).mean(2))
