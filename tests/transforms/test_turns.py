# SPDX-License-Identifier: Apache-2.0
"""Mirrors and quarter turns move voxels and change none; labels go along."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.transforms import RandomMirror, RandomQuarterTurn, ViewChain


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(64, 2, 6, 6), (64, 1, 5, 6, 6)])
def test_each_image_gets_the_turn_that_was_drawn(shape):
    transform, x = RandomQuarterTurn(), torch.rand(shape, generator=seeded())
    params = transform.draw(shape, seeded(1))
    assert set(params["turns"].tolist()) == {0, 1, 2, 3}
    y = transform.apply(x, params)
    for image, turned, count in zip(x, y, params["turns"].tolist(), strict=True):
        assert torch.equal(turned, torch.rot90(image, count, (-2, -1)))  # in the axial plane in 3D
    label = torch.randint(0, 4, shape, dtype=torch.uint8)
    again = ViewChain([transform]).apply(label, {f"0.{k}": v for k, v in params.items()}, "nearest")
    assert again.dtype == torch.uint8 and torch.equal(
        again[0], torch.rot90(label[0], int(params["turns"][0]), (-2, -1))
    )


@pytest.mark.parametrize(("axis", "spatial", "plane"), [(1, (6, 5, 6), (-3, -1)), (2, (6, 6, 5), (-3, -2))])
def test_other_axes(axis, spatial, plane):
    transform, x = RandomQuarterTurn(axis), torch.rand(8, 1, *spatial)
    params = transform.draw(x.shape, seeded())
    for image, turned, count in zip(x, transform.apply(x, params), params["turns"].tolist(), strict=True):
        assert torch.equal(turned, torch.rot90(image, count, plane))


def test_turns_are_equally_frequent():
    turns = RandomQuarterTurn().draw((8000, 1, 4, 4), seeded())["turns"]
    assert (turns.bincount() - 2000).abs().max() < 160


@pytest.mark.parametrize("spatial", [(5, 7), (4, 5, 6)])
def test_mirrors(spatial):
    transform, x = RandomMirror(), torch.rand(30, 1, *spatial, generator=seeded())
    params = transform.draw(x.shape, seeded(1))
    for image, mirrored, flip in zip(x, transform.apply(x, params), params["flip"], strict=True):
        assert torch.equal(mirrored, image.flip([1 + axis for axis in range(len(spatial)) if flip[axis]]))
    assert torch.equal(RandomMirror(prob=0)(x), x)


def test_mirrors_are_as_frequent_as_rounds_say():
    flip = RandomMirror().draw((20000, 1, 4, 4, 4), seeded())["flip"]
    # No round, or two on one axis: 0.6 + 0.4 * 0.4 * 0.6 / 3 (three rounds change an odd number of axes).
    assert (~flip.any(1)).float().mean().item() == pytest.approx(0.6 + 0.096 / 3, abs=0.015)
    share = flip.float().mean(0)
    assert (share - share.mean()).abs().max() < 0.015
