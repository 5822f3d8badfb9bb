# SPDX-License-Identifier: Apache-2.0
"""Labels saved and steps saved: known curves, and what is not reached."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ssl.metrics import acceleration, labels_to_reach, smoothed_curve, steps_to_reach


def slow_labels(n: list[float], s: list[float], target: float) -> float | None:
    """Walk along the curve on a fine grid of log labels."""
    grid = np.linspace(np.log(n[0]), np.log(n[-1]), 200001)
    reached = grid[np.interp(grid, np.log(n), s) >= target]
    return float(np.exp(reached[0])) if len(reached) else None


@pytest.mark.parametrize("target", [0.55, 0.62, 0.7, 0.79])
def test_labels_are_interpolated_on_their_logarithm(target):
    n, s = [10, 50, 200, 1000], [0.5, 0.66, 0.64, 0.8]
    found = labels_to_reach(n[::-1], s[::-1], target)
    assert found.bound == "=" and found.labels == pytest.approx(slow_labels(n, s, target), rel=1e-3)


def test_labels_at_the_ends_of_the_curve():
    n, s = [10, 100], [0.6, 0.8]
    assert str(labels_to_reach(n, s, 0.81)) == "not reached with 100"
    assert labels_to_reach(n, s, 0.8).labels == pytest.approx(100)
    assert str(labels_to_reach(n, s, 0.3)) == "at most 10"
    assert labels_to_reach(n, s, 0.6).bound == "="
    assert labels_to_reach([10, 50, 100], [0.6, np.nan, 0.8], 0.7).labels == pytest.approx(1000**0.5)


@pytest.mark.parametrize(
    ("n", "s", "target"),
    [([0, 1], [1, 2], 1), ([1, 1], [1, 2], 1), ([1], [1, 2], 1), ([1, 2], [1, 2], np.nan), ([1], [np.nan], 1)],
)
def test_no_learning_curve(n, s, target):
    with pytest.raises(ValueError, match="curve"):
        labels_to_reach(n, s, target)


def test_smoothing_is_the_weighted_sum():
    v = np.random.default_rng(0).random(12)
    weights = [0.4 * 0.6 ** np.arange(t)[:t] for t in range(12)]
    slow = [0.6**t * v[0] + (weights[t] * v[t:0:-1]).sum() for t in range(12)]
    np.testing.assert_allclose(smoothed_curve(v, 0.6), slow)
    np.testing.assert_array_equal(smoothed_curve(v, 0), v)


def test_steps_need_the_smoothed_value():
    steps, values = [10, 20, 30, 40], [0.5, 0.9, 0.5, 0.9]
    assert steps_to_reach(steps, values, 0.85, momentum=0) == 20
    assert steps_to_reach(steps, values, 0.85, momentum=0.6) is None


def test_acceleration_over_seeds():
    steps = np.arange(10, 110, 10)
    slow = [(steps, np.linspace(0.5, 0.8 + 0.01 * seed, 10)) for seed in range(3)]
    fast = [(steps, np.linspace(0.5, 0.8 + 0.01 * seed, 10)[np.minimum(2 * np.arange(10) + 1, 9)]) for seed in range(3)]
    found = acceleration(fast, slow, momentum=0)
    assert found.values == (0.5, 0.5, 0.5) and found.mean == found.low == found.high == 0.5
    assert (found.steps, found.baseline_steps, found.not_reached) == (50, 100, 0)
    assert acceleration(slow, slow).mean == 0
    assert acceleration(slow, fast, momentum=0).mean == -1  # slower than the baseline


def test_acceleration_says_what_was_not_reached():
    steps = [10, 20, 30]
    good, bad, better = (steps, [0.6, 0.7, 0.8]), (steps, [0.5, 0.5, 0.5]), (steps, [0.8, 0.8, 0.8])
    found = acceleration([better, bad], [good, good], momentum=0)
    assert found.values[1] is None and found.not_reached == 1 and found.low is None
    assert str(found) == "0.67, not reached in 1 of 2"
    assert str(acceleration([bad], [good])) == "not reached"
    assert acceleration([(steps, [0.5, 0.79, 0.8])], [good], share=0.95, momentum=0).steps == 20
    three = acceleration([better, better, good], [good] * 3, momentum=0)
    values = np.array([2 / 3, 2 / 3, 0])
    assert three.high - three.mean == pytest.approx(4.302653 * values.std(ddof=1) / 3**0.5, rel=1e-6)


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.1}, {"confidence": 1.0}, {"momentum": 1.0}])
def test_numbers_out_of_range(wrong):
    curve = ([1, 2], [0.1, 0.2])
    with pytest.raises(ValueError):
        acceleration([curve], [curve], **wrong)
    with pytest.raises(ValueError, match="as many runs"):
        acceleration([curve], [])
    with pytest.raises(ValueError, match="increase"):
        steps_to_reach([2, 1], [0.1, 0.2], 0.1)
