# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from monai_ssl.metrics import area_under_roc, bootstrap_difference, bootstrap_interval


def clustered(seed, patients=30, images=6):
    """Patients of several images that are nearly alike; the true mean is 0."""
    generator = np.random.default_rng(seed)
    values = np.repeat(generator.normal(size=patients), images) + 0.1 * generator.normal(size=patients * images)
    return values, np.repeat(np.arange(patients), images)


def test_mean_has_the_width_that_theory_gives():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(np.mean, values, n=2000)
    assert interval.value == values.mean()
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (interval.resamples, interval.undefined, interval.p_value) == (2000, 0, None)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap_interval(np.mean, generator.exponential(size=60), n=200, confidence=0.9, seed=trial)
        hits += interval.low <= 1 <= interval.high
    assert 0.82 <= hits / 200 <= 0.96


def test_only_resampling_patients_covers_the_truth_when_images_repeat():
    hits = {"patients": 0, "images": 0}
    for trial in range(100):
        values, patients = clustered(trial)
        for name, groups in {"patients": patients, "images": None}.items():
            interval = bootstrap_interval(np.mean, values, groups=groups, n=200, seed=trial)
            hits[name] += interval.low <= 0 <= interval.high
    assert hits["patients"] >= 86
    assert hits["images"] <= 75


def test_groups_are_drawn_whole_whatever_their_order_size_and_type():
    names = np.array(["b", "a", "c", "a", "b", "a"])

    def whole(drawn):
        counts = {name: int((drawn == name).sum()) for name in "abc"}
        assert counts["a"] % 3 == counts["b"] % 2 == 0
        assert counts["a"] // 3 + counts["b"] // 2 + counts["c"] == 3
        return float(len(drawn))

    interval = bootstrap_interval(whole, names, groups=names, n=50)
    assert interval.low < interval.value < interval.high


def test_rows_of_all_arrays_stay_together():
    a = np.arange(20)

    def same(x, y):
        assert (y == x[:, None] * np.array([2, 3])).all()
        return x.mean()

    bootstrap_interval(same, a, np.stack([2 * a, 3 * a], axis=1), n=20)


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=50)
    first = bootstrap_interval(np.mean, values, n=50, seed=1)
    assert bootstrap_interval(np.mean, values, n=50, seed=1) == first
    assert bootstrap_interval(np.mean, values, n=50, seed=2) != first
    each_alone = bootstrap_interval(np.mean, values, n=50, seed=1, groups=np.arange(50))
    assert each_alone == first


def test_resamples_without_a_class_are_counted_out():
    y = np.array([1] + [0] * 9)
    scores = np.arange(10)[::-1]
    interval = bootstrap_interval(area_under_roc, y, scores, n=400)
    assert interval.undefined == pytest.approx(400 * 0.9**10, abs=60)
    assert interval.resamples + interval.undefined == 400
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


def test_an_interval_of_too_few_resamples_is_refused():
    def fragile(x):
        if len(np.unique(x)) < 5:
            raise ValueError("needs all five")
        return x.mean()

    with pytest.raises(ValueError, match=r"not defined on \d+ of 100 resamples"):
        bootstrap_interval(fragile, np.arange(5), n=100)


def test_difference_is_paired():
    generator = np.random.default_rng(0)
    y = generator.integers(2, size=150)
    hard = generator.normal(size=150)
    a, b = y + hard, 0.8 * y + hard  # b is a little worse on every sample, both struggle with the same ones
    paired = bootstrap_difference(area_under_roc, y, a, b, n=300)
    assert paired.value == pytest.approx(area_under_roc(y, a) - area_under_roc(y, b))
    assert paired.low > 0
    assert paired.p_value == pytest.approx(2 / 301)
    single = [bootstrap_interval(area_under_roc, y, scores, n=300) for scores in (a, b)]
    assert single[1].high > single[0].low  # separate intervals overlap and would have missed it


def test_difference_of_a_model_with_itself_and_its_sign():
    generator = np.random.default_rng(0)
    y, a, b = generator.integers(2, size=60), generator.normal(size=60), generator.normal(size=60)
    nothing = bootstrap_difference(area_under_roc, y, a, a, n=100)
    assert (nothing.value, nothing.low, nothing.high, nothing.p_value) == (0, 0, 0, 1)
    there, back = (bootstrap_difference(area_under_roc, y, *pair, n=100) for pair in ((a, b), (b, a)))
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high)
    assert there.p_value == pytest.approx(back.p_value)


def test_reads_well():
    assert str(bootstrap_interval(np.mean, np.ones(5), n=10)) == "1.000 (1.000 to 1.000)"


def test_refuses_what_cannot_be():
    values = np.arange(5.0)
    with pytest.raises(ValueError, match="same number of samples"):
        bootstrap_interval(np.mean, values, groups=np.arange(4))
    with pytest.raises(ValueError, match="at least two independent"):
        bootstrap_interval(np.mean, values, groups=np.zeros(5))
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        bootstrap_interval(np.mean, values, confidence=95)
    with pytest.raises(ValueError, match="n must be at least 1"):
        bootstrap_interval(np.mean, values, n=0)
    with pytest.raises(ValueError, match="no positive"):
        bootstrap_interval(area_under_roc, np.zeros(5), values)
