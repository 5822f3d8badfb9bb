# SPDX-License-Identifier: Apache-2.0
"""Maximum mean discrepancy of two sets of features, unbiased.

Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, lemma 6 (estimator) and section 8 (median heuristic); Bińkowski
et al., *Demystifying MMD GANs*, ICLR 2018 for the cubic kernel ("KID").
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from .inputs import Matrix, two_matrices

__all__ = ["squared_mmd"]


def squared_mmd(x: Matrix, y: Matrix, *, kernel: str = "rbf", bandwidth: float | None = None) -> float:
    r"""Compute the unbiased squared MMD: mean kernel within x, plus within y, minus twice between them.

    Args:
        x: ``(N, F)`` features.
        y: ``(M, F)`` features of the same network.
        kernel: ``"rbf"``: :math:`\exp(-\|a - b\|^2 / (2 s^2))`; or ``"cubic"``: :math:`(a \cdot b / F + 1)^3`.
        bandwidth: s; None: the median distance of two different samples of both sets together.

    Returns:
        About 0 (it may be negative) for two sets of one distribution; at most 2 for the RBF kernel. Unlike the Fréchet
        distance it is right on average for any number of samples.

    Raises:
        ValueError: see :func:`monai_ssl.transferability.frechet_distance`; all samples are one point, or an argument is
            wrong.
    """
    if kernel not in ("rbf", "cubic") or (bandwidth is not None and not bandwidth > 0):
        raise ValueError(f"kernel must be 'rbf' or 'cubic' and bandwidth positive, got {kernel!r} and {bandwidth}")
    x, y = two_matrices(x, y)
    both = np.concatenate([x, y])
    if kernel == "cubic":
        values = (both @ both.T / both.shape[1] + 1) ** 3
    else:
        squares = cdist(both, both, "sqeuclidean")
        if bandwidth is None:
            bandwidth = float(np.sqrt(np.median(squares[np.triu_indices(len(both), 1)])))
            if bandwidth == 0:
                raise ValueError("more than half of all pairs of samples are equal: give a bandwidth")
        values = np.exp(-squares / (2 * bandwidth**2))
    n = len(x)
    return float(_mean_of_pairs(values[:n, :n]) + _mean_of_pairs(values[n:, n:]) - 2 * values[:n, n:].mean())


def _mean_of_pairs(values: np.ndarray) -> float:
    """Mean over pairs of different samples."""
    n = len(values)
    return (values.sum() - np.trace(values)) / (n * (n - 1))
