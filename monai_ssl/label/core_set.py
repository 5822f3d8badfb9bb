# SPDX-License-Identifier: Apache-2.0
"""Core-set: the image farthest from everything labelled, again and again.

Sener, Savarese, *Active Learning for Convolutional Neural Networks: A Core-Set Approach*, ICLR 2018, arXiv 1708.00489,
algorithm 1 (k-centre greedy): with s the labelled and chosen images, next is ``argmax_i min_{j in s} |x_i - x_j|``.
"""

from __future__ import annotations

import numpy as np

from monai_ssl.label.pool import LabelPool

__all__ = ["core_set_images"]

_CHUNK = 512


def core_set_images(pool: LabelPool, num: int, seed: int = 0) -> np.ndarray:
    """Choose by k-centre greedy.

    Without a label it begins with the image nearest the mean, which the paper leaves open. Nothing is random.

    Args:
        pool: see :class:`LabelPool`.
        num: images to choose.
        seed: not used; every strategy takes one.

    Returns:
        ``(num,)`` rows, fewer if no more are left. A longer choice begins with the shorter one.
    """
    x, offered = pool.embeddings, pool.offered
    nearest = np.full(len(x), -np.inf, dtype=np.float32)  # cosine to the nearest centre; falls as distance grows
    labelled = np.flatnonzero(pool.labelled)
    for start in range(0, len(labelled), _CHUNK):
        np.maximum(nearest, (x @ x[labelled[start : start + _CHUNK]].T).max(axis=1), out=nearest)
    chosen: list[int] = []
    for _ in range(min(num, int(offered.sum()))):
        if not chosen and not len(labelled):
            row = int(np.where(offered, x @ x.mean(axis=0), -np.inf).argmax())
        else:
            row = int(np.where(offered, nearest, np.inf).argmin())
        chosen.append(row)
        offered[row] = False
        np.maximum(nearest, x @ x[row], out=nearest)
    return np.array(chosen, dtype=np.int64)
