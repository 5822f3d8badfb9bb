# SPDX-License-Identifier: Apache-2.0
"""Where a view was read: what the formula says is where its pixels come from."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.transforms import (
    CenterResample,
    MultiView,
    RandomGamma,
    RandomMirror,
    RandomQuarterTurn,
    RandomResample,
    ViewChain,
    volume_views,
)

SHAPES = {2: (4, 1, 60, 72), 3: (3, 1, 30, 36, 44)}
every_dim = pytest.mark.parametrize("dims", [2, 3])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(shape) -> torch.Tensor:
    """(B, n, *spatial): each pixel holds the position of its own centre, from the outer edge."""
    axes = [torch.arange(n) + 0.5 for n in shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(shape[0], *[-1] * (len(shape) - 1)).clone()


def deforming(dims: int, **options) -> RandomResample:
    defaults = {"scale": (0.3, 0.6), "rotation_deg": 20, "flip_prob": [0.5] * dims, "elastic": 0.2}
    return RandomResample((32,) * dims if dims == 2 else (16, 20, 24), **defaults | options)


def inner(places: torch.Tensor, shape, margin: float) -> torch.Tensor:
    """Where a position is that far from the canvas's edge."""
    sides = torch.tensor(shape[2:]).view(-1, *[1] * (places.ndim - 2))
    return ((places > margin) & (places < sides - margin)).all(1, keepdim=True).expand_as(places)


@every_dim
def test_a_view_of_coordinates_shows_the_positions(dims):
    """By linear interpolation to a hundredth of a pixel, by the nearest pixel to half of one: two ways besides."""
    shape = SHAPES[dims]
    multi = MultiView([ViewChain([deforming(dims), RandomGamma()])] * 2)
    params = multi.draw(shape, seeded())
    moving = ViewChain([multi.chains[0].transforms[0]])  # without the gamma, which would change the coordinates
    linear = [moving.apply(coordinates(shape), own) for own in params]
    nearest = multi.apply(coordinates(shape), params, "nearest")
    for places, smooth, exact in zip(multi.positions(shape, params), linear, nearest, strict=True):
        assert places.shape == (shape[0], dims, *exact.shape[2:]) and places.dtype == torch.float32
        within = inner(places, shape, 1)
        assert within.float().mean() > 0.5
        torch.testing.assert_close(places[within], smooth[within], atol=0.01, rtol=0)
        assert (places - exact)[within].abs().max() <= 0.5 + 1e-3


@every_dim
def test_anti_aliasing_and_borders_do_not_move_positions(dims):
    """Far shrinking reads a pooled image, whose edge pixels stand for several: the formula does not see it."""
    shape = (2, 1, *[96] * dims)
    chain = ViewChain([RandomResample(8, scale=(1, 1), ratio=(1, 1))])
    places = chain.positions(shape, chain.draw(shape, seeded()))
    torch.testing.assert_close(places, torch.nn.functional.interpolate(coordinates(shape), [8] * dims, mode="area"))


@every_dim
def test_what_lies_outside_the_image_has_no_position(dims):
    shape = (2, 1, *[20] * dims)
    extent = torch.tensor([[20] * dims, [10] + [20] * (dims - 1)])
    transform = CenterResample(30, fit="native")
    places = transform.positions(shape, transform.draw(shape, extent=extent))
    known = places.isfinite().all(1)
    assert torch.equal(known, places.isfinite().any(1))
    assert known.flatten(1).sum(1).tolist() == [20**dims, 10 * 20 ** (dims - 1)]
    ones = torch.zeros(shape)
    ones[0], ones[1, :, :10] = 1, 1
    torch.testing.assert_close(
        transform.apply(ones, transform.draw(shape, extent=extent), "nearest")[:, 0], known.float()
    )


@every_dim
def test_a_stride_gives_the_centres_of_blocks(dims):
    shape = SHAPES[dims]
    chain = ViewChain([deforming(dims, elastic=0.1, scale=(0.1, 0.3), translate=0)])
    params = chain.draw(shape, seeded(3))
    fine, coarse = chain.positions(shape, params), chain.positions(shape, params, 4)
    mean = torch.nn.functional.interpolate(fine, coarse.shape[2:], mode="area")
    known = mean.isfinite() & coarse.isfinite()
    assert coarse.shape[2:] == tuple(n // 4 for n in fine.shape[2:]) and known.float().mean() > 0.8
    torch.testing.assert_close(mean[known], coarse[known], atol=0.1, rtol=0)
    straight = {name: value for name, value in params.items() if not name.endswith("elastic")}
    fine, coarse = chain.positions(shape, straight), chain.positions(shape, straight, (4, 2, 2)[-dims:])
    known = coarse.isfinite()
    mean = torch.nn.functional.interpolate(fine, coarse.shape[2:], mode="area")
    known &= mean.isfinite()
    torch.testing.assert_close(mean[known], coarse[known], atol=1e-3, rtol=0)


@every_dim
@pytest.mark.parametrize("order", ["before", "after", "alone"])
def test_other_spatial_transforms_in_the_chain_count(dims, order):
    side = 24
    shape = (5, 1, *[side] * dims)
    moves = [RandomMirror(0.9), RandomQuarterTurn()]
    resample = [RandomResample(16, scale=(0.5, 0.9), rotation_deg=10)]
    chain = ViewChain({"before": moves + resample, "after": resample + moves, "alone": moves}[order])
    params = chain.draw(shape, seeded(1))
    places, shown = chain.positions(shape, params), chain.apply(coordinates(shape), params)
    within = inner(places, shape, 1)
    assert within.float().mean() > 0.5
    torch.testing.assert_close(places[within], shown[within], atol=0.01, rtol=0)
    halved = chain.positions(shape, params, 2)
    mean = torch.nn.functional.interpolate(places, halved.shape[2:], mode="area")
    known = halved.isfinite() & mean.isfinite()
    assert known.float().mean() > 0.5
    torch.testing.assert_close(halved[known], mean[known], atol=1e-3, rtol=0)


def test_without_a_spatial_transform_positions_are_the_images_own():
    shape = (2, 1, 6, 8)
    chain = ViewChain([RandomGamma()])
    torch.testing.assert_close(chain.positions(shape, chain.draw(shape)), coordinates(shape))


def test_ready_policies_tell_positions():
    views = volume_views((16, 32, 32), elastic=0.2, in_plane=False)
    shape = (2, 1, 20, 40, 40)
    places = views.positions(shape, views.draw(shape, seeded()), (4, 8, 8))
    assert [tuple(p.shape) for p in places] == [(2, 3, 4, 4, 4)] * 2


def test_a_size_that_is_no_multiple_is_refused():
    chain = ViewChain([RandomResample((24, 20))])
    with pytest.raises(ValueError, match=r"size \(24, 20\) must be a multiple of \(8, 8\)"):
        chain.positions((1, 1, 40, 40), chain.draw((1, 1, 40, 40)), 8)
