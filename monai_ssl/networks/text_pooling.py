# SPDX-License-Identifier: Apache-2.0
"""From a vector for each token to one for the sentence, whatever its padding."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TEXT_POOLINGS", "pool_tokens"]

TEXT_POOLINGS = ("max", "mean", "cls")


def pool_tokens(features: Tensor, token_mask: Tensor, pooling: str = "max") -> Tensor:
    """Pool the features of the tokens that are not padding.

    Args:
        features: (B, T, F).
        token_mask: (B, T) bool, True for a real token. A row without one gives 0 (max, mean).
        pooling: ``"max"`` for each feature on its own (ConVIRT, arXiv 2010.00747, section 2.3), ``"mean"``, or
            ``"cls"``: the first token.

    Returns:
        (B, F), of the features' type.

    Raises:
        ValueError: another pooling.

    Example:
        >>> features = torch.tensor([[[1.0, -5.0], [3.0, -7.0], [9.0, 9.0]]])
        >>> mask = torch.tensor([[True, True, False]])
        >>> [pool_tokens(features, mask, name).tolist()[0] for name in ("max", "mean", "cls")]
        [[3.0, -5.0], [2.0, -6.0], [1.0, -5.0]]
    """
    if pooling not in TEXT_POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(TEXT_POOLINGS)}, got {pooling!r}")
    if pooling == "cls":
        return features[:, 0]
    real = token_mask[..., None]
    if pooling == "mean":
        return torch.where(real, features, 0).sum(1) / real.sum(1).clamp(min=1)
    lowest = torch.finfo(features.dtype).min
    return torch.where(real, features, lowest).amax(1).where(real.any(1), 0)
