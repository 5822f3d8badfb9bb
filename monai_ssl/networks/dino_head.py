# SPDX-License-Identifier: Apache-2.0
"""The head of DINO, iBOT and DINOv2: a narrow MLP, then the directions of many outputs.

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers (DINO)*, ICCV 2021, arXiv 2104.14294,
section 3.1 and appendix C: three layers of 2,048, the last down to 256; L2 normalisation; a weight-normalised layer of
K outputs, here with the gain 1, so that each output is a cosine.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, normalize

__all__ = ["DINOHead"]


class DINOHead(nn.Module):
    """Features (..., F) -> cosines (..., K) of their projections with K learned directions.

    Weights start as truncated normal deviates of 0.02 for layers of 2,048 inputs, as in the released code, and of more
    for narrower ones, by the root: else the vectors of a narrow head would be next to nothing before they are brought
    to unit length, and their gradients hundreds of times as large.

    Args:
        in_features: F.
        out_features: K. 65,536 in DINO and DINOv2, 8,192 in iBOT, of pools of more than a million images; 1,024 to
            4,096 are enough for some thousand.
        hidden_features: width of the two hidden layers.
        bottleneck_features: width before the last layer.
        batch_norm: BatchNorm before each GELU, for convolutional encoders; with a ViT the paper's system is free of
            BatchNorm. Needs features (N, F).

    Attributes:
        directions: (K, bottleneck_features); only their directions count.

    Example:
        >>> head = DINOHead(32, out_features=64, hidden_features=16, bottleneck_features=8)
        >>> cosines = head(torch.rand(2, 5, 32))
        >>> cosines.shape, cosines.abs().max().item() <= 1
        (torch.Size([2, 5, 64]), True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 65536,
        hidden_features: int = 2048,
        bottleneck_features: int = 256,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_features
        for _ in range(2):
            layers.append(nn.Linear(width, hidden_features, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden_features))
            layers.append(nn.GELU())
            width = hidden_features
        layers.append(nn.Linear(width, bottleneck_features))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02 * (2048 / layer.in_features) ** 0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(nn.init.trunc_normal_(torch.empty(out_features, bottleneck_features), std=0.02))

    def forward(self, x: torch.Tensor, frozen_last_layer: bool = False) -> torch.Tensor:
        """Return the cosines (..., K) of features (..., F); see :meth:`score` for ``frozen_last_layer``."""
        return self.score(self.embed(x), frozen_last_layer)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (..., bottleneck_features), float32 under autocast too, of features (..., F)."""
        return normalize(self.layers(x).float(), dim=-1, eps=1e-6)

    def score(self, x: torch.Tensor, frozen_last_layer: bool = False) -> torch.Tensor:
        """Return the cosines (..., K) of what :meth:`embed` returned.

        Args:
            x: (..., bottleneck_features), unit vectors.
            frozen_last_layer: give the directions a gradient of 0, as DINO does in its first epoch. (A gradient all the
                same, since DistributedDataParallel waits for it. Weight decay then only shortens them, which changes
                nothing.)
        """
        directions = normalize(self.directions, dim=1)
        if frozen_last_layer:
            directions = directions.detach() + 0 * self.directions
        return linear(x, directions)
