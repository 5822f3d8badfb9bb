# SPDX-License-Identifier: Apache-2.0
"""DINO's head: cosines of unit vectors, a last layer of directions only, that can be frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, linear

from monai_ssl.networks import DINOHead, MomentumCopy


def small(**options) -> DINOHead:
    torch.manual_seed(0)
    return DINOHead(12, out_features=10, hidden_features=8, bottleneck_features=6, **options)


def test_outputs_are_cosines_of_the_bottleneck_and_the_directions():
    head, x = small(), torch.randn(3, 5, 12)
    hidden = head.layers(x)
    expected = cosine_similarity(hidden[..., None, :], head.directions, dim=-1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head.embed(x).norm(dim=-1), torch.ones(3, 5))
    assert [type(layer).__name__ for layer in head.layers] == ["Linear", "GELU", "Linear", "GELU", "Linear"]


def test_it_is_torchs_weight_norm_with_the_gain_one():
    head, x = small(), torch.randn(4, 12)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 10, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original0.fill_(1)
        layer.parametrizations.weight.original1.copy_(head.directions)
    torch.testing.assert_close(head(x), layer(head.embed(x)))


def test_only_directions_count():
    head, x = small(), torch.randn(4, 12)
    before = head(x)
    with torch.no_grad():
        head.directions.mul_(torch.rand(10, 1) + 0.1)
    torch.testing.assert_close(head(x), before)
    head(x).square().sum().backward()
    along = (head.directions.grad * head.directions).sum(1)
    torch.testing.assert_close(along, torch.zeros(10), atol=1e-5, rtol=0)


def test_a_frozen_last_layer_has_the_same_output_and_a_gradient_of_zero():
    head, x = small(), torch.randn(4, 12)
    torch.testing.assert_close(head(x, frozen_last_layer=True), head(x))
    head(x, frozen_last_layer=True).square().sum().backward()
    assert head.directions.grad is not None and head.directions.grad.abs().sum() == 0
    assert all(layer.weight.grad.abs().sum() > 0 for layer in head.layers if isinstance(layer, nn.Linear))
    start = head.directions.detach().clone()
    torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(cosine_similarity(head.directions, start, dim=1), torch.ones(10))


def test_batch_norm_stands_before_each_gelu():
    head = small(batch_norm=True)
    names = [type(layer).__name__ for layer in head.layers]
    assert names == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert head.layers[0].bias is None and head.layers[-1].bias is not None
    assert head(torch.randn(4, 12)).shape == (4, 10)


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_autocast_keeps_unit_vectors_finite(value):
    head = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = head.embed(torch.full((2, 12), value))
        assert x.dtype == torch.float32
        assert head.score(x).isfinite().all()


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        head = DINOHead(384)
    shapes = [tuple(layer.weight.shape) for layer in head.layers if isinstance(layer, nn.Linear)]
    assert shapes == [(2048, 384), (2048, 2048), (256, 2048)] and head.directions.shape == (65536, 256)


def test_gradients_of_narrow_heads_are_no_larger_than_of_wide_ones():
    norms = []
    for width in (16, 256):
        torch.manual_seed(0)
        head = DINOHead(width, out_features=64, hidden_features=width, bottleneck_features=width // 2)
        head(torch.randn(32, width)).mul(10).log_softmax(1)[:, 0].mean().backward()
        norms.append(torch.stack([p.grad.norm() for p in head.layers.parameters()]).norm().item())
    assert norms[0] < 10 * norms[1] and max(norms) < 30, norms


def test_a_teacher_copies_it():
    head, x = small(), torch.randn(4, 12)
    assert torch.equal(MomentumCopy(head)(x), head(x))
    assert torch.equal(linear(head.embed(x), nn.functional.normalize(head.directions, dim=1)), head(x))
