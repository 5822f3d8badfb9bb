# SPDX-License-Identifier: Apache-2.0
"""LogME: the evidence that a linear model on an encoder's features gives the labels, maximised in closed steps.

You, Liu, Wang, Long, *LogME: Practical Assessment of Pre-trained Models for Transfer Learning*, ICML 2021, equations 2
and 3. Everything happens in the eigenbasis of the smaller Gram matrix, so a step costs as much as there are features.
"""

from __future__ import annotations

import numpy as np

from .inputs import Matrix, feature_matrix, labelled_matrix

__all__ = ["log_me"]

_STEPS = 100
_TOLERANCE = 1e-6
_TINY = 1e-12  # of the mean square of a target: what counts as fitted exactly


def log_me(features: Matrix, labels: Matrix) -> float:
    r"""Log marginal evidence per sample, averaged over classes; higher means a better start for these labels.

    For each class with its 0/1 target :math:`y`, prior :math:`w \sim N(0, \alpha^{-1})` and noise :math:`\beta^{-1}`:

    .. math:: \frac1N \max_{\alpha, \beta} \log \int p(y \mid F w, \beta)\, p(w \mid \alpha)\, dw

    The features are taken as they are, without centring. Values compare encoders on the same samples and labels; a
    value by itself, or those of two data sets, mean nothing.

    Args:
        features: ``(N, F)`` of the labelled samples.
        labels: ``(N,)`` classes ``0 .. K-1``, -1 for unlabelled; or ``(N, K)`` findings of 0 and 1, -1 or NaN for
            unknown.

    Returns:
        The mean over classes or findings; it can be negative or positive.

    Raises:
        ValueError: shapes do not fit, a feature is not finite, all features are constant, or there are fewer than two
            classes (of findings: one has no positive or no negative sample).

    Example:
        >>> y = np.repeat([0, 1], 50)
        >>> noise = np.random.default_rng(0).normal(size=(100, 3))
        >>> log_me(np.c_[y, 1 - y] + 0.1 * noise[:, :2], y) > log_me(noise, y)
        True
    """
    if np.ndim(labels) != 2:
        x, y = labelled_matrix(features, labels)
        basis = _Basis(x)
        return float(np.mean([basis.evidence((y == k).astype(float)) for k in range(y.max() + 1)]))
    x, findings = feature_matrix(features), np.nan_to_num(np.asarray(labels, dtype=np.float64), nan=-1)
    if len(findings) != len(x) or findings.shape[1] == 0:
        raise ValueError(f"features {x.shape} and findings {findings.shape} must have the same number of samples")
    bases: dict[bytes, _Basis] = {}  # findings that are known of the same samples share one
    values = []
    for number, column in enumerate(findings.T):
        known = column >= 0
        if known.tobytes() not in bases:
            try:
                rows, _ = labelled_matrix(x, column)
            except ValueError as error:
                raise ValueError(f"finding {number}: {error}") from error
            bases[known.tobytes()] = _Basis(rows)
        if set(column[known]) != {0.0, 1.0}:
            raise ValueError(f"finding {number} must have samples with 0 and with 1, and no other values but -1")
        values.append(bases[known.tobytes()].evidence(column[known]))
    return float(np.mean(values))


class _Basis:
    """The squared singular values of features ``(N, F)``, and how to express a target in the left singular vectors."""

    def __init__(self, x: np.ndarray) -> None:
        self.rows, self.columns = x.shape
        wide = self.columns > self.rows
        squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
        used = squares > squares[-1] * max(x.shape) * np.finfo(np.float64).eps
        self.squares = squares[used]
        # U: (N, r). Never formed for tall features: U^T y = S^-1 V^T (X^T y).
        self.left = vectors[:, used] if wide else None
        self.project = None if wide else vectors[:, used] / np.sqrt(self.squares)
        self.x = x

    def evidence(self, y: np.ndarray) -> float:
        z = self.left.T @ y if self.left is not None else self.project.T @ (self.x.T @ y)  # (r,)
        square = float(y @ y)
        tiny = _TINY * square
        outside = max(square - float(z @ z), 0.0)  # what no weights can fit
        ratio = 1.0  # alpha / beta
        for _ in range(_STEPS):
            shrunk = self.squares / (self.squares + ratio)
            effective = shrunk.sum()
            weights = max(float((self.squares * (z / (self.squares + ratio)) ** 2).sum()), tiny)
            residual = max(float(((ratio * z / (self.squares + ratio)) ** 2).sum()) + outside, tiny)
            alpha, beta = effective / weights, max(self.rows - effective, _TINY) / residual
            previous, ratio = ratio, alpha / beta
            if abs(ratio - previous) <= _TOLERANCE * previous:
                break
        weights = max(float((self.squares * (z / (self.squares + ratio)) ** 2).sum()), tiny)
        residual = max(float(((ratio * z / (self.squares + ratio)) ** 2).sum()) + outside, tiny)
        determinant = np.log(alpha + beta * self.squares).sum() + (self.columns - len(self.squares)) * np.log(alpha)
        value = self.rows * np.log(beta / (2 * np.pi)) + self.columns * np.log(alpha) - determinant
        return float(value - beta * residual - alpha * weights) / (2 * self.rows)
