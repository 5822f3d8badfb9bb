# SPDX-License-Identifier: Apache-2.0
"""Linear centred kernel alignment: how alike two encoders see the same images.

Kornblith, Norouzi, Lee, Hinton, *Similarity of Neural Network Representations Revisited*, ICML 2019, equation 3; the
unbiased estimator is that of Song et al., *Feature Selection via Dependence Maximization*, JMLR 2012, equation 5.
"""

from __future__ import annotations

import numpy as np

from .inputs import Matrix, feature_matrix

__all__ = ["linear_cka"]


def linear_cka(x: Matrix, y: Matrix, *, debiased: bool = False) -> float:
    r"""Compute :math:`\|Y^T X\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)` of centred features of the same samples.

    It does not change when the features of one encoder are rotated, scaled as a whole or shifted.

    Args:
        x: ``(N, F)``.
        y: ``(N, G)`` features of the same N images by another encoder.
        debiased: use the unbiased estimator. The plain one goes to 1 for any two encoders as N falls below the number
            of features.

    Returns:
        In [0, 1]; 1 for equal features. The debiased one may fall a little below 0.

    Raises:
        ValueError: the numbers of samples differ or are too few, values are not finite, or features are constant.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(20, 3))
        >>> round(linear_cka(x, 5 * x[:, ::-1] + 1), 6)
        1.0
    """
    least = 4 if debiased else 2
    x, y = feature_matrix(x, "the first encoder's features", least), feature_matrix(y, "the second's features", least)
    if len(x) != len(y):
        raise ValueError(f"both encoders need the same images in the same order: {len(x)} and {len(y)} were given")
    if not np.ptp(x, axis=0).any() or not np.ptp(y, axis=0).any():
        raise ValueError("an encoder gives all images the same features: nothing can be compared")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    if debiased:
        k, m = (_without_diagonal(features) for features in (x, y))
        return float(_unbiased(k, m) / np.sqrt(_unbiased(k, k) * _unbiased(m, m)))
    if len(x) < max(x.shape[1], y.shape[1]):
        k, m = x @ x.T, y @ y.T  # (N, N)
        return float((k * m).sum() / np.sqrt((k**2).sum() * (m**2).sum()))
    shared = ((y.T @ x) ** 2).sum()
    return float(shared / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()))


def _without_diagonal(x: np.ndarray) -> np.ndarray:
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    return gram


def _unbiased(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    rows, others = k.sum(axis=0), m.sum(axis=0)
    total = (k * m).sum() + rows.sum() * others.sum() / ((n - 1) * (n - 2)) - 2 * (rows @ others) / (n - 2)
    return total / (n * (n - 3))
