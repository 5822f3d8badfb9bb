# SPDX-License-Identifier: Apache-2.0
"""Optimal transport between labelled data sets, where moving to another class costs what lies between the classes.

After Alvarez-Melis & Fusi, *Geometric Dataset Distances via Optimal Transport*, NeurIPS 2020, equations 3, 5 and 7.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from .frechet import gaussian_wasserstein
from .inputs import Matrix, labelled_matrix

__all__ = ["label_transport_distance"]


def label_transport_distance(
    x: Matrix, x_labels: Matrix, y: Matrix, y_labels: Matrix, *, max_samples: int = 1000, seed: int = 0
) -> float:
    r"""Compute the distance of two labelled sets whose classes need not be the same.

    .. math:: \Big(\min_\pi \frac1n \sum_i \|x_i - y_{\pi(i)}\|^2 + W_2^2(c_i, c_{\pi(i)})\Big)^{1/2}

    where :math:`W_2` is the Wasserstein distance of the two samples' classes, each taken as a Gaussian. Equally many
    samples of both sets are drawn (all of the smaller one, if it is not too large): the best plan is then a matching
    and is found exactly, no entropy blurs it.

    Args:
        x: ``(N, F)`` features.
        x_labels: ``(N,)`` classes, -1 for unlabelled (such a sample is left out).
        y: ``(M, F)`` features of the same network.
        y_labels: ``(M,)`` classes; a name of their own, 0 here and 0 there have nothing in common.
        max_samples: most samples of a set; the matching takes about a second for 1000, and eight for 2000.
        seed: of the draw.

    Returns:
        At least 0, in units of the features; 0 for the same set.

    Raises:
        ValueError: shapes do not fit, values are not finite or constant, or a set has fewer than two classes.
    """
    if max_samples < 2:
        raise ValueError(f"max_samples must be at least 2, got {max_samples}")
    (a, classes_a), (b, classes_b) = labelled_matrix(x, x_labels), labelled_matrix(y, y_labels)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sets need features of one network: these have {a.shape[1]} and {b.shape[1]} features")
    between = np.array(
        [
            [gaussian_wasserstein(a[classes_a == i], b[classes_b == j]) for j in range(classes_b.max() + 1)]
            for i in range(classes_a.max() + 1)
        ]
    )
    count = min(len(a), len(b), max_samples)
    rows, columns = (_drawn(len(part), count, seed) for part in (a, b))
    costs = cdist(a[rows], b[columns], "sqeuclidean") + between[np.ix_(classes_a[rows], classes_b[columns])]
    return float(np.sqrt(costs[linear_sum_assignment(costs)].mean()))


def _drawn(total: int, count: int, seed: int) -> np.ndarray:
    if count == total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
