# SPDX-License-Identifier: Apache-2.0
"""Projection heads: what they compute, written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_ssl.networks import LinearHead, MLPHead


def test_linear_head_is_one_matrix():
    head = LinearHead(6)
    x = torch.randn(3, 6)
    torch.testing.assert_close(head(x), x @ head.weight.T + head.bias)
    assert (head.in_features, head.out_features) == (6, 128)


def test_mlp_head_written_out():
    head = MLPHead(6, 5, 4, num_layers=3)
    first, _, second, _, third = head.layers
    x = torch.randn(3, 6)
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(head(x), hidden @ third.weight.T + third.bias)
    assert (head.in_features, head.out_features) == (6, 4)


def test_mlp_head_with_batch_norm():
    head = MLPHead(6, 5, 4, batch_norm=True)
    first, norm, _, last = head.layers
    assert first.bias is None and isinstance(norm, nn.BatchNorm1d) and last.bias is not None
    x = torch.randn(64, 6)
    hidden = x @ first.weight.T
    hidden = ((hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(head(x), hidden @ last.weight.T + last.bias)


def test_one_layer_is_linear_and_none_is_refused():
    assert [type(layer) for layer in MLPHead(6, 5, 4, num_layers=1).layers] == [nn.Linear]
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        MLPHead(6, 5, 4, num_layers=0)


def test_final_batch_norm_written_out():
    head = MLPHead(6, 5, 4, num_layers=3, batch_norm=True, final_batch_norm=True)
    last, norm = head.layers[-2:]
    assert last.bias is None
    assert not list(norm.parameters()), "no scale and shift after the last layer"
    x = torch.randn(64, 6)
    out = head.layers[:-1](x)
    torch.testing.assert_close(head(x), (out - out.mean(0)) / (out.var(0, correction=0) + 1e-5).sqrt())


def test_keys_stay_where_checkpoints_have_them():
    assert list(MLPHead(6, 5, 4).state_dict()) == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.2.weight",
        "layers.2.bias",
    ]
    assert list(MLPHead(6, 5, 4, final_bias=False).state_dict())[-1] == "layers.2.weight"
    with_norm = MLPHead(6, 5, 4, batch_norm=True).state_dict()
    assert {"layers.0.weight", "layers.1.running_mean", "layers.3.weight", "layers.3.bias"} <= with_norm.keys()
