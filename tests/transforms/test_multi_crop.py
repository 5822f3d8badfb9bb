# SPDX-License-Identifier: Apache-2.0
"""Multi-crop: sizes, shares and steps of the views, in 2D and in 3D."""

from __future__ import annotations

import pytest
import torch

import monai_ssl.transforms as T


def steps(chain):
    return [type(transform).__name__ for transform in chain.transforms]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_two_large_views_come_first(spatial_dims):
    views = T.multi_crop_views(16, 8, 3, spatial_dims)
    image = torch.rand(4, 1, *(24, 30, 20)[:spatial_dims])
    made = views(image, torch.Generator().manual_seed(0))
    assert [tuple(view.shape[1:]) for view in made] == [(1, *[n] * spatial_dims) for n in (16, 16, 8, 8, 8)]
    assert all(view.isfinite().all() for view in made)
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[2], made[3])
    again = views(image, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


def test_the_numbers_are_the_papers():
    views = T.multi_crop_views()
    assert len(views) == 8 and len(set(map(id, views.chains))) == 2
    sizes = [chain.transforms[0].size for chain in views.chains]
    assert sizes == [(224, 224)] * 2 + [(96, 96)] * 6
    assert [chain.transforms[0].scale for chain in views.chains] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    resample, jitter, blur, _ = views.chains[0].transforms
    assert (resample.flip_prob, resample.rotation_deg) == (0.5, 0)
    assert (jitter.brightness, jitter.contrast, jitter.prob) == (0.8, 0.8, 0.8)
    assert (blur.sigma, blur.prob) == ((0.1, 2.0), 0.5)
    volumes = T.multi_crop_views(spatial_dims=3)
    assert [chain.transforms[0].size for chain in volumes.chains] == [(96,) * 3] * 2 + [(48,) * 3] * 4


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_views_show_their_share_of_the_image(spatial_dims):
    views = T.multi_crop_views(16, 8, 1, spatial_dims)
    drawn = views.draw((400, 1, *[64] * spatial_dims), torch.Generator().manual_seed(0))
    for params, (least, greatest) in ((drawn[0], (0.14, 1.0)), (drawn[2], (0.05, 0.14))):
        share = (params["0.crop"] / 64).prod(1)
        assert share.min() > 0.99 * least and share.max() < 1.01 * greatest
        assert share.min() < least + 0.1 * (greatest - least) and share.max() > greatest - 0.2 * (greatest - least)


def test_volumes_get_the_steps_of_their_modality():
    volumes = T.multi_crop_views(16, 8, 1, 3, modality="CT", limits_hu=(-160, 240))
    assert steps(volumes.chains[0]) == steps(volumes.chains[2])
    assert steps(volumes.chains[0]) == steps(T.volume_views(16, "CT", limits_hu=(-160, 240)).chains[0])
    slices = T.multi_crop_views(16, 8, 1, 2, modality="MR")
    assert steps(slices.chains[0]) == steps(T.volume_views(16, "MR", 2).chains[0])
    assert steps(T.multi_crop_views(16, 8, 1, 3).chains[0]) == steps(T.volume_views(16).chains[0])


def test_options_reach_both_kinds_of_views():
    views = T.multi_crop_views(16, 8, 1, jitter=0.4, gamma_prob=0.8, rotation_deg=10, blur_prob=0)
    for chain in views.chains:
        assert steps(chain) == ["RandomResample", "RandomBrightnessContrast", "RandomGamma", "IntensityStandardize"]
        assert chain.transforms[0].rotation_deg == 10 and chain.transforms[1].contrast == 0.4


def test_the_pyramid_is_made_once(monkeypatch):
    from monai_ssl.transforms import views as module

    made = []
    monkeypatch.setattr(module, "AveragePyramid", lambda x: made.append(1) or T.AveragePyramid(x))
    T.multi_crop_views(16, 8, 3)(torch.rand(2, 1, 64, 64))
    assert len(made) == 1


def test_a_small_image_is_magnified_and_not_left():
    """No view reads beyond the image: of a ramp, every value is one of the ramp's."""
    options = {"jitter": 0.0, "blur_prob": 0.0, "standardize": T.IntensityStandardize(mean=0, std=1)}
    views = T.multi_crop_views(32, 16, 2, **options)(torch.linspace(1, 2, 12).expand(3, 1, 12, 12), torch.Generator())
    for view in views:
        assert view.min() >= 1 - 1e-4 and view.max() <= 2 + 1e-4
        assert view.std(dim=3).min() > 0.01  # and the ramp goes on everywhere


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"small_size": 16}, "small_size must be smaller"),
        ({"small_size": (8, 20)}, "small_size must be smaller"),
        ({"num_small": -1}, "num_small"),
        ({"small_scale": (0.1, 1.2)}, "small_scale"),
        ({"large_scale": (0.9, 0.1)}, "large_scale"),
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"size": (16, 16, 16)}, "2 axes"),
        ({"colour": 1}, "radiograph_views.*colour"),
        ({"spatial_dims": 3, "limits_hu": (0, 1)}, "limits_hu"),
        ({"modality": "PT"}, "modality is 'PT'"),
    ],
)
def test_wrong_options_name_themselves(options, words):
    with pytest.raises(ValueError, match=words):
        T.multi_crop_views(**{"size": 16, "small_size": 8} | options)
