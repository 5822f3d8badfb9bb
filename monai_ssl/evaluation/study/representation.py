# SPDX-License-Identifier: Apache-2.0
"""What the features themselves tell: how many directions they use, a map of them, and which images are neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from monai_ssl.metrics import effective_rank, feature_std, uniformity

__all__ = ["embedding_map", "nearest_rows", "representation_row"]

_COLLAPSED = 2.0  # effective rank below which all images have nearly the same features
_MOST_POINTS = 2000


def representation_row(features: np.ndarray) -> dict[str, Any]:
    """Return the effective rank and spread of features ``(N, F)``, and whether they have collapsed."""
    x = torch.from_numpy(features)
    rank = float(effective_rank(x, center=True))
    return {
        "images": len(features),
        "features": features.shape[1],
        "effective_rank": rank,
        "feature_std": float(feature_std(x)),
        "uniformity": float(uniformity(x)),
        "collapsed": rank < _COLLAPSED,
    }


def embedding_map(features: np.ndarray, method: str = "pca", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bring features to two dimensions.

    Args:
        features: ``(N, F)``; at most 2,000 of them are drawn.
        method: ``"pca"`` (scikit-learn's; distances mean something) or ``"tsne"`` (of the first 50 principal
            components; only neighbourhoods mean something).
        seed: of the draw and of t-SNE.

    Returns:
        Points ``(n, 2)`` and the numbers ``(n,)`` of the features that they are of.

    Raises:
        ValueError: there are fewer than three features, or the method is unknown.
    """
    if len(features) < 3 or method not in ("pca", "tsne"):
        raise ValueError(f"a map needs three features or more and 'pca' or 'tsne', got {len(features)} and {method!r}")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    chosen = np.arange(len(features))
    if len(chosen) > _MOST_POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, _MOST_POINTS, replace=False))
    x = features[chosen].astype(np.float64)
    std = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.maximum(std, max(1e-4 * std.mean(), 1e-12))
    if method == "pca":
        return PCA(2, svd_solver="full").fit_transform(x), chosen
    reduced = PCA(min(50, *x.shape), svd_solver="full").fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced), chosen


def nearest_rows(queries: np.ndarray, bank: np.ndarray, k: int = 5) -> np.ndarray:
    """Return the numbers ``(Q, k)`` of the k vectors of a bank ``(N, F)`` with the largest cosine to each query.

    The bank's mean is subtracted first, so that the cosine compares what differs.
    """
    offset = bank.mean(axis=0)
    a, b = (x - offset for x in (queries, bank))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :k]
