# SPDX-License-Identifier: Apache-2.0
"""In- and out-painting: what is hidden is noise, what is not is the image, in the stated shares and sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ssl.transforms import RandomBlockDrop, RandomPainting, boxes_to_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("spatial", [(9, 7), (5, 6, 8)])
def test_union_of_boxes_equals_a_loop(spatial):
    n = len(spatial)
    ends = torch.stack([torch.randint(0, size + 1, (4, 6, 2), generator=seeded(size)) for size in spatial], 2)
    start, stop = ends.amin(3), ends.amax(3)  # (4, 6, n), some of them empty
    used = torch.rand(4, 6, generator=seeded(1)) < 0.7
    expected = np.zeros((4, 1, *spatial), dtype=bool)
    for i in range(4):
        for k in range(6):
            if used[i, k]:
                expected[(i, 0, *[slice(int(start[i, k, a]), int(stop[i, k, a])) for a in range(n)])] = True
    assert torch.equal(boxes_to_mask(start, stop, spatial, used), torch.from_numpy(expected))
    assert boxes_to_mask(start, stop, spatial).sum() >= expected.sum()


@pytest.mark.parametrize("shape", [(40, 2, 48, 36), (20, 1, 24, 30, 28)])
def test_hidden_is_noise_and_the_rest_is_the_image(shape):
    transform, x = RandomPainting(value_range=(2, 3)), torch.rand(shape, generator=seeded())
    params = transform.draw(shape, seeded(1))
    y, hidden = transform.apply(x, params), transform.hidden(params, shape[2:]).expand(shape)
    assert torch.equal(y[~hidden], x[~hidden])
    assert y[hidden].min() >= 2 and y[hidden].max() <= 3 and y[hidden].mean().item() == pytest.approx(2.5, abs=0.02)
    share = hidden[:, 0].flatten(1).float().mean(1)
    assert (share[~params["chosen"]] == 0).all()
    changed = params["chosen"]
    assert share[changed & params["outer"]].min() > share[changed & ~params["outer"]].max()
    edges = [(slice(None), slice(None), *[slice(None)] * axis, 0) for axis in range(len(shape) - 2)]
    for edge in edges:  # boxes keep off the edge
        assert hidden[edge][changed & params["outer"]].all() and not hidden[edge][changed & ~params["outer"]].any()


def test_shares_and_sizes_are_the_papers():
    transform = RandomPainting()
    params = transform.draw((4000, 1, 64, 32), seeded())
    assert params["chosen"].float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert params["outer"].float().mean().item() == pytest.approx(0.8, abs=0.025)
    side, outer = params["stop"] - params["start"], params["outer"]
    for axis, inner_sides, outer_sides in ((0, (10, 21), (27, 36)), (1, (5, 10), (13, 18))):
        for rows, (least, most) in ((~outer, inner_sides), (outer, outer_sides)):
            assert (side[rows][..., axis].min(), side[rows][..., axis].max()) == (least, most)
    assert params["start"].min() == 3 and (params["stop"] <= torch.tensor([61, 29])).all()
    count = params["used"].sum(1).float()
    assert count[outer].mean().item() == pytest.approx(sum(0.95**k for k in range(5)), abs=0.05)
    assert count[~outer].mean().item() == pytest.approx(sum(0.95**k for k in range(1, 6)), abs=0.1)
    x = torch.rand(3, 1, 10, 10)
    assert torch.equal(RandomPainting(prob=0)(x), x)


@pytest.mark.parametrize("spatial", [(2, 3), (1, 5, 4)])
def test_tiny_images_do_not_break(spatial):
    x = torch.rand(30, 1, *spatial)
    for transform in (RandomPainting(prob=1), RandomBlockDrop()):
        assert transform(x, seeded()).isfinite().all()


@pytest.mark.parametrize("spatial", [(96, 96), (48, 48, 48)])
def test_blocks_cover_what_was_drawn(spatial):
    transform, shape = RandomBlockDrop(share=(0.3, 0.3)), (60, 1, *spatial)
    params = transform.draw(shape, seeded())
    volume = (params["stop"] - params["start"]).prod(2) * params["used"]
    share = volume.sum(1) / torch.tensor(spatial).prod()
    assert share.min() >= 0.3 and share.max() < 0.3 + 0.25 ** len(spatial)  # not a box too many, never too few
    covered = transform.hidden(params, spatial).flatten(1).float().mean(1)
    assert (covered <= share).all() and covered.mean() > 0.22  # overlaps count once here
    side = params["stop"] - params["start"]
    assert side.max() == int(0.25 * spatial[0]) - 1 and side.min() >= 1


def test_the_share_is_uniform_and_the_fill_is_what_was_asked_for():
    transform, shape = RandomBlockDrop(), (400, 1, 48, 48)
    params = transform.draw(shape, seeded())
    volume = ((params["stop"] - params["start"]).prod(2) * params["used"]).sum(1) / 48**2
    assert volume.min() < 0.03 and 0.27 < volume.max() < 0.36
    assert volume.mean().item() == pytest.approx(0.15 + 0.009, abs=0.02)  # half a box beyond what was drawn
    x = torch.full(shape, 9.0)
    hidden = transform.hidden(params, shape[2:])
    noise = transform.apply(x, params)[hidden]
    assert noise.min() >= 0 and noise.max() <= 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01) and noise.std().item() == pytest.approx(1 / 7, abs=0.01)
    constant = RandomBlockDrop(fill=-1.0)
    assert torch.equal(constant.apply(x, params), torch.where(hidden, -1.0, x))
    assert "noise" not in constant.draw(shape, seeded())
    assert torch.equal(RandomBlockDrop(share=(0, 0))(x), x)
