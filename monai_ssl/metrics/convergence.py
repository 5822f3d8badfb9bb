# SPDX-License-Identifier: Apache-2.0
"""How much sooner a training gets there: steps to a target of the validation metric, and the acceleration.

The definitions are this package's own; papers that speak of faster convergence seldom give theirs. Both trainings
follow one recipe and are validated every so many steps. The validation metric is smoothed (an exponential moving
average). The target is the best smoothed value of the training from scratch, or a share of it, and

    acceleration = 1 - steps_pretrained(target) / steps_scratch(target)

so that 0.83 means a sixth of the steps. A training that never gets there has no number: it is counted as not reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

__all__ = ["Acceleration", "acceleration", "smoothed_curve", "steps_to_reach"]

Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Acceleration:
    """How much sooner one training reaches what the other reaches, over pairs of runs (seeds).

    Attributes:
        values: one for each pair; None where the target was not reached.
        mean: over the pairs that reached it; None if none did.
        low: lower end of the t-interval of the mean; None with fewer than two pairs that reached it.
        high: upper end.
        steps: mean steps of the training in question, over the pairs that reached it; None if none did.
        baseline_steps: mean steps of the baseline, over the same pairs.
        not_reached: pairs that did not reach the target.
        confidence: of the interval.
    """

    values: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None
    steps: float | None
    baseline_steps: float | None
    not_reached: int
    confidence: float

    def __str__(self) -> str:
        """Readable form: ``0.62 (0.48 to 0.76), not reached in 1 of 3``."""
        text = "not reached" if self.mean is None else f"{self.mean:.2f}"
        text += "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        missing = self.not_reached and self.mean is not None
        return text + (f", not reached in {self.not_reached} of {len(self.values)}" if missing else "")


def smoothed_curve(values: Sequence[float], momentum: float = 0.6) -> np.ndarray:
    """Exponential moving average: ``s_0 = v_0``, ``s_t = momentum s_{t-1} + (1 - momentum) v_t``.

    Args:
        values: ``(T,)``, without gaps.
        momentum: in [0, 1); 0 changes nothing.

    Raises:
        ValueError: the momentum is out of range, or a value is missing or not finite.

    Example:
        >>> smoothed_curve([0.0, 1.0, 1.0], 0.5).tolist()
        [0.0, 0.5, 0.75]
    """
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not len(v) or not np.isfinite(v).all() or not 0 <= momentum < 1:
        raise ValueError(f"a curve needs finite values and a momentum in [0, 1), got {values} and {momentum}")
    smooth = v.copy()
    for i in range(1, len(v)):
        smooth[i] = momentum * smooth[i - 1] + (1 - momentum) * v[i]
    return smooth


def steps_to_reach(
    steps: Sequence[float], values: Sequence[float], target: float, momentum: float = 0.6
) -> float | None:
    """Return the step of the first validation whose smoothed value is the target or more; None if none is.

    Args:
        steps: ``(T,)`` at which was validated, increasing.
        values: ``(T,)`` of the validation metric; higher is better.
        target: to be reached.
        momentum: see :func:`smoothed_curve`.

    Raises:
        ValueError: the steps do not increase, or see :func:`smoothed_curve`.

    Example:
        >>> steps_to_reach([10, 20, 30], [0.5, 0.8, 0.9], 0.7, momentum=0)
        20.0
    """
    at = np.asarray(steps, dtype=np.float64)
    smooth = smoothed_curve(values, momentum)
    if at.shape != smooth.shape or not (np.diff(at) > 0).all():
        raise ValueError(f"steps must increase, one for each of {len(smooth)} values, got {list(steps)}")
    reached = np.flatnonzero(smooth >= target)
    return float(at[reached[0]]) if len(reached) else None


def acceleration(
    runs: Sequence[Curve],
    baselines: Sequence[Curve],
    *,
    share: float = 1.0,
    momentum: float = 0.6,
    confidence: float = 0.95,
) -> Acceleration:
    """Compare trainings with their baselines, pair by pair.

    Args:
        runs: (steps, validation metric) of each training.
        baselines: of the training from scratch with the same seed and labels.
        share: of the baseline's best smoothed value that is the target, in (0, 1].
        momentum: of the smoothing.
        confidence: of the interval.

    Returns:
        The acceleration, see the top of the module.

    Raises:
        ValueError: there are no pairs, or a number is out of its range.

    Example:
        >>> slow = ([10, 20, 30, 40], [0.5, 0.6, 0.7, 0.8])
        >>> fast = ([10, 20, 30, 40], [0.8, 0.8, 0.9, 0.9])
        >>> acceleration([fast], [slow], momentum=0).mean
        0.75
    """
    if len(runs) != len(baselines) or not runs or not 0 < share <= 1 or not 0 < confidence < 1:
        raise ValueError(
            f"give as many runs as baselines, one or more, share in (0, 1] and confidence in (0, 1); got {len(runs)}, "
            f"{len(baselines)}, {share} and {confidence}"
        )
    pairs: list[tuple[float, float] | None] = []
    for run, baseline in zip(runs, baselines, strict=True):
        target = share * float(smoothed_curve(baseline[1], momentum).max())
        needed = steps_to_reach(*run, target, momentum)
        pairs.append(None if needed is None else (needed, steps_to_reach(*baseline, target, momentum)))
    values = tuple(None if pair is None else 1 - pair[0] / pair[1] for pair in pairs)
    reached = np.array([value for value in values if value is not None])
    if not len(reached):
        return Acceleration(values, None, None, None, None, None, len(values), confidence)
    low = high = None
    if len(reached) > 1:
        reach = student.ppf(0.5 + confidence / 2, len(reached) - 1) * reached.std(ddof=1) / np.sqrt(len(reached))
        low, high = float(reached.mean() - reach), float(reached.mean() + reach)
    steps, baseline_steps = np.array([pair for pair in pairs if pair is not None]).mean(axis=0).tolist()
    missing = len(values) - len(reached)
    return Acceleration(values, float(reached.mean()), low, high, steps, baseline_steps, missing, confidence)
