# SPDX-License-Identifier: Apache-2.0
"""The fast routes for volumes on a CPU give what torch's own sampling of volumes gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from monai_ssl.transforms import RandomResample, sampling, volume_sampling


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def turned_grid(n=3, seed=0):
    """(n, 3, 10, 12, 14) points within [-0.9, 0.9] about the middle."""
    random = seeded(seed)
    axes = [torch.linspace(-0.5, 0.5, side) for side in (14, 12, 10)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([x, y, z]).permute(0, 3, 2, 1)
    turn = torch.linalg.qr(torch.randn(n, 3, 3, generator=random)).Q
    return torch.einsum("nij,j...->ni...", turn, points)


def by_torch(source, grid, interpolation):
    return F.grid_sample(source, grid.movedim(1, -1), interpolation, "border", align_corners=False)


@pytest.mark.parametrize("shape", [(3, 1, 20, 16, 24), (3, 2, 1, 9, 7), (3, 1, 2, 30, 1), (3, 1, 40, 1, 12)])
@pytest.mark.parametrize("slab", [1, 1 << 17])
def test_points_are_torchs(shape, slab, monkeypatch):
    monkeypatch.setattr(volume_sampling, "_SLAB_ELEMENTS", slab)
    source, grid = torch.rand(shape, generator=seeded()), turned_grid()
    inner = torch.tensor([max(0, 1 - 1 / side) for side in shape[:1:-1]]).view(3, 1, 1, 1)  # outermost voxel centres
    grid = torch.maximum(torch.minimum(1.6 * grid, inner), -inner)
    got = volume_sampling.sample_anywhere(source, grid.clone(), "bilinear")
    torch.testing.assert_close(got, by_torch(source, grid, "bilinear"), atol=5e-4, rtol=0)
    label = source.mul(5).round()
    nearest = volume_sampling.sample_anywhere(label, grid.clone(), "nearest")
    assert (nearest == by_torch(label, grid, "nearest")).float().mean() > 0.97  # halves may go either way
    assert set(nearest.unique().tolist()) <= set(label.unique().tolist())


def test_rows_of_neighbouring_slices_do_not_shine_in():
    source = torch.ones(1, 1, 30, 40, 8)
    source[:, :, 1::2] = 1e4  # slices alternate, so a whiff of the neighbour shows
    grid = torch.zeros(1, 3, 30, 2, 4)
    grid[0, 2] = ((torch.arange(30.0) + 0.5) / 15 - 1)[:, None, None]
    grid[0, 1, :, 0], grid[0, 1, :, 1] = 0.5 / 20 - 1, 1 - 0.5 / 20  # first and last row
    got = volume_sampling.sample_anywhere(source, grid, "bilinear")
    expected = source[:, :, :, :2, :4]
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=0.2)


def test_volumes_of_too_many_rows_go_to_torch(monkeypatch):
    monkeypatch.setattr(volume_sampling, "MOST_ROWS", 10)
    source, grid = torch.rand(3, 1, 20, 16, 24), turned_grid()
    got = volume_sampling.sample_anywhere(source, grid.clone(), "bilinear")
    torch.testing.assert_close(got, by_torch(source, grid, "bilinear"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("shape", [(4, 2, 18, 21, 26), (4, 1, 1, 21, 26)])
def test_slices_and_points_agree(shape, padding, interpolation, monkeypatch):
    """A turn within slices takes the one route; made to take the other, it shows the same."""
    x = torch.rand(shape, generator=seeded())
    x = x if interpolation == "bilinear" else x.mul(5).round()
    transform = RandomResample(
        (16, 14, 20), (0.3, 1.0), rotation_deg=40, flip_prob=(0.5,) * 3, translate=0.3, padding=padding, in_plane=True
    )
    params = transform.draw(shape, seeded(1))
    calls = []
    slices = sampling.sample_within_slices
    monkeypatch.setattr(sampling, "sample_within_slices", lambda *args: calls.append(1) or slices(*args))
    fast = transform.apply(x, params, interpolation)
    assert calls
    monkeypatch.setattr(sampling._Places, "within_slices", lambda self: False)
    calls.clear()
    other = transform.apply(x, params, interpolation)
    assert not calls
    different = (fast - other).abs() > 1e-3
    assert different.float().mean() < (1e-3 if interpolation == "bilinear" else 0.02)
    assert (padding == "zeros") == bool((fast == 0).all(1).float().mean() > 0.01) or interpolation == "nearest"


def test_a_turn_out_of_the_slices_takes_the_other_route(monkeypatch):
    monkeypatch.setattr(sampling, "sample_within_slices", lambda *args: pytest.fail("slices do not stay slices"))
    RandomResample(8, rotation_deg=20)(torch.rand(1, 1, 9, 9, 9), seeded())
    RandomResample(8, in_plane=True, elastic=0.2)(torch.rand(1, 1, 9, 9, 9), seeded())
