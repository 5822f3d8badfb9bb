# SPDX-License-Identifier: Apache-2.0
"""UNETR as an encoder: the vision transformer in it (Hatamizadeh et al., arXiv 2103.10504; MONAI's implementation)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoder_decoder import EncoderDecoder
from .vit import drop_unused_norms

__all__ = ["UNETRClassifier", "UNETRImageEncoder"]

_CONVOLUTIONS = ("encoder1", "encoder2", "encoder3", "encoder4")
_WAY_UP = ("decoder5", "decoder4", "decoder3", "decoder2")
_TAKEN = (4, 7, 10)  # blocks before the states that MONAI's decoder takes: hidden_states_out[3], [6] and [9]


class UNETRImageEncoder(EncoderDecoder, wraps=nets.UNETR, names=("unetr",)):
    """Mean of the patch tokens after the final normalisation, as for a plain ViT; works at the size it was built for.

    The maps all lie at stride 16 with F = ``hidden_size`` channels: after 4, 7 and 10 of the 12 blocks, where MONAI's
    decoder takes them, and after the final normalisation. With a decoder the pyramid begins with one map more, of
    ``encoder1`` at stride 1, which is made from the image itself.

    The file of such an encoder has keys that begin with ``vit.``, with a decoder also ``encoder1`` to ``encoder4``,
    which are convolutions on the way to the decoder, and ``decoder2`` to ``decoder5``. The file of a plain ViT
    (``build_encoder("vit", img_size=..., patch_size=16)``) fits MONAI's UNETR as well. To pretrain this one for a plain
    ViT, save the ViT inside: ``save_encoder(ImageEncoder(encoder.net.vit), ...)``.

    ``build_encoder("unetr", img_size=...)`` needs the size of its input images.
    """

    head_prefixes = ("out.", "classification_head.")
    decoder_prefixes = tuple(f"{name}." for name in _CONVOLUTIONS + _WAY_UP)
    decoder_modules = (*_CONVOLUTIONS, *_WAY_UP, "out")
    stem_key = "vit.patch_embedding.patch_embeddings.weight"

    def __init__(
        self, net: nn.Module, architecture: str | None = None, network_args: dict[str, Any] | None = None
    ) -> None:
        if net.vit.patch_embedding.proj_type != "conv":
            raise ValueError(
                f"a UNETR encoder needs proj_type='conv', this network has {net.vit.patch_embedding.proj_type!r}"
            )
        super().__init__(net, architecture, network_args)

    @staticmethod
    def count_map_channels(net: nn.Module) -> list[int]:
        """Return the transformer's width four times, with a decoder the channels of ``encoder1`` in front."""
        at_full_size = [] if isinstance(net.out, nn.Identity) else [net.out.conv.conv.in_channels]
        return at_full_size + [net.hidden_size] * (len(_TAKEN) + 1)

    @staticmethod
    def count_out_channels(net: nn.Module) -> int | None:
        """Return the channels of the output block; None without a decoder."""
        return None if isinstance(net.out, nn.Identity) else net.out.conv.conv.out_channels

    def measure_stride(self, net: nn.Module) -> list[int]:
        """The sides of a patch."""
        return list(net.patch_size)

    @classmethod
    def complete_args(cls, spatial_dims: int, network_args: dict[str, Any]) -> dict[str, Any]:
        """Ask for the image size."""
        if "img_size" not in network_args:
            raise ValueError("a unetr needs img_size, the size of its input images, for example img_size=96")
        return dict(network_args)

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's UNETR with or without its decoder, or :class:`UNETRClassifier`."""
        common = {"spatial_dims": spatial_dims, "in_channels": in_channels, **network_args}
        net = cls.build_network(nets.UNETR, UNETRClassifier, num_classes, **common)
        drop_unused_norms(net.vit)
        return net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        return self.net.vit(x)[0].mean(1)

    def image_map(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return what ``encoder1`` makes of the image."""
        return None if self.out_channels is None else self.net.encoder1(x)

    def stages(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The blocks up to each map, the patch embedding in front and the final normalisation behind."""
        blocks, ends = self.net.vit.blocks, (0, *_TAKEN, len(self.net.vit.blocks))
        steps = [list(blocks[start:end]) for start, end in pairwise(ends)]
        steps[-1].append(self.net.vit.norm)
        later = [lambda x, step=step: self._to_map(_run(step, x.flatten(2).transpose(1, 2))) for step in steps[1:]]
        return [lambda x: self._to_map(_run(steps[0], self.net.vit.patch_embedding(x))), *later]

    def decode_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Run the convolutions on the way, the steps up and the output block."""
        net = self.net
        at_full_size, early, middle, late, last = maps
        x = net.decoder5(last, net.encoder4(late))
        x = net.decoder4(x, net.encoder3(middle))
        x = net.decoder3(x, net.encoder2(early))
        return net.out(net.decoder2(x, at_full_size))

    def _to_map(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).unflatten(2, self.net.feat_size)  # (B, tokens, F) -> (B, F, *grid)


class UNETRClassifier(nets.UNETR):
    """MONAI's UNETR without its decoder, with a linear classifier on the mean of the transformer's tokens.

    Args:
        num_classes: number of logits; None: no classifier, the features are returned.
        network_args: arguments of ``monai.networks.nets.UNETR``; ``out_channels`` is not used.
    """

    def __init__(self, num_classes: int | None, out_channels: int = 1, **network_args: Any) -> None:
        super().__init__(out_channels=out_channels, **network_args)
        UNETRImageEncoder.drop_decoder(self)
        self.classification_head = nn.Identity() if num_classes is None else nn.Linear(self.hidden_size, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes), or features (B, F), of images (B, C, *spatial)."""
        return self.classification_head(self.vit(x)[0].mean(1))


def _run(blocks: list[nn.Module], tokens: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        tokens = block(tokens)
    return tokens
