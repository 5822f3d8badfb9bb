# SPDX-License-Identifier: Apache-2.0
"""Bias field, low resolution and window: closed forms, distributions, and nothing at zero strength."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre
from torch.nn import functional as F

from monai_ssl.transforms import (
    RandomBiasField,
    RandomGaussianBlur,
    RandomGaussianNoise,
    RandomLowResolution,
    RandomWindow,
    blur,
)

SHAPES = [(5, 1, 24, 30), (5, 2, 12, 16, 20)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "off",
    [
        RandomBiasField(prob=0),
        RandomBiasField((0, 0), prob=1),
        RandomLowResolution(prob=0),
        RandomLowResolution((1, 1), prob=1),
        RandomWindow((-1000, 1000), prob=0),
        RandomWindow((-160, 240), width_hu=(400, 400), prob=1),
        RandomGaussianBlur((0, 0), prob=1, per_axis=True),
        RandomGaussianNoise((0, 0), prob=1),
    ],
    ids=repr,
)
def test_zero_strength_is_identity(off, shape):
    x = torch.rand(shape, generator=seeded())
    torch.testing.assert_close(off(x, seeded(1)), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_field_is_the_exponential_of_legendre_polynomials(shape):
    transform = RandomBiasField((0.1, 0.4), degree=3, prob=1)
    params = transform.draw(shape, seeded())
    log_field = transform.apply(torch.ones(shape), params).log()
    at = [(np.arange(side) + 0.5) * 2 / side - 1 for side in shape[2:]]
    grid = legendre.leggrid2d if len(at) == 2 else legendre.leggrid3d
    for i in range(len(log_field)):
        c = params["coefficients"][i].numpy()
        np.testing.assert_allclose(log_field[i, 0], grid(*at, c), atol=1e-5)
        assert c.ravel()[0] == 0
        degrees = np.argwhere(c).sum(1)
        assert degrees.max() == 3 and degrees.min() == 1
    if shape[1] == 2:
        assert torch.equal(log_field[:, 0], log_field[:, 1])


def test_a_bias_field_is_as_strong_as_it_says():
    transform = RandomBiasField((0.1, 0.4), prob=0.6)
    params = transform.draw((400, 1, 40, 40), seeded())
    largest = transform.apply(torch.ones(400, 1, 40, 40), params).log().abs().flatten(1).amax(1)
    changed = largest > 0
    assert changed.float().mean() == pytest.approx(0.6, abs=0.08)
    assert 0.08 < largest[changed].min() < 0.13 and 0.37 < largest.max() < 0.44
    assert largest[changed].mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1, 24, 30), (1, 2, 12, 18, 24)])
def test_low_resolution_is_mean_and_linear_interpolation(shape):
    x = torch.rand(shape, generator=seeded())
    low = RandomLowResolution(prob=1)
    mode = {4: "bilinear", 5: "trilinear"}[x.ndim]
    for zoom in (1 / 2, 1 / 3):
        got = low.apply(x, {"zoom": torch.full((1, x.ndim - 2), zoom)})
        small = F.interpolate(x, size=[round(n * zoom) for n in shape[2:]], mode="area")
        torch.testing.assert_close(got, F.interpolate(small, size=shape[2:], mode=mode), atol=1e-5, rtol=0)
    torch.testing.assert_close(low.apply(torch.ones(shape), low.draw(shape, seeded())), torch.ones(shape))


def test_thick_slices_change_one_axis():
    low = RandomLowResolution((0.3, 0.7), prob=0.5, one_axis_prob=0.4)
    zoom = low.draw((4000, 1, 8, 8, 8), seeded())["zoom"]
    axes = (zoom < 1).sum(1)
    shares = torch.bincount(axes, minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.2, 0, 0.3], abs=0.03)
    assert (zoom[axes == 1] < 1).float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    assert zoom.min() >= 0.3 and zoom[zoom < 1].max() <= 0.7
    x = torch.rand(1, 1, 8, 8, 8)
    thick = low.apply(x, {"zoom": torch.tensor([[0.5, 1.0, 1.0]])})
    flat = x.mean((3, 4))
    assert (thick - x).abs().max() > 0.1
    expected = F.interpolate(F.avg_pool1d(flat, 2), size=8, mode="linear")
    torch.testing.assert_close(thick.mean((3, 4)), expected, atol=1e-5, rtol=0)


def test_a_window_is_in_hounsfield_units():
    hu = torch.tensor([-1000.0, -160, -60, 40, 240, 1000])
    x = ((hu + 1000) / 2000).view(1, 1, 1, -1)
    window = RandomWindow((-1000, 1000), width_hu=(400, 400), level_hu=(40, 40), prob=1)
    torch.testing.assert_close(window(x)[0, 0, 0], torch.tensor([0, 0, 0.25, 0.5, 1, 1]), atol=1e-6, rtol=0)


def test_windows_lie_within_the_limits():
    window = RandomWindow((-1000, 600), width_hu=(400, 1600), prob=0.8)
    params = window.draw((3000, 1, 4, 4), seeded())
    low, high = params["level_hu"] - params["width_hu"] / 2, params["level_hu"] + params["width_hu"] / 2
    assert low.min() >= -1000 - 1e-2 and high.max() <= 600 + 1e-2
    changed = params["width_hu"] < 1600
    assert changed.float().mean() == pytest.approx(0.8, abs=0.03)
    assert params["width_hu"][changed].mean() == pytest.approx(1000, abs=30)
    assert params["level_hu"][~changed].unique().tolist() == [-200]
    assert low[changed].std() > 150
    jitter = RandomWindow((-1000, 600), width_hu=(400, 500), level_hu=(30, 50), prob=1).draw((500, 1, 4, 4), seeded())
    assert jitter["level_hu"].min() >= 30 and jitter["level_hu"].max() <= 50


def test_blur_per_axis_is_anisotropic():
    x = torch.zeros(1, 1, 25, 25, 25)
    x[..., 12, 12, 12] = 1
    blur = RandomGaussianBlur((0.0, 3.0), prob=1, per_axis=True)
    sigma = torch.tensor([[1.0, 1.5, 2.0]])
    spot = blur.apply(x, {"sigma": sigma})[0, 0]
    at = torch.arange(25.0) - 12
    for axis, expected in enumerate(sigma[0]):
        profile = spot.sum([i for i in range(3) if i != axis])
        assert math.sqrt(float((profile * at**2).sum())) == pytest.approx(float(expected), rel=0.03)
    drawn = blur.draw((50, 1, 8, 8, 8), seeded())["sigma"]
    assert drawn.shape == (50, 3) and (drawn[:, 0] != drawn[:, 1]).all()


@pytest.mark.parametrize("shape", [(2, 2, 9, 14, 11), (3, 1, 20, 17)])
def test_blur_in_pieces_is_the_same(shape, monkeypatch):
    x, transform = torch.rand(shape, generator=seeded()), RandomGaussianBlur((0.5, 1.5), prob=1, per_axis=True)
    params = transform.draw(shape, seeded(1))
    whole = transform.apply(x, params)
    monkeypatch.setattr(blur, "_WHOLE_ELEMENTS", 0)
    for elements in (1, 100, 1 << 20):
        monkeypatch.setattr(blur, "_PIECE_ELEMENTS", elements)
        torch.testing.assert_close(transform.apply(x, params), whole, atol=1e-6, rtol=0)


def test_noise_is_drawn_where_it_is_added():
    params = RandomGaussianNoise((0.1, 0.2), prob=0.5).draw((40, 1, 16, 16), seeded())
    added = params["std"] > 0
    assert 10 < added.sum() < 30
    assert params["noise"][added].std() == pytest.approx(1, abs=0.05) and not params["noise"][~added].any()
