# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours among the target's own labelled samples, each judged by the others."""

from __future__ import annotations

import numpy as np
import torch

from monai_ssl.metrics import knn_auc

from .inputs import Matrix, labelled_matrix

__all__ = ["knn_transfer"]


def knn_transfer(features: Matrix, labels: Matrix, *, groups: Matrix | None = None, k: int = 5) -> float:
    """Area under the ROC curve of leave-one-out nearest neighbours (cosine); higher is better.

    Args:
        features: ``(N, F)``; their mean is subtracted first.
        labels: ``(N,)`` classes, -1 for unlabelled.
        groups: ``(N,)`` patients: a sample is judged by the other patients' samples. None: by all other samples.
        k: number of neighbours.

    Returns:
        The prevalence-weighted mean over the classes, in [0, 1]; 0.5 is chance.

    Raises:
        ValueError: shapes do not fit, a feature is not finite, all are constant, or a class has one sample.
    """
    x, y = labelled_matrix(features, labels, least=2)
    own = np.arange(len(x))
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != np.shape(labels):
            raise ValueError(f"groups must have shape {np.shape(labels)}, got {groups.shape}")
        own = np.unique(groups[np.nan_to_num(np.asarray(labels, dtype=float), nan=-1) >= 0], return_inverse=True)[1]
    own = torch.from_numpy(own)
    bank, targets = torch.from_numpy(x - x.mean(axis=0)), torch.from_numpy(y)
    return knn_auc(bank, targets, bank, targets, average="weighted", k=k, query_groups=own, bank_groups=own)
