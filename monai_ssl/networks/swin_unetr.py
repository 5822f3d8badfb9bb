# SPDX-License-Identifier: Apache-2.0
"""SwinUNETR as an encoder (Hatamizadeh et al., arXiv 2201.01266; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoder_decoder import EncoderDecoder

__all__ = ["SwinUNETRClassifier", "SwinUNETRImageEncoder"]

_CONVOLUTIONS = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
_WAY_UP = ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1")


class SwinUNETRImageEncoder(EncoderDecoder, wraps=nets.SwinUNETR, names=("swinunetr",)):
    """Mean of the Swin transformer's last map (F = ``feature_size`` * 16).

    The maps lie at strides 2, 4, 8, 16 and 32 and are what the transformer gives out: normalised over the channels if
    the network's ``normalize`` says so, as it does by default. The file of such an encoder has the keys ``swinViT``,
    with a decoder also ``encoder1`` to ``encoder10``, which are convolutions on the way to the decoder, and
    ``decoder1`` to ``decoder5``. With a decoder the pyramid begins with one map more, of ``encoder1`` at stride 1: it
    is made from the image itself.

    Images must be multiples of 32 along each axis. With a decoder one axis must have at least 64: MONAI's instance
    normalisation refuses the single voxel that 32 leaves. TorchScript can't follow MONAI's Swin transformer.
    """

    head_prefixes = ("out.", "classification_head.")
    decoder_prefixes = tuple(f"{name}." for name in _CONVOLUTIONS + _WAY_UP)
    decoder_modules = (*_CONVOLUTIONS, *_WAY_UP, "out")
    stem_key = "swinViT.patch_embed.proj.weight"

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the channels of the five maps, with a decoder those of ``encoder1`` in front."""
        width = net.swinViT.embed_dim
        at_full_size = [] if isinstance(net.out, nn.Identity) else [width]
        return at_full_size + [width * 2**i for i in range(net.swinViT.num_layers + 1)]

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the output block; None without a decoder."""
        return None if isinstance(net.out, nn.Identity) else net.out.conv.conv.out_channels

    def measure_stride(self, net: nn.Module) -> list[int]:
        """The patches and four halvings, as MONAI demands it."""
        return [net.patch_size**5] * self.spatial_dims

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's SwinUNETR with or without its decoder, or :class:`SwinUNETRClassifier`."""
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **network_args}
        return cls.build_network(nets.SwinUNETR, SwinUNETRClassifier, num_classes, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        return self.net.swinViT(x, self.net.normalize)[-1].flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)

    def image_map(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return what ``encoder1`` makes of the image."""
        return None if self.out_channels is None else self.net.encoder1(x)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The patch embedding and the transformer's four layers."""
        swin = self.net.swinViT
        layers = [swin.layers1[0], swin.layers2[0], swin.layers3[0], swin.layers4[0]]
        if swin.use_v2:
            before = [swin.layers1c[0], swin.layers2c[0], swin.layers3c[0], swin.layers4c[0]]
            layers = [nn.Sequential(*pair) for pair in zip(before, layers, strict=True)]
        return [lambda x: swin.pos_drop(swin.patch_embed(x)), *layers]

    def finish_map(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise a map as the transformer does where it gives it out."""
        return self.net.swinViT.proj_out(x, self.net.normalize)

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run the convolutions on the way, the steps up and the output block."""
        net = self.net
        at_full_size, *states = maps
        x = net.decoder5(net.encoder10(states[4]), states[3])
        x = net.decoder4(x, net.encoder4(states[2]))
        x = net.decoder3(x, net.encoder3(states[1]))
        x = net.decoder2(x, net.encoder2(states[0]))
        return net.out(net.decoder1(x, at_full_size))


class SwinUNETRClassifier(nets.SwinUNETR):
    """MONAI's SwinUNETR without its decoder, with a linear classifier on the mean of the transformer's last map.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.SwinUNETR``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, out_channels: int = 1, **network_args: Any) -> None:
        super().__init__(out_channels=out_channels, **network_args)
        SwinUNETRImageEncoder.drop_decoder(self)
        features = SwinUNETRImageEncoder.count_features(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        self._check_input_size(x.shape[2:])
        return self.classification_head(self.swinViT(x, self.normalize)[-1].flatten(2).mean(2))
