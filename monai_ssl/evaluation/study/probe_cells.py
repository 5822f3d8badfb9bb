# SPDX-License-Identifier: Apache-2.0
"""Cells that fit a probe to the shared features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from monai_ssl.evaluation.probes import knn_probe, linear_probe
from monai_ssl.evaluation.study.question import Question
from monai_ssl.evaluation.study.results import Predictions, numbered
from monai_ssl.evaluation.study.shared_features import SharedFeatures, shared_features

__all__ = ["fitted_probe", "probe_features", "probe_predictions"]

_NEIGHBOURS = 20


def probe_features(question: Question) -> SharedFeatures:
    """Return the features of all labelled training images, the test images and the pool."""
    labels = question.labels
    pool = labels.rows["pool"]
    known = labels.targets[pool] >= 0
    labelled = pool[known.any(axis=1) if known.ndim == 2 else known]
    return shared_features(question, {"pool": pool, "train": labelled, "test": labels.rows["test"]})


def fitted_probe(question: Question, features: SharedFeatures) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from features (N, F) to probabilities (N, K), fitted to the cell's labelled images.

    The features are standardised by the pool's statistics.

    Raises:
        ValueError: a class has no labelled image.
    """
    labels, train = question.labels, question.labels.rows["train"]
    x, reference, targets = features.of(train), features.of(features.pool), labels.targets[train]
    count = None if labels.multilabel else len(labels.class_names)
    if question.cell.mode == "knn":
        k = min(_NEIGHBOURS, len(train))
        return lambda queries: _as_probabilities(
            knn_probe(x, targets, queries, reference=reference, num_classes=count, k=k), labels.multilabel
        )
    probe = linear_probe(
        x,
        targets,
        reference=reference,
        groups=labels.groups[train],
        c=question.settings.get("probe_c"),
        num_classes=count,
        class_names=labels.class_names,
        seed=question.cell.seed,
    )
    return probe.probabilities


def probe_predictions(question: Question) -> tuple[Predictions, SharedFeatures]:
    """Fit the cell's probe and return its probabilities of the test images."""
    labels, features = question.labels, probe_features(question)
    test = labels.rows["test"]
    p = fitted_probe(question, features)(features.of(test))
    return Predictions(test, labels.targets[test], p, numbered(labels.groups[test])), features


def _as_probabilities(scores: np.ndarray, findings: bool) -> np.ndarray:
    """Neighbours' votes as probabilities: of competing classes they add up to 1."""
    if findings:
        return scores
    total = scores.sum(axis=1, keepdims=True)
    return np.where(total > 0, scores / np.maximum(total, 1e-12), 1 / scores.shape[1])
