# SPDX-License-Identifier: Apache-2.0
"""The order of patches: endless, even, weighted, shared by processes and resumed anywhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from monai_ssl.data import PatchSampler, sampling_weights


def epochs(sampler, count) -> list[list[int]]:
    orders = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


@pytest.mark.parametrize(("volumes", "length"), [(7, 20), (20, 7), (5, 5), (1, 4)])
def test_all_volumes_come_equally_often_and_no_code_twice(volumes, length):
    orders = epochs(PatchSampler(volumes, length), 12)
    assert all(len(order) == length for order in orders)
    codes = np.concatenate(orders)
    assert len(np.unique(codes)) == len(codes)
    seen = np.bincount(codes % volumes, minlength=volumes)
    assert seen.max() - seen.min() <= 1
    assert np.array_equal(codes // volumes, np.arange(12 * length) // volumes), "the draw is the number of the pass"
    if volumes > 1:
        assert orders[0] != sorted(orders[0]) or orders[1] != sorted(orders[1])
        assert epochs(PatchSampler(volumes, length, seed=1), 12) != orders


def test_weights_are_met_in_every_epoch_as_nearly_as_whole_numbers_can():
    weights = np.array([5.0, 0.0, 1.0, 0.25, 3.0])
    sampler = PatchSampler(5, 37, weights=weights)
    orders = epochs(sampler, 200)
    codes = np.concatenate(orders)
    assert len(np.unique(codes)) == len(codes)
    wanted = 37 * weights / weights.sum()
    counts = np.array([np.bincount(np.array(order) % 5, minlength=5) for order in orders])
    assert (np.abs(counts - wanted) < 1 + 1e-9).all() and not counts[:, 1].any()
    np.testing.assert_allclose(counts.mean(0), wanted, atol=0.1)
    volumes = np.array([np.array(order) % 5 for order in orders])
    assert np.abs(np.mean(volumes == 0, axis=0) - wanted[0] / 37).max() < 0.15, "in random order"


@pytest.mark.parametrize("weights", [None, [1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_order_of_one(weights, world):
    alone = epochs(PatchSampler(6, 12, weights=weights), 3)
    parts = [epochs(PatchSampler(6, 12, weights=weights, rank=rank, world=world), 3) for rank in range(world)]
    for epoch in range(3):
        together = np.array([part[epoch] for part in parts]).T.ravel()
        assert together.tolist() == alone[epoch]
    assert [len(PatchSampler(6, 13, rank=rank, world=2)) for rank in (0, 1)] == [6, 6]


@pytest.mark.parametrize("weights", [None, [1, 2, 3, 4, 5, 6]])
def test_resumed_at_any_position_also_with_more_processes(weights):
    sampler = PatchSampler(6, 12, seed=3, weights=weights)
    sampler.set_epoch(5)
    whole = list(sampler)
    state = sampler.state_dict() | {"position": 4}
    resumed = PatchSampler(6, 12, seed=3, weights=weights)
    resumed.load_state_dict(state)
    assert list(resumed) == whole[4:] and resumed.epoch == 5
    pair = [PatchSampler(6, 12, seed=3, weights=weights, rank=rank, world=2) for rank in (0, 1)]
    for part in pair:
        part.load_state_dict(state)
    assert np.array([list(part) for part in pair]).T.ravel().tolist() == whole[4:]
    resumed.set_epoch(6)
    assert resumed.position == 0
    resumed.load_state_dict(state | {"position": 99})
    assert list(resumed) == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_samples": 7}, {"length": 13}, {"weights": [1] * 6}])
def test_a_state_of_another_order_is_an_error(change):
    options = {"num_samples": 6, "length": 12, "seed": 0}
    state = PatchSampler(**options).state_dict()
    with pytest.raises(ValueError, match=f"the sampler's {next(iter(change))} was"):
        PatchSampler(**options | change).load_state_dict(state)
    with pytest.raises(ValueError, match="position is -1"):
        PatchSampler(**options).load_state_dict(state | {"position": -1})


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 0},
        {"length": 1, "world": 2},
        {"seed": -1},
        {"rank": 1},
        {"weights": [1, 2]},
        {"weights": [1, -1, 1]},
        {"weights": [0, 0, 0]},
        {"weights": [1, np.nan, 1]},
    ],
)
def test_wrong_arguments(options):
    with pytest.raises(ValueError):
        PatchSampler(**{"num_samples": 3, "length": 5} | options)


def store_of(**columns):
    return SimpleNamespace(table=pa.table(columns), folder="store")


def test_groups_get_equal_shares_or_tempered_ones():
    store = store_of(modality=["CT"] * 9 + ["MR"], site=["a"] * 5 + ["b"] * 4 + [None])
    weights = sampling_weights(store)
    np.testing.assert_allclose(weights, [0.5 / 9] * 9 + [0.5])
    np.testing.assert_allclose(sampling_weights(store, temper=0), 0.1)
    half = sampling_weights(store, temper=0.5)
    np.testing.assert_allclose([half[:9].sum(), half[9]], [0.75, 0.25])
    np.testing.assert_allclose(sampling_weights(store, [0, 1, 9]), [0.25, 0.25, 0.5])
    by_both = sampling_weights(store, by=("modality", "site"))
    np.testing.assert_allclose([by_both[:5].sum(), by_both[5:9].sum(), by_both[9]], [1 / 3] * 3)
    np.testing.assert_allclose(sampling_weights(store, by="site"), by_both)
    with pytest.raises(ValueError, match="did you mean 'modality'"):
        sampling_weights(store, by="modalty")
    with pytest.raises(ValueError, match="temper is 2"):
        sampling_weights(store, temper=2)


@pytest.mark.parametrize("weights", [None, [1, 2, 3, 4, 5, 6]])
def test_several_places_of_a_volume_follow_each_other(weights):
    sampler = PatchSampler(6, 24, weights=weights, places_per_volume=4)
    orders = epochs(sampler, 5)
    codes = np.concatenate(orders)
    assert len(np.unique(codes)) == len(codes) == 120
    volumes = (codes % 6).reshape(-1, 4)
    assert (volumes == volumes[:, :1]).all()
    if weights is None:
        assert np.bincount(volumes[:, 0]).tolist() == [5] * 6
    state = sampler.state_dict() | {"position": 7}
    with pytest.raises(ValueError, match="places_per_volume"):
        PatchSampler(6, 24, weights=weights).load_state_dict(state)
    with pytest.raises(ValueError, match="multiple"):
        PatchSampler(6, 26, places_per_volume=4)
