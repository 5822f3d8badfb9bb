# SPDX-License-Identifier: Apache-2.0
"""The feature queue against a NumPy ring, its start, its state, and that it never copies itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from monai_ssl.networks import FeatureQueue


def test_ring_equals_numpy_after_many_odd_batches():
    queue = FeatureQueue(11, 3)
    expected, position, total = queue.features.numpy().copy(), 0, 0
    numbers = np.random.default_rng(0)
    for n in [1, 5, 0, 7, 11, 12, 22, 23, 40, 3, *numbers.integers(1, 30, 40)]:
        rows = torch.from_numpy(numbers.normal(size=(int(n), 3))).float()
        queue.enqueue(rows)
        for row in rows.numpy():  # the slow, obvious ring
            expected[position] = row
            position = (position + 1) % 11
        total += int(n)
        np.testing.assert_array_equal(queue.features.numpy(), expected)
        assert int(queue.position) == position and int(queue.total_enqueued) == total


def test_initial_entries_are_gone_after_as_many_steps_as_it_takes():
    queue = FeatureQueue(100, 4)
    start = queue.features.clone()
    for step in range(1, 5):
        queue.enqueue(torch.full((3 * 9, 4), float(step)))
        left = (queue.features == start).all(1).sum()
        assert left == max(0, 100 - 27 * step)


def test_uniform_start_is_that_of_the_released_code():
    queue = FeatureQueue(16384, 128, generator=torch.Generator().manual_seed(1))
    bound = 1 / np.sqrt(128 / 3)
    assert queue.features.abs().max() <= bound
    assert queue.features.abs().max() > 0.999 * bound
    assert abs(queue.features.norm(dim=1).mean() - 0.999) < 0.002  # reference value of the released code
    assert abs(queue.features.mean()) < 1e-3
    again = FeatureQueue(16384, 128, generator=torch.Generator().manual_seed(1))
    assert torch.equal(queue.features, again.features)


def test_unit_normal_start_has_norm_one():
    queue = FeatureQueue(1000, 16, init="unit_normal")
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(1000))
    assert queue.features.mean(0).abs().max() < 0.05


def test_state_round_trip_continues_at_the_same_place():
    queue, other = FeatureQueue(7, 2), FeatureQueue(7, 2)
    queue.enqueue(torch.randn(10, 2))
    other.load_state_dict(queue.state_dict())
    assert set(queue.state_dict()) == {"features", "groups", "position", "total_enqueued"}
    rows = torch.randn(5, 2)
    queue.enqueue(rows)
    other.enqueue(rows)
    assert torch.equal(queue.features, other.features) and int(other.total_enqueued) == 15


def test_no_gradient_no_parameters_no_copy():
    queue = FeatureQueue(8, 2)
    address = queue.features.data_ptr()
    rows = torch.randn(5, 2, requires_grad=True)
    queue.enqueue(rows * 2)
    assert not queue.features.requires_grad and not list(queue.parameters())
    assert queue.features.data_ptr() == address
    assert torch.equal(queue.features[:5], (rows * 2).detach())


def test_enqueue_before_backward_is_an_error_not_a_wrong_gradient():
    queue = FeatureQueue(8, 2)
    rows = torch.randn(3, 2, requires_grad=True)
    loss = mse_loss(rows @ queue.features.T, torch.zeros(3, 8))
    queue.enqueue(rows)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_half_precision_keys_are_stored_as_float32():
    queue = FeatureQueue(4, 2)
    queue.enqueue(torch.ones(3, 2, dtype=torch.bfloat16))
    assert queue.features.dtype == torch.float32 and queue.features[:3].eq(1).all()


def test_clear_errors():
    with pytest.raises(ValueError, match=r"shape \(N, 3\), got \(2, 4\)"):
        FeatureQueue(4, 3).enqueue(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="size and a dim of at least 1"):
        FeatureQueue(0, 3)
    with pytest.raises(ValueError, match=r"one group for each of 2 features, got \(3,\)"):
        FeatureQueue(4, 3).enqueue(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="init must be 'uniform' or 'unit_normal', got 'zeros'"):
        FeatureQueue(4, 3, init="zeros")


def test_the_groups_of_the_entries_go_round_with_them():
    queue, expected, position = FeatureQueue(5, 2), np.full(5, -1), 0
    for start, n in enumerate([3, 4, 7, 0, 2]):
        groups = torch.arange(n) + 10 * start
        queue.enqueue(torch.randn(n, 2), groups)
        for group in groups.tolist():
            expected[position] = group
            position = (position + 1) % 5
        np.testing.assert_array_equal(queue.groups.numpy(), expected)
    queue.enqueue(torch.randn(2, 2))
    assert (queue.groups == -1).sum() == 2, "entries without a group are unknown"
    assert not queue.groups.requires_grad and queue.groups.dtype == torch.int64


def test_entries_of_the_own_group_are_found_and_unknown_ones_equal_none():
    queue = FeatureQueue(4, 2)
    queue.enqueue(torch.randn(3, 2), torch.tensor([7, -5, 0], dtype=torch.int32))
    found = queue.of_group(torch.tensor([0, 7, -1, -5, 3]))
    assert found.tolist() == [
        [False, False, True, False],
        [True, False, False, False],
        *[[False] * 4] * 3,
    ]


def test_a_state_without_groups_loads_with_all_of_them_unknown():
    holder, old = nn.ModuleDict({"queue": FeatureQueue(4, 2)}), FeatureQueue(4, 2).state_dict()
    holder["queue"].enqueue(torch.randn(3, 2), torch.tensor([1, 2, 3]))
    del old["groups"]
    saved = {f"queue.{name}": value for name, value in old.items()}
    holder.load_state_dict(saved)
    assert holder["queue"].groups.tolist() == [-1] * 4
    assert set(saved) == {"queue.features", "queue.position", "queue.total_enqueued"}, "what was given stays as it was"
    with pytest.raises(RuntimeError, match=r"Missing key.*queue\.features"):
        holder.load_state_dict({"queue.position": old["position"]})
