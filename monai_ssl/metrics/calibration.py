# SPDX-License-Identifier: Apache-2.0
r"""Calibration: how far probabilities are from the frequencies that they promise.

Samples are binned by their probability; with :math:`n_b` samples in bin b, their mean probability :math:`p_b` and the
frequency :math:`f_b` of what was promised,

.. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} \, |f_b - p_b|

Naeini et al., AAAI 2015; Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, equation 3. Bins of equal
width are the common choice; bins of equal mass (``binning="mass"``, the adaptive error: Nguyen & O'Connor, EMNLP 2015;
Nixon et al., CVPR workshops 2019) do not leave most bins empty where a network is sure of itself. The error is biased
upwards for few samples: compare models on the same ones.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ["calibration_per_class", "expected_calibration_error"]

Binning = Literal["width", "mass"]


def expected_calibration_error(
    y_true: np.ndarray, probabilities: np.ndarray, *, num_bins: int = 15, binning: Binning = "width"
) -> float:
    """Expected calibration error of a classifier.

    Args:
        y_true: one of

            * binary: ``(N,)`` of 0 and 1, with ``probabilities`` ``(N,)``: those of class 1;
            * multi-class: ``(N,)`` integers, with ``(N, C)``: what is judged is the class that was chosen;
            * multi-label: ``(N, C)`` of 0 and 1, with ``(N, C)``: the mean over the classes.

            -1 or NaN is unknown and does not count.
        probabilities: in [0, 1].
        num_bins: number of bins; there are fewer where samples (or different probabilities) are fewer.
        binning: ``"width"``: bins of equal width in [0, 1]; ``"mass"``: of equally many samples.

    Returns:
        The error in [0, 1]; 0 is perfect. NaN without a labelled sample.

    Raises:
        ValueError: shapes do not fit, or a value is not allowed.

    Example:
        >>> expected_calibration_error(np.array([1, 1, 0, 1]), np.array([0.75, 0.75, 0.75, 0.75]))
        0.0
    """
    labels, p = _checked(y_true, probabilities, num_bins, binning)
    if labels.ndim == 1 and p.ndim == 2:
        known = labels >= 0
        chosen = p.argmax(axis=1)
        return _error(p.max(axis=1)[known], (chosen == labels)[known], num_bins, binning)
    if labels.ndim == 1:
        return _error(p[labels >= 0], labels[labels >= 0] == 1, num_bins, binning)
    errors = _per_column(labels, p, num_bins, binning)
    return float(np.nanmean(errors)) if not np.isnan(errors).all() else float("nan")


def calibration_per_class(
    y_true: np.ndarray, probabilities: np.ndarray, *, num_bins: int = 15, binning: Binning = "width"
) -> np.ndarray:
    """Calibration error of each class's probability, one against the rest (Nixon et al. 2019: static, adaptive error).

    Args:
        y_true: see :func:`expected_calibration_error`; multi-class or multi-label.
        probabilities: ``(N, C)``.
        num_bins: likewise.
        binning: likewise.

    Returns:
        ``(C,)`` in [0, 1]; NaN where no sample has a known label.

    Raises:
        ValueError: see there.
    """
    labels, p = _checked(y_true, probabilities, num_bins, binning)
    if p.ndim != 2:
        raise ValueError(f"the classes' probabilities must have shape (N, C), got {p.shape}")
    if labels.ndim == 1:
        labels = np.where(labels[:, None] < 0, -1, labels[:, None] == np.arange(p.shape[1]))
    return _per_column(labels, p, num_bins, binning)


def _checked(
    y_true: np.ndarray, probabilities: np.ndarray, num_bins: int, binning: str
) -> tuple[np.ndarray, np.ndarray]:
    labels = np.nan_to_num(np.asarray(y_true, dtype=np.float64), nan=-1.0)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim not in (1, 2) or labels.shape not in (p.shape, p.shape[:1]):
        raise ValueError(f"labels {labels.shape} and probabilities {p.shape} do not fit together")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    highest = p.shape[1] - 1 if labels.ndim < p.ndim else 1
    if not np.isin(labels, np.arange(-1, highest + 1)).all():
        raise ValueError(f"labels must be 0 .. {highest}, or -1 or NaN for unknown")
    if num_bins < 1 or binning not in ("width", "mass"):
        raise ValueError(f"num_bins must be 1 or more and binning 'width' or 'mass', got {num_bins} and {binning!r}")
    return labels, p


def _per_column(labels: np.ndarray, p: np.ndarray, num_bins: int, binning: str) -> np.ndarray:
    pairs = zip(labels.T, p.T, strict=True)
    return np.array([_error(column[y >= 0], y[y >= 0] == 1, num_bins, binning) for y, column in pairs])


def _error(p: np.ndarray, happened: np.ndarray, num_bins: int, binning: str) -> float:
    """The formula on top, for probabilities (N,) of events that happened or not (N,)."""
    if not len(p):
        return float("nan")
    if binning == "width":
        bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
    else:  # equal probabilities share a bin
        edges = np.unique(np.quantile(p, np.arange(1, num_bins) / num_bins))
        bins = np.searchsorted(edges, p, side="right")
    gap = np.bincount(bins, happened.astype(float) - p)  # n_b (f_b - p_b)
    return float(np.abs(gap).sum() / len(p))
