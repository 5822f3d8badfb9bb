# SPDX-License-Identifier: Apache-2.0
"""Projection heads: what stands between the pooled features and the loss, and is left out of the exported encoder."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LinearHead", "MLPHead"]


class LinearHead(nn.Linear):
    """One linear layer (B, in_features) -> (B, out_features); C2L's head, with its 128 outputs (released code).

    Args:
        in_features: length of the pooled features.
        out_features: length of the embedding.
    """

    def __init__(self, in_features: int, out_features: int = 128) -> None:
        super().__init__(in_features, out_features)


class MLPHead(nn.Module):
    """Linear layers with ReLU between them, (B, in_features) -> (B, out_features).

    MoCo v2 (arXiv 2003.04297) and SimCLR (arXiv 2002.05709) use two layers whose hidden width is ``in_features``; the
    later BatchNorm variants put it before each ReLU, and SimSiam's projector (arXiv 2011.10566, section 3) after the
    last layer too.

    Args:
        in_features: length of the pooled features.
        hidden_features: width of the hidden layers.
        out_features: length of the embedding.
        num_layers: number of linear layers, at least 1.
        batch_norm: put BatchNorm before each ReLU (those linear layers then have no bias).
        final_batch_norm: put BatchNorm without scale and shift after the last layer (which then has no bias).
        final_bias: give the last layer a bias; with ``final_batch_norm`` it has none in any case.

    Raises:
        ValueError: ``num_layers`` is below 1.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int = 128,
        num_layers: int = 2,
        batch_norm: bool = False,
        final_batch_norm: bool = False,
        final_bias: bool = True,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        super().__init__()
        layers: list[nn.Module] = []
        width = in_features
        for _ in range(num_layers - 1):
            layers.append(nn.Linear(width, hidden_features, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden_features))
            layers.append(nn.ReLU(inplace=True))
            width = hidden_features
        layers.append(nn.Linear(width, out_features, bias=final_bias and not final_batch_norm))
        if final_batch_norm:
            layers.append(nn.BatchNorm1d(out_features, affine=False))
        self.layers = nn.Sequential(*layers)
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, out_features) of features (B, in_features)."""
        return self.layers(x)
