# SPDX-License-Identifier: Apache-2.0
"""UNet as an encoder (Kerfoot et al., STACOM 2018; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets
from monai.networks.layers import SkipConnection
from torch import nn

from .encoder_decoder import EncoderDecoder

__all__ = ["UNetClassifier", "UNetImageEncoder"]

_DEEPEST = 16  # levels whose keys are known


class UNetImageEncoder(EncoderDecoder, wraps=nets.UNet, names=("unet",)):
    """Mean of the deepest map (F = the last of ``channels``); one map for each of ``channels``.

    MONAI nests the levels: level i lies under ``model`` + i times ``.1.submodule``, with its way down as ``.0`` and its
    way up as ``.2``. The file of such an encoder has the ways down and the bottom, with a decoder also the ways up,
    without the first level's, ``model.2``, which ends in the task's channels. The first way down has a stride, so that
    with strides of 2 the maps lie at 2, 4, 8, ...; the bottom has the resolution of the level above it.

    ``build_encoder("unet")`` has ``channels=(16, 32, 64, 128, 256)``, strides of 2 and ``num_res_units=2`` (as in
    MONAI's spleen tutorial) unless given.
    """

    head_prefixes = ("model.2.", "classification_head.")
    decoder_prefixes = tuple("model." + "1.submodule." * level + "2." for level in range(1, _DEEPEST))

    def __init__(
        self, net: nn.Module, architecture: str | None = None, network_args: dict[str, Any] | None = None
    ) -> None:
        down = "model.0.conv.unit0.conv" if net.num_res_units else "model.0.conv"
        self.stem_key = f"{down}.weight"
        super().__init__(net, architecture, network_args)
        # A second, flat way to the modules of net: the nested one can't be followed by TorchScript.
        self.path = nn.ModuleList(_path(net))

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the channels of each level."""
        return list(net.channels)

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the output; None without a decoder."""
        return None if isinstance(net.model[2], nn.Identity) else net.out_channels

    def measure_stride(self, net: nn.Module) -> list[int]:
        """Multiply the strides of the ways down, axis by axis."""
        steps = [[s] * self.spatial_dims if isinstance(s, int) else s for s in net.strides[: len(net.channels) - 1]]
        return [math.prod(axis) for axis in zip(*steps, strict=True)]

    @classmethod
    def complete_args(cls, spatial_dims: int, network_args: dict[str, Any]) -> dict[str, Any]:
        """Fill in channels, strides and residual units."""
        channels = list(network_args.get("channels", (16, 32, 64, 128, 256)))
        defaults = {"channels": channels, "strides": [2] * (len(channels) - 1), "num_res_units": 2}
        return {**defaults, **network_args}

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's UNet with or without its decoder, or :class:`UNetClassifier`."""
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **network_args}
        return cls.build_network(nets.UNet, UNetClassifier, num_classes, **common)

    @classmethod
    def drop_decoder(cls, net: nn.Module) -> None:
        """Take the ways up out of ``net``, so that ``net.model`` returns the deepest map."""
        for level in _levels(net):
            level[1], level[2] = _Deeper(level[1].submodule), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        for stage in self.path:
            x = stage(x)
        return x.flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The ways down and the bottom."""
        return list(self.path)

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run the ways up, deepest first; each takes the map of its level and what comes from below."""
        x = maps[-1]
        for level, skip in zip(reversed(_levels(self.net)), maps[-2::-1], strict=True):
            x = level[2](torch.cat((skip, x), dim=1))
        return x


class UNetClassifier(nets.UNet):
    """MONAI's UNet without its decoder, with a linear classifier on the mean of its deepest map.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.UNet``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, out_channels: int = 1, **network_args: Any) -> None:
        super().__init__(out_channels=out_channels, **network_args)
        UNetImageEncoder.drop_decoder(self)
        features = UNetImageEncoder.count_features(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        return self.classification_head(self.model(x).flatten(2).mean(2))


class _Deeper(nn.Module):
    """What stands in the place of MONAI's SkipConnection where nothing comes back up; its keys are the same."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.submodule(x)


def _levels(net: nn.Module) -> list[nn.Sequential]:
    """The nested (way down, rest, way up) of each level but the bottom, first level first."""
    levels, block = [], net.model
    for _ in net.channels[1:]:
        if not isinstance(block[1], (SkipConnection, _Deeper)):
            raise ValueError(f"{type(net).__name__} is not built as MONAI's UNet is; wrap a plain UNet")
        levels.append(block)
        block = block[1].submodule
    return levels


def _path(net: nn.Module) -> list[nn.Module]:
    levels = _levels(net)
    return [*(level[0] for level in levels), levels[-1][1].submodule]
