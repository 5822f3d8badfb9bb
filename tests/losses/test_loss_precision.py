# SPDX-License-Identifier: Apache-2.0
"""Half precision: every loss is computed in float32 and stays finite at temperatures that break naive forms."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.losses import ConstantZNCELoss, ImageTextContrastLoss, InfoNCELoss, NTXentLoss

LOSSES = {
    "image_text": lambda temperature: ImageTextContrastLoss(temperature),
    "info_nce": lambda temperature: InfoNCELoss(temperature),
    "nce": lambda temperature: ConstantZNCELoss(1000, temperature),
    "nt_xent": lambda temperature: NTXentLoss(temperature),
}


def inputs(name: str, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, negatives = (torch.randn(n, 16, generator=generator) for n in (8, 32))
    key = query.clone()  # perfect positives have the largest logits, 1 / temperature
    negatives[:4] = -query[:4]
    tensors = [query, key] if name in ("nt_xent", "image_text") else [query, key, negatives]
    return [x.to(dtype).requires_grad_() for x in tensors]


@pytest.mark.parametrize("temperature", [0.05, 0.01, 0.005])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_with_gradients_of_the_right_type(name, dtype, temperature):
    x = inputs(name, dtype)
    loss = LOSSES[name](temperature)(*x)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    for tensor in x:
        assert tensor.grad.dtype == dtype
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_reach_into_the_loss(name):
    x = inputs(name)
    expected = LOSSES[name](0.05)(*x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LOSSES[name](0.05)(*x) == expected


@pytest.mark.parametrize("name", LOSSES)
def test_double_precision_stays(name):
    assert LOSSES[name](0.1)(*inputs(name, torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_close_to_float64_at_low_temperature(name):
    narrow = LOSSES[name](0.01)(*inputs(name, torch.float32)).item()
    wide = LOSSES[name](0.01)(*inputs(name, torch.float64)).item()
    assert narrow == pytest.approx(wide, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_queue_beside_float32_queries(name):
    x = inputs(name)
    x[-1] = x[-1].detach().bfloat16()
    assert LOSSES[name](0.1)(*x).dtype == torch.float32
