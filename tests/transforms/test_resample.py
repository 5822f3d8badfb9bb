# SPDX-License-Identifier: Apache-2.0
"""Geometry of the resampling: closed forms, turns, flips, extents, labels, anti-aliasing, distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from monai_ssl.transforms import (
    AveragePyramid,
    CenterResample,
    MultiView,
    RandomCenterResample,
    RandomResample,
    ViewChain,
)
from monai_ssl.transforms.sampling import _levels, rotation_matrix


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def whole_image(transform, x, **changes):
    """Parameters that show all of ``x``, with some of them changed."""
    params = CenterResample(transform.size).draw(x.shape)
    return {**params, **{name: torch.as_tensor(value) for name, value in changes.items()}}


@pytest.mark.parametrize("shape", [(3, 1, 20, 27), (2, 2, 9, 12, 10)])
def test_zero_strength_is_identity(shape):
    x = torch.rand(shape)
    off = RandomResample(shape[2:], scale=(1, 1), ratio=(1, 1) if len(shape) == 5 else (27 / 20, 27 / 20))
    torch.testing.assert_close(off(x), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(CenterResample(shape[2:])(x), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(40, 56), (61, 50), (80, 112), (33, 45)])
def test_pure_resize_equals_interpolate(size):
    """At a shrink below 2**0.5 no level is pooled, so that torch's plain bilinear resize is the closed form."""
    x = torch.rand(2, 1, 40, 56)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(CenterResample(size)(x), expected, atol=2e-5, rtol=0)


def test_pure_resize_3d_equals_interpolate():
    x = torch.rand(2, 1, 12, 20, 16)
    expected = F.interpolate(x, size=(17, 18, 24), mode="trilinear", align_corners=False)
    torch.testing.assert_close(CenterResample((17, 18, 24))(x), expected, atol=2e-5, rtol=0)


