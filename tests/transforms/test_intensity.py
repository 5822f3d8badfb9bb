# SPDX-License-Identifier: Apache-2.0
"""Physics of the intensity transforms: what the mean, the contrast and the pixels must do."""

from __future__ import annotations

import math

import pytest
import torch

from monai_ssl.transforms import (
    IntensityStandardize,
    RandomBrightnessContrast,
    RandomCutout,
    RandomGamma,
    RandomGaussianBlur,
    RandomGaussianNoise,
)

SHAPES = [(8, 1, 24, 30), (8, 2, 8, 12, 10)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(shape):
    return torch.rand(shape, generator=seeded(9))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "transform",
    [
        RandomBrightnessContrast(0, 0),
        RandomBrightnessContrast(0.4, 0.4, prob=0),
        RandomGamma((1, 1), prob=1),
        RandomGamma(prob=0),
        RandomGaussianBlur((0, 0), prob=1),
        RandomGaussianBlur(prob=0),
        RandomGaussianNoise((0, 0), prob=1),
        RandomGaussianNoise(prob=0),
        RandomCutout(holes=0),
        IntensityStandardize(mean=0, std=1),
    ],
    ids=repr,
)
def test_zero_strength_is_identity(transform, shape):
    x = images(shape)
    torch.testing.assert_close(transform(x, seeded()), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_brightness_scales_and_contrast_keeps_the_mean(shape):
    x = images(shape)
    axes = tuple(range(2, len(shape)))
    jitter = RandomBrightnessContrast(0.4, 0.3)
    params = jitter.draw(shape, seeded())
    y = jitter.apply(x, params)
    b, c = params["brightness"][:, None], params["contrast"][:, None]
    torch.testing.assert_close(y.mean(axes), b * x.mean(axes))
    torch.testing.assert_close(y.std(axes), b * c * x.std(axes))
    assert y.max() > 1 or (b * c).max() < 1  # nothing is clipped
    for name, width in (("brightness", 0.4), ("contrast", 0.3)):
        drawn = jitter.draw((5000, *shape[1:]), seeded())[name]
        assert 1 - width <= drawn.min() and drawn.max() <= 1 + width
        assert drawn.mean() == pytest.approx(1, abs=0.02) and drawn.std() == pytest.approx(width / 3**0.5, rel=0.05)


def test_factors_are_never_negative():
    assert RandomBrightnessContrast(3.0, 3.0).draw((500, 1, 4, 4), seeded())["brightness"].min() >= 0


@pytest.mark.parametrize("shape", SHAPES)
def test_gamma_keeps_the_unit_interval(shape):
    x = images(shape)
    x[:, :, 0] = 0
    x[:, :, 1] = 1
    gamma = RandomGamma((0.5, 2.0), prob=0.6)
    params = gamma.draw(shape, seeded())
    y = gamma.apply(x, params)
    assert y.min() >= 0 and y.max() <= 1
    assert torch.equal(y[:, :, 0], x[:, :, 0]) and torch.equal(y[:, :, 1], x[:, :, 1])
    for i, g in enumerate(params["gamma"].tolist()):
        torch.testing.assert_close(y[i], x[i] ** g)
    assert 0 < (params["gamma"] == 1).sum() < len(x)


def test_gamma_of_negative_values_and_its_distribution():
    x = torch.tensor([-0.5, 0.25, 4.0]).view(1, 1, 1, 3)
    y = RandomGamma((0.5, 0.5), prob=1)(x)
    torch.testing.assert_close(y.flatten(), torch.tensor([0.0, 0.5, 2.0]))
    left_alone = RandomGamma(prob=0)(x)
    assert torch.equal(left_alone, x)
    log_gamma = RandomGamma((0.5, 2.0), prob=1).draw((5000, 1, 1, 1), seeded())["gamma"].log()
    assert log_gamma.abs().max() <= math.log(2) + 1e-5 and abs(log_gamma.mean()) < 0.02


@pytest.mark.parametrize("spatial", [(41, 41), (21, 21, 21)])
def test_blur_of_a_point_is_a_gaussian(spatial):
    x = torch.zeros(3, 1, *spatial)
    middle = spatial[0] // 2
    x[(slice(None), 0, *[middle] * len(spatial))] = 1
    blur = RandomGaussianBlur((0.1, 2.0))
    sigma = torch.tensor([0.0, 1.0, 2.0])
    y = blur.apply(x, {"sigma": sigma})
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y.sum(dim=tuple(range(1, y.ndim))), torch.ones(3))
    at = torch.arange(spatial[0]) - middle
    for i in (1, 2):
        profile = y[i, 0].flatten(1).sum(1)  # along the first spatial axis
        expected = torch.exp(-0.5 * (at / sigma[i]) ** 2) * (at.abs() <= 6)
        torch.testing.assert_close(profile, expected / expected.sum(), atol=1e-6, rtol=1e-4)
        for axis in range(1, len(spatial)):
            torch.testing.assert_close(y[i, 0], y[i, 0].transpose(0, axis))


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_keeps_constants_and_smooths(shape):
    blur = RandomGaussianBlur((0.5, 2.0), prob=0.5)
    constant = torch.full(shape, 0.3)
    torch.testing.assert_close(blur(constant, seeded()), constant)
    x = images(shape)
    params = blur.draw(shape, seeded())
    y = blur.apply(x, params)
    axes = tuple(range(1, len(shape)))
    blurred = params["sigma"] > 0
    assert 0 < blurred.sum() < len(x)
    assert (y.std(axes)[blurred] < 0.8 * x.std(axes)[blurred]).all()
    assert torch.equal(y[~blurred], x[~blurred])


