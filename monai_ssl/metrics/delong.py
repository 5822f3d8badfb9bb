# SPDX-License-Identifier: Apache-2.0
r"""DeLong's interval of an area under the ROC curve, and his paired test of two, with patients as clusters.

DeLong, DeLong & Clarke-Pearson, *Comparing the areas under two or more correlated receiver operating characteristic
curves: a nonparametric approach*, Biometrics 44, 1988. The structural components come from midranks (Sun & Xu, IEEE
Signal Processing Letters 21(11), 2014), in O(N log N):

.. math:: V_{10}(x_i) = \frac{R(x_i) - R^{+}(x_i)}{n}, \qquad V_{01}(y_j) = 1 - \frac{R(y_j) - R^{-}(y_j)}{m}

with m positive samples x, n negative samples y, and midranks R among all, :math:`R^{+}` among the positives,
:math:`R^{-}` among the negatives. Several images of one patient are not independent: with ``groups`` the components are
summed by patient first (Obuchowski, *Nonparametric analysis of clustered ROC curve data*, Biometrics 53, 1997).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

__all__ = ["DeLongResult", "delong_interval", "delong_test"]


@dataclass(frozen=True)
class DeLongResult:
    """An area under the ROC curve, or the difference of two, with its normal interval.

    Attributes:
        value: the area in [0, 1], or the first area minus the second.
        low: lower end of the interval; of an area not below 0.
        high: upper end; of an area not above 1.
        standard_error: DeLong's.
        confidence: nominal coverage of the interval.
        p_value: two-sided, of a difference of zero; None for an area alone.
    """

    value: float
    low: float
    high: float
    standard_error: float
    confidence: float
    p_value: float | None = None


def delong_interval(
    y_true: np.ndarray, scores: np.ndarray, *, groups: np.ndarray | None = None, confidence: float = 0.95
) -> DeLongResult:
    """Area under the ROC curve of one binary question with DeLong's interval.

    Args:
        y_true: ``(N,)`` of 0 and 1; -1 or NaN is unknown and does not count.
        scores: ``(N,)``, higher means more likely.
        groups: ``(N,)`` patients; None: every sample is independent.
        confidence: coverage, between 0 and 1.

    Returns:
        Value and interval. Where all positives lie above all negatives the standard error is 0, and so is the
        interval's width: it then says too much, and a bootstrap does not help.

    Raises:
        ValueError: shapes do not fit, a value is not allowed, or fewer than two independent positive or negative
            samples (patients) are there.

    Example:
        >>> delong_interval(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])).value
        0.75
    """
    areas, covariance = _areas_and_covariance(y_true, [scores], groups)
    error, reach = float(np.sqrt(covariance[0, 0])), _reach(confidence)
    value = float(areas[0])
    return DeLongResult(value, max(0.0, value - reach * error), min(1.0, value + reach * error), error, confidence)


def delong_test(
    y_true: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
) -> DeLongResult:
    """Difference of two areas on the same samples, with DeLong's interval and two-sided p-value.

    Args:
        y_true: see :func:`delong_interval`.
        scores_a: ``(N,)`` of the first model.
        scores_b: ``(N,)`` of the second model.
        groups: see :func:`delong_interval`.
        confidence: coverage.

    Returns:
        The first area minus the second. A difference of exactly 0 has the p-value 1.

    Raises:
        ValueError: see :func:`delong_interval`.
    """
    areas, covariance = _areas_and_covariance(y_true, [scores_a, scores_b], groups)
    value = float(areas[0] - areas[1])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error, reach = float(np.sqrt(max(variance, 0.0))), _reach(confidence)
    if value == 0:
        p_value = 1.0
    else:
        p_value = float(2 * norm.sf(abs(value) / error)) if error else 0.0
    return DeLongResult(value, value - reach * error, value + reach * error, error, confidence, p_value)


def _areas_and_covariance(
    y_true: np.ndarray, scores: list[np.ndarray], groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Areas (S,) and their covariance (S, S)."""
    labels = np.nan_to_num(np.asarray(y_true, dtype=np.float64), nan=-1.0)
    values = [np.asarray(one, dtype=np.float64) for one in scores]
    units = np.arange(labels.size) if groups is None else np.asarray(groups)
    if labels.ndim != 1 or any(one.shape != labels.shape for one in (*values, units)):
        shapes = ", ".join(str(one.shape) for one in (*values, units))
        raise ValueError(f"labels {labels.shape}, scores and groups ({shapes}) must all have shape (N,)")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError("labels must be 0 and 1, or -1 or NaN for unknown")
    known = labels >= 0
    x = np.stack([one[known] for one in values])  # (S, N)
    if not np.isfinite(x).all():
        raise ValueError("scores of labelled samples hold NaN or infinite values")
    positive, codes = labels[known] == 1, np.unique(units[known], return_inverse=True)[1]
    for name, chosen in (("positive", positive), ("negative", ~positive)):
        if len(np.unique(codes[chosen])) < 2:
            unit = "samples" if groups is None else "patients"
            raise ValueError(
                f"DeLong's variance needs at least two {unit} that are {name}; among {len(x[0])} samples there are "
                f"{len(np.unique(codes[chosen]))}"
            )
    ranks, above, below = (rankdata(part, axis=1) for part in (x, x[:, positive], x[:, ~positive]))
    m, n = int(positive.sum()), int((~positive).sum())
    components = np.empty_like(x)  # (S, N): V10 of the positives, V01 of the negatives
    components[:, positive] = (ranks[:, positive] - above) / n
    components[:, ~positive] = 1 - (ranks[:, ~positive] - below) / m
    areas = components[:, positive].mean(axis=1)
    ten, one = (_by_unit(components - areas[:, None], codes, chosen) for chosen in (positive, ~positive))
    first, second, units_in_all = _units(codes[positive]), _units(codes[~positive]), _units(codes)
    covariance = first / (first - 1) * ten @ ten.T / m**2 + second / (second - 1) * one @ one.T / n**2
    mixed = ten @ one.T + one @ ten.T  # patients with both kinds of images; 0 where every sample is its own
    return areas, covariance + units_in_all / (units_in_all - 1) * mixed / (m * n)


def _by_unit(values: np.ndarray, codes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(S, U) sums over the chosen samples of each unit."""
    count = codes.max() + 1
    return np.stack([np.bincount(codes[chosen], row[chosen], count) for row in values])


def _units(codes: np.ndarray) -> int:
    return len(np.unique(codes))


def _reach(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return float(norm.ppf(0.5 + confidence / 2))
