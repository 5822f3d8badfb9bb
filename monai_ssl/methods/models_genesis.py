# SPDX-License-Identifier: Apache-2.0
"""Models Genesis: restore an image whose intensities, texture and surroundings were spoiled.

Zhou, Sodha, Rahman Siddiquee, Feng, Tajbakhsh, Gotway, Liang, *Models Genesis: Generic Autodidactic Models for 3D
Medical Image Analysis*, MICCAI 2019, arXiv 1908.06912; Zhou, Sodha, Pang, Gotway, Liang, *Models Genesis*, Medical
Image Analysis 2021, arXiv 2004.07882. With image x, encoder f, decoder g, mirroring m, corruptions in this order::

    y  = m(x)                   mirrored along some axes, target and input alike
    c  = local shuffling (p 0.5), intensity map (p 0.9), painting (p 0.9, of which 0.8 out- and 0.2 in-painting)
    L  = mean over voxels of (g(f(c(y))) - y)^2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from monai_ssl.networks import EncoderDecoder
from monai_ssl.transforms import (
    BatchTransform,
    RandomIntensityMap,
    RandomLocalShuffle,
    RandomMirror,
    RandomPainting,
    ViewChain,
)

from .base import SSLMethod
from .requirements import check_decoder, check_size, one_view

__all__ = ["ModelsGenesis"]


class ModelsGenesis(SSLMethod):
    """Restore a corrupted image with the decoder that a segmentation network has anyway.

    The defaults are the paper's; beside them views of 64 x 64 x 32 voxels with intensities in [0, 1] (CT from -1000 to
    1000 HU), batches of 6, a 3D U-Net. The released network ends in a sigmoid; here the decoder's output is taken as it
    is. Where paper and released code differ: the code shuffles ten times as many windows as the paper's text says, see
    :class:`~monai_ssl.transforms.RandomLocalShuffle`; its ``coverage`` chooses.

    Args:
        encoder: with a decoder to as many channels as the image has, for example
            ``build_encoder("segresnet", spatial_dims=3, in_channels=1, out_channels=1)``.
        value_range: the views' least and greatest intensity. Views in [0, 1] end without standardisation.
        mirror_prob: p of the mirroring, see :class:`~monai_ssl.transforms.RandomMirror`.
        shuffle_prob: p of the local shuffling.
        intensity_prob: p of the intensity map.
        painting_prob: p of in- or out-painting.
        outer_share: share of out-painting in painting.
        corruptions: replaces the three corruptions and their settings.

    Raises:
        ValueError: the encoder has no decoder to the image's channels; a number is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = ModelsGenesis(build_encoder("segresnet", spatial_dims=2, out_channels=1))
        >>> out = method({"views": [torch.rand(2, 1, 64, 64)]})
        >>> sorted(out), tuple(out["corrupted"].shape)
        (['corrupted', 'embedding', 'loss', 'prediction', 'target'], (2, 1, 64, 64))
    """

    def __init__(
        self,
        encoder: EncoderDecoder,
        *,
        value_range: Sequence[float] = (0.0, 1.0),
        mirror_prob: float = 0.4,
        shuffle_prob: float = 0.5,
        intensity_prob: float = 0.9,
        painting_prob: float = 0.9,
        outer_share: float = 0.8,
        corruptions: BatchTransform | None = None,
    ) -> None:
        check_decoder(encoder, "ModelsGenesis")
        super().__init__(encoder)
        self.mirror = RandomMirror(mirror_prob)
        self.corruptions = corruptions or ViewChain(
            [
                RandomLocalShuffle(shuffle_prob),
                RandomIntensityMap(intensity_prob, value_range=value_range),
                RandomPainting(painting_prob, outer_share, value_range=value_range),
            ]
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes one view.

        Returns:
            ``"loss"``, ``"embedding"`` and, without gradient and all (B, C, *spatial), ``"target"``, ``"corrupted"``
            and ``"prediction"``.

        Raises:
            ValueError: more than one view, or a view of other dimensions, channels or size than the encoder takes.
        """
        x, generator = one_view(self, batch["views"]), batch.get("generator")
        check_size(x, self.encoder.size_divisor)
        target = self.mirror(x, generator)
        corrupted = self.corruptions(target, generator)
        maps = self.encoder.feature_maps(corrupted)
        prediction = self.encoder.decode(maps).float()
        return {
            "loss": mse_loss(prediction, target.float()),
            "embedding": normalize(maps[-1].detach().float().flatten(2).mean(2)),  # (B, F, *spatial) -> (B, F)
            "target": target,
            "corrupted": corrupted,
            "prediction": prediction.detach(),
        }
