# SPDX-License-Identifier: Apache-2.0
"""DynUNet, nnU-Net's network, as an encoder (Isensee et al., Nature Methods 2021; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoder_decoder import EncoderDecoder

__all__ = ["DynUNetClassifier", "DynUNetImageEncoder"]


class DynUNetImageEncoder(EncoderDecoder, wraps=nets.DynUNet, names=("dynunet",)):
    """Mean of the bottleneck's map (F = the last of ``filters``); one map for each entry of ``strides``.

    ``build_encoder("dynunet")`` has five stages of kernel 3, the first with stride 1, the others with stride 2, unless
    ``strides`` and ``kernel_size`` are given; ``upsample_kernel_size`` follows the strides. The file of such an encoder
    has the keys ``input_block``, ``downsamples`` and ``bottleneck``, with a decoder also ``upsamples``. MONAI's second
    names of the same tensors (``skip_layers``) are left out. Heads for deep supervision are not built: ``decode`` gives
    the full-size output only, and a head without a gradient would stop DDP. ``load_encoder`` fills encoder and decoder
    of a network that has such heads.
    """

    head_prefixes = ("output_block.", "deep_supervision_heads.", "skip_layers.", "classification_head.")
    decoder_prefixes = ("upsamples.",)
    decoder_modules = ("upsamples", "output_block", "skip_layers", "deep_supervision_heads")
    stem_key = "input_block.conv1.conv.weight"

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the stages' filters."""
        return list(net.filters)

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the output block; None without a decoder."""
        return net.output_block.conv.conv.out_channels if hasattr(net.output_block, "conv") else None

    def measure_stride(self, net: nn.Module) -> list[int]:
        """Multiply the stages' strides, axis by axis."""
        steps = [[s] * self.spatial_dims if isinstance(s, int) else s for s in net.strides]
        return [math.prod(axis) for axis in zip(*steps, strict=True)]

    @classmethod
    def complete_args(cls, spatial_dims: int, network_args: dict[str, Any]) -> dict[str, Any]:
        """Fill in strides, kernels and upsampling kernels."""
        strides = list(network_args.get("strides", (1, 2, 2, 2, 2)))
        defaults = {"kernel_size": [3] * len(strides), "strides": strides, "upsample_kernel_size": strides[1:]}
        return {**defaults, **network_args}

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's DynUNet with or without its decoder, or :class:`DynUNetClassifier`."""
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **network_args, "deep_supervision": False}
        return cls.build_network(nets.DynUNet, DynUNetClassifier, num_classes, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        x = self.net.input_block(x)
        for step in self.net.downsamples:
            x = step(x)
        return self.net.bottleneck(x).flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The input block, the steps down and the bottleneck."""
        return [self.net.input_block, *self.net.downsamples, self.net.bottleneck]

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run the steps up, deepest first, and the output block."""
        x = maps[-1]
        for step, skip in zip(self.net.upsamples, maps[-2::-1], strict=True):
            x = step(x, skip)
        return self.net.output_block(x)


class DynUNetClassifier(nets.DynUNet):
    """MONAI's DynUNet without its decoder, with a linear classifier on the mean of its bottleneck's map.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.DynUNet``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, out_channels: int = 1, **network_args: Any) -> None:
        super().__init__(out_channels=out_channels, **network_args)
        DynUNetImageEncoder.drop_decoder(self)
        features = DynUNetImageEncoder.count_features(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        x = self.input_block(x)
        for step in self.downsamples:
            x = step(x)
        return self.classification_head(self.bottleneck(x).flatten(2).mean(2))
