# SPDX-License-Identifier: Apache-2.0
"""SimMIM: a vision transformer that sees a learned token in place of hidden patches; one linear layer predicts them.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu, *SimMIM: A Simple Framework for Masked Image Modeling*, CVPR 2022, arXiv
2111.09886, section 3. With patch embeddings e(x_i), positions p_i, hidden set M, mask token t, transformer f, linear
head h::

    u_i = (t if i in M else e(x_i)) + p_i
    L   = mean over the voxels of M of |h(f(u))_i - x_i|
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_ssl.networks import ViTImageEncoder, tokens_to_image
from monai_ssl.transforms import expand_blocks

from .masked_modelling import MaskedModelling

__all__ = ["SimMIM"]


class SimMIM(MaskedModelling):
    """Masked image modelling with a one-layer head on MONAI's ViT, in 2D or 3D.

    The defaults are the paper's: blocks of 32 voxels a side, six tenths of them hidden, absolute error of the raw
    voxels; beside them AdamW with weight decay 0.05. Small views, such as most 3D ones, need smaller blocks.

    Args:
        encoder: of ``build_encoder("vit", img_size=...)``; views must have that size.
        mask_ratio: share of the blocks that is hidden, within (0, 1).
        block_size: side of a block in voxels, a multiple of the ViT's patch size.
        valid_above: voxels that are not brighter are neither hidden (as blocks) nor counted; see
            :class:`MaskedModelling`.

    Raises:
        ValueError: the encoder is no ViT; a number is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> encoder = build_encoder("vit", img_size=64, patch_size=16, hidden_size=24, mlp_dim=32, num_heads=2)
        >>> out = SimMIM(encoder, mask_ratio=0.5)({"views": [torch.rand(2, 1, 64, 64)]})
        >>> out["mask"].float().mean().item()
        0.5
    """

    def __init__(
        self,
        encoder: ViTImageEncoder,
        *,
        mask_ratio: float = 0.6,
        block_size: int | Sequence[int] = 32,
        valid_above: float | None = None,
    ) -> None:
        if not isinstance(encoder, ViTImageEncoder):
            raise ValueError(f"SimMIM needs a 'vit' encoder, not {encoder.architecture!r}; see MaskedAutoencoderCNN")
        super().__init__(
            encoder,
            mask_ratio=mask_ratio,
            block_size=block_size,
            error="absolute",
            normalize_targets=False,
            valid_above=valid_above,
        )
        patch = encoder.patch_size
        if any(block % side for block, side in zip(self.block_size, patch, strict=True)):
            raise ValueError(f"block_size {self.block_size} must be a multiple of the ViT's patch size {patch}")
        self.patches_per_block = tuple(block // side for block, side in zip(self.block_size, patch, strict=True))
        # One axis, so that it is not decayed.
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(encoder.num_features), std=0.02))
        self.head = nn.Linear(encoder.num_features, math.prod(patch) * encoder.in_channels)

    def reconstruct(self, x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`MaskedModelling.reconstruct`."""
        patches = expand_blocks(blocks, self.patches_per_block)  # (B, 1, *grid), True where hidden
        encoded = self.encoder.encode_hidden(x, patches.flatten(1), self.mask_token)  # (B, 1, *grid) -> (B, N)
        prediction = tokens_to_image(self.head(encoded), patches.shape[2:], self.encoder.patch_size)
        return prediction, encoded.mean(1)
