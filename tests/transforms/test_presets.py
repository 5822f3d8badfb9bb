# SPDX-License-Identifier: Apache-2.0
"""The ready policies: which steps in which order, with which numbers."""

from __future__ import annotations

import pytest
import torch

import monai_ssl.transforms as T


def steps(chain):
    return [type(transform).__name__ for transform in chain.transforms]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("preset", [T.c2l_views, T.moco_v2_views, T.radiograph_views])
def test_views_differ_and_fit(preset, spatial_dims):
    views = preset(16, spatial_dims)
    image = torch.rand(3, 1, *(24, 30, 20)[:spatial_dims])
    first, second = views(image, torch.Generator().manual_seed(0))
    assert first.shape == second.shape == (3, 1, *[16] * spatial_dims)
    assert not torch.equal(first, second)
    assert len(views) == 2


def test_c2l_is_the_papers():
    chain, other = T.c2l_views(224).chains
    assert chain is other
    assert steps(chain) == ["RandomResample", "RandomBrightnessContrast", "IntensityStandardize", "RandomCutout"]
    resample, jitter, _, cutout = chain.transforms
    assert (resample.scale, resample.rotation_deg, resample.flip_prob) == ((0.2, 1.0), 10, 0.5)
    assert (jitter.brightness, jitter.contrast, jitter.prob) == (0.4, 0.4, 1.0)
    assert (cutout.holes, round(cutout.fraction * 224), cutout.fill) == (3, 32, 0)
    view = chain(torch.rand(4, 1, 256, 256), torch.Generator().manual_seed(0))
    assert ((view == 0).sum((1, 2, 3)) > 1500).all()


def test_moco_v2_is_the_papers():
    chain = T.moco_v2_views(224).chains[0]
    assert steps(chain) == ["RandomResample", "RandomBrightnessContrast", "RandomGaussianBlur", "IntensityStandardize"]
    resample, jitter, blur, _ = chain.transforms
    assert resample.rotation_deg == 0 and jitter.prob == 0.8
    assert (blur.sigma, blur.prob) == ((0.1, 2.0), 0.5)


def test_convirt_is_the_papers():
    assert len(T.convirt_views(224)) == 1 and len(T.convirt_views(224, num_views=2)) == 2
    chain = T.convirt_views(224).chains[0]
    assert steps(chain) == ["RandomResample", "RandomBrightnessContrast", "RandomGaussianBlur", "IntensityStandardize"]
    resample, jitter, blur, _ = chain.transforms
    assert (resample.scale, resample.rotation_deg, resample.flip_prob) == ((0.6, 1.0), 20, 0.5)
    assert (resample.translate, resample.rescale, resample.padding) == (0.1, (0.95, 1.05), "zeros")
    assert (jitter.brightness, jitter.contrast, jitter.prob) == (0.4, 0.4, 1.0)
    assert (blur.sigma, blur.prob) == ((0.1, 3.0), 1.0)
    assert T.convirt_views(32, min_scale=0.9).chains[0].transforms[0].scale == (0.9, 1.0)


def test_convirt_crops_volumes_as_far_along_each_side_as_images():
    for dims in (2, 3):
        resample = T.convirt_views(16, dims).chains[0].transforms[0]
        assert resample.scale[0] ** (1 / dims) == pytest.approx(0.6**0.5)
    view = T.convirt_views(16, 3, num_views=2)(torch.rand(2, 1, 20, 24, 24), torch.Generator().manual_seed(0))
    assert [tuple(one.shape) for one in view] == [(2, 1, 16, 16, 16)] * 2
    assert not torch.equal(*view)


def test_convirt_without_flips_keeps_the_sides():
    image = torch.zeros(64, 1, 40, 40)
    image[..., :10] = 1  # a marker on the left

    def left(flip_prob: float) -> torch.Tensor:
        view = T.convirt_views(32, flip_prob=flip_prob)(image, torch.Generator().manual_seed(0))[0]
        return view[..., :8].mean((1, 2, 3)) > view[..., -8:].mean((1, 2, 3))

    assert left(0.0).all()
    assert 0.3 < left(0.5).float().mean() < 0.7


def test_radiograph_parts_can_be_left_out():
    chain = T.radiograph_views(
        32, min_scale=0.5, jitter=0, gamma_prob=0, blur_prob=0, rotation_deg=0, flip_prob=0, num_views=3
    ).chains
    assert len(chain) == 3 and steps(chain[0]) == ["RandomResample", "IntensityStandardize"]
    assert chain[0].transforms[0].scale == (0.5, 1.0)
    full = T.radiograph_views(32, noise_std=0.1, cutout_holes=2).chains[0]
    assert steps(full)[-3:] == ["RandomGaussianNoise", "IntensityStandardize", "RandomCutout"]


def test_evaluation_view_has_no_chance_and_takes_extents():
    view = T.evaluation_view(16)
    image = torch.rand(2, 1, 40, 30)
    assert torch.equal(view(image), view(image))
    canvas = torch.nn.functional.pad(image, (0, 13, 0, 9), value=5.0)
    extent = torch.tensor([[40, 30]] * 2)
    torch.testing.assert_close(view(canvas, extent=extent), view(image), atol=1e-3, rtol=0)
    own = T.evaluation_view(16, standardize=T.IntensityStandardize("per_image"))(image)
    torch.testing.assert_close(own.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
