# SPDX-License-Identifier: Apache-2.0
"""Bootstrap confidence intervals of any metric, and of the difference of two models, resampling patients.

Percentile intervals after Efron & Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13. Images of one
patient are not independent: with ``groups`` whole patients are drawn (the cluster bootstrap), which gives the honest,
wider interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["BootstrapInterval", "bootstrap_difference", "bootstrap_interval"]


@dataclass(frozen=True)
class BootstrapInterval:
    """A metric's value on all samples with its interval.

    Attributes:
        value: the metric on the samples as they are.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: its nominal coverage, for instance 0.95.
        resamples: how many resamples the interval is made of.
        undefined: how many further resamples had to be left out because the metric is not defined on them (a class
            without a sample, say).
        p_value: two-sided, for a difference only: how easily resampling turns its sign.
    """

    value: float
    low: float
    high: float
    confidence: float
    resamples: int
    undefined: int = 0
    p_value: float | None = None

    def __str__(self) -> str:
        """Readable form, such as ``0.853 (0.812 to 0.889)``."""
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap_interval(
    metric: Callable[..., float],
    *arrays: np.ndarray,
    groups: np.ndarray | None = None,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BootstrapInterval:
    """Percentile bootstrap interval of ``metric(*arrays)``.

    Args:
        metric: function of the arrays that returns a number. On a resample it may return NaN or raise ``ValueError``
            ("not defined here").
        arrays: one or more with the same first dimension, the samples.
        groups: ``(N,)`` patients or other independent units (numbers or strings); whole groups are resampled.
        n: number of resamples.
        confidence: coverage of the interval, between 0 and 1.
        seed: of the resampling.

    Returns:
        Value and interval.

    Raises:
        ValueError: if lengths differ, there are fewer than two independent units, a parameter is out of its range, or
            the metric is not defined on more than half of the resamples. Errors of the metric on the samples as they
            are pass through.

    Example:
        >>> print(bootstrap_interval(np.mean, np.arange(101.0), n=200))
        50.000 (44.552 to 55.357)
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    value = float(metric(*arrays))
    draws = _Resamples(arrays, groups, n, confidence, seed)
    values = np.array([_value_or_nan(metric, arrays, rows) for rows in draws])
    low, high, used = draws.interval(values)
    return BootstrapInterval(value, low, high, confidence, used, n - used)


def bootstrap_difference(
    metric: Callable[..., float],
    target: np.ndarray,
    prediction_a: np.ndarray,
    prediction_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BootstrapInterval:
    """Paired bootstrap interval of ``metric(target, prediction_a) - metric(target, prediction_b)``.

    Both models are scored on the same resample each time, so what is hard for both cancels.

    Args:
        metric: function of target and prediction.
        target: ``(N, ...)``.
        prediction_a: ``(N, ...)`` of the first model.
        prediction_b: ``(N, ...)`` of the second model.
        groups: see :func:`bootstrap_interval`.
        n: number of resamples.
        confidence: coverage of the interval.
        seed: of the resampling.

    Returns:
        Difference, interval and two-sided p-value ``2 (1 + min(#(d <= 0), #(d >= 0))) / (1 + n)``, at most 1.

    Raises:
        ValueError: see :func:`bootstrap_interval`.
    """

    def difference(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        return float(metric(y, a)) - float(metric(y, b))

    arrays = tuple(np.asarray(array) for array in (target, prediction_a, prediction_b))
    value = difference(*arrays)
    draws = _Resamples(arrays, groups, n, confidence, seed)
    values = np.array([_value_or_nan(difference, arrays, rows) for rows in draws])
    low, high, used = draws.interval(values)
    rarer = min((values <= 0).sum(), (values >= 0).sum())
    return BootstrapInterval(value, low, high, confidence, used, n - used, min(1.0, 2 * (1 + rarer) / (1 + used)))


class _Resamples:
    """Iterates over index arrays, each drawing as many groups (or samples) with replacement as there are."""

    def __init__(self, arrays: tuple, groups: np.ndarray | None, n: int, confidence: float, seed: int) -> None:
        lengths = {len(array) for array in arrays}
        if groups is not None:
            groups = np.asarray(groups)
            lengths.add(len(groups))
        if len(lengths) != 1:
            raise ValueError(f"all arrays (and groups) need the same number of samples, got {sorted(lengths)}")
        if n < 1 or not 0 < confidence < 1:
            raise ValueError(f"n must be at least 1 and confidence between 0 and 1, got {n} and {confidence}")
        size = lengths.pop()
        codes = np.arange(size) if groups is None else np.unique(groups, return_inverse=True)[1]
        self.order = np.argsort(codes, kind="stable")  # samples, group after group
        self.sizes = np.bincount(codes)
        self.starts = np.cumsum(self.sizes) - self.sizes
        if len(self.sizes) < 2:
            raise ValueError("a bootstrap needs at least two independent samples or groups")
        self.n, self.confidence, self.seed = n, confidence, seed

    def __iter__(self):
        count = len(self.sizes)
        generator = np.random.default_rng(self.seed)
        for _ in range(self.n):
            drawn = generator.integers(count, size=count)
            sizes = self.sizes[drawn]
            # position of each sample inside its group: 0, 1, ..., size - 1 for every drawn group
            inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            yield self.order[np.repeat(self.starts[drawn], sizes) + inside]

    def interval(self, values: np.ndarray) -> tuple[float, float, int]:
        """Percentiles of the defined values, and how many they are."""
        defined = values[~np.isnan(values)]
        if 2 * len(defined) < len(values):
            raise ValueError(
                f"the metric is not defined on {len(values) - len(defined)} of {len(values)} resamples: too few "
                "samples of some class for an interval"
            )
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high), len(defined)


def _value_or_nan(metric: Callable[..., float], arrays: tuple, rows: np.ndarray) -> float:
    try:
        return float(metric(*(array[rows] for array in arrays)))
    except ValueError:
        return float("nan")
