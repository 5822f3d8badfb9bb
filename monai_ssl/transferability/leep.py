# SPDX-License-Identifier: Apache-2.0
"""LEEP: how well the source classifier's own outputs, taken as soft categories, tell the target's labels.

Nguyen, Hassner, Seeger, Archambeau, *LEEP: A New Measure to Evaluate Transferability of Learned Representations*, ICML
2020, section 3.
"""

from __future__ import annotations

import numpy as np

from .inputs import Matrix, labelled_matrix

__all__ = ["leep"]


def leep(probabilities: Matrix, labels: Matrix) -> float:
    r"""Mean log likelihood of the target's labels under the expected empirical predictor; higher is better.

    .. math:: \frac1N \sum_i \log \sum_z \hat P(y_i \mid z)\, \theta(x_i)_z

    with the source classifier's probabilities :math:`\theta` and :math:`\hat P(y, z)` their empirical joint.

    Args:
        probabilities: ``(N, Z)``, the source classifier's softmax on the target's images.
        labels: ``(N,)`` the target's classes, -1 for unlabelled.

    Returns:
        At most 0; minus the entropy of the labels where the source tells nothing.

    Raises:
        ValueError: shapes do not fit, rows are no probabilities, all rows are the same, or fewer than two classes.

    Example:
        >>> round(leep(np.eye(2)[[0, 1, 0, 1]], np.array([1, 0, 1, 0])), 6) + 0
        0.0
    """
    theta, y = labelled_matrix(probabilities, labels)
    if theta.min() < 0 or not np.allclose(theta.sum(axis=1), 1, atol=1e-4):
        raise ValueError("probabilities must be at least 0 and add up to 1 in each row: give the softmax, not logits")
    joint = np.zeros((y.max() + 1, theta.shape[1]))
    np.add.at(joint, y, theta / len(y))  # (K, Z)
    marginal = joint.sum(axis=0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    return float(np.log((conditional[y] * theta).sum(axis=1)).mean())
