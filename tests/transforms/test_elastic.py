# SPDX-License-Identifier: Apache-2.0
"""Free-form deformation inside the one resampling, turns within slices, and crops at the image's own pixel size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from monai_ssl.transforms import RandomResample
from monai_ssl.transforms.free_form import GREATEST_SHARE, spread


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def positions(shape):
    """(1, n, *shape): each pixel holds its own index."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))[None]


def test_spread_is_a_cubic_b_spline():
    coefficients = torch.rand(1, 1, 8, generator=seeded())  # 5 cells
    values = spread(coefficients, (20,))[0, 0]
    knots = np.arange(-3, 9)  # uniform, one cell apart; the first pixel's outer edge is 0
    exact = BSpline(knots, coefficients[0, 0].numpy(), 3)((np.arange(20) + 0.5) / 4)
    np.testing.assert_allclose(values.numpy(), exact, atol=1e-6)
    plane = spread(torch.rand(2, 3, 4, 7, generator=seeded(1)), (9, 12))
    assert plane.shape == (2, 3, 9, 12)


@pytest.mark.parametrize("shape", [(48, 40), (24, 30, 20)])
def test_the_image_moves_by_the_spline(shape):
    """An image of its own positions shows where each output pixel was read."""
    transform = RandomResample(shape, scale=(1, 1), ratio=(1, 1) if len(shape) == 3 else (40 / 48,) * 2, elastic=0.3)
    x = positions(shape)
    params = transform.draw(x.shape, seeded(1))
    params["elastic"] *= 2 / params["elastic"].abs().amax()
    moved = spread(params["elastic"], shape)
    expected = (x + moved).clamp(min=torch.zeros(()))
    for axis, side in enumerate(shape):
        expected[:, axis].clamp_(max=side - 1)
    assert moved.abs().max() > 0.5
    torch.testing.assert_close(transform.apply(x, params), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("n", [2, 3])
def test_nothing_folds_at_the_greatest_strength(n):
    size, cells = (40,) * n, 3
    lattice = torch.sign(torch.randn(60, n, *[cells + 3] * n, generator=seeded())) * GREATEST_SHARE * 40 / cells
    place = positions(size) + spread(lattice, size)
    columns = [place.narrow(j + 2, 1, 39) - place.narrow(j + 2, 0, 39) for j in range(n)]
    for j in range(n):
        for other in range(n):
            if other != j:
                columns[j] = columns[j].narrow(other + 2, 0, 39)
    jacobian = torch.stack(columns, -1).movedim(1, -2)  # (B, ..., n, n)
    assert torch.linalg.det(jacobian).min() > 0


def test_the_strength_of_the_draw():
    transform = RandomResample(40, elastic=0.2, elastic_cells=5)
    moves = transform.draw((400, 1, 50, 50), seeded())["elastic"] / 8  # cells of 8 pixels of the view
    assert moves.shape == (400, 2, 8, 8)
    largest = moves.abs().flatten(1).amax(1)
    assert largest.max() <= 0.2 and largest.max() > 0.19 and largest.min() < 0.02
    assert "elastic" not in RandomResample(40).draw((2, 1, 50, 50))


def test_labels_take_the_same_way():
    label = (positions((24, 24, 24)).sum(1, keepdim=True) > 36).long() * 7
    transform = RandomResample(20, (0.4, 0.8), rotation_deg=20, flip_prob=(0.5,) * 3, elastic=0.4)
    params = transform.draw(label.shape, seeded(2))
    moved, image = transform.apply(label, params, "nearest"), transform.apply(label.float(), params)
    assert moved.dtype == label.dtype and moved.unique().tolist() == [0, 7]
    clear = (image < 0.5) | (image > 6.5)
    assert torch.equal(moved[clear].float(), image[clear].round())


def test_in_plane_leaves_slices_alone():
    x = torch.arange(12.0).view(1, 1, 12, 1, 1).expand(6, 1, 12, 30, 30).contiguous()  # each slice holds its number
    within = RandomResample((12, 20, 20), zoom=(1, 1), ratio=(1, 1), rotation_deg=60, elastic=0.4, in_plane=True)
    view = within(x, seeded())
    torch.testing.assert_close(view, torch.arange(12.0).view(12, 1, 1).expand_as(view), atol=1e-3, rtol=0)
    anyhow = RandomResample((12, 20, 20), zoom=(1, 1), ratio=(1, 1), rotation_deg=60)(x, seeded())
    assert (anyhow - view).abs().max() > 1


@pytest.mark.parametrize("shape", [(500, 1, 90, 100), (500, 1, 30, 80, 90)])
def test_zoom_is_of_pixels_not_of_the_image(shape):
    n = len(shape) - 2
    transform = RandomResample(32, zoom=(0.5, 2.0), ratio=(0.8, 1.25))
    params = transform.draw(shape, seeded())
    zoom = 32 / params["crop"].log().mean(1).exp()
    assert 0.5 - 1e-3 <= zoom.min() < 0.6 and 1.8 < zoom.max() <= 2 + 1e-3
    assert zoom.log().mean() == pytest.approx(0, abs=0.06)
    stretch = params["crop"].amax(1) / params["crop"].amin(1)
    assert stretch.max() <= 1.25 + 1e-3 and math.log(stretch.mean()) > 0.05
    low, high = params["center"] - params["crop"] / 2, params["center"] + params["crop"] / 2
    sides = torch.tensor(shape[2:])
    fits = params["crop"] <= sides
    # It begins at a whole pixel, so its end may reach half a pixel over.
    assert (low[fits] > -1e-3).all() and (high <= sides + 0.501)[fits].all()
    assert (low - low.round()).abs().max() < 1e-3
    # A box that is longer than the image has it in its middle.
    assert ((params["center"] - sides / 2)[~fits].abs() <= 0.501).all()
    assert (~fits).any() == (n == 3)


def test_zoom_of_one_shows_the_pixels_themselves():
    x = torch.rand(4, 1, 30, 30, 30)
    transform = RandomResample(20, zoom=(1, 1), ratio=(1, 1))
    params = transform.draw(x.shape, seeded())
    view = transform.apply(x, params)
    for image, shown, center in zip(x, view, params["center"], strict=True):
        d, h, w = (center - 10).int().tolist()
        torch.testing.assert_close(shown, image[:, d : d + 20, h : h + 20, w : w + 20], atol=2e-5, rtol=0)
