# SPDX-License-Identifier: Apache-2.0
"""Metrics as plain functions: tensors for what is measured on features, NumPy arrays for what is measured on scores.

Representation (no labels): :func:`effective_rank`, :func:`feature_std`, :func:`alignment`, :func:`uniformity`.
Neighbours and retrieval: :func:`knn_scores`, :func:`knn_auc`, :func:`precision_at_k`, :func:`recall_at_k`.
A linear probe in closed form: :func:`ridge_scores`, :func:`ridge_auc`.
Scores against labels: :func:`area_under_roc`, :func:`roc_per_class`, with :func:`bootstrap_interval` and
:func:`bootstrap_difference`. For a confusion matrix use scikit-learn's.
"""

from __future__ import annotations

from monai_ssl.metrics.intervals import BootstrapInterval, bootstrap_difference, bootstrap_interval
from monai_ssl.metrics.neighbours import knn_auc, knn_scores
from monai_ssl.metrics.overlap import MaskScore, mask_scores
from monai_ssl.metrics.representation import alignment, effective_rank, feature_std, uniformity
from monai_ssl.metrics.retrieval import precision_at_k, recall_at_k
from monai_ssl.metrics.ridge import ridge_auc, ridge_scores
from monai_ssl.metrics.roc import area_under_roc, roc_per_class

__all__ = [
    "BootstrapInterval",
    "MaskScore",
    "alignment",
    "area_under_roc",
    "bootstrap_difference",
    "bootstrap_interval",
    "effective_rank",
    "feature_std",
    "knn_auc",
    "knn_scores",
    "mask_scores",
    "precision_at_k",
    "recall_at_k",
    "ridge_auc",
    "ridge_scores",
    "roc_per_class",
    "uniformity",
]
