# SPDX-License-Identifier: Apache-2.0
"""Crops on a grid and at random places: where they lie, what they show, how they overlap."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.transforms import box_overlap, cut_boxes, draw_box_centers, grid_box_centers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CASES = [((12, 16), (3, 4)), ((4, 9, 10), (1, 3, 2))]


@pytest.mark.parametrize(("spatial", "grid"), CASES)
def test_cells_of_a_grid_are_the_image_itself(spatial, grid):
    x = torch.rand(2, 3, *spatial, generator=seeded())
    sides = [size // cells for size, cells in zip(spatial, grid, strict=True)]
    crops = cut_boxes(x, grid_box_centers(spatial, grid), sides, sides)
    assert crops.shape == (2, torch.tensor(grid).prod(), 3, *sides)
    for number, cell in enumerate(torch.cartesian_prod(*[torch.arange(n) for n in grid]).tolist()):
        place = [slice(at * side, (at + 1) * side) for at, side in zip(cell, sides, strict=True)]
        torch.testing.assert_close(crops[:, number], x[(slice(None), slice(None), *place)], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("spatial", "grid"), CASES)
def test_overlaps_are_counted_voxels_and_sum_to_one(spatial, grid):
    sides = [size // cells for size, cells in zip(spatial, grid, strict=True)]
    starts = torch.stack(
        [torch.randint(0, n - s + 1, (2, 5), generator=seeded(n)) for n, s in zip(spatial, sides, strict=True)], 2
    )
    base = grid_box_centers(spatial, grid)
    overlap = box_overlap(starts + torch.tensor(sides) / 2, base, sides)
    torch.testing.assert_close(overlap.sum(2), torch.ones(2, 5))
    for i in range(2):
        for r in range(5):
            ours = torch.zeros(spatial)
            ours[tuple(slice(int(a), int(a) + s) for a, s in zip(starts[i, r], sides, strict=True))] = 1
            cells = cut_boxes(ours[None, None], base, sides, sides)[0, :, 0].flatten(1).mean(1)
            torch.testing.assert_close(overlap[i, r], cells, atol=1e-4, rtol=0)


def test_places_are_uniform_and_within_the_image():
    spatial, sides = (10, 40, 40), (10, 10.0, 13.3)
    centers = draw_box_centers(500, 4, spatial, sides, seeded())
    half = torch.tensor(sides) / 2
    assert (centers >= half - 1e-4).all() and (centers <= torch.tensor(spatial) - half + 1e-4).all()
    assert (centers[..., 0] == 5).all()
    scaled = (centers[..., 1:] - half[1:]) / (torch.tensor([40.0, 40.0]) - 2 * half[1:])
    assert scaled.mean((0, 1)).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert scaled.std((0, 1)).tolist() == pytest.approx([12**-0.5] * 2, abs=0.02)
    again = draw_box_centers(500, 4, spatial, sides, seeded())
    assert torch.equal(centers, again)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_crops_are_what_lies_at_their_place(spatial_dims):
    """On a ramp every crop's mean is the ramp at its centre, whatever the size it is brought to."""
    x = torch.arange(24.0).view(1, 1, *[1] * (spatial_dims - 1), 24).expand(2, 1, *[24] * spatial_dims)
    centers = draw_box_centers(2, 3, x.shape[2:], (9.0,) * spatial_dims, seeded())
    for size in (6, 9, 20):
        crops = cut_boxes(x, centers, (9.0,) * spatial_dims, (size,) * spatial_dims)
        torch.testing.assert_close(crops.flatten(2).mean(2), centers[..., -1] - 0.5, atol=0.05, rtol=0)
    half = cut_boxes(x.bfloat16(), centers, (9.0,) * spatial_dims, (9,) * spatial_dims)
    assert half.dtype == torch.bfloat16
