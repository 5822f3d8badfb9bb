# SPDX-License-Identifier: Apache-2.0
"""GBC: how much the classes overlap in feature space, each taken as a Gaussian.

Pándy et al., *Transferability Estimation using Bhattacharyya Class Separability*, CVPR 2022, equations 2 to 4.
"""

from __future__ import annotations

import numpy as np

from .inputs import Matrix, labelled_matrix

__all__ = ["gaussian_bhattacharyya"]

_FLOOR = 1e-6  # of the mean variance: what a class that does not vary in a direction gets


def gaussian_bhattacharyya(
    features: Matrix, labels: Matrix, *, covariance: str = "spherical", components: int = 64
) -> float:
    r"""Minus the sum of the Bhattacharyya coefficients of all ordered pairs of classes; higher is better.

    .. math:: -\sum_{i \ne j} \exp\Big(-\tfrac18 (\mu_i - \mu_j)^T \Sigma^{-1} (\mu_i - \mu_j)
        - \tfrac12 \log \frac{|\Sigma|}{\sqrt{|\Sigma_i| |\Sigma_j|}}\Big), \quad \Sigma = \frac{\Sigma_i + \Sigma_j}2

    Args:
        features: ``(N, F)``; at most ``components`` principal components are used, as in the paper.
        labels: ``(N,)`` classes, -1 for unlabelled.
        covariance: ``"spherical"`` (the paper's choice for few samples) or ``"diagonal"``, of each class.
        components: 64 in the paper.

    Returns:
        Between ``-K (K - 1)`` (all classes are alike) and 0 (they do not touch).

    Raises:
        ValueError: see :func:`monai_ssl.transferability.log_me`; a class has one sample, or an argument is wrong.

    Example:
        >>> x, y = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([0, 0, 1, 1])
        >>> gaussian_bhattacharyya(x, y)
        -2.0
    """
    if covariance not in ("spherical", "diagonal") or components < 1:
        raise ValueError(
            f"covariance must be 'spherical' or 'diagonal' and components at least 1, got {covariance!r}, {components}"
        )
    x, y = labelled_matrix(features, labels, least=2)
    x = x - x.mean(axis=0)
    if components < x.shape[1]:
        _, _, directions = np.linalg.svd(x, full_matrices=False)
        x = x @ directions[:components].T
    classes = [x[y == k] for k in range(y.max() + 1)]
    means = np.stack([rows.mean(axis=0) for rows in classes])  # (K, P)
    variances = np.stack([rows.var(axis=0, ddof=1) for rows in classes])
    if covariance == "spherical":
        variances = np.broadcast_to(variances.mean(axis=1, keepdims=True), variances.shape)
    variances = np.maximum(variances, _FLOOR * x.var(axis=0).mean())
    middle = (variances[:, None] + variances[None]) / 2  # (K, K, P)
    distance = ((means[:, None] - means[None]) ** 2 / middle).sum(axis=2) / 8
    logs = np.log(variances)
    distance += (np.log(middle) - (logs[:, None] + logs[None]) / 2).sum(axis=2) / 2
    coefficients = np.exp(-distance)
    return float(-(coefficients.sum() - np.trace(coefficients)))
