# SPDX-License-Identifier: Apache-2.0
"""DeLong's interval and test against the definition by pairs, a bootstrap, and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ssl.metrics import area_under_roc, bootstrap_interval, delong_interval, delong_test


def slow_components(y: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel of every pair of a positive and a negative sample, averaged over the other kind."""
    x, z = s[y == 1], s[y == 0]
    kernel = (x[:, None] > z) + 0.5 * (x[:, None] == z)
    return kernel.mean(axis=1), kernel.mean(axis=0)


def drawn(seed: int, n: int = 60, decimals: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    return y, (rng.normal(size=n) + y).round(decimals), (rng.normal(size=n) + 0.5 * y).round(decimals)


@pytest.mark.parametrize("seed", range(5))
def test_area_and_variance_are_those_of_the_definition(seed):
    y, a, b = drawn(seed)
    found = delong_interval(y, a)
    assert found.value == pytest.approx(area_under_roc(y, a))
    (a10, a01), (b10, b01) = slow_components(y, a), slow_components(y, b)
    variance = a10.var(ddof=1) / len(a10) + a01.var(ddof=1) / len(a01)
    assert found.standard_error == pytest.approx(variance**0.5)
    paired = delong_test(y, a, b)
    difference = (a10 - b10).var(ddof=1) / len(a10) + (a01 - b01).var(ddof=1) / len(a01)
    assert paired.value == pytest.approx(a10.mean() - b10.mean())
    assert paired.standard_error == pytest.approx(difference**0.5)
    assert delong_test(y, b, a).p_value == pytest.approx(paired.p_value)


def test_each_sample_its_own_patient_is_no_patients():
    y, a, b = drawn(0)
    names = np.array([f"p{i}" for i in range(len(y))])
    assert delong_test(y, a, b, groups=names).standard_error == pytest.approx(delong_test(y, a, b).standard_error)


def test_copied_images_of_a_patient_tell_nothing_new():
    y, a, _ = drawn(1)
    patients = np.arange(len(y))
    twice = [np.tile(part, 2) for part in (y, a, patients)]
    alone, copied = delong_interval(y, a), delong_interval(twice[0], twice[1], groups=twice[2])
    assert copied.value == pytest.approx(alone.value)
    assert copied.standard_error == pytest.approx(alone.standard_error)
    assert delong_interval(twice[0], twice[1]).standard_error < 0.8 * alone.standard_error


def test_patients_with_both_labels_agree_with_the_cluster_bootstrap():
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(80), 4)
    y = (rng.random(320) < 0.4).astype(int)
    s = y + rng.normal(size=80)[patients] + rng.normal(size=320)
    found = delong_interval(y, s, groups=patients)
    drawn_again = bootstrap_interval(area_under_roc, y, s, groups=patients, n=1500)
    assert found.high - found.low == pytest.approx(drawn_again.high - drawn_again.low, rel=0.1)


def test_the_null_is_rejected_as_often_as_promised():
    rejected = sum(
        delong_test(y, rng.normal(size=120) + y, rng.normal(size=120) + y).p_value < 0.05
        for rng in map(np.random.default_rng, range(400))
        for y in [np.arange(120) % 2]
    )
    assert 8 <= rejected <= 34  # 20 expected, 3 standard deviations


def test_degenerate_scores():
    y = np.array([0, 0, 0, 1, 1, 1])
    perfect = delong_interval(y, y.astype(float))
    assert (perfect.value, perfect.low, perfect.high) == (1.0, 1.0, 1.0)
    assert delong_test(y, y, y).p_value == 1.0
    constant = delong_interval(y, np.zeros(6))
    assert constant.value == 0.5 and constant.standard_error == 0


def test_unknown_labels_do_not_count():
    y, a, b = drawn(3)
    more = np.concatenate([y, [-1, np.nan]]), np.concatenate([a, [np.nan, 9.0]]), np.concatenate([b, [0.0, 0.0]])
    assert delong_test(*more) == delong_test(y, a, b)


@pytest.mark.parametrize(
    ("y", "s", "options", "message"),
    [
        ([0, 0, 0], [1, 2, 3], {}, "two samples that are positive"),
        ([0, 0, 1, 1], [1, 2, 3, 4], {"groups": ["a", "b", "c", "c"]}, "two patients that are positive"),
        ([0, 1, 2], [1, 2, 3], {}, "0 and 1"),
        ([0, 1], [1, 2, 3], {}, "shape"),
        ([0, 0, 1, 1], [1, np.nan, 3, 4], {}, "NaN"),
        ([0, 0, 1, 1], [1, 2, 3, 4], {"confidence": 1.0}, "confidence"),
    ],
)
def test_bad_input_is_named(y, s, options, message):
    with pytest.raises(ValueError, match=message):
        delong_interval(np.array(y), np.array(s, dtype=float), **options)
