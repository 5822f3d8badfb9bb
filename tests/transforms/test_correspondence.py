# SPDX-License-Identifier: Apache-2.0
"""Pairs of cells that show the same place: by brute force, deformed, on large maps, and where there are none."""

from __future__ import annotations

import math

import pytest
import torch

from monai_ssl.transforms import (
    RandomResample,
    ViewChain,
    cell_diagonal,
    draw_overlapping_cells,
    nearest_cells,
    same_place,
)

every_dim = pytest.mark.parametrize("dims", [2, 3])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def read(dims: int, size, stride=1, seed=0, shape=None, **options) -> torch.Tensor:
    """Positions of a batch of random views of an image of 64 (2D) or 40 pixels a side."""
    shape = (3, 1, *[64 if dims == 2 else 40] * dims) if shape is None else shape
    defaults = {"scale": (0.3, 0.6), "rotation_deg": 15, "flip_prob": [0.5] * dims, "elastic": 0.3}
    chain = ViewChain([RandomResample(size, **defaults | options)])
    return chain.positions(shape, chain.draw(shape, seeded(seed)), stride)


def brute_force(points, positions) -> torch.Tensor:
    """(B, P) distances to the nearest cell, cell by cell."""
    apart = (points[:, :, :, None] - positions.flatten(2)[:, :, None]).norm(dim=1)
    return apart.nan_to_num(math.inf).amin(2)


@every_dim
def test_nearest_cells_of_small_and_large_maps(dims):
    """The large ones are searched in two steps."""
    for size in ((16, 20, 12)[:dims], (300, 240) if dims == 2 else (48, 40, 44)):
        positions = read(dims, size, seed=1)
        points = read(dims, size, seed=2).flatten(2)
        points = points.gather(2, torch.randint(points.shape[2], (3, 1, 30), generator=seeded()).expand(-1, dims, -1))
        number = nearest_cells(points, positions)
        found = positions.flatten(2).gather(2, number[:, None].expand(-1, dims, -1))
        apart, least = (found - points).norm(dim=1), brute_force(points, positions)
        step = cell_diagonal(positions)[:, None]
        close = (least < step) & points.isfinite().all(1)  # others lie outside the view: nothing shows them
        assert close.float().mean() > 0.3
        torch.testing.assert_close(apart[close], least[close], atol=1e-4, rtol=0)


@every_dim
def test_the_diagonal_is_that_of_the_crop(dims):
    shape = (4, 1, *[48] * dims)
    transform = RandomResample(12, rotation_deg=30, flip_prob=0.5)
    params = transform.draw(shape, seeded())
    expected = (params["crop"] / 6).norm(dim=1)  # six cells of two pixels each along each axis
    inside = transform.positions(shape, params, (6,) * dims)
    torch.testing.assert_close(cell_diagonal(inside), expected, rtol=1e-4, atol=0)
    fine = transform.positions(shape, params, (200, 100) if dims == 2 else (40, 20, 30))
    shares = torch.tensor([6 / n for n in fine.shape[2:]])
    torch.testing.assert_close(cell_diagonal(fine), (params["crop"] / 6 * shares).norm(dim=1), rtol=1e-3, atol=0)
    assert cell_diagonal(inside[(..., *[slice(1)] * dims)]).tolist() == [0.0] * 4
    holes = inside.clone()
    holes[:, :, :2] = torch.nan
    torch.testing.assert_close(cell_diagonal(holes), expected, rtol=1e-4, atol=0)


def test_pairs_are_what_the_papers_rule_says():
    """Two crops of a row of pixels, written out: cells of 4 pixels at 2, 6, 10 and of 8 pixels at 6, 14."""
    fine = torch.tensor([2.0, 6.0, 10.0]).view(1, 1, 3)
    coarse = torch.tensor([6.0, 14.0, torch.nan]).view(1, 1, 3)
    same = same_place(fine, coarse, torch.tensor([0.7 * 8]))
    assert same[0].tolist() == [[True, False, False], [True, False, False], [True, True, False]]


@every_dim
def test_drawn_cells_lie_in_the_other_view_and_are_all_equally_likely(dims):
    first, second = (read(dims, 8, seed=seed, rotation_deg=0, elastic=0, scale=(0.2, 0.4)) for seed in (3, 4))
    sides = [(p.flatten(2).amin(2), p.flatten(2).amax(2)) for p in (first, second)]
    flat = first.flatten(2)
    within = ((flat >= sides[1][0][..., None]) & (flat <= sides[1][1][..., None])).all(1)  # (B, cells)
    counts = torch.zeros_like(within, dtype=torch.float)
    count, rounds = 5, 400
    generator = seeded()
    for _ in range(rounds):
        cells = draw_overlapping_cells(first, second, count, generator)
        assert all(len(set(row)) == count for row in cells.tolist())
        counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=torch.float))
    enough = within.sum(1) > 2 * count
    assert enough.any()
    assert not counts[enough][~within[enough]].any(), "drawn from beside the overlap"
    expected = rounds * count / within.sum(1, keepdim=True)
    off = ((counts - expected) / expected.sqrt())[enough[:, None] & within]
    assert off.abs().max() < 5


def test_views_that_do_not_meet_have_no_pair():
    axes = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"))[None]
    cells = draw_overlapping_cells(axes, axes + 20, 6, seeded())
    points = axes.flatten(2).gather(2, cells[:, None].expand(-1, 2, -1))
    keys = nearest_cells(points, axes + 20)
    found = (axes + 20).flatten(2).gather(2, keys[:, None].expand(-1, 2, -1))
    assert not same_place(points, found, torch.tensor([0.7 * 2**0.5])).any()
    nowhere = torch.full_like(axes, torch.nan)
    assert nearest_cells(nowhere.flatten(2), axes).max() < 16
    assert draw_overlapping_cells(nowhere, axes, 6, seeded()).shape == (1, 6)
    assert not same_place(nowhere.flatten(2), axes.flatten(2), torch.tensor([100.0])).any()
