# SPDX-License-Identifier: Apache-2.0
"""The fixed-length order of labelled images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from monai_ssl.evaluation.sampling import FixedLengthSampler


def epochs(sampler: FixedLengthSampler, count: int) -> list[list[int]]:
    drawn = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


@pytest.mark.parametrize(("num_samples", "length"), [(14, 100), (100, 32), (7, 7)])
def test_every_sample_equally_often(num_samples, length):
    drawn = epochs(FixedLengthSampler(num_samples, length), 21)
    assert all(len(epoch) == length for epoch in drawn)
    counts = Counter(i for epoch in drawn for i in epoch)
    assert set(counts) == set(range(num_samples))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert drawn[0] != drawn[1]


def test_balanced_classes_share_each_epoch():
    classes = np.array([0] * 50 + [1] * 5 + [2] * 20)
    for epoch in epochs(FixedLengthSampler(75, 60, classes=classes), 4):
        assert Counter(classes[epoch].tolist()) == {0: 20, 1: 20, 2: 20}
    everything = [i for epoch in epochs(FixedLengthSampler(75, 60, classes=classes), 5) for i in epoch]
    assert set(everything) == set(range(75))


def test_resumes_at_any_position_and_depends_on_the_seed():
    sampler = FixedLengthSampler(10, 24, seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    other = FixedLengthSampler(10, 24, seed=3)
    other.load_state_dict(sampler.state_dict() | {"position": 9})
    assert list(other) == whole[9:]
    assert epochs(FixedLengthSampler(10, 24, seed=4), 3)[2] != whole


def test_processes_share_one_order():
    parts = [epochs(FixedLengthSampler(10, 24, rank=rank, world=2), 1)[0] for rank in range(2)]
    whole = epochs(FixedLengthSampler(10, 24), 1)[0]
    assert [i for pair in zip(*parts, strict=True) for i in pair] == whole


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"length": 1, "world": 2}, {"rank": 1}, {"classes": [0, 1]}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="must"):
        FixedLengthSampler(**{"num_samples": 5, "length": 8, **wrong})
