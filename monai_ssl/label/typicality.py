# SPDX-License-Identifier: Apache-2.0
"""TypiClust: the most typical image of every part of the images that has no label yet.

Hacohen, Dekel, Weinshall, *Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets*, ICML 2022,
arXiv 2202.02794. Equation 4, with K = 20 nearest neighbours::

    typicality(x) = ( 1/K sum_{x' in KNN(x)} |x - x'| )^-1

and algorithm 1: k-means into as many clusters as there are labels and images to choose, at most 500; from the largest
clusters without a label the most typical image each.
"""

from __future__ import annotations

import numpy as np
import torch

from monai_ssl.label.clusters import cluster_numbers
from monai_ssl.label.pool import LabelPool

__all__ = ["typical_images", "typicality"]

_CHUNK = 1024
_FEWEST = 5  # smaller clusters are outliers more often than kinds (section 3.3)


def typicality(embeddings: np.ndarray, neighbours: int = 20) -> np.ndarray:
    """Return ``(N,)`` typicalities of unit embeddings ``(N, D)``, from their nearest neighbours among themselves.

    >>> line = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], dtype=np.float32)
    >>> typicality(line, neighbours=1).round(3)
    array([1.581, 3.536, 3.536])
    """
    x = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
    k = min(neighbours, len(x) - 1)
    if k < 1:
        return np.ones(len(x))
    means = []
    for start in range(0, len(x), _CHUNK):
        cosine = x[start : start + _CHUNK] @ x.T
        cosine.diagonal(start).fill_(-2)  # an image is not its own neighbour
        nearest = cosine.topk(k, dim=1).values
        means.append((2 - 2 * nearest).clamp(min=0).sqrt().mean(dim=1))  # |x - y|^2 = 2 - 2 cos
    return 1 / np.maximum(torch.cat(means).double().numpy(), 1e-6)


def typical_images(
    pool: LabelPool, num: int, seed: int = 0, *, neighbours: int = 20, max_clusters: int = 500
) -> np.ndarray:
    """Choose the most typical image of each of the largest clusters without a label.

    Where all clusters have labels, the one with the fewest comes next. Clusters of fewer than five images wait until
    the others have no image left.

    Args:
        pool: see :class:`LabelPool`.
        num: images to choose.
        seed: of k-means.
        neighbours: K of the paper.
        max_clusters: most clusters.

    Returns:
        ``(num,)`` rows, fewer if no more are left.
    """
    wanted = min(num, int(pool.offered.sum()))
    if not wanted:
        return np.empty(0, dtype=np.int64)
    cluster = cluster_numbers(pool.embeddings, min(int(pool.labelled.sum()) + wanted, max_clusters), seed)
    score = typicality(pool.embeddings, neighbours)
    size = np.bincount(cluster)
    labels = np.bincount(cluster[pool.labelled], minlength=len(size))
    order = np.flatnonzero(pool.offered)
    order = order[np.argsort(-score[order], kind="stable")]
    waiting = [list(order[cluster[order] == number])[::-1] for number in range(len(size))]
    chosen = []
    for _ in range(wanted):
        left = [number for number in range(len(size)) if waiting[number]]
        best = min(left, key=lambda number: (size[number] < _FEWEST, labels[number], -size[number]))
        chosen.append(waiting[best].pop())
        labels[best] += 1
    return np.array(chosen, dtype=np.int64)
