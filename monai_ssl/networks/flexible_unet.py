# SPDX-License-Identifier: Apache-2.0
"""MONAI's FlexibleUNet with a ResNet inside (He et al., arXiv 1512.03385) as an encoder, 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoder_decoder import EncoderDecoder

__all__ = ["FlexibleUNetClassifier", "FlexibleUNetImageEncoder"]


class FlexibleUNetImageEncoder(EncoderDecoder, wraps=nets.FlexibleUNet, names=("flexibleunet",)):
    """Global average of the ResNet's last stage; the five maps lie at strides 2, 4, 8, 16 and 32.

    ``build_encoder("flexibleunet")`` has ``backbone="resnet18"`` unless given. The file of such an encoder has keys
    that begin with ``encoder.``, with a decoder also ``decoder.``, for another FlexibleUNet. To pretrain it for a
    ResNet classifier, save the ResNet inside: ``save_encoder(ImageEncoder(encoder.net.encoder), ...)``.

    Raises:
        ValueError: the backbone is no ResNet.
    """

    head_prefixes = ("segmentation_head.", "classification_head.")
    decoder_prefixes = ("decoder.",)
    decoder_modules = ("decoder", "segmentation_head")
    stem_key = "encoder.conv1.weight"

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the channels of the stem and of the four stages."""
        inner = net.encoder
        if not isinstance(inner, nets.ResNet):
            raise ValueError(f"a FlexibleUNet encoder needs a ResNet as backbone, not {type(inner).__name__}")
        blocks = [layer[-1] for layer in (inner.layer1, inner.layer2, inner.layer3, inner.layer4)]
        last = [block.conv3 if hasattr(block, "conv3") else block.conv2 for block in blocks]
        return [inner.conv1.out_channels, *(conv.out_channels for conv in last)]

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the segmentation head; None without a decoder."""
        return None if isinstance(net.segmentation_head, nn.Identity) else net.segmentation_head[0].out_channels

    def measure_stride(self, net: nn.Module) -> list[int]:
        """Five halvings."""
        return [32] * self.spatial_dims

    @classmethod
    def complete_args(cls, spatial_dims: int, network_args: dict[str, Any]) -> dict[str, Any]:
        """Fill in the backbone."""
        return {"backbone": "resnet18", **network_args}

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's FlexibleUNet with or without its decoder, or :class:`FlexibleUNetClassifier`."""
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **network_args}
        return cls.build_network(nets.FlexibleUNet, FlexibleUNetClassifier, num_classes, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        inner = self.net.encoder
        x = inner.layer1(inner.maxpool(self._stem(x)))
        return inner.layer4(inner.layer3(inner.layer2(x))).flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The stem, the first stage behind its pooling, and the other three."""
        inner = self.net.encoder
        return [self._stem, lambda x: inner.layer1(inner.maxpool(x)), inner.layer2, inner.layer3, inner.layer4]

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run MONAI's decoder and its segmentation head."""
        return self.net.segmentation_head(self.net.decoder(maps, self.net.skip_connect))

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.encoder.act(self.net.encoder.bn1(self.net.encoder.conv1(x)))


class FlexibleUNetClassifier(nets.FlexibleUNet):
    """MONAI's FlexibleUNet without its decoder, with a linear classifier on the mean of its deepest map.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.FlexibleUNet``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, out_channels: int = 1, **network_args: Any) -> None:
        super().__init__(out_channels=out_channels, **network_args)
        FlexibleUNetImageEncoder.drop_decoder(self)
        features = FlexibleUNetImageEncoder.count_features(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        return self.classification_head(self.encoder(x)[-1].flatten(2).mean(2))
