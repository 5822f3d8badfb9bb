# SPDX-License-Identifier: Apache-2.0
"""A linear probe in closed form: fast enough to be looked at while a training goes on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_ssl.metrics.neighbours import labels_as_targets
from monai_ssl.metrics.roc import area_under_roc

__all__ = ["ridge_auc", "ridge_scores"]

# Multiples of the number of labels; features have unit variance, so 1 halves the weight of an average direction.
_PENALTIES = tuple(10.0**power for power in range(-4, 3))


def ridge_scores(queries: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Scores of a ridge regression from the features to the labels, one class against the others.

    Features are standardised by mean and deviation of the bank's labelled rows. The penalty is the one of seven, from
    1e-4 to 100 times the number of labels, with the least leave-one-out error (scikit-learn's ``RidgeCV``, in closed
    form).

    Args:
        queries: ``(M, D)`` features to score.
        bank: ``(N, D)`` features with labels.
        bank_labels: ``(N,)`` classes 0 to C - 1, -1 for unlabelled; or ``(N, C)`` findings of 0 and 1, -1 or NaN for
            unknown.
        num_classes: C, where not all classes are in the bank.

    Returns:
        ``(M, C)`` float32; not probabilities, higher is likelier. A class all of whose known labels are equal has one
        score for all queries.

    Raises:
        ValueError: shapes do not fit, or there is no label.
    """
    from sklearn.linear_model import RidgeCV  # not before it is needed: it takes a second to import
    from sklearn.preprocessing import StandardScaler

    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"queries and bank must be (M, D) and (N, D), got {tuple(queries.shape)} and {tuple(bank.shape)}"
        )
    targets, known = (x.cpu().numpy() for x in labels_as_targets(bank_labels, len(bank), num_classes))
    if not known.any():
        raise ValueError("no row of the bank has a label")
    bank_rows, query_rows = (x.detach().cpu().double().numpy() for x in (bank, queries))
    scores = np.zeros((len(query_rows), targets.shape[1]))
    for rows, columns in _columns_of_equal_rows(known):
        wanted = targets[np.ix_(rows, columns)]
        if len(rows) < 2:
            scores[:, columns] = wanted.mean(axis=0)
            continue
        scaler = StandardScaler().fit(bank_rows[rows])
        ridge = RidgeCV(alphas=[penalty * len(rows) for penalty in _PENALTIES])
        ridge.fit(scaler.transform(bank_rows[rows]), wanted)
        scores[:, columns] = ridge.predict(scaler.transform(query_rows)).reshape(len(query_rows), -1)
    return torch.from_numpy(scores).float()


def ridge_auc(queries: Tensor, query_labels: Tensor, bank: Tensor, bank_labels: Tensor, **options) -> float:
    """Area under the ROC curve of :func:`ridge_scores` on labelled queries.

    Args:
        queries: ``(M, D)`` features.
        query_labels: as ``bank_labels``; -1 (or NaN) is left out.
        bank: ``(N, D)`` features.
        bank_labels: see :func:`ridge_scores`.
        options: ``average`` and ``undefined`` of :func:`~monai_ssl.metrics.area_under_roc`.

    Raises:
        ValueError: see :func:`ridge_scores` and :func:`~monai_ssl.metrics.area_under_roc`.
    """
    count = int(max(bank_labels.max(), query_labels.max())) + 1 if bank_labels.ndim == 1 else None
    scores = ridge_scores(queries, bank, bank_labels, count)
    return area_under_roc(query_labels.cpu().numpy(), scores.numpy(), **options)


def _columns_of_equal_rows(known: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Group classes whose labels are known for the same rows: they share one decomposition."""
    patterns, group = np.unique(known.astype(bool), axis=1, return_inverse=True)
    found = [(np.flatnonzero(patterns[:, k]), np.flatnonzero(group.ravel() == k)) for k in range(patterns.shape[1])]
    return [(rows, columns) for rows, columns in found if len(rows)]
