# SPDX-License-Identifier: Apache-2.0
"""Calibration errors against slow loops and known cases."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ssl.metrics import calibration_per_class, expected_calibration_error


def slow_error(p: np.ndarray, happened: np.ndarray, num_bins: int) -> float:
    total = 0.0
    for b in range(num_bins):
        inside = (p >= b / num_bins) & ((p < (b + 1) / num_bins) | ((b == num_bins - 1) & (p == 1)))
        if inside.any():
            total += inside.sum() * abs(happened[inside].mean() - p[inside].mean())
    return total / len(p)


def drawn(classes: int = 3, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, classes, n), rng.dirichlet(np.ones(classes), n)


def test_top_label_binary_and_findings_match_slow_loops():
    y, p = drawn()
    top = slow_error(p.max(1), (p.argmax(1) == y).astype(float), 10)
    assert expected_calibration_error(y, p, num_bins=10) == pytest.approx(top)
    findings = (np.random.default_rng(1).random(p.shape) < p).astype(int)
    columns = [slow_error(p[:, k], findings[:, k], 10) for k in range(3)]
    np.testing.assert_allclose(calibration_per_class(findings, p, num_bins=10), columns)
    assert expected_calibration_error(findings, p, num_bins=10) == pytest.approx(np.mean(columns))
    assert expected_calibration_error(findings[:, 0], p[:, 0], num_bins=10) == pytest.approx(columns[0])
    one_hot = np.eye(3, dtype=int)[y]
    np.testing.assert_allclose(calibration_per_class(y, p), calibration_per_class(one_hot, p))


def test_bins_of_equal_mass():
    rng = np.random.default_rng(2)
    p = rng.beta(8, 1, 400)  # nearly all in the last bins of equal width
    y = (rng.random(400) < p**2).astype(int)
    order = np.argsort(p)
    slow = sum(abs(y[part].sum() - p[part].sum()) for part in np.array_split(order, 8)) / 400
    assert expected_calibration_error(y, p, num_bins=8, binning="mass") == pytest.approx(slow, abs=0.01)
    assert expected_calibration_error(y, np.full(400, 0.5), binning="mass") == pytest.approx(abs(y.mean() - 0.5))


def test_sure_and_wrong_is_the_worst():
    assert expected_calibration_error(np.array([0, 0]), np.array([1.0, 1.0])) == 1
    assert expected_calibration_error(np.array([1, 1]), np.array([1.0, 1.0])) == 0


def test_probabilities_that_keep_their_promise_are_calibrated():
    rng = np.random.default_rng(3)
    p = rng.random(20000)
    y = (rng.random(20000) < p).astype(int)
    assert expected_calibration_error(y, p) < 0.015
    assert expected_calibration_error(y, p**3) > 0.2


def test_unknown_labels():
    y, p = drawn()
    shown = expected_calibration_error(np.append(y, -1), np.vstack([p, [1, 0, 0]]))
    assert shown == expected_calibration_error(y, p)
    assert np.isnan(expected_calibration_error(np.array([-1, np.nan]), np.array([0.1, 0.2])))


@pytest.mark.parametrize(
    ("y", "p", "options", "message"),
    [
        ([0, 1], [0.1, 1.2], {}, r"\[0, 1\]"),
        ([0, 2], [0.1, 0.2], {}, "0 .. 1"),
        ([0, 1, 1], [0.1, 0.2], {}, "fit together"),
        ([0, 1], [0.1, 0.2], {"num_bins": 0}, "num_bins"),
        ([0, 1], [0.1, 0.2], {"binning": "size"}, "binning"),
    ],
)
def test_bad_input_is_named(y, p, options, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(np.array(y), np.array(p), **options)
