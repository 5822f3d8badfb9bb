# SPDX-License-Identifier: Apache-2.0
"""The light decoder: full size in 2D and 3D for any encoder, by its formula, with gradients to every map."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from monai_ssl.networks import PyramidHead, build_encoder, measure_maps

ENCODERS = [
    ("resnet18", 2, {"widen_factor": 0.125}),
    ("resnet18", 3, {"widen_factor": 0.125}),
    ("densenet121", 2, {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}),
    ("segresnet", 3, {"init_filters": 8}),
    ("vit", 2, {"img_size": 64, "patch_size": 16, "hidden_size": 48, "num_heads": 4, "mlp_dim": 48, "num_layers": 4}),
    ("efficientnet-b0", 2, {}),
]


@pytest.mark.parametrize("name, dims, arguments", ENCODERS)
def test_any_encoder_gives_an_image_of_its_size(name, dims, arguments):
    encoder = build_encoder(name, spatial_dims=dims, **arguments).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    channels = [width for width, _ in measure_maps(encoder)]
    assert encoder.training and all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    head = PyramidHead(channels, 3, dims, width=16)
    maps = encoder.feature_maps(torch.rand(2, 1, *[64] * dims))
    assert tuple(x.shape[1] for x in maps) == tuple(channels)
    image = head(maps, (64,) * dims)
    assert image.shape == (2, 3, *[64] * dims)
    grads = torch.autograd.grad(image.square().mean(), maps)
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_the_formula():
    torch.manual_seed(0)
    head = PyramidHead((4, 6), 2, 2, width=8)
    fine, coarse = torch.rand(1, 4, 8, 8), torch.rand(1, 6, 2, 2)
    total = torch.einsum("wc,bcij->bwij", head.levels[0].weight[:, :, 0, 0], fine) + interpolate(
        torch.einsum("wc,bcij->bwij", head.levels[1].weight[:, :, 0, 0], coarse), size=(8, 8), mode="bilinear"
    )
    expected = interpolate(head.mix(total), size=(16, 16), mode="bilinear")
    torch.testing.assert_close(head([fine, coarse], (16, 16)), expected)
    with pytest.raises(ValueError, match="multiple of 8"):
        PyramidHead((4,), 2, 2, width=12)
