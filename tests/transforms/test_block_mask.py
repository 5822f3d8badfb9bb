# SPDX-License-Identifier: Apache-2.0
"""Block masks: exact counts, uniform choice, only eligible blocks, and their way to voxels and feature maps."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.transforms import block_grid, blocks_at, blocks_with, count_masked, draw_block_mask, expand_blocks

GRIDS = [(4, 6), (2, 3, 4)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.25, 0.6, 0.75, 0.9])
def test_every_sample_has_exactly_its_share(grid, ratio):
    mask = draw_block_mask(5, grid, ratio, seeded())
    assert mask.shape == (5, 1, *grid) and mask.dtype == torch.bool
    assert mask.flatten(1).sum(1).tolist() == [round(24 * ratio)] * 5
    assert count_masked(24, ratio) == round(24 * ratio)


def test_the_generator_decides_and_samples_differ():
    first, again, other = (draw_block_mask(4, (4, 4), 0.5, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_every_block_is_masked_equally_often():
    often = draw_block_mask(4000, (2, 2, 3), 0.75, seeded()).float().mean(0)
    torch.testing.assert_close(often, torch.full_like(often, 0.75), rtol=0, atol=0.03)


@pytest.mark.parametrize("grid", GRIDS)
def test_only_eligible_blocks_are_masked_and_their_share_is_exact(grid):
    eligible = torch.rand(6, 1, *grid, generator=seeded(3)) < 0.6
    eligible[0], eligible[1] = False, True
    mask = draw_block_mask(6, grid, 0.75, seeded(), eligible=eligible)
    assert not (mask & ~eligible).any()
    assert mask.flatten(1).sum(1).tolist() == [round(0.75 * n) for n in eligible.flatten(1).sum(1).tolist()]


@pytest.mark.parametrize("grid, side", [((3, 2), (4, 5)), ((3, 2), 4), ((2, 3, 2), (2, 3, 4))])
def test_blocks_to_voxels_and_back(grid, side):
    mask = draw_block_mask(3, grid, 0.5, seeded())
    voxels = expand_blocks(mask, side)
    sides = (side,) * len(grid) if isinstance(side, int) else side
    expected = mask
    for axis, repeats in enumerate(sides):
        expected = expected.repeat_interleave(repeats, dim=2 + axis)
    assert torch.equal(voxels, expected)
    assert block_grid(voxels.shape[2:], side) == grid
    assert torch.equal(blocks_with(voxels, side), mask)


def test_one_valid_voxel_makes_a_block_eligible():
    valid = torch.zeros(1, 1, 8, 12, dtype=torch.bool)
    valid[0, 0, 5, 11] = True
    assert blocks_with(valid, 4).nonzero().tolist() == [[0, 0, 1, 2]]


def test_masks_at_the_size_of_feature_maps():
    mask = torch.tensor([[True, False], [False, False]]).view(1, 1, 2, 2)
    assert torch.equal(blocks_at(mask, (2, 2)), mask)
    assert torch.equal(blocks_at(mask, (4, 6)), expand_blocks(mask, (2, 3)))
    assert blocks_at(mask, (1, 1)).all()
    volume = draw_block_mask(2, (2, 2, 2), 0.5, seeded())
    assert torch.equal(blocks_at(volume, (4, 4, 8)), expand_blocks(volume, (2, 2, 4)))


def test_clear_errors():
    with pytest.raises(ValueError, match=r"image size \(30, 32\) must be a multiple of the block size \(16, 16\)"):
        block_grid((30, 32), 16)
    with pytest.raises(ValueError, match="one positive integer or 3 of them"):
        block_grid((32, 32, 32), (16, 16))
    with pytest.raises(ValueError, match="mask_ratio must be greater than 0"):
        draw_block_mask(1, (4, 4), 1.0)
    with pytest.raises(ValueError, match="would mask 1 of 1 blocks; take larger images"):
        draw_block_mask(1, (1, 1), 0.75)
    with pytest.raises(ValueError, match=r"eligible must have shape \(2, 1, 4, 4\)"):
        draw_block_mask(2, (4, 4), 0.5, eligible=torch.ones(2, 1, 4, 2, dtype=torch.bool))
