# SPDX-License-Identifier: Apache-2.0
"""MedNeXt as an encoder (Roy et al., arXiv 2303.09975; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoder_decoder import EncoderDecoder

__all__ = ["MedNeXtClassifier", "MedNeXtImageEncoder"]

# The paper's table 1, as monai.networks.nets.MedNeXtS and the others build it (with the residual blocks).
_SIZES: dict[str, dict[str, Any]] = {
    "mednext": {},
    "mednext-s": {
        "encoder_expansion_ratio": 2,
        "decoder_expansion_ratio": 2,
        "bottleneck_expansion_ratio": 2,
        "blocks_down": [2, 2, 2, 2],
        "blocks_bottleneck": 2,
        "blocks_up": [2, 2, 2, 2],
    },
    "mednext-b": {
        "encoder_expansion_ratio": [2, 3, 4, 4],
        "decoder_expansion_ratio": [4, 4, 3, 2],
        "bottleneck_expansion_ratio": 4,
        "blocks_down": [2, 2, 2, 2],
        "blocks_bottleneck": 2,
        "blocks_up": [2, 2, 2, 2],
    },
    "mednext-m": {
        "encoder_expansion_ratio": [2, 3, 4, 4],
        "decoder_expansion_ratio": [4, 4, 3, 2],
        "bottleneck_expansion_ratio": 4,
        "blocks_down": [3, 4, 4, 4],
        "blocks_bottleneck": 4,
        "blocks_up": [4, 4, 4, 3],
    },
    "mednext-l": {
        "encoder_expansion_ratio": [3, 4, 8, 8],
        "decoder_expansion_ratio": [8, 8, 4, 3],
        "bottleneck_expansion_ratio": 8,
        "blocks_down": [3, 4, 8, 8],
        "blocks_bottleneck": 8,
        "blocks_up": [8, 8, 4, 3],
    },
}
_COMMON = {"kernel_size": 3, "use_residual_connection": True}  # of the four sizes


class MedNeXtImageEncoder(EncoderDecoder, wraps=nets.MedNeXt, names=tuple(_SIZES)):
    """Mean of the bottleneck's map (F = ``init_filters`` * 16 for four stages).

    The maps lie at strides 1, 2, 4, 8 and 16. ``build_encoder("mednext-s")``, ``-b``, ``-m`` and ``-l`` are the paper's
    sizes with kernel 3, as ``monai.networks.nets.MedNeXtS`` and the others; ``"mednext"`` has the defaults of
    ``monai.networks.nets.MedNeXt``. Further arguments come on top, such as ``kernel_size=5`` or ``init_filters=16``.
    The file of such an encoder has the keys ``stem``, ``enc_stages``, ``down_blocks`` and ``bottleneck``, with a
    decoder also ``up_blocks`` and ``dec_stages``. Heads for deep supervision are not built. TorchScript
    can't follow MONAI's blocks.
    """

    head_prefixes = ("out_0.", "out_blocks.", "classification_head.")
    decoder_prefixes = ("up_blocks.", "dec_stages.")
    decoder_modules = ("up_blocks", "dec_stages", "out_0", "out_blocks")
    stem_key = "stem.weight"

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the channels of each stage and of the bottleneck: doubled from stage to stage."""
        return [net.stem.out_channels * 2**i for i in range(len(net.enc_stages) + 1)]

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the output block; None without a decoder."""
        return net.out_0.conv_out.out_channels if hasattr(net.out_0, "conv_out") else None

    def measure_stride(self, net: nn.Module) -> list[int]:
        """Every stage halves the resolution."""
        return [2 ** len(net.down_blocks)] * self.spatial_dims

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's MedNeXt with or without its decoder, or :class:`MedNeXtClassifier`."""
        size = _SIZES[architecture] | (_COMMON if architecture != "mednext" else {})
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **size, **network_args}
        common["deep_supervision"] = False
        return cls.build_network(nets.MedNeXt, MedNeXtClassifier, num_classes, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        return _deepest(self.net, x).flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The stem with the first stage, each step down with the stage behind it, the last with the bottleneck."""
        net = self.net
        before = [net.stem, *net.down_blocks]
        return [nn.Sequential(*pair) for pair in zip(before, [*net.enc_stages, net.bottleneck], strict=True)]

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run the steps up, deepest first, and the output block; what comes up is added to the map of its level."""
        x = maps[-1]
        for step, stage, skip in zip(self.net.up_blocks, self.net.dec_stages, maps[-2::-1], strict=True):
            x = stage(step(x) + skip)
        return self.net.out_0(x)


class MedNeXtClassifier(nets.MedNeXt):
    """MONAI's MedNeXt without its decoder, with a linear classifier on the mean of its bottleneck's map.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.MedNeXt``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, out_channels: int = 1, **network_args: Any) -> None:
        super().__init__(out_channels=out_channels, **network_args)
        MedNeXtImageEncoder.drop_decoder(self)
        features = MedNeXtImageEncoder.count_features(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        return self.classification_head(_deepest(self, x).flatten(2).mean(2))


def _deepest(net: nets.MedNeXt, x: torch.Tensor) -> torch.Tensor:
    """The bottleneck's map."""
    x = net.stem(x)
    for stage, step in zip(net.enc_stages, net.down_blocks, strict=True):
        x = step(stage(x))
    return net.bottleneck(x)
