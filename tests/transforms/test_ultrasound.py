# SPDX-License-Identifier: Apache-2.0
"""Ultrasound: speckle multiplies, gain changes with depth, the sector stays upright."""

from __future__ import annotations

import math

import pytest
import torch

from monai_ssl.transforms import IntensityStandardize, RandomDepthGain, RandomSpeckle, ultrasound_views

SHAPES = [(5, 1, 24, 30), (5, 2, 6, 16, 20)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "off", [RandomSpeckle((0, 0), prob=1), RandomSpeckle(prob=0), RandomDepthGain(0, prob=1), RandomDepthGain(prob=0)]
)
def test_zero_strength_is_identity(off, shape):
    x = torch.rand(shape, generator=seeded())
    torch.testing.assert_close(off(x, seeded(1)), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_speckle_multiplies(shape):
    x = torch.rand(shape, generator=seeded())
    x[..., :3] = 0
    speckle = RandomSpeckle((0.1, 0.3), prob=1)
    params = speckle.draw(shape, seeded(2))
    y = speckle.apply(x, params)
    assert not y[..., :3].any(), "black stays black"
    ratio = (y / x)[..., 3:].flatten(1)
    torch.testing.assert_close(ratio.mean(1), torch.ones(5), atol=0.05, rtol=0)
    torch.testing.assert_close(ratio.std(1), params["std"], atol=0.02, rtol=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_gain_grows_or_falls_with_depth(shape):
    gain = RandomDepthGain(0.5, prob=0.6)
    params = gain.draw(shape, seeded(3))
    log = gain.apply(torch.ones(shape), params).log()
    rows = torch.linspace(-1, 1, shape[-2])[:, None].expand(shape[-2:])
    for i, slope in enumerate(params["slope"]):
        torch.testing.assert_close(log[i], (slope * rows).expand(shape[1:]), atol=1e-6, rtol=0)
    slope = gain.draw((4000, 1, 4, 4), seeded())["slope"]
    assert (slope != 0).float().mean() == pytest.approx(0.6, abs=0.03) and slope.abs().max() <= 0.5
    assert slope[slope != 0].std() == pytest.approx(1 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_probe_stays_above(spatial_dims):
    depth = torch.linspace(0, 1, 40)[:, None].expand(6, 1, *[40] * spatial_dims)
    views = ultrasound_views(
        24, spatial_dims, depth_gain=0, speckle_std=0, jitter=0, standardize=IntensityStandardize(mean=0, std=1)
    )
    for view in views(depth, seeded()):
        assert (view[..., -6:, :].flatten(1).mean(1) > view[..., :6, :].flatten(1).mean(1) + 0.2).all()
    everything = ultrasound_views(24, spatial_dims, num_views=3, band_energy_prob=0.5)(depth, seeded())
    assert len(everything) == 3 and all(view.isfinite().all() for view in everything)


@pytest.mark.parametrize(
    ("call", "words"),
    [(lambda: RandomDepthGain(-0.1), "strength"), (lambda: RandomSpeckle((0.2, 0.1)), "std")],
)
def test_clear_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
