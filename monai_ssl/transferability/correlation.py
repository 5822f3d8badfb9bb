# SPDX-License-Identifier: Apache-2.0
"""Does a measure predict the transfer? Correlations with p values, intervals and permutation tests."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

from monai_ssl.metrics import bootstrap_interval

__all__ = ["Correlation", "correlation"]

_KINDS = ("pearson", "spearman")


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient and how sure it is.

    Attributes:
        kind: ``"pearson"`` or ``"spearman"``.
        value: the coefficient.
        n: number of pairs.
        p_value: two-sided, of the t distribution (as the paper's): it takes the pairs for independent.
        permutation_p: two-sided, from shuffling the scores (within their block); smallest 1 / (1 + permutations).
        low: lower end of the bootstrap interval, NaN where too few resamples are defined.
        high: upper end.
        confidence: of the interval.
    """

    kind: str
    value: float
    n: int
    p_value: float
    permutation_p: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        """Readable form, such as ``r = -0.11 (-0.48 to 0.30), p = 0.61, n = 24``."""
        letter = "r" if self.kind == "pearson" else "rho"
        return f"{letter} = {self.value:.2f} ({self.low:.2f} to {self.high:.2f}), p = {self.p_value:.2f}, n = {self.n}"


def correlation(
    x: np.ndarray,
    y: np.ndarray,
    *,
    kind: str = "pearson",
    groups: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
    resamples: int = 1000,
    permutations: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Correlate a measure with what was found.

    Args:
        x: ``(N,)`` the measure of each pair of source and target.
        y: ``(N,)`` the transfer score of each pair.
        kind: ``"pearson"`` (a line) or ``"spearman"`` (any monotone curve).
        groups: ``(N,)`` what must be resampled together, for instance the source: pairs that share one are not
            independent. None: each pair alone.
        blocks: ``(N,)`` within which scores are shuffled, for instance the target: then a target that is easy
            altogether makes no correlation significant. None: over all.
        resamples: of the bootstrap.
        permutations: shuffles of the permutation test.
        confidence: of the interval.
        seed: of both.

    Returns:
        The coefficient with its uncertainty.

    Raises:
        ValueError: fewer than three pairs, values that are not finite or all the same, or an argument is wrong.

    Example:
        >>> c = correlation([1, 2, 3, 4], [2, 4, 6, 9])
        >>> round(c.value, 3), c.n
        (0.994, 4)
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise ValueError(f"a correlation needs at least three pairs of numbers, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a measure or a score is not finite; leave such pairs out")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("a correlation is not defined where the measure or the score is the same for all pairs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)  # the bootstrap's interval says so too
        found = stats.pearsonr(x, y) if kind == "pearson" else stats.spearmanr(x, y)
    value, p_value = float(found.statistic), float(found.pvalue)
    permuted = _permuted(x, y, kind, blocks, permutations, seed)
    p = (1 + int((np.abs(permuted) >= abs(value) - 1e-12).sum())) / (1 + permutations)
    try:
        interval = bootstrap_interval(
            lambda a, b: _coefficient(a, b, kind), x, y, groups=groups, n=resamples, confidence=confidence, seed=seed
        )
        low, high = interval.low, interval.high
    except ValueError:  # one source only, or nearly all resamples constant
        low = high = float("nan")
    return Correlation(kind, value, len(x), p_value, p, low, high, confidence)


def _coefficient(x: np.ndarray, y: np.ndarray, kind: str) -> float:
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def _permuted(
    x: np.ndarray, y: np.ndarray, kind: str, blocks: np.ndarray | None, permutations: int, seed: int
) -> np.ndarray:
    """(permutations,) coefficients of shuffled scores."""
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    rng = np.random.default_rng(seed)
    codes = np.zeros(len(x), dtype=int) if blocks is None else np.unique(blocks, return_inverse=True)[1]
    if codes.shape != x.shape:
        raise ValueError(f"blocks must have shape {x.shape}, got {codes.shape}")
    shuffled = np.tile(y, (permutations, 1))
    for block in range(codes.max() + 1):
        columns = np.flatnonzero(codes == block)
        shuffled[:, columns] = rng.permuted(shuffled[:, columns], axis=1)
    x, shuffled = x - x.mean(), shuffled - y.mean()
    return shuffled @ x / np.sqrt((x @ x) * (shuffled[0] @ shuffled[0]))
