# SPDX-License-Identifier: Apache-2.0
"""SegResNet as an encoder (Myronenko, arXiv 1810.11654; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoder_decoder import EncoderDecoder

__all__ = ["SegResNetClassifier", "SegResNetImageEncoder"]


class SegResNetImageEncoder(EncoderDecoder, wraps=nets.SegResNet, names=("segresnet",)):
    """Mean of the last stage's map (F = ``init_filters`` * 8 for four stages).

    With MONAI's four stages the maps lie at strides 1, 2, 4 and 8. The file of such an encoder has the keys
    ``convInit`` and ``down_layers``, with a decoder also ``up_layers`` and ``up_samples``; ``conv_final``, which
    depends on the task, is left out.
    """

    head_prefixes = ("conv_final.", "classification_head.")
    decoder_prefixes = ("up_layers.", "up_samples.")
    decoder_modules = ("up_layers", "up_samples", "conv_final")
    stem_key = "convInit.conv.weight"

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the channels of each stage: doubled from stage to stage."""
        return [net.init_filters * 2**i for i in range(len(net.down_layers))]

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the last convolution; None without a decoder."""
        return net.conv_final[-1].conv.out_channels if isinstance(net.conv_final, nn.Sequential) else None

    def measure_stride(self, net: nn.Module) -> list[int]:
        """Every stage after the first halves the resolution."""
        return [2 ** (len(net.down_layers) - 1)] * self.spatial_dims

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's SegResNet with or without its decoder, or :class:`SegResNetClassifier`."""
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **network_args}
        return cls.build_network(nets.SegResNet, SegResNetClassifier, num_classes, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        return self.net.encode(x)[0].flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The first convolution with the first stage, and the other stages."""
        return [self._first_stage, *list(self.net.down_layers)[1:]]

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run MONAI's decoder, which takes the maps coarsest first."""
        return self.net.decode(maps[-1], maps[::-1])

    def _first_stage(self, x: torch.Tensor) -> torch.Tensor:
        x = self.net.convInit(x)
        if self.net.dropout_prob is not None:
            x = self.net.dropout(x)
        return self.net.down_layers[0](x)


class SegResNetClassifier(nets.SegResNet):
    """MONAI's SegResNet without its decoder, with a linear classifier on the mean of its last map.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.SegResNet``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, **network_args: Any) -> None:
        super().__init__(**network_args)
        SegResNetImageEncoder.drop_decoder(self)
        features = SegResNetImageEncoder.count_features(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        return self.classification_head(self.encode(x)[0].flatten(2).mean(2))
