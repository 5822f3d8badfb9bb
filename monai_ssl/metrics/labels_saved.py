# SPDX-License-Identifier: Apache-2.0
"""How many labels a better start saves: what a baseline needs to be as good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LabelsNeeded", "labels_to_reach"]


@dataclass(frozen=True)
class LabelsNeeded:
    """Labels with which a curve of scores reaches a target.

    Attributes:
        labels: their number, interpolated; None: not reached with all that were tried.
        bound: ``"="``; ``"<="``: the target is reached with the fewest labels that were tried, perhaps with fewer;
            ``">"``: not reached, ``most`` are too few.
        most: largest number of labels that was tried.
    """

    labels: float | None
    bound: str
    most: float

    def __str__(self) -> str:
        """Readable form: ``about 140``, ``at most 14``, ``not reached with 1400``."""
        if self.labels is None:
            return f"not reached with {self.most:.0f}"
        return f"{'at most' if self.bound == '<=' else 'about'} {self.labels:.0f}"


def labels_to_reach(num_labels: Sequence[float], scores: Sequence[float], target: float) -> LabelsNeeded:
    """Find how many labels a learning curve needs for a target score.

    Between two points of the curve the score is taken to be linear in the logarithm of the number of labels, as
    learning curves are drawn. The first crossing counts.

    Args:
        num_labels: numbers of labels, positive and different from each other, in any order.
        scores: the score with each; higher is better. NaN is left out.
        target: score to be reached.

    Returns:
        The labels needed, or that they are more than were tried.

    Raises:
        ValueError: there is no defined point, a number is not positive or occurs twice, or the target is NaN.

    Example:
        >>> str(labels_to_reach([10, 100, 1000], [0.6, 0.7, 0.8], 0.75))
        'about 316'
    """
    n, s = np.asarray(num_labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if n.shape != s.shape or n.ndim != 1 or not (n > 0).all() or len(np.unique(n)) < len(n) or np.isnan(target):
        raise ValueError(
            f"a learning curve needs different positive numbers of labels, a score for each and a target, got "
            f"{list(num_labels)}, {list(scores)} and {target}"
        )
    n, s = n[~np.isnan(s)], s[~np.isnan(s)]
    if not len(n):
        raise ValueError("no point of the learning curve is defined")
    order = np.argsort(n)
    n, s = n[order], s[order]
    reached = np.flatnonzero(s >= target)
    if not len(reached):
        return LabelsNeeded(None, ">", float(n[-1]))
    i = reached[0]
    if i == 0:
        return LabelsNeeded(float(n[0]), "=" if s[0] == target else "<=", float(n[-1]))
    share = (target - s[i - 1]) / (s[i] - s[i - 1])
    labels = float(np.exp(np.log(n[i - 1]) + share * (np.log(n[i]) - np.log(n[i - 1]))))
    return LabelsNeeded(labels, "=", float(n[-1]))
