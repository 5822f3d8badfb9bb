# SPDX-License-Identifier: Apache-2.0
"""From tokens back to images: the light decoder of MAE, its positions, and the rearrangement, in 2D and 3D.

He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022, arXiv 2111.06377, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import TransformerBlock
from torch import nn
from torch.nn import functional

__all__ = ["MaskedTokenDecoder", "sine_positions", "tokens_to_image"]


class MaskedTokenDecoder(nn.Module):
    """A narrow transformer that fills the places of hidden patches from the tokens of the visible ones.

    The tokens are projected to ``width``, one learned vector stands in every hidden place, sine-cosine positions are
    added, and a linear layer predicts each patch's voxels.

    Args:
        in_features: F, width of the encoder's tokens.
        out_features: values to predict for a patch.
        width: width of the decoder, a multiple of ``num_heads``; 512 in the paper.
        depth: number of transformer blocks; 8 in the paper.
        num_heads: attention heads; 16 in the paper.
    """

    def __init__(
        self, in_features: int, out_features: int, width: int = 512, depth: int = 8, num_heads: int = 16
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(in_features, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.blocks = nn.ModuleList(
            [TransformerBlock(width, 4 * width, num_heads, qkv_bias=True) for _ in range(depth)]
        )
        for block in self.blocks:  # made by MONAI for cross attention, which is not there
            block.norm_cross_attn.requires_grad_(False)
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, out_features)

    def forward(self, tokens: torch.Tensor, places: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """Return predictions (B, N, out_features) for all N = prod(grid) patches.

        Args:
            tokens: (B, V, F), encoded visible patches.
            places: (B, V) int64, the number of each token's patch in the grid, last axis fastest.
            grid: patches along each axis.
        """
        x = self.embed(tokens)  # (B, V, width)
        hidden = self.mask_token.to(x.dtype).expand(len(x), math.prod(grid), -1)
        x = hidden.scatter(1, places[..., None].expand_as(x), x)  # (B, N, width)
        x = x + sine_positions(grid, x.shape[2], x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x))


def sine_positions(grid: Sequence[int], width: int, device: torch.device | str | None = None) -> torch.Tensor:
    r"""Fixed sine-cosine position embeddings of a grid with any number of axes.

    Each axis has :math:`k = \lfloor width / (2 n) \rfloor` frequencies :math:`10000^{-i/k}` (Vaswani et al., arXiv
    1706.03762, section 3.5), with their sines and cosines; what is left of ``width`` stays 0.

    Args:
        grid: places along each of the n axes.
        width: length of an embedding, at least 2 n.
        device: where it is made.

    Returns:
        (prod(grid), width) float32, within [-1, 1], last axis fastest.

    Raises:
        ValueError: ``width`` is too small.
    """
    count = width // (2 * len(grid))
    if count < 1:
        raise ValueError(f"positions on {len(grid)} axes need a width of at least {2 * len(grid)}, got {width}")
    frequencies = 10000.0 ** (-torch.arange(count, device=device) / count)
    axes = torch.meshgrid(*[torch.arange(size, device=device) for size in grid], indexing="ij")
    angles = torch.stack(axes, -1).flatten(0, -2)[..., None] * frequencies  # (N, n, k)
    waves = torch.cat((angles.sin(), angles.cos()), -1).flatten(1)  # (N, 2 n k)
    return functional.pad(waves, (0, width - waves.shape[1]))


def tokens_to_image(tokens: torch.Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> torch.Tensor:
    """Put patches back in their places: (B, prod(grid), C * prod(patch_size)) -> (B, C, *spatial).

    Args:
        tokens: one row for each patch (last axis of the grid fastest), its values in the order (C, *patch_size).
        grid: patches along each axis.
        patch_size: sides of a patch in voxels.
    """
    axes = len(grid)
    channels = tokens.shape[2] // math.prod(patch_size)
    x = tokens.view(len(tokens), *grid, channels, *patch_size)
    pairs = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
    x = x.permute(0, 1 + axes, *pairs)  # (B, C, grid_0, side_0, grid_1, side_1, ...)
    return x.reshape(len(tokens), channels, *[g * p for g, p in zip(grid, patch_size, strict=True)])
