# SPDX-License-Identifier: Apache-2.0
"""Metrics as plain functions: tensors for what is measured on features, NumPy arrays for what is measured on scores.

Representation (no labels): :func:`effective_rank`, :func:`feature_std`, :func:`alignment`, :func:`uniformity`.
Neighbours and retrieval: :func:`knn_scores`, :func:`knn_auc`, :func:`precision_at_k`, :func:`recall_at_k`,
:func:`hit_rate_at_k`, :func:`first_relevant_rank`, and with intervals and chance :func:`retrieval_score`.
A linear probe in closed form: :func:`ridge_scores`, :func:`ridge_auc`.
Scores against labels: :func:`area_under_roc`, :func:`roc_per_class`, with :func:`bootstrap_interval` and
:func:`bootstrap_difference`. For a confusion matrix use scikit-learn's.
"""

from __future__ import annotations

from monai_ssl.metrics.intervals import BootstrapInterval, bootstrap_difference, bootstrap_interval
from monai_ssl.metrics.neighbours import knn_auc, knn_scores
from monai_ssl.metrics.overlap import MaskScore, mask_scores
from monai_ssl.metrics.representation import alignment, effective_rank, feature_std, uniformity
from monai_ssl.metrics.retrieval import first_relevant_rank, hit_rate_at_k, precision_at_k, recall_at_k
from monai_ssl.metrics.retrieval_scores import RETRIEVAL_MEASURES, RetrievalScore, chance_at_k, retrieval_score
from monai_ssl.metrics.ridge import ridge_auc, ridge_scores
from monai_ssl.metrics.roc import area_under_roc, roc_per_class

__all__ = [
    "RETRIEVAL_MEASURES",
    "BootstrapInterval",
    "MaskScore",
    "RetrievalScore",
    "alignment",
    "area_under_roc",
    "bootstrap_difference",
    "bootstrap_interval",
    "chance_at_k",
    "effective_rank",
    "feature_std",
    "first_relevant_rank",
    "hit_rate_at_k",
    "knn_auc",
    "knn_scores",
    "mask_scores",
    "precision_at_k",
    "recall_at_k",
    "retrieval_score",
    "ridge_auc",
    "ridge_scores",
    "roc_per_class",
    "uniformity",
]
