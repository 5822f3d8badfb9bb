# SPDX-License-Identifier: Apache-2.0
"""Views by source: each image by its own policy, in its own place, maps along with it."""

from __future__ import annotations

import pytest
import torch

import monai_ssl.transforms as T
from monai_ssl.transforms import IntensityStandardize, MultiView, RandomResample, SourceViews, ViewChain, modality_views


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def still(shift: float, size=8, views=2) -> MultiView:
    """The whole image at ``size``, minus ``shift``: tells which policy an image went through."""
    chain = ViewChain([RandomResample(size, (1, 1), ratio=(1, 1)), IntensityStandardize(mean=shift, std=1)])
    return MultiView([chain] * views)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_mixed_batch_keeps_its_order(spatial_dims):
    views = SourceViews({0: still(0.0), 1: still(10.0), 2: still(20.0)})
    x = torch.arange(7.0).view(-1, 1, *[1] * spatial_dims).expand(7, 1, *[8] * spatial_dims)
    source = torch.tensor([2, 0, 1, 1, 0, 2, 0])
    made = views(x, seeded(), source=source)
    assert len(made) == len(views) == 2
    for view in made:
        torch.testing.assert_close(view.flatten(1).mean(1), torch.arange(7.0) - 10.0 * source, atol=1e-5, rtol=0)


def test_one_source_is_its_policy_alone():
    policies = {"chest": T.radiograph_views(16), "mr": T.volume_views(16, "MR", spatial_dims=2)}
    views, x = SourceViews(policies), torch.rand(4, 1, 30, 24, generator=seeded(4))
    extent = torch.tensor([[30, 24], [20, 24], [30, 10], [30, 24]])
    for number, policy in enumerate(policies.values()):
        expected = policy(x, seeded(1), extent)
        assert all(map(torch.equal, views(x, seeded(1), extent, source=[number] * 4), expected))
        params = views.draw(x.shape, seeded(1), extent=extent, source=torch.full((4,), number))
        assert params[0].rows is None and all(map(torch.equal, views.apply(x, params), expected))


def test_extents_go_with_their_images():
    views = SourceViews({0: still(0.0), 1: still(0.0)})
    x = torch.zeros(4, 1, 20, 20)
    extent = torch.tensor([[20, 20], [10, 10], [20, 20], [10, 10]])
    for image, (rows, columns) in zip(x, extent, strict=True):
        image[:, :rows, :columns] = 1
    for view in views(x, seeded(), extent, source=[0, 1, 1, 0]):
        torch.testing.assert_close(view, torch.ones_like(view), atol=1e-5, rtol=0)


def test_label_maps_go_through_the_same_draw():
    policies = {"ct": T.volume_views(24, "CT", 2), "us": T.ultrasound_views(24)}
    views, label = SourceViews(policies), torch.zeros(6, 1, 40, 40, dtype=torch.uint8)
    label[:, :, 10:30, 5:25] = 3
    image = label.float() / 3
    params = views.draw(label.shape, seeded(), source=[0, 1, 0, 1, 1, 0])
    images, maps = views.apply(image, params), views.apply(label, params, "nearest")
    for seen, moved in zip(images, maps, strict=True):
        assert moved.dtype == torch.uint8 and set(moved.unique().tolist()) <= {0, 3}
        for i in range(6):
            if 0 < (moved[i] == 3).float().mean() < 1:
                assert seen[i][moved[i] == 3].mean() > seen[i][moved[i] == 0].mean() + 0.3


def test_positions_go_back_to_their_images():
    policies = {0: T.radiograph_views(16), 1: T.volume_views(16, "MR", 2)}
    views, x = SourceViews(policies), torch.rand(4, 1, 30, 24)
    params = views.draw(x.shape, seeded(), source=[1, 0, 0, 1])
    found = views.positions(x.shape, params, 1)
    for own in params:
        alone = policies[own.source].positions((2, *x.shape[1:]), own.params, 1)
        for all_views, mine in zip(found, alone, strict=True):
            torch.testing.assert_close(all_views[own.rows], mine, equal_nan=True)


def test_names_number_the_sources():
    by_name = SourceViews({"ct": still(10.0), "chest": still(0.0)}, names=["chest", "us", "ct"])
    assert by_name.views.keys() == {0, 2} and by_name.names == {2: "ct", 0: "chest"}
    with pytest.raises(ValueError, match="no views for the source 1"):
        by_name(torch.rand(1, 1, 8, 8), source=[1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SourceViews({}), ValueError, "at least one source"),
        (lambda: SourceViews({"a": still(0.0)}, names=["b"]), ValueError, r"for the sources \['a'\], but"),
        (lambda: SourceViews({0: still(0.0), "a": still(0.0)}), ValueError, "two policies"),
        (lambda: SourceViews({0: still(0.0), 1: still(0.0, views=3)}), ValueError, "same number of views"),
        (lambda: SourceViews({0: RandomResample(8)}), TypeError, "must be a MultiView"),
        (lambda: SourceViews({0: still(0.0)})(torch.rand(2, 1, 8, 8)), ValueError, "each of 2 images, got none"),
        (lambda: SourceViews({0: still(0.0)})(torch.rand(2, 1, 8, 8), source=[0]), ValueError, "got 1"),
        (
            lambda: SourceViews({"a": still(0.0), "b": still(0.0, size=9)})(torch.rand(1, 1, 8, 8), source=[0]),
            ValueError,
            "same sizes",
        ),
    ],
)
def test_clear_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    ("modality", "options", "step"),
    [
        ("CT", {"limits_hu": (-1000, 600), "volumes": True}, "RandomWindow"),
        ("MR", {"volumes": True}, "RandomBiasField"),
        ("PT", {"volumes": True}, "RandomLowResolution"),
        ("US", {}, "RandomSpeckle"),
        ("DX", {}, "RandomGaussianBlur"),
        (None, {}, "RandomGaussianBlur"),
    ],
)
def test_each_modality_has_a_policy(modality, options, step, spatial_dims):
    views = modality_views(modality, 12, spatial_dims, num_views=3, band_energy_prob=0.5, **options)
    names = [type(part).__name__ for part in views.chains[0].transforms]
    assert step in names and "RandomBandEnergy" in names and len(views) == 3
    assert all(v.shape == (2, 1, *[12] * spatial_dims) for v in views(torch.rand(2, 1, *[16] * spatial_dims), seeded()))


@pytest.mark.parametrize(("spatial_dims", "modality"), [(2, "US"), (2, "DX"), (2, "CT"), (3, "MR")])
def test_small_views_follow_the_large_ones(spatial_dims, modality):
    options = {"min_scale": 0.5, "small_size": 6, "num_small": 3, "small_scale": (0.1, 0.3)}
    views = modality_views(modality, 12, spatial_dims, volumes=spatial_dims == 3, **options)
    found = views(torch.rand(2, 1, *[16] * spatial_dims), seeded())
    assert [view.shape[-1] for view in found] == [12, 12, 6, 6, 6]
    scales = [chain.transforms[0].scale for chain in views.chains]
    assert scales == [(0.5, 1.0)] * 2 + [(0.1, 0.3)] * 3
    kinds = [[type(step) for step in chain.transforms] for chain in views.chains]
    assert all(kind == kinds[0] for kind in kinds), "the same changes"
    assert len(modality_views(modality, 12, spatial_dims, small_size=None)) == 2
    with pytest.raises(ValueError, match="smaller"):
        modality_views(modality, 12, spatial_dims, small_size=12)
