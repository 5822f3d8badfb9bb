# SPDX-License-Identifier: Apache-2.0
"""The memory bank: moving means, numbers beyond it, one image twice, state. Two processes: test_batch_shuffle."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from monai_ssl.networks import MemoryBank


def draw(count: int, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_rows_are_moving_means_of_unit_vectors():
    bank, expected = MemoryBank(5, 3, momentum=0.7), {}
    for step, index in enumerate([[3, 1], [1, 4], [1, 3]]):
        x = draw(2, seed=step)
        bank.update(torch.tensor(index), x)
        for i, row in zip(index, normalize(x), strict=True):
            expected[i] = normalize(0.7 * expected[i] + 0.3 * row, dim=0) if i in expected else row
    rows, seen = bank.read(torch.arange(5))
    assert seen.tolist() == [False, True, False, True, True]
    for i, row in expected.items():
        torch.testing.assert_close(rows[i], row)
    assert not rows[[0, 2]].any()
    rows.fill_(9)
    assert bank.features.abs().max() <= 1, "read gives copies"


def test_an_image_that_comes_twice_counts_once():
    once, twice = MemoryBank(4, 3), MemoryBank(4, 3)
    x = normalize(draw(3))
    for _ in range(2):
        once.update(torch.tensor([2, 0]), torch.stack([x[:2].mean(0), x[2]]))
        twice.update(torch.tensor([2, 2, 0]), x)
    torch.testing.assert_close(twice.features[0], once.features[0])
    mean = normalize(x[:2].mean(0), dim=0)
    torch.testing.assert_close(twice.features[2], mean)


@pytest.mark.parametrize("index", [[0, 4], [-1, 2]])
def test_numbers_beyond_the_bank_are_named(index):
    bank, index = MemoryBank(4, 3), torch.tensor(index)
    for call in (lambda: bank.read(index), lambda: bank.update(index, draw(2))):
        with pytest.raises(ValueError, match=r"room for 4 images \(num_data\).*give num_data=len\(store\)"):
            call()
    assert not bank.seen.any()


def test_other_misuse_and_state():
    with pytest.raises(ValueError, match=r"numbers \(B,\) and features \(B, 3\), got \(2,\) and \(3, 3\)"):
        MemoryBank(4, 3).update(torch.tensor([0, 1]), draw(3))
    for arguments in ((0, 3), (4, 0), (4, 3, 1.0)):
        with pytest.raises(ValueError, match="a memory bank needs"):
            MemoryBank(*arguments)
    bank, other = MemoryBank(4, 3), MemoryBank(4, 3)
    bank.update(torch.tensor([1]), draw(1))
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.features, bank.features) and torch.equal(other.seen, bank.seen)
    x = draw(1).requires_grad_()
    bank.update(torch.tensor([1]), x)
    assert not bank.features.requires_grad
