# SPDX-License-Identifier: Apache-2.0
"""Masked autoencoding with a convolutional encoder-decoder (U-Net, SegResNet), dense or sparse.

Dense: the base recipe of Wald et al., *An OpenMind for 3D Medical Vision Self-Supervised Learning*, ICCV 2025, arXiv
2412.17041: blocks of the image are set to 0 and a U-Net rebuilds them, after He et al., *Masked Autoencoders Are
Scalable Vision Learners*, CVPR 2022, arXiv 2111.06377. With image x, hidden set M, encoder f, decoder g::

    x' = x outside M, 0 inside          L = mean over voxels of M of (g(f(x')) - x)^2

Sparse: Tian et al., *Designing BERT for Convolutional Networks (SparK)*, ICLR 2023, arXiv 2301.03580, section 3, and
in 3D Wald et al., *Revisiting MAE Pre-training for 3D Medical Image Segmentation*, CVPR 2025, arXiv 2410.23132. The
maps S_i of the encoder stay empty inside M, so that the hidden share is the same at all depths; the decoder gets::

    S'_i = S_i outside M, a learned vector t_i inside
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from monai_ssl.networks import ImageEncoder
from monai_ssl.transforms import blocks_at, expand_blocks

from .masked_modelling import MaskedModelling
from .requirements import check_decoder, check_size

__all__ = ["MaskedAutoencoderCNN"]


class MaskedAutoencoderCNN(MaskedModelling):
    """Rebuild hidden blocks with the decoder that a segmentation network has anyway.

    The defaults are the OpenMind base recipe's: three quarters of the blocks of 16 voxels a side, squared error; beside
    them SGD with Nesterov momentum 0.99, learning rate 0.01 falling as a polynomial, weight decay 3e-5, views of 160
    voxels a side. Encoder and decoder can both be used downstream: ``save_encoder(..., with_decoder=True)``.

    Args:
        encoder: with a decoder to as many channels as the image has, for example
            ``build_encoder("segresnet", spatial_dims=3, in_channels=1, out_channels=1)``.
        mask_ratio: share of the blocks that is hidden, within (0, 1).
        block_size: side of a block in voxels; at least the encoder's total stride, or the deepest maps see all.
        sparse: keep the encoder's maps empty inside hidden blocks, after each stage. SparK does it after each layer and
            leaves hidden places out of the normalisation too; here the network's layers stay MONAI's.
        error: ``"squared"`` or ``"absolute"``.
        normalize_targets: see :class:`MaskedModelling`, also for ``valid_above``.
        valid_above: voxels that are not brighter are neither hidden (as blocks) nor counted.

    Raises:
        ValueError: the encoder has no decoder to the image's channels; a number is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = MaskedAutoencoderCNN(build_encoder("segresnet", spatial_dims=2, out_channels=1))
        >>> out = method({"views": [torch.rand(2, 1, 64, 64)]})
        >>> out["mask"].float().mean().item(), tuple(out["prediction"].shape)
        (0.75, (2, 1, 64, 64))
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        mask_ratio: float = 0.75,
        block_size: int | Sequence[int] = 16,
        sparse: bool = False,
        error: Literal["squared", "absolute"] = "squared",
        normalize_targets: bool = False,
        valid_above: float | None = None,
    ) -> None:
        check_decoder(encoder, "MaskedAutoencoderCNN")
        super().__init__(
            encoder,
            mask_ratio=mask_ratio,
            block_size=block_size,
            error=error,
            normalize_targets=normalize_targets,
            valid_above=valid_above,
        )
        self.sparse = sparse
        # One vector (C_i,) for each map; one axis, so that they are not decayed.
        channels = encoder.map_channels if sparse else ()
        self.mask_tokens = nn.ParameterList([nn.init.trunc_normal_(torch.empty(c), std=0.02) for c in channels])

    def reconstruct(self, x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`MaskedModelling.reconstruct`."""
        check_size(x, self.encoder.size_divisor)
        seen = x * ~expand_blocks(blocks, self.block_size)
        if not self.sparse:
            maps = self.encoder.feature_maps(seen)
            return self.encoder.decode(maps), _pooled(maps[-1])
        maps = self.encoder.feature_maps(seen, after_stage=lambda x: x * blocks_at(~blocks, x.shape[2:]))
        filled = [_fill(x, blocks, token) for x, token in zip(maps, self.mask_tokens, strict=True)]
        return self.encoder.decode(filled), _pooled(maps[-1])


def _pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)  # (B, F, *spatial) -> (B, F)


def _fill(x: Tensor, blocks: Tensor, token: Tensor) -> Tensor:
    """Put ``token`` (C,) into the places of a map (B, C, *spatial) that see hidden blocks only."""
    token = token.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    return torch.where(blocks_at(~blocks, x.shape[2:]), x, token)
