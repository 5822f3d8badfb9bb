# SPDX-License-Identifier: Apache-2.0
"""KoLeo: closed forms, a slow reference, gradients, equal images, half precision."""

from __future__ import annotations

import math

import pytest
import torch
from loss_references import slow_koleo
from torch.nn.functional import normalize

from monai_ssl.losses import KoLeoLoss, koleo


def features(rows: int = 7, length: int = 5, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_equals_the_slow_loop():
    x = features()
    assert koleo(x, epsilon=0).item() == pytest.approx(slow_koleo(x.numpy()), rel=1e-12)
    assert koleo(x).item() == pytest.approx(slow_koleo(x.numpy()), abs=1e-7)
    assert KoLeoLoss()(x) == koleo(x)
    assert koleo(3 * x).item() == pytest.approx(koleo(x).item(), rel=1e-12)
    assert koleo(normalize(x, dim=1), normalized=True).item() == pytest.approx(koleo(x).item(), rel=1e-12)


def test_closed_forms():
    assert koleo(torch.eye(6)).item() == pytest.approx(-math.log(math.sqrt(2)), rel=1e-6)
    assert koleo(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-math.log(2), rel=1e-6)
    angle = torch.arange(8) * math.pi / 4
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    assert koleo(ring).item() == pytest.approx(-math.log(2 * math.sin(math.pi / 8)), rel=1e-5)


def test_order_and_rotation_do_not_matter():
    x = features()
    turned = x @ torch.linalg.qr(features(5, 5, 3))[0]
    assert koleo(turned).item() == pytest.approx(koleo(x).item(), rel=1e-9)
    assert koleo(x.flip(0)).item() == pytest.approx(koleo(x).item(), rel=1e-12)


def test_gradients():
    assert torch.autograd.gradcheck(koleo, features().requires_grad_())
    x = features(32, 3).requires_grad_()
    for _ in range(100):  # minimised, the points drive one another apart
        x.data -= 0.05 * torch.autograd.grad(koleo(x), x)[0]
    assert slow_koleo(x.detach().numpy()) < slow_koleo(features(32, 3).numpy()) - 0.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_images_give_a_finite_loss_and_no_gradient(dtype):
    x = features(4, 8, dtype=torch.float32)
    x = torch.cat([x, x[:1]]).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo(x)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert x.grad.isfinite().all() and x.grad.dtype == dtype
    assert x.grad[0].float().norm() <= 10 and x.grad[4].float().norm() <= 10
    assert koleo(torch.ones(3, 4)).item() == pytest.approx(-math.log(1e-8) / 2, rel=1e-5)


def test_small_distances_survive_rounding():
    """A cosine of float32 knows distances of 3e-4 at best."""
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-3], [0.0, 1.0]])
    assert koleo(x, epsilon=1e-12).item() == pytest.approx(slow_koleo(x.double().numpy()), rel=1e-5)


def test_plain_errors():
    with pytest.raises(ValueError, match="at least two images"):
        koleo(features(1))
    with pytest.raises(ValueError, match=r"shape \(B, D\)"):
        koleo(features()[0])
