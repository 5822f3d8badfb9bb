# SPDX-License-Identifier: Apache-2.0
"""Corrections of p-values for several comparisons: the chance of any false finding, or the share of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["benjamini_hochberg", "holm"]


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    r"""Adjust p-values so that the chance of even one false finding stays below the level.

    .. math:: \tilde p_{(i)} = \min\big(1, \max_{j \le i} (m - j + 1) p_{(j)}\big)

    Holm, *A simple sequentially rejective multiple test procedure*, Scand. J. Statistics 6, 1979. It holds for any
    dependence between the tests and is never weaker than Bonferroni's.

    Args:
        p_values: ``(m,)`` in [0, 1]; NaN (a test that is not defined) stays NaN and is not counted.

    Returns:
        ``(m,)`` adjusted values, in the same order.

    Raises:
        ValueError: a value is outside [0, 1], or there is more than one axis.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    return _adjusted(p_values, lambda p: np.maximum.accumulate((len(p) - np.arange(len(p))) * p))


def benjamini_hochberg(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    r"""Adjust p-values so that the expected share of false ones among the findings stays below the level.

    .. math:: \tilde p_{(i)} = \min\big(1, \min_{j \ge i} \tfrac{m}{j} p_{(j)}\big)

    Benjamini & Hochberg, *Controlling the false discovery rate*, J. Royal Statistical Society B 57, 1995; for
    independent or positively dependent tests.

    Args:
        p_values: see :func:`holm`.

    Returns:
        ``(m,)`` adjusted values, in the same order.

    Raises:
        ValueError: see :func:`holm`.

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.04, 0.04]
    """
    return _adjusted(p_values, lambda p: np.minimum.accumulate((len(p) / np.arange(1, len(p) + 1) * p)[::-1])[::-1])


def _adjusted(p_values: Sequence[float] | np.ndarray, adjust) -> np.ndarray:
    p = np.asarray(p_values, dtype=np.float64)
    defined = ~np.isnan(p)
    if p.ndim != 1 or not ((p[defined] >= 0) & (p[defined] <= 1)).all():
        raise ValueError(f"p-values must be a sequence of numbers in [0, 1], got {p_values}")
    found = p[defined]
    order = np.argsort(found, kind="stable")
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(1.0, adjust(found[order]))
    result = np.full_like(p, np.nan)
    result[defined] = adjusted
    return result
