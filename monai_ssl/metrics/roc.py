# SPDX-License-Identifier: Apache-2.0
"""Area under the ROC curve for binary, multi-class and multi-label targets, for NumPy arrays.

scikit-learn's ``roc_auc_score`` gives the same numbers (the tests compare). This one knows unlabelled samples, says
which class is missing, and is fast enough to be called a thousand times by a bootstrap: it is the Mann-Whitney
statistic of the ranks, all classes at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.stats import rankdata

__all__ = ["area_under_roc", "roc_per_class"]


def roc_per_class(y_true: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every class, one against the rest; ties count half.

    Args:
        y_true: see :func:`area_under_roc`.
        scores: see :func:`area_under_roc`.

    Returns:
        ``(C,)`` float64 in ``[0, 1]``, ``C`` = 1 for a binary target. NaN where a class has no positive or no
        negative sample.

    Raises:
        ValueError: if shapes do not fit, or a value is not allowed.
    """
    return _areas(*_columns(y_true, scores))[0]


def area_under_roc(
    y_true: np.ndarray,
    scores: np.ndarray,
    *,
    average: Literal["macro", "weighted"] = "macro",
    undefined: Literal["raise", "warn"] = "raise",
    class_names: Sequence[str] | None = None,
) -> float:
    """Area under the ROC curve; for several classes the mean over one-against-the-rest areas.

    Args:
        y_true: one of

            * binary: ``(N,)`` of 0 and 1, with ``scores`` ``(N,)``, ``(N, 1)`` or ``(N, 2)``;
            * multi-class: ``(N,)`` integers ``0 .. C-1``, with ``scores`` ``(N, C)``;
            * multi-label: ``(N, C)`` of 0 and 1, with ``scores`` ``(N, C)``.

            -1 or NaN means "unknown": the sample (for multi-label: in that class) does not count.
        scores: higher means more likely; any monotone scale does (probabilities, logits). Only order matters.
        average: ``macro``: all classes count alike; ``weighted``: by their number of positives.
        undefined: what to do with a class without a positive or without a negative sample. ``raise``, or ``warn``
            and average the others (NaN if there is none).
        class_names: names for the messages instead of the classes' numbers.

    Returns:
        The area, in ``[0, 1]``; 0.5 is chance.

    Raises:
        ValueError: if shapes do not fit, a value is not allowed, or a class is undefined (with its name or number).

    Example:
        >>> area_under_roc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
        0.75
    """
    if average not in ("macro", "weighted") or undefined not in ("raise", "warn"):
        raise ValueError(
            f"average must be 'macro' or 'weighted' and undefined 'raise' or 'warn', got {average!r}, {undefined!r}"
        )
    areas, positives, negatives = _areas(*_columns(y_true, scores))
    missing = np.isnan(areas)
    if missing.any():
        message = "; ".join(
            _complaint(c, len(areas), positives[c], negatives[c], class_names) for c in np.flatnonzero(missing)
        )
        if undefined == "raise":
            raise ValueError(f"the area under the ROC curve is not defined: {message}")
        warnings.warn(f"left out of the area under the ROC curve: {message}", stacklevel=2)
        if missing.all():
            return float("nan")
    weights = positives[~missing] if average == "weighted" else None
    return float(np.average(areas[~missing], weights=weights))


def _columns(y_true: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring every kind of target to (N, C) booleans "positive", "known" and (N, C) scores."""
    y_true, scores = np.asarray(y_true), np.asarray(scores)
    if scores.ndim == 1:
        scores = scores[:, None]
    fits = y_true.shape in ((len(scores),), scores.shape)
    if scores.ndim != 2 or scores.shape[1] == 0 or not fits:
        raise ValueError(f"y_true {y_true.shape} and scores {scores.shape} do not fit together")
    if y_true.dtype.kind not in "biuf" or scores.dtype.kind not in "biuf":
        raise ValueError(f"y_true and scores must be numbers, got {y_true.dtype} and {scores.dtype}")
    labels = np.nan_to_num(y_true.astype(np.float64), nan=-1.0)
    if y_true.ndim == 1 and scores.shape[1] == 2:
        scores = scores[:, 1:]  # two classes are one binary question
        labels, allowed = labels[:, None], 1
    elif y_true.ndim == 1 and scores.shape[1] > 1:
        allowed = scores.shape[1] - 1
    else:
        labels, allowed = labels.reshape(scores.shape), 1
    if not np.isin(labels, np.arange(-1, allowed + 1)).all():
        bad = labels[~np.isin(labels, np.arange(-1, allowed + 1))].flat[0]
        raise ValueError(f"y_true must hold 0 .. {allowed}, or -1 or NaN for unknown; found {bad:g}")
    if allowed > 1:
        labels = np.where(labels[:, None] < 0, -1, labels[:, None] == np.arange(allowed + 1))
    known = labels >= 0
    if not np.isfinite(scores[known]).all():
        raise ValueError("scores of labelled samples hold NaN or infinite values")
    return labels == 1, known, scores


def _areas(positive: np.ndarray, known: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mann-Whitney areas (C,) with the numbers of positive and negative samples (C,)."""
    # unknown samples go to the top together: then they do not move the ranks of the known ones below
    ranks = rankdata(np.where(known, scores, np.inf), axis=0) if len(scores) else np.zeros(scores.shape)
    positives, negatives = positive.sum(axis=0), (known & ~positive).sum(axis=0)
    rank_sums = np.where(positive, ranks, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas = (rank_sums - positives * (positives + 1) / 2) / (positives * negatives)
    return np.where(positives * negatives > 0, areas, np.nan), positives, negatives


def _complaint(c: int, num_classes: int, positives: int, negatives: int, names: Sequence[str] | None) -> str:
    if names is not None:
        name = names[-1] if num_classes == 1 else names[c]  # a binary target may be named by both of its classes
    else:
        name = c
    what = "the target" if num_classes == 1 and names is None else f"class {name}"
    lacking = "positive or negative" if positives == negatives == 0 else "positive" if positives == 0 else "negative"
    return f"{what} has no {lacking} sample among {positives + negatives}"