def test_noise_has_its_deviation():
    x = torch.zeros(16, 1, 60, 60)
    noise = RandomGaussianNoise((0.1, 0.3), prob=0.5)
    params = noise.draw(x.shape, seeded())
    y = noise.apply(x, params)
    torch.testing.assert_close(y.std((1, 2, 3)), params["std"], atol=0.01, rtol=0.05)
    on = params["std"] > 0
    assert 0 < on.sum() < 16 and params["std"][on].min() >= 0.1 and params["std"].max() <= 0.3


@pytest.mark.parametrize("spatial", [(224, 224), (28, 35), (28, 28, 28)])
def test_cutout_area_and_value(spatial):
    x = torch.ones(64, 2, *spatial)
    cutout = RandomCutout(holes=3, fraction=1 / 7, fill=-2)
    params = cutout.draw(x.shape, seeded())
    y = cutout.apply(x, params)
    hole = y == -2
    assert torch.equal(y[~hole], torch.ones(int((~hole).sum())))
    assert torch.equal(hole[:, 0], hole[:, 1])
    sides = [n // 7 for n in spatial]
    area = hole[:, 0].flatten(1).sum(1)
    assert area.max() <= 3 * math.prod(sides) and area.max() > 2.5 * math.prod(sides)
    # Closed form of one hole, clipped at the border as the paper's code does: rows [c - s // 2, c - s // 2 + s).
    one = cutout.apply(x[:1, :1], {"center": params["center"][:1, :1]}) == -2
    expected = torch.ones(spatial, dtype=torch.bool)
    for axis, (n, s) in enumerate(zip(spatial, sides, strict=True)):
        start = int(params["center"][0, 0, axis]) - s // 2
        at = torch.arange(n).view([-1 if i == axis else 1 for i in range(len(spatial))])
        expected &= (at >= start) & (at < start + s)
    assert torch.equal(one[0, 0], expected)


def test_cutout_is_clipped_at_the_corner():
    x = torch.ones(1, 1, 70, 70)
    corner = RandomCutout(1, 1 / 7).apply(x, {"center": torch.tensor([[[0, 69]]])})
    assert (corner[..., :5, 64:] == 0).all() and corner.sum() == 70 * 70 - 5 * 6


def test_standardize():
    x = torch.rand(5, 2, 20, 20) * 3 + 7
    x[0, 1] = 4.0
    y = IntensityStandardize("per_image")(x)
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(5, 2), atol=1e-5, rtol=0)
    deviation = torch.ones(5, 2)
    deviation[0, 1] = 0
    torch.testing.assert_close(y.std((2, 3), correction=0), deviation)
    z = IntensityStandardize("fixed", mean=(7, 1), std=(3, 2))(x)
    torch.testing.assert_close(z[:, 0] * 3 + 7, x[:, 0])
    torch.testing.assert_close(z[:, 1] * 2 + 1, x[:, 1])


def test_per_image_standardisation_undoes_jitter():
    """Why the presets standardise by fixed numbers."""
    x = images(SHAPES[0])
    standardize = IntensityStandardize("per_image")
    torch.testing.assert_close(standardize(RandomBrightnessContrast()(x)), standardize(x), atol=1e-4, rtol=1e-4)
