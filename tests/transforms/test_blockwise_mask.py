# SPDX-License-Identifier: Apache-2.0
"""Block-wise masks: exact counts, whole blocks, and what the generator decides."""

from __future__ import annotations

import math

import pytest
import torch

from monai_ssl.transforms import draw_block_mask, draw_blockwise_mask, masked_counts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", [(14, 14), (9, 5), (6, 6, 6), (2, 3), (1, 4)])
def test_exactly_as_many_patches_are_masked_as_asked_for(grid):
    patches = math.prod(grid)
    counts = [0, 1, patches // 3, patches // 2, patches - 1, patches]
    mask = draw_blockwise_mask(counts, grid, generator())
    assert mask.shape == (6, 1, *grid) and mask.dtype == torch.bool
    assert mask.flatten(1).sum(1).tolist() == counts


def neighbours_alike(mask: torch.Tensor) -> float:
    """Share of a masked patch's neighbours that are masked too, over the axes."""
    pairs = [(mask.narrow(a, 0, mask.shape[a] - 1), mask.narrow(a, 1, mask.shape[a] - 1)) for a in range(2, mask.ndim)]
    both = sum((a & b).sum().item() for a, b in pairs)
    either = sum((a | b).sum().item() for a, b in pairs)
    return both / either


@pytest.mark.parametrize("grid", [(14, 14), (8, 8, 8)])
def test_masked_patches_lie_together(grid):
    patches = math.prod(grid)
    blocks = draw_blockwise_mask([patches * 3 // 10] * 50, grid, generator())
    scattered = draw_block_mask(50, grid, 0.3, generator())
    assert neighbours_alike(blocks) > 0.5 > 2 * neighbours_alike(scattered)


def test_one_small_count_is_one_box():
    for seed in range(20):
        mask = draw_blockwise_mask([4], (8, 8), generator(seed), aspect=1.0)[0, 0]
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == 1, mask


def test_every_place_can_be_masked_and_samples_differ():
    mask = draw_blockwise_mask([12] * 400, (6, 6), generator())
    often = mask.float().mean((0, 1))
    assert often.min() > 0.02 and often.sum().item() == pytest.approx(12, rel=1e-5)
    torch.testing.assert_close(often, often.flip(0), atol=0.12, rtol=0)
    torch.testing.assert_close(often, often.T, atol=0.12, rtol=0)
    assert len({tuple(row) for row in mask.flatten(1).tolist()}) > 300


def test_the_generator_decides():
    first, same, other = (draw_blockwise_mask([5, 9], (5, 5), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    state = torch.random.get_rng_state()
    draw_blockwise_mask([5], (5, 5), generator())
    assert torch.equal(state, torch.random.get_rng_state())


def test_counts_are_spread_over_the_range():
    counts = masked_counts(200, 1000, 0.5, (0.1, 0.5))
    masked = [count for count in counts if count]
    assert len(masked) == 100 and min(masked) == 102 and max(masked) == 498
    assert sum(masked) / 100 == pytest.approx(300, abs=1)
    assert masked_counts(1, 10, 0.5, (0.1, 0.5)) == [3]
    assert masked_counts(2, 2, 1.0, (0.01, 0.02)) == [1, 1] == masked_counts(2, 2, 1.0, (0.98, 0.99))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: draw_blockwise_mask([26], (5, 5)), "counts must be from 0 to the grid's 25 patches"),
        (lambda: draw_blockwise_mask([], (5, 5)), "counts must be"),
        (lambda: draw_blockwise_mask([2], (5, 5), min_block=0), "min_block must be at least 1"),
        (lambda: draw_blockwise_mask([2], (5, 5), aspect=0), r"aspect in \(0, 1\]"),
        (lambda: masked_counts(4, 16, 0.0, (0.1, 0.5)), "share must be"),
        (lambda: masked_counts(4, 16, 0.5, (0.5, 0.1)), "lowest first"),
        (lambda: masked_counts(4, 1, 0.5, (0.1, 0.5)), "one patch"),
    ],
)
def test_plain_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
