# SPDX-License-Identifier: Apache-2.0
"""Metrics as plain functions: tensors for what is measured on features, NumPy arrays for what is measured on scores.

Representation (no labels): :func:`effective_rank`, :func:`feature_std`, :func:`alignment`, :func:`uniformity`.
Neighbours and retrieval: :func:`knn_scores`, :func:`knn_auc`, :func:`precision_at_k`, :func:`recall_at_k`.
A linear probe in closed form: :func:`ridge_scores`, :func:`ridge_auc`.
Scores against labels: :func:`area_under_roc`, :func:`roc_per_class`, with :func:`bootstrap_interval` and
:func:`bootstrap_difference`, or :func:`delong_interval` and :func:`delong_test`; :func:`expected_calibration_error`.
For a confusion matrix use scikit-learn's. Several comparisons: :func:`holm`, :func:`benjamini_hochberg`.
Is it worth it: :func:`labels_to_reach`, :func:`acceleration`.
"""

from __future__ import annotations

from monai_ssl.metrics.calibration import calibration_per_class, expected_calibration_error
from monai_ssl.metrics.convergence import Acceleration, acceleration, smoothed_curve, steps_to_reach
from monai_ssl.metrics.corrections import benjamini_hochberg, holm
from monai_ssl.metrics.delong import DeLongResult, delong_interval, delong_test
from monai_ssl.metrics.intervals import BootstrapInterval, bootstrap_difference, bootstrap_interval
from monai_ssl.metrics.labels_saved import LabelsNeeded, labels_to_reach
from monai_ssl.metrics.neighbours import knn_auc, knn_scores
from monai_ssl.metrics.overlap import MaskScore, mask_scores
from monai_ssl.metrics.representation import alignment, effective_rank, feature_std, uniformity
from monai_ssl.metrics.retrieval import precision_at_k, recall_at_k
from monai_ssl.metrics.ridge import ridge_auc, ridge_scores
from monai_ssl.metrics.roc import area_under_roc, roc_per_class

__all__ = [
    "Acceleration",
    "BootstrapInterval",
    "DeLongResult",
    "LabelsNeeded",
    "MaskScore",
    "acceleration",
    "alignment",
    "area_under_roc",
    "benjamini_hochberg",
    "bootstrap_difference",
    "bootstrap_interval",
    "calibration_per_class",
    "delong_interval",
    "delong_test",
    "effective_rank",
    "expected_calibration_error",
    "feature_std",
    "holm",
    "knn_auc",
    "knn_scores",
    "labels_to_reach",
    "mask_scores",
    "precision_at_k",
    "recall_at_k",
    "ridge_auc",
    "ridge_scores",
    "roc_per_class",
    "smoothed_curve",
    "steps_to_reach",
    "uniformity",
]
