# SPDX-License-Identifier: Apache-2.0
"""BYOL's and SimSiam's losses: ranges, closed forms, and a target without gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_references import cosine

from monai_ssl.losses import CosineRegressionLoss, NegativeCosineLoss, cosine_regression, negative_cosine


def draw(batch=5, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=dtype) for _ in range(2)]


def test_equals_the_literal_formulas():
    p, z = draw()
    cosines = [cosine(a, b) for a, b in zip(p.numpy(), z.numpy(), strict=True)]
    assert negative_cosine(p, z).item() == pytest.approx(-np.mean(cosines), rel=1e-12)
    distances = [
        np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2
        for a, b in zip(p.numpy(), z.numpy(), strict=True)
    ]
    assert cosine_regression(p, z).item() == pytest.approx(np.mean(distances), rel=1e-12)


def test_ranges():
    x = draw()[0]
    assert negative_cosine(x, 3 * x).item() == pytest.approx(-1)
    assert negative_cosine(x, -x).item() == pytest.approx(1)
    assert cosine_regression(x, 3 * x).item() == pytest.approx(0, abs=1e-12)
    assert cosine_regression(x, -x).item() == pytest.approx(4)
    assert negative_cosine(*draw(512, 128)).item() == pytest.approx(0, abs=0.02)
    assert cosine_regression(*draw(512, 128)).item() == pytest.approx(2, abs=0.04)


def test_rotation_and_length_do_not_matter_and_pairs_do():
    p, z = draw(6, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    torch.testing.assert_close(negative_cosine(2 * p @ rotation, z @ rotation), negative_cosine(p, z))
    assert not torch.isclose(negative_cosine(p.roll(1, 0), z), negative_cosine(p, z))


def test_gradient_reaches_the_prediction_only():
    p, z = (x.requires_grad_() for x in draw())
    assert torch.autograd.gradcheck(lambda p: negative_cosine(p, z), (p,))
    cosine_regression(p, z).backward()
    assert p.grad.abs().sum() > 0 and z.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    p, z = ((1000 * x).to(dtype).requires_grad_() for x in draw(dtype=torch.float32))  # squares overflow fp16
    loss = negative_cosine(p, z)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert p.grad.dtype == dtype and p.grad.isfinite().all()
    wide = negative_cosine(p.double(), z.double())
    assert loss.item() == pytest.approx(wide.item(), rel=1e-5)


def test_modules_and_refusals():
    p, z = draw()
    assert NegativeCosineLoss()(p, z) == negative_cosine(p, z)
    assert CosineRegressionLoss()(p, z) == cosine_regression(p, z)
    assert NegativeCosineLoss.distribution == "local" and NegativeCosineLoss().state_dict() == {}
    with pytest.raises(ValueError, match="one shape"):
        negative_cosine(p, z[:, :3])