def test_halving_equals_average_pool_per_axis():
    x = torch.rand(2, 1, 32, 48)
    torch.testing.assert_close(CenterResample((16, 24))(x), F.avg_pool2d(x, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(CenterResample((8, 48))(x), F.avg_pool2d(x, (4, 1)), atol=1e-5, rtol=0)
    volume = torch.rand(1, 1, 6, 16, 32)
    expected = F.avg_pool3d(volume, (1, 2, 4))
    torch.testing.assert_close(CenterResample((6, 8, 8))(volume), expected, atol=1e-5, rtol=0)


def test_checkerboard_shrinks_to_grey():
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()[None, None]
    small = CenterResample(28)(board)  # a shrink of 2.3
    assert (small - 0.5).abs().max() < 0.01
    aliased = F.interpolate(board, size=(28, 28), mode="bilinear", align_corners=False)
    assert (aliased - 0.5).abs().max() > 0.3
    crop = RandomResample(16, scale=(0.5, 1), rotation_deg=30)(board.expand(16, 1, 64, 64), seeded())
    assert (crop - 0.5).abs().max() < 0.1


def test_smooth_images_shrink_close_to_an_exact_filter():
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    image = (0.5 + 0.25 * torch.sin(x / 9) + 0.25 * torch.cos(y / 7))[None, None]
    for size in (100, 80, 56, 30):
        exact = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
        assert (CenterResample(size)(image) - exact)[..., 2:-2, 2:-2].abs().max() < 0.03


def test_quarter_turn_is_counter_clockwise():
    x = torch.rand(1, 1, 40, 40)
    turn = RandomResample(40)
    turned = turn.apply(x, whole_image(turn, x, angle_deg=[90.0]))
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quarter_turn_3d(axis):
    x = torch.rand(1, 1, 12, 12, 12)
    turn = RandomResample(12)
    unit = F.one_hot(torch.tensor([axis]), 3).float()
    turned = turn.apply(x, whole_image(turn, x, angle_deg=[90.0], axis=unit))
    first, second = [i + 2 for i in range(3) if i != axis]
    expected = torch.rot90(x, 1 if axis != 1 else -1, (first, second))
    torch.testing.assert_close(turned, expected, atol=5e-5, rtol=0)  # 144 rows are met to within 3.4e-5


def test_rotation_matrices_are_rotations():
    axis = F.normalize(torch.randn(20, 3, generator=seeded()), dim=1)
    angle = torch.linspace(-180, 180, 20)
    for matrix in (rotation_matrix(angle, None), rotation_matrix(angle, axis)):
        eye = torch.eye(matrix.shape[1]).expand_as(matrix)
        torch.testing.assert_close(matrix @ matrix.mT, eye, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(20))
    fixed = torch.einsum("bij,bj->bi", rotation_matrix(angle, axis), axis)
    torch.testing.assert_close(fixed, axis, atol=1e-5, rtol=0)


def test_rotation_does_not_shear_oblong_images():
    """A line along the width of an oblong image, turned by 30 degrees, lies at 30 degrees in pixels."""
    x = torch.zeros(1, 1, 60, 120)
    x[..., 29:31, :] = 1
    turn = RandomResample((60, 120), padding="zeros")
    turned = turn.apply(x, whole_image(turn, x, angle_deg=[30.0]))[0, 0]
    columns = torch.arange(40, 80)
    rows = torch.arange(60.0)[:, None]
    center = (turned * rows).sum(0)[columns] / turned.sum(0)[columns]
    slope = (center[-1] - center[0]) / 39  # rows grow downwards, and counter-clockwise lifts the right end
    assert math.degrees(math.atan(float(slope))) == pytest.approx(-30, abs=0.5)


def test_flips_mirror_their_axis():
    x = torch.rand(4, 1, 10, 12)
    flip = RandomResample((10, 12))
    wanted = torch.tensor([[False, False], [False, True], [True, False], [True, True]])
    flipped = flip.apply(x, whole_image(flip, x, flip=wanted))
    for i, axes in enumerate(([], [2], [1], [1, 2])):
        torch.testing.assert_close(flipped[i], x[i].flip(axes), atol=1e-5, rtol=0)


def test_flip_probabilities():
    flip = RandomResample(8, flip_prob=(0.2, 0.7)).draw((4000, 1, 9, 9), seeded())["flip"].float().mean(0)
    assert flip.tolist() == pytest.approx([0.2, 0.7], abs=0.04)
    only_last = RandomResample(8, flip_prob=0.5).draw((4000, 1, 9, 9, 9), seeded())["flip"].float().mean(0)
    assert only_last.tolist() == pytest.approx([0, 0, 0.5], abs=0.04)


def test_crop_distribution_2d():
    scale, ratio = (0.2, 0.6), (3 / 4, 4 / 3)
    params = RandomResample(8, scale, ratio, rotation_deg=10).draw((5000, 1, 100, 100), seeded())
    share = params["crop"].prod(1) / 100**2
    assert scale[0] - 1e-4 <= share.min() and share.max() <= scale[1] + 1e-4
    assert share.mean() == pytest.approx(0.4, abs=0.01)  # nearly every draw fits at these scales
    log_ratio = (params["crop"][:, 1] / params["crop"][:, 0]).log()
    assert log_ratio.abs().max() <= math.log(4 / 3) + 1e-4
    assert log_ratio.std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.05)
    assert params["angle_deg"].abs().max() <= 10 and params["angle_deg"].std() == pytest.approx(20 / 12**0.5, rel=0.05)
    low, high = params["center"] - params["crop"] / 2, params["center"] + params["crop"] / 2
    assert low.min() >= -1e-3 and high.max() <= 100 + 1e-3


def test_draws_that_do_not_fit_are_repeated():
    """Large crops: shares and shapes stay within bounds, as with torchvision's rejection."""
    crop = RandomResample(8, (0.85, 1.0)).draw((3000, 1, 90, 100), seeded())["crop"]
    share = crop.prod(1) / 9000
    assert share.min() >= 0.85 - 1e-4 and share.max() <= 1 + 1e-4
    # Area and ratio are uniform and log-uniform over what fits: a slow rejection gives their means.
    random = seeded(1)
    area = 0.85 + 0.15 * torch.rand(100_000, generator=random)
    ratio = ((2 * torch.rand(100_000, generator=random) - 1) * math.log(4 / 3)).exp()
    fits = ((area * 9000 * ratio).sqrt() <= 100) & ((area * 9000 / ratio).sqrt() <= 90)
    drawn = share < 1 - 1e-4  # the rest found no fit in 10 draws
    assert share[drawn].mean() == pytest.approx(float(area[fits].mean()), abs=0.004)
    assert (crop[drawn, 1] / crop[drawn, 0]).mean() == pytest.approx(float(ratio[fits].mean()), abs=0.01)


def test_crop_distribution_3d():
    shape = (2000, 1, 20, 60, 80)
    params = RandomResample(8, (0.3, 0.9), (0.8, 1.25)).draw(shape, seeded())
    share = params["crop"] / torch.tensor(shape[2:])
    volume = share.prod(1)
    assert volume.min() >= 0.3 - 1e-3 and volume.max() <= 0.9 + 1e-3
    assert (share.amax(1) / share.amin(1)).max() <= 1.25 + 1e-3
    assert share.max() <= 1


def test_oblong_images_get_the_largest_allowed_box():
    params = RandomResample(8, (0.9, 1.0)).draw((50, 1, 100, 400), seeded())
    torch.testing.assert_close(params["crop"], torch.tensor([100.0, 400 / 3]).expand(50, 2))


@pytest.mark.parametrize("shape", [(24, 1, 64, 50), (8, 1, 20, 33, 26)])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", [9, 24, 70])
def test_nothing_beyond_the_extent_is_read(shape, padding, size):
    n = len(shape) - 2
    size = min(size, 40) if n == 3 else size
    extent = torch.stack([torch.randint(s // 2, s + 1, (shape[0],), generator=seeded(s)) for s in shape[2:]], 1)
    inside = torch.ones(shape, dtype=torch.bool)
    for axis in range(n):
        position = torch.arange(shape[axis + 2]).view(1, 1, *[-1 if i == axis else 1 for i in range(n)])
        inside &= position < extent[:, axis].view(-1, 1, *[1] * n)
    x = torch.where(inside, 0.25 + 0.5 * torch.rand(shape), torch.nan)
    for transform in (RandomResample(size, (0.5, 1.0), flip_prob=0.5, padding=padding), CenterResample(size)):
        view = transform(x, seeded(), extent)
        assert view.isfinite().all()
        assert view.min() >= 0.25 and view.max() <= 0.75
    # With turns and shifts beyond the image there is something to fill in, but still no padding pixel.
    view = RandomResample(size, (0.5, 1.0), rotation_deg=45, translate=0.3, padding=padding)(x, seeded(), extent)
    assert view.isfinite().all()
    assert (view.min() == 0) == (padding == "zeros")


def test_extent_is_the_same_as_a_tight_canvas():
    """An image in a padded canvas gives the views of the image alone."""
    image = torch.rand(1, 1, 37, 51)
    canvas = torch.full((1, 1, 60, 64), 1e6)
    canvas[..., :37, :51] = image
    extent = torch.tensor([[37, 51]])
    for padding in ("border", "zeros"):
        transform = RandomResample(16, (0.6, 1.0), rotation_deg=30, flip_prob=0.5, padding=padding)
        for seed in range(8):
            alone = transform(image, seeded(seed))
            padded = transform(canvas, seeded(seed), extent)
            # Right at the edge the last pixel is approached only to within 64 * 2**-21 pixels.
            torch.testing.assert_close(padded, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(4, 1, 40, 30), (3, 1, 14, 20, 18)])
def test_labels_follow_the_image_and_keep_their_values(shape):
    """An image that is its own label map: nearest and bilinear sampling agree away from the boundary."""
    coarse = torch.randint(0, 2, (*shape[:2], *[n // 8 + 1 for n in shape[2:]]), generator=seeded())
    for axis in range(2, len(shape)):
        coarse = coarse.repeat_interleave(8, dim=axis)
    label = coarse[tuple(slice(n) for n in shape)] * 7
    transform = RandomResample(24, (0.3, 1.0), rotation_deg=25, flip_prob=0.5, padding="zeros")
    params = transform.draw(shape, seeded(1))
    moved = transform.apply(label, params, interpolation="nearest")
    assert moved.dtype == label.dtype and set(moved.unique().tolist()) <= {0, 7}
    image = transform.apply(label.float(), params)
    clear = (image < 0.01) | (image > 6.99)
    assert clear.float().mean() > 0.3
    assert torch.equal(moved[clear].float(), image[clear].round())


def test_chain_moves_labels_with_the_image():
    from monai_ssl.transforms import radiograph_views

    chain = radiograph_views(20, noise_std=0.01).chains[0]
    image = torch.zeros(6, 1, 50, 50)
    image[..., 20:34, 10:30] = 1
    params = chain.draw(image.shape, seeded())
    view, label = chain.apply(image, params), chain.apply(image.long(), params, interpolation="nearest")
    for i in range(6):
        if 20 < label[i].sum() < 380:
            assert view[i][label[i] == 1].mean() > view[i][label[i] == 0].mean() + 1


def test_pad_and_crop_keep_the_aspect_ratio():
    x = torch.ones(1, 1, 40, 80)
    padded = CenterResample(20, "pad")(x)
    assert torch.equal(padded[..., 5:15, :], torch.ones(1, 1, 10, 20))
    assert padded.sum() == 200
    ramp = torch.arange(80.0).expand(1, 1, 40, 80)
    cropped = CenterResample(20, "crop")(ramp)
    torch.testing.assert_close(cropped[0, 0, 0], 20.5 + 2 * torch.arange(20.0), atol=1e-3, rtol=0)
    assert CenterResample((4, 8, 8), "pad")(torch.rand(1, 1, 9, 9, 9)).shape == (1, 1, 4, 8, 8)


def test_native_cuts_and_pads_without_touching_a_voxel():
    x = torch.rand(2, 1, 9, 14, 10)
    extent = torch.tensor([[9, 14, 10], [4, 7, 9]])
    seen = CenterResample((6, 20, 9), "native")(x, None, extent)
    expected = torch.zeros(2, 1, 6, 20, 9)
    expected[0, :, :, 3:17, :] = x[0, :, 1:7, :, :9]  # 3 and 1 voxels too many: the half one is taken at the origin
    expected[1, :, 1:5, 7:14, :] = x[1, :, :4, :7, :9]
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)  # a voxel off would be 0.3 on average
    numbers = torch.randint(0, 5, (1, 1, 9, 14))
    params = CenterResample(8, "native").draw(numbers.shape)
    cut = CenterResample(8, "native").apply(numbers, params, interpolation="nearest")
    assert torch.equal(cut, numbers[..., :8, 3:11])


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop", "native"])
def test_random_center_is_the_center_changed_a_little(fit):
    x = torch.rand(3, 1, 12, 20, 17)
    extent = torch.tensor([[12, 20, 17], [10, 20, 12], [5, 8, 9]])
    still = RandomCenterResample((8, 16, 16), fit)
    torch.testing.assert_close(still(x, seeded(), extent), CenterResample((8, 16, 16), fit)(x, None, extent))
    mirrored = RandomCenterResample((8, 16, 16), fit, flip_prob=1.0)(x, seeded(), extent)
    box = CenterResample((8, 16, 16), fit).draw(x.shape, None, None, extent)
    assert torch.equal(mirrored, still.apply(x, {**box, "flip": torch.tensor([[False, False, True]] * 3)}))

    transform = RandomCenterResample((8, 16, 16), fit, (0.8, 1.25), translate=0.1, rotation_deg=12)
    params = transform.draw((500, 1, 12, 20, 17), seeded())
    box = CenterResample((8, 16, 16), fit).draw((500, 1, 12, 20, 17))
    zoom = box["crop"] / params["crop"]
    assert torch.allclose(zoom, zoom[:, :1].expand(-1, 3))  # one for all axes
    assert 0.8 <= zoom.min() < 0.82 and 1.22 < zoom.max() <= 1.25 + 1e-5
    assert zoom.log().mean().abs() < 0.02
    shift = (params["center"] - box["center"]) / params["crop"]
    assert shift.abs().max() <= 0.1 + 1e-5 and (shift.std(0) - 0.2 / 12**0.5).abs().max() < 0.01
    assert params["angle_deg"].abs().max() <= 12 and params["axis"].eq(torch.tensor([1.0, 0, 0])).all()


@pytest.mark.parametrize(
    ("step", "level"),
    [
        ((0.5, 0.5), (0, 0)),
        ((1.4, 1.4), (0, 0)),
        ((1.45, 1.45), (1, 1)),
        ((2.8, 2.8), (1, 1)),
        ((2.9, 2.9), (2, 2)),
        ((1.6, 1.3), (1, 1)),  # a common level for what one pair of aspect ratios can bring
        ((1.5, 1.2), (0, 0)),
        ((0.5, 8.0), (0, 3)),
        ((1.0, 4.0, 4.0), (0, 2, 2)),
    ],
)
def test_level_follows_the_shrink(step, level):
    matrix = torch.diag(torch.tensor(step))[None]
    assert _levels(matrix, torch.full((1, len(step)), 512))[0].tolist() == list(level)
    turned = torch.tensor([[0.0, -1.0], [1.0, 0.0]]) @ matrix if len(step) == 2 else matrix
    expected = level[::-1] if len(step) == 2 else level
    assert _levels(turned, torch.full((1, len(step)), 512))[0].tolist() == list(expected)


def test_level_is_bounded():
    matrix = torch.randn(500, 3, 3, generator=seeded()).exp()
    step = torch.linalg.vector_norm(matrix, dim=2)
    residual = step / 2.0 ** _levels(matrix, torch.full((500, 3), 512))
    assert residual.max() <= 2**0.75 + 1e-4
    assert residual[step > 2**0.75].min() >= 2**-0.75 - 1e-4
    assert (_levels(matrix, torch.full((500, 3), 2)) <= 1).all()


def test_pyramid_levels():
    x = torch.rand(3, 1, 9, 12)
    pyramid = AveragePyramid(x)
    assert pyramid[0, 0] is x
    torch.testing.assert_close(pyramid[1, 2], F.avg_pool2d(x, (2, 4)))
    torch.testing.assert_close(pyramid[1, 1], F.avg_pool2d(x, 2))
    assert pyramid[1, 1] is pyramid[1, 1]


def test_views_share_one_pyramid(monkeypatch):
    from monai_ssl.transforms import pyramid

    calls = []
    halve = pyramid._halve
    monkeypatch.setattr(pyramid, "_halve", lambda *args: calls.append(args) or halve(*args))
    x = torch.rand(4, 1, 64, 64)
    chain = ViewChain([RandomResample(24, (0.8, 1.0), rotation_deg=5)])
    views = MultiView([chain, chain])
    params = views.draw(x.shape, seeded())
    shared = views.apply(x, params)
    assert len(calls) == 1
    for view, own in zip(shared, params, strict=True):
        assert torch.equal(view, chain.apply(x, own))


def test_rescale_magnifies_about_the_centre_of_the_crop():
    x = torch.rand(3, 1, 32, 32, generator=seeded(1))
    still = RandomResample(16, (1.0, 1.0), (1.0, 1.0))
    for factor in (0.5, 2.0):
        changed = RandomResample(16, (1.0, 1.0), (1.0, 1.0), rescale=(factor, factor))
        params = changed.draw(x.shape, seeded())
        torch.testing.assert_close(params["crop"], torch.full((3, 2), 32 / factor))
        torch.testing.assert_close(params["center"], still.draw(x.shape, seeded())["center"])
    drawn = RandomResample(16, rescale=(0.8, 1.25)).draw((500, 1, 32, 32), seeded())["crop"].prod(1)
    plain = RandomResample(16).draw((500, 1, 32, 32), seeded())["crop"].prod(1)
    factors = (plain / drawn).sqrt()
    assert 0.8 <= factors.min() < 0.82 and 1.23 < factors.max() <= 1.2501
    with pytest.raises(ValueError, match="rescale"):
        RandomResample(16, rescale=(2.0, 1.0))
