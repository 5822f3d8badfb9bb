# SPDX-License-Identifier: Apache-2.0
"""What the encoders inside segmentation networks share: stages one after the other, and a decoder that may be there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from .encoders import ImageEncoder

__all__ = ["EncoderDecoder"]


class EncoderDecoder(ImageEncoder):
    """An encoder whose network may also decode: base of the adapters of SegResNet, the U-Nets and the UNETRs.

    ``build_encoder(name, ...)`` makes the network without its decoder; ``build_encoder(name, ..., out_channels=K)``
    makes MONAI's whole network, whose last layer has K channels (as many as the image's, to reconstruct it). Pooled
    features are the mean of the last stage's map; the pyramid has one map for each stage. Where MONAI's decoder also
    takes a map made straight from the image (SwinUNETR, UNETR), the pyramid of a network with a decoder begins with it.

    Attributes:
        out_channels: channels that :meth:`decode` returns, or None without a decoder.
        map_channels: channels of each map of the pyramid, finest first.
        size_divisor: the image size must be a multiple of it along each axis.
    """

    decoder_modules: ClassVar[tuple[str, ...]] = ()
    """Names of the network's direct children that come after the last stage, those that may be absent included."""

    def __init__(
        self, net: nn.Module, architecture: str | None = None, network_args: dict[str, Any] | None = None
    ) -> None:
        super().__init__(net, architecture, network_args)
        self.out_channels = self.count_out_channels(net)
        self.map_channels = tuple(self.count_map_channels(net))
        self.size_divisor = tuple(self.measure_stride(net))

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the network's output; None without a decoder."""
        raise NotImplementedError

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the channels that each stage gives."""
        raise NotImplementedError

    @classmethod
    def count_features(cls, net: nn.Module) -> int:
        """Return the channels of the last stage."""
        return cls.count_map_channels(net)[-1]

    def measure_stride(self, net: nn.Module) -> Sequence[int]:
        """Return by how much the last stage's map is smaller than the image, along each axis."""
        raise NotImplementedError

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return the encoder's stages in their order."""
        raise NotImplementedError

    def image_map(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the map that only the decoder takes, made straight from the image; None where there is no such."""
        return None

    def finish_map(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the pyramid gets of a stage's map; the next stage gets the map itself."""
        return x

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run the network's own decoder on a complete pyramid."""
        raise NotImplementedError

    @classmethod
    def drop_decoder(cls, net: nn.Module) -> None:
        """Take the decoder out of ``net``, so that no parameter stays without gradient."""
        for name in cls.decoder_modules:
            if hasattr(net, name):
                setattr(net, name, nn.Identity())

    @staticmethod
    def build_network(
        network: type[nn.Module],
        classifier: type[nn.Module],
        num_classes: int | None,
        out_channels: int | None = None,
        **arguments: Any,
    ) -> nn.Module:
        """Build a classifier (``num_classes``), the whole network (``out_channels``) or the encoder (neither)."""
        if num_classes is None and out_channels is not None:
            return network(out_channels=out_channels, **arguments)
        return classifier(num_classes, **arguments)

    def feature_maps(
        self, x: torch.Tensor, after_stage: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Return one map (B, C_i, *spatial_i) for each stage, finest first.

        Args:
            x: images (B, C, *spatial).
            after_stage: applied to each map before the next stage and the pyramid get it.
        """
        keep = (lambda x: x) if after_stage is None else after_stage
        first = self.image_map(x)
        maps = [] if first is None else [keep(first)]
        for stage in self.stages():
            x = keep(stage(x))
            maps.append(self.finish_map(x))
        return maps

    def decode(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return (B, out_channels, *spatial) from a pyramid of :meth:`feature_maps`.

        Raises:
            ValueError: this encoder was built without a decoder.
        """
        if self.out_channels is None:
            raise ValueError(
                f"this {self.architecture} has no decoder: build_encoder({self.architecture!r}, ..., out_channels="
                f"{self.in_channels}) keeps it"
            )
        return self.decode_maps(maps)
