# SPDX-License-Identifier: Apache-2.0
"""Schedules of the learning rate and the weight decay, as functions of the optimiser step.

A schedule is a function ``(step, total_steps) -> factor``: the value at a step is the factor times the value that the
optimiser was built with, so the optimiser's learning rate is the **peak** of a warm-up. ``step`` counts from 0 and the
factor is the one used for that step. With torch's own scheduler:
``LambdaLR(optimizer, lambda step: schedule(step, total_steps))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = ["StepSchedule", "polynomial_schedule", "sawtooth_cosine", "step_schedule", "warmup_cosine"]

StepSchedule = Callable[[int, int], float]


def warmup_cosine(
    warmup_fraction: float = 0.0, *, warmup_steps: int | None = None, final_factor: float = 0.0
) -> StepSchedule:
    r"""Linear warm-up to 1, then half a cosine to ``final_factor``.

    With w warm-up steps of T, the factor of step s is :math:`(s + 1) / w` for s < w and then
    :math:`f + (1 - f) (1 + \cos(\pi (s - w) / (T - w))) / 2` (Loshchilov & Hutter, arXiv 1608.03983, equation 5,
    without restarts). Without warm-up and with ``final_factor=10`` it raises a weight decay tenfold, as DINO does.

    Args:
        warmup_fraction: share of the training that is warm-up, in [0, 1].
        warmup_steps: the same as a number of optimiser steps; replaces ``warmup_fraction``.
        final_factor: factor at the end, at least 0.

    Raises:
        ValueError: a number is out of its range.
    """
    _check_warmup(warmup_fraction, warmup_steps)
    if final_factor < 0:
        raise ValueError(f"final_factor must be at least 0, got {final_factor}")

    def factor(step: int, total_steps: int) -> float:
        warmup = _warmup_length(warmup_fraction, warmup_steps, total_steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def polynomial_schedule(
    power: float = 0.9, *, warmup_fraction: float = 0.0, warmup_steps: int | None = None
) -> StepSchedule:
    r"""Fall to 0 as a polynomial, after an optional linear warm-up.

    Step s of T has the factor :math:`(1 - s / T)^p`, with p = 0.9 as in nnU-Net (Isensee et al., Nature Methods 18,
    2021) and OpenMind (arXiv 2412.17041).

    Args:
        power: p, positive.
        warmup_fraction: share of the training that is warm-up, in [0, 1].
        warmup_steps: the same as a number of optimiser steps; replaces ``warmup_fraction``.

    Raises:
        ValueError: a number is out of its range.
    """
    _check_warmup(warmup_fraction, warmup_steps)
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")

    def factor(step: int, total_steps: int) -> float:
        warmup = _warmup_length(warmup_fraction, warmup_steps, total_steps)
        ramp = (step + 1) / warmup if step < warmup else 1.0
        return ramp * max(0.0, 1 - step / total_steps) ** power

    return factor


def sawtooth_cosine(
    first_steps: int = 0, warmup_fraction: float = 0.0, *, warmup_steps: int | None = None, final_factor: float = 0.0
) -> StepSchedule:
    """One linear ramp for the steps in which only the new layers learn, then :func:`warmup_cosine` for all of them.

    The rate starts again from near 0 when the pretrained layers begin to learn, so that their first updates are small
    ("sawtooth" fine-tuning of Wald et al., *An OpenMind for 3D medical vision self-supervised learning*, ICCV 2025).

    Args:
        first_steps: steps of the first stage; 0 is :func:`warmup_cosine` alone.
        warmup_fraction: of the second stage, see :func:`warmup_cosine`.
        warmup_steps: likewise.
        final_factor: likewise.

    Raises:
        ValueError: a number is out of its range.

    >>> schedule = sawtooth_cosine(first_steps=2, warmup_steps=4)
    >>> [schedule(step, 100) for step in range(6)]
    [0.5, 1.0, 0.25, 0.5, 0.75, 1.0]
    """
    if first_steps < 0:
        raise ValueError(f"first_steps must be at least 0, got {first_steps}")
    second = warmup_cosine(warmup_fraction, warmup_steps=warmup_steps, final_factor=final_factor)

    def factor(step: int, total_steps: int) -> float:
        if step < first_steps:
            return (step + 1) / first_steps
        return second(step - first_steps, max(1, total_steps - first_steps))

    return factor


def step_schedule(
    milestones: Sequence[float] = (0.6, 0.8),
    gamma: float = 0.1,
    *,
    warmup_fraction: float = 0.0,
    warmup_steps: int | None = None,
) -> StepSchedule:
    """Multiply by ``gamma`` at each milestone, after an optional linear warm-up.

    The defaults are MoCo's (arXiv 1911.05722, section 4: epochs 120 and 160 of 200). C2L's released code has epochs
    60, 80 and 100 of 120: ``milestones=(0.5, 2 / 3, 5 / 6)``. ``milestones=()`` keeps the rate constant.

    Args:
        milestones: shares of the training, each in (0, 1), ascending.
        gamma: positive factor.
        warmup_fraction: share of the training that is warm-up, in [0, 1].
        warmup_steps: the same as a number of optimiser steps; replaces ``warmup_fraction``.

    Raises:
        ValueError: a number is out of its range.
    """
    _check_warmup(warmup_fraction, warmup_steps)
    shares = tuple(milestones)
    if list(shares) != sorted(shares) or any(not 0 < share < 1 for share in shares):
        raise ValueError(f"milestones are ascending shares of the training, each in (0, 1), got {list(shares)}")
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")

    def factor(step: int, total_steps: int) -> float:
        warmup = _warmup_length(warmup_fraction, warmup_steps, total_steps)
        ramp = (step + 1) / warmup if step < warmup else 1.0
        # Rounded: 0.6 of 10 steps is step 6, whatever 0.6 * 10 is in binary.
        return ramp * gamma ** sum(step >= round(share * total_steps) for share in shares)

    return factor


def _check_warmup(fraction: float, steps: int | None) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"warmup_fraction must be in [0, 1], got {fraction}; a number of steps is warmup_steps")
    if steps is not None and steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {steps}")


def _warmup_length(fraction: float, steps: int | None, total_steps: int) -> int:
    return round(fraction * total_steps) if steps is None else steps
