# SPDX-License-Identifier: Apache-2.0
"""Clusters, then uncertainty: the images of least margin, but not all of one kind.

Citovsky, DeSalvo, Gentile, Karydas, Rajagopalan, Rostamizadeh, Kumar, *Batch Active Learning at Scale*, NeurIPS 2021,
arXiv 2107.14263 (Cluster-Margin): of the images of least margin, ten times as many as asked for, take one of each
cluster in turn, small clusters first. The paper clusters hierarchically; here it is k-means, which holds no N x N
matrix.
"""

from __future__ import annotations

import numpy as np

from monai_ssl.label.clusters import cluster_numbers
from monai_ssl.label.pool import LabelPool
from monai_ssl.label.predictions import most_uncertain

__all__ = ["cluster_uncertain_images"]


def cluster_uncertain_images(
    pool: LabelPool, num: int, seed: int = 0, *, images_per_cluster: int = 10, candidates: int = 10
) -> np.ndarray:
    """Choose uncertain images from different clusters.

    Args:
        pool: see :class:`LabelPool`; its ``uncertainty["margin"]`` is used.
        num: images to choose.
        seed: of k-means and of ties.
        images_per_cluster: how large a cluster is on average; there are at most 500 clusters.
        candidates: images of least margin to choose among, as a multiple of ``num``.

    Returns:
        ``(num,)`` rows, fewer if no more are left.

    Raises:
        ValueError: nothing has been predicted yet.
    """
    unsure = most_uncertain(pool, "margin", candidates * num, seed)
    cluster = cluster_numbers(pool.embeddings, min(max(2, len(pool) // images_per_cluster), 500), seed)[unsure]
    turn = np.zeros(len(unsure), dtype=np.int64)  # how many of its cluster are less sure
    for number in np.unique(cluster):
        members = cluster == number
        turn[members] = np.arange(members.sum())
    size = np.bincount(cluster)[cluster] if len(cluster) else cluster
    return unsure[np.lexsort((np.arange(len(unsure)), size, turn))][:num]
