# SPDX-License-Identifier: Apache-2.0
"""The contrast of points: closed forms, a loop over the formula, invariances, points and images that do not count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_references import slow_point_contrast

from monai_ssl.losses import PointContrastLoss, point_contrast


def draw(batch=3, queries=5, keys=7, dim=4, seed=0, share=0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(batch, n, dim, generator=generator, dtype=torch.float64) for n in (queries, keys))
    return query, key, torch.rand(batch, queries, keys, generator=generator) < share


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_equals_the_loops(seed, temperature):
    query, key, positive = draw(seed=seed)
    positive[1, 2] = False  # a point without a positive, and in some draws an image without one
    positive[2] &= seed % 2 == 0
    expected = slow_point_contrast(query.numpy(), key.numpy(), positive.numpy(), temperature)
    assert point_contrast(query, key, positive, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_closed_forms():
    equal = torch.ones(2, 3, 4)
    for count in (1, 2, 6):
        positive = (torch.arange(6) < count).expand(2, 3, 6)
        loss = point_contrast(equal, torch.ones(2, 6, 4), positive, 0.3).item()
        assert loss == pytest.approx(math.log(6 / count), abs=1e-6)
    apart = torch.eye(4)[None]  # each point meets itself (1) and three others at a right angle (0)
    loss = point_contrast(apart, apart, torch.eye(4, dtype=torch.bool)[None], 0.5).item()
    assert loss == pytest.approx(math.log(1 + 3 * math.exp(-2)), rel=1e-5)


def test_random_features_start_where_they_should():
    """log J + 1 / (2 d t^2), for J candidates of d random dimensions."""
    query, key, _ = draw(4, 256, 256, 128)
    positive = torch.eye(256, dtype=torch.bool).expand(4, -1, -1)
    loss = point_contrast(query, key, positive, 0.3).item()
    assert loss == pytest.approx(math.log(256) + 1 / (2 * 128 * 0.3**2), abs=0.02)


def test_images_and_points_that_do_not_count():
    query, key, positive = (x.requires_grad_() if x.is_floating_point() else x for x in draw())
    positive[0] = False
    positive[1, 1:] = False
    positive[1, 0, 0] = True
    loss = point_contrast(query, key, positive)
    rest = point_contrast(query[1:], key[1:], positive[1:])
    assert loss.item() == pytest.approx(rest.item(), rel=1e-12)
    loss.backward()
    assert query.grad.isfinite().all() and key.grad.isfinite().all()
    assert not query.grad[0].any() and not key.grad[0].any() and not query.grad[1, 1:].any() and query.grad[1, 0].any()
    nothing = point_contrast(query, key, torch.zeros_like(positive))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, query)[0].any()


def test_invariances():
    query, key, positive = draw()
    loss = point_contrast(query, key, positive)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(point_contrast(3 * query @ turn, key @ turn, positive), loss)
    images, points, others = torch.tensor([2, 0, 1]), torch.randperm(5), torch.randperm(7)
    torch.testing.assert_close(point_contrast(query[images], key[images], positive[images]), loss)
    shuffled = positive[:, points][:, :, others]
    torch.testing.assert_close(point_contrast(query[:, points], key[:, others], shuffled), loss)
    assert not torch.isclose(point_contrast(query[:, points], key[:, others], positive), loss)


def test_gradients():
    query, key, positive = draw(2, 3, 4, 3)
    positive[0, 0] = False
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    query, key = query.requires_grad_(), key.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k, t: point_contrast(q, k, positive, t), (query, key, temperature))
    assert torch.autograd.gradcheck(lambda q: point_contrast(q, key.detach(), positive), (query,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.3, 0.01])
def test_half_precision_is_finite(dtype, temperature):
    query, key, positive = (x.to(dtype).requires_grad_() if x.is_floating_point() else x for x in draw())
    loss = point_contrast(query, key, positive, temperature)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and query.grad.dtype == dtype
    assert query.grad.isfinite().all() and key.grad.isfinite().all()
    plain = [x.detach().float() for x in (query, key)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = point_contrast(*plain, positive, temperature)
    assert inside == point_contrast(*plain, positive, temperature)


def test_memory_stays_below_three_similarity_matrices():
    query, key, positive = draw(1, 1024, 1024, 128, share=0.01)
    query, key = query.float().requires_grad_(), key.float().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        point_contrast(query, key, positive).backward()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    highest = np.cumsum([e.nbytes() for e in sorted(changes, key=lambda event: event.start_ns())]).max()
    matrix = 1024**2 * 4
    assert matrix <= highest < 3 * matrix


def test_refuses_what_cannot_be():
    query, key, positive = draw()
    with pytest.raises(ValueError, match=r"shapes \(B, P, D\) and \(B, Q, D\), got \(3, 5, 4\) and \(3, 7, 3\)"):
        point_contrast(query, key[..., :3], positive)
    with pytest.raises(ValueError, match=r"positive must be boolean of shape \(3, 5, 7\), got torch.float32"):
        point_contrast(query, key, positive.float())
    with pytest.raises(ValueError, match="temperature must be positive"):
        PointContrastLoss(0)


def test_module_is_the_function():
    query, key, positive = draw()
    torch.testing.assert_close(PointContrastLoss(0.1)(query, key, positive), point_contrast(query, key, positive, 0.1))
    unit = [torch.nn.functional.normalize(x, dim=2) for x in (query, key)]
    loss = PointContrastLoss(0.1, normalized=True)
    torch.testing.assert_close(loss(*unit, positive), point_contrast(query, key, positive, 0.1))
    assert loss.distribution == "reduces_statistics" and loss.state_dict() == {}
    assert repr(loss) == "PointContrastLoss(temperature=0.1, normalized=True)"
