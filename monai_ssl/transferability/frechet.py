# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance of two sets of features, each taken as a Gaussian.

Dowson & Landau, *The Fréchet distance between multivariate normal distributions*, 1982; Heusel et al., NeurIPS 2017 for
its use on a network's features.
"""

from __future__ import annotations

import numpy as np

from .inputs import Matrix, two_matrices

__all__ = ["frechet_distance", "gaussian_wasserstein"]


def frechet_distance(x: Matrix, y: Matrix) -> float:
    r"""Compute :math:`\|\mu_x - \mu_y\|^2 + \mathrm{tr}(C_x + C_y - 2 (C_x C_y)^{1/2})`.

    With centred features :math:`C = A^T A` the trace of the root is the sum of the singular values of
    :math:`A_x A_y^T`: no root of a matrix is taken, and singular covariances do no harm.

    From few samples it comes out too large, the more the fewer they are (the covariance of N samples of F features has
    rank N - 1 at most): compare only distances that were computed from equally many samples.

    Args:
        x: ``(N, F)`` features.
        y: ``(M, F)`` features of the same network.

    Returns:
        At least 0, in squared units of the features; 0 for the same set.

    Raises:
        ValueError: a set has fewer than two samples or values that are not finite, or the numbers of features differ.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 4))
        >>> round(frechet_distance(x, x + [3, 0, 0, 0]), 6)
        9.0
    """
    return gaussian_wasserstein(*two_matrices(x, y))


def gaussian_wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the same of checked matrices; one sample counts as a Gaussian without spread."""
    a, b = _root(x), _root(y)
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    means = float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum())
    return max(means + float((a**2).sum() + (b**2).sum() - 2 * shared), 0.0)


def _root(x: np.ndarray) -> np.ndarray:
    """A (min(N, F), F) with ``A^T A`` = the covariance of ``x``."""
    centred = (x - x.mean(axis=0)) / np.sqrt(max(len(x) - 1, 1))
    return centred if len(x) <= x.shape[1] else np.linalg.qr(centred, mode="r")
