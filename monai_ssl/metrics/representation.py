# SPDX-License-Identifier: Apache-2.0
"""How much of the feature space an encoder uses: numbers that reveal a collapsing representation without labels.

All functions take tensors on any device, compute in float32 or better, and return a scalar tensor.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["alignment", "effective_rank", "feature_std", "uniformity"]


def effective_rank(features: Tensor, *, center: bool = False, eps: float = 1e-7) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the normalised singular values.

    .. math:: \exp\Big(-\sum_k p_k \log p_k\Big), \qquad p_k = \frac{\sigma_k}{\sum_j \sigma_j} + \epsilon

    Roy & Vetterli, *The effective rank*, EUSIPCO 2007, definition 2.1; with :math:`\epsilon` it is RankMe (Garrido et
    al., ICML 2023, equation 1). The singular values come from the smaller Gram matrix in float64, so ``(N, D)``
    features cost ``N D min(N, D)`` operations.

    Args:
        features: ``(N, D)``, one row a sample, not normalised.
        center: subtract the mean feature first (a common offset otherwise counts as one strong direction).
        eps: RankMe's constant; 0 gives the definition of Roy & Vetterli.

    Returns:
        Scalar in ``[1, min(N, D)]``: 1 if all rows are multiples of one vector, ``D`` if all directions are used
        alike; 0 if all features are zero.

    Raises:
        ValueError: if the shape is not ``(N, D)`` or a value is not finite.

    Example:
        >>> effective_rank(torch.eye(4)).round().item()
        4.0
    """
    x = _checked(features).double()
    if center:
        x = x - x.mean(dim=0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # (min(N, D), min(N, D))
    singular_values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular_values.sum()
    if total == 0:
        return total.float()
    p = singular_values / total + eps
    return torch.special.entr(p).sum().exp().float()


def feature_std(features: Tensor) -> Tensor:
    r"""Standard deviation of the L2-normalised features over samples, averaged over dimensions, times ``sqrt(D)``.

    Chen & He, *Exploring Simple Siamese Representation Learning*, CVPR 2021, section 4.1. It is about 1 for features
    spread over the whole sphere and 0 when all samples have the same direction.

    Args:
        features: ``(N, D)``.

    Returns:
        Scalar in ``[0, 1]``.

    Raises:
        ValueError: if the shape is not ``(N, D)`` or a value is not finite.
    """
    x = F.normalize(_checked(features), dim=1)
    return x.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5


def alignment(view_a: Tensor, view_b: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean distance, to the power ``alpha``, between the L2-normalised features of two views of the same samples.

    Wang & Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere*, ICML 2020, section 4.1.

    Args:
        view_a: ``(N, D)``.
        view_b: ``(N, D)``, row ``i`` belongs with row ``i`` of ``view_a``.
        alpha: exponent; with 2 the value is ``2 - 2 cos``.

    Returns:
        Scalar in ``[0, 2 ** alpha]``, 0 for identical views, lower is better.

    Raises:
        ValueError: if shapes differ or a value is not finite.
    """
    if view_a.shape != view_b.shape:
        raise ValueError(f"the two views must have one shape, got {tuple(view_a.shape)} and {tuple(view_b.shape)}")
    a, b = F.normalize(_checked(view_a), dim=1), F.normalize(_checked(view_b), dim=1)
    return (a - b).norm(dim=1).pow(alpha).mean()


def uniformity(features: Tensor, t: float = 2.0, *, chunk_size: int = 2048) -> Tensor:
    r"""Logarithm of the mean Gaussian potential over all pairs of different samples.

    .. math:: \log \frac{2}{N (N - 1)} \sum_{i < j} e^{-t \lVert x_i - x_j \rVert^2}, \qquad \lVert x_i \rVert = 1

    Wang & Isola, ICML 2020 (see :func:`alignment`), section 4.1, equation 2.

    Args:
        features: ``(N, D)`` with ``N >= 2``.
        t: sharpness.
        chunk_size: rows compared with all others at a time, bounds memory to ``chunk_size * N`` numbers.

    Returns:
        Scalar in ``[-4t, 0]``: 0 if all samples have one direction, about ``-2t`` (plus ``2 t^2 / D``) if they are
        spread evenly; lower is better.

    Raises:
        ValueError: if there are fewer than two rows or a value is not finite.
    """
    x = F.normalize(_checked(features), dim=1)
    count = len(x)
    if count < 2:
        raise ValueError("uniformity needs at least two rows")
    parts = []
    for start in range(0, count, chunk_size):
        rows = x[start : start + chunk_size]
        exponents = 2 * t * (rows @ x.T - 1)  # -t |a - b|^2 = 2 t (a.b - 1) on the unit sphere
        own = torch.zeros_like(exponents, dtype=torch.bool)
        own.diagonal(start).fill_(True)
        parts.append(exponents.masked_fill(own, -torch.inf).flatten().logsumexp(dim=0))
    return torch.stack(parts).logsumexp(dim=0) - math.log(count * (count - 1))


def _checked(features: Tensor) -> Tensor:
    """Refuse what is not a finite ``(N, D)`` matrix, and widen half precision."""
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"features must have shape (N, D) with at least one row, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("features hold NaN or infinite values")
    return features if features.dtype == torch.float64 else features.float()
