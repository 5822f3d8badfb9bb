# SPDX-License-Identifier: Apache-2.0
"""Shuffling stays within windows, keeps every window's histogram, and touches the stated share."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.transforms import RandomLocalShuffle


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def window_numbers(params: dict, spatial: tuple[int, ...]) -> torch.Tensor:
    """(B, *spatial): the number of each voxel's window, from where it starts along each axis."""
    n = len(spatial)
    number = torch.zeros(1, dtype=torch.long)
    for axis, size in enumerate(spatial):
        view = [-1, *[size if i == axis else 1 for i in range(n)]]
        number = number * size + params[f"start_{axis}"].view(view)
    return number


@pytest.mark.parametrize("shape", [(4, 1, 40, 31), (3, 2, 12, 22, 21)])
def test_every_window_is_permuted_within_itself(shape):
    transform = RandomLocalShuffle(prob=1, fraction=0.25, coverage=1)
    x = torch.rand(shape, generator=seeded(1))
    params = transform.draw(shape, seeded(2))
    y = transform.apply(x, params)
    windows = window_numbers(params, shape[2:])
    for i in range(shape[0]):
        for number in windows[i].unique()[:60]:
            inside = windows[i] == number
            assert torch.equal(x[i][:, inside].sort(1)[0], y[i][:, inside].sort(1)[0])
        # All channels move alike: values of one voxel stay together.
        pairs = [{tuple(v) for v in image.flatten(1).T.tolist()} for image in (x[i], y[i])]
        assert pairs[0] == pairs[1]
    assert 0.8 < (x != y).float().mean() < 1


def test_windows_tile_the_axis_with_sides_up_to_the_limit():
    transform = RandomLocalShuffle(fraction=0.1)
    params = transform.draw((300, 1, 64, 30), seeded())
    for axis, length, most in ((0, 64, 6), (1, 30, 3)):
        start, side = params[f"start_{axis}"], params[f"side_{axis}"]
        places = torch.arange(length)
        assert (start <= places).all() and (places < start + side).all()
        assert side.min() == 1 and side.max() == most and (start + side <= length).all()
        # A window's length is one number for all of its places, and windows follow without a gap.
        begins = start.diff(dim=1) != 0
        assert torch.equal((start + side)[:, :-1][begins], start[:, 1:][begins])
        # Seen from a voxel, a side of k is k times as frequent as one of 1.
        inner = side[:, most : length - most].flatten()
        share = torch.stack([(inner == k).float().mean() for k in range(1, most + 1)])
        torch.testing.assert_close(share, torch.arange(1, most + 1) / (most * (most + 1) / 2), atol=0.03, rtol=0)


def test_permutations_are_uniform():
    """In windows of three voxels, all six orders come equally often."""
    transform, shape = RandomLocalShuffle(prob=1, fraction=1, coverage=1), (6000, 1, 1, 3)
    params = transform.draw(shape, seeded())
    params["start_1"], params["side_1"] = torch.zeros(6000, 3, dtype=torch.long), torch.full((6000, 3), 3)
    y = transform.apply(torch.arange(3.0).view(1, 1, 1, 3).expand(shape), params)
    orders, counts = torch.unique(y.view(-1, 3), dim=0, return_counts=True)
    assert len(orders) == 6 and (counts - 1000).abs().max() < 120  # four deviations


@pytest.mark.parametrize("coverage", [0.0, 0.17, 0.85])
def test_coverage_is_the_share_of_windows(coverage):
    transform, shape = RandomLocalShuffle(prob=1, coverage=coverage), (4, 1, 96, 96)
    x = torch.rand(shape, generator=seeded())
    y = transform.apply(x, transform.draw(shape, seeded(1)))
    full = RandomLocalShuffle(prob=1, coverage=1)
    touched = (x != y).float().mean() / (x != full.apply(x, full.draw(shape, seeded(1)))).float().mean()
    assert touched.item() == pytest.approx(coverage, abs=0.05)
    assert torch.equal(RandomLocalShuffle(prob=0)(x), x)
