# SPDX-License-Identifier: Apache-2.0
"""The policies for volumes: which steps, for whom, and a label map that follows its image."""

from __future__ import annotations

import pytest
import torch

import monai_ssl.transforms as T


def steps(views):
    return [type(transform).__name__ for transform in views.chains[0].transforms]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (lambda n: T.volume_views(16, "CT", n, limits_hu=(-1000, 1000), elastic=0.2), 2),
        (lambda n: T.volume_views(16, "MR", n, num_views=3, cutout_holes=2), 3),
        (lambda n: T.masked_views(16, n), 1),
        (lambda n: T.whole_views(16, n), 1),
        (lambda n: T.volume_augmentation(16, "MR", n), 1),
    ],
)
def test_views_differ_and_fit(preset, count, spatial_dims):
    views = preset(spatial_dims)
    image = torch.rand(3, 1, *(24, 30, 20)[:spatial_dims])
    made = views(image, seeded())
    assert len(made) == len(views) == count
    assert all(view.shape == (3, 1, *[16] * spatial_dims) and view.isfinite().all() for view in made)
    assert not torch.equal(made[0], views(image, seeded(1))[0])
    # Without values to look at: an accelerator's queue must never be waited for.
    meta = torch.empty(2, 1, *[18] * spatial_dims, device="meta")
    params = views.draw(meta.shape, device="meta")
    assert {view.device.type for view in views.apply(meta, params)} == {"meta"}


def test_each_modality_gets_its_own_physics():
    common = ["RandomGamma", "RandomBrightnessContrast", "RandomGaussianBlur", "RandomLowResolution"]
    end = [*common, "RandomGaussianNoise", "IntensityStandardize"]
    assert steps(T.volume_views(16)) == ["RandomResample", *end]
    assert steps(T.volume_views(16, "MR")) == ["RandomResample", "RandomBiasField", *end]
    assert steps(T.volume_views(16, "CT")) == ["RandomResample", *end]
    ct = T.volume_views(16, "CT", limits_hu=(-160, 240))
    assert steps(ct) == ["RandomResample", "RandomWindow", *end]
    assert ct.chains[0].transforms[1].limits_hu == (-160, 240)
    none = T.volume_views(
        16, gamma_prob=0, jitter=0, blur_prob=0, low_resolution_prob=0, noise_std=0, rotation_deg=0, flip_prob=0
    )
    assert steps(none) == ["RandomResample", "IntensityStandardize"]
    assert steps(T.masked_views(16)) == ["RandomResample", "RandomBrightnessContrast", "IntensityStandardize"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: T.volume_views(16, "PT"), "modality is 'PT'"),
        (lambda: T.volume_views(16, "MR", limits_hu=(0, 1)), "not in HU"),
        (lambda: T.volume_augmentation(16, strength=3), r"in \[0, 2\]"),
        (lambda: T.masked_views((16, 16)), "3 axes"),
    ],
)
def test_clear_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_whole_view_keeps_every_place_where_it_is():
    views = T.whole_views((8, 16, 16), standardize=T.IntensityStandardize(mean=0, std=1))
    across = torch.linspace(0, 1, 32).expand(4, 1, 12, 32, 32)  # left-right
    (view,) = views(across, seeded())
    assert view.shape == (4, 1, 8, 16, 16)
    left, right = view[..., :4].mean((1, 2, 3, 4)), view[..., -4:].mean((1, 2, 3, 4))
    assert (left < 0.35).all() and (right > 0.65).all()
    still = T.whole_views((8, 16, 16), min_scale=1.0, rotation_deg=0.0, jitter=0.0)
    torch.testing.assert_close(still(across, seeded(1))[0], still(across, seeded(2))[0])


def test_without_strength_a_segmentation_gets_the_voxels_themselves():
    views = T.volume_augmentation(12, "MR", strength=0, flip_prob=0, standardize=T.IntensityStandardize(mean=0, std=1))
    assert steps(views) == ["RandomResample", "IntensityStandardize"]
    x = torch.rand(2, 1, 12, 12, 12)
    torch.testing.assert_close(views(x, seeded())[0], x, atol=2e-5, rtol=0)
    # A volume that is too small is shown whole, with zeros around.
    small = views(torch.ones(1, 1, 9, 9, 9), seeded())[0]
    assert small.sum() == pytest.approx(9**3, rel=0.01) and small[..., 2:10, 2:10, 2:10].min() == 1


def test_strength_scales_every_step():
    weak, strong = (T.volume_augmentation(12, "MR", strength=s).chains[0].transforms for s in (0.5, 2.0))
    for mild, hard in zip(weak[:-1], strong[:-1], strict=True):
        for name in ("rotation_deg", "elastic", "brightness"):
            assert getattr(mild, name, 0) <= getattr(hard, name, 1)
        for name in ("zoom", "strength", "std", "sigma", "gamma"):
            if getattr(mild, name, None):
                assert getattr(mild, name)[1] <= getattr(hard, name)[1]


def test_a_label_map_follows_its_image():
    """The image is its own label map: wherever the view is clearly bright, the label must be there."""
    label = torch.zeros(4, 1, 30, 30, 30, dtype=torch.uint8)
    label[:, :, 8:20, 10:25, 5:18] = 3
    views = T.volume_augmentation(20, strength=1.5, standardize=T.IntensityStandardize(mean=0, std=1))
    params = views.draw(label.shape, seeded())
    (image,), (moved,) = views.apply(label.float() / 3, params), views.apply(label, params, "nearest")
    assert moved.dtype == torch.uint8 and set(moved.unique().tolist()) == {0, 3}
    for i in range(4):
        inside, outside = image[i][moved[i] == 3], image[i][moved[i] == 0]
        assert inside.numel() > 300 and inside.mean() > outside.mean() + 0.5
