# SPDX-License-Identifier: Apache-2.0
"""H-score: how much of the features' variance lies between the classes, plain and with a shrunk covariance.

Bao et al., *An Information-Theoretic Approach to Transferability in Task Transfer Learning*, ICIP 2019, definition 2;
Ibrahim, Ponomareva, Mazumder, *Newer is not always better: Rethinking transferability metrics*, ECML 2022, section 4.
"""

from __future__ import annotations

import numpy as np
from sklearn.covariance import ledoit_wolf

from .inputs import Matrix, labelled_matrix

__all__ = ["h_score", "regularised_h_score"]


def h_score(features: Matrix, labels: Matrix) -> float:
    r"""Compute :math:`\mathrm{tr}(\Sigma_f^{+}\, \Sigma_{E[f \mid y]})`; higher is better.

    With few samples it says little: where there are as many features as samples it is K - 1 whatever the labels are.
    Then take :func:`regularised_h_score`.

    Args:
        features: ``(N, F)``.
        labels: ``(N,)`` classes, -1 for unlabelled.

    Returns:
        Between 0 and ``min(K - 1, F)``.

    Raises:
        ValueError: see :func:`monai_ssl.transferability.log_me`.

    Example:
        >>> round(h_score(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])), 6)
        1.0
    """
    x, y = labelled_matrix(features, labels)
    x = x - x.mean(axis=0)
    covariance = x.T @ x / len(x)
    between = _class_means(x, y)
    return float(np.trace(np.linalg.pinv(covariance, hermitian=True) @ (between.T @ between)))


def regularised_h_score(features: Matrix, labels: Matrix) -> float:
    r"""H-score with the covariance of Ledoit & Wolf (2004), for fewer samples than features; higher is better.

    .. math:: \mathrm{tr}\big(\Sigma_\delta^{-1} (1 - \delta)\, \Sigma_{E[f \mid y]}\big), \qquad
        \Sigma_\delta = (1 - \delta)\, \Sigma_f + \delta\, \frac{\mathrm{tr}\,\Sigma_f}{F} I

    Args:
        features: ``(N, F)``.
        labels: ``(N,)`` classes, -1 for unlabelled.

    Returns:
        Between 0 and ``min(K - 1, F)``.

    Raises:
        ValueError: see :func:`monai_ssl.transferability.log_me`.
    """
    x, y = labelled_matrix(features, labels)
    x = x - x.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    between = _class_means(x, y)
    return float((1 - shrinkage) * np.trace(between @ np.linalg.solve(covariance, between.T)))


def _class_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(K, F): means of the classes times the root of their share, so that ``B^T B`` is the covariance between them."""
    counts = np.bincount(y)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, y, x)
    return sums / np.sqrt(counts * len(y))[:, None]
