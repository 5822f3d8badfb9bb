# SPDX-License-Identifier: Apache-2.0
"""The head that brings a feature map back to the image's size, and the stride it must undo."""

from __future__ import annotations

import pytest
import torch
from network_cases import DECODERS

from monai_ssl.networks import UpsamplingHead, build_encoder, measure_maps, measure_stride


@pytest.mark.parametrize("form", ["vae", "deconv", "large_kernel_deconv"])
@pytest.mark.parametrize(
    ("stride", "size"), [((4, 4), (3, 2)), ((1, 1), (4, 4)), ((2, 8, 8), (3, 2, 1)), ((12, 6), (2, 2))]
)
def test_images_have_the_stated_size(form, stride, size):
    head = UpsamplingHead(16, 2, stride, form)
    x = torch.rand(2, 16, *size)
    image = head(x)
    assert image.shape == (2, 2, *[s * n for s, n in zip(stride, size, strict=True)])
    image.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_widths_are_the_released_codes():
    """768 channels at stride 32: five steps to 384, 192, 96, 48, 48, as in SwinUNETR's pretraining."""
    widths = [m.out_channels for m in UpsamplingHead(768, 1, (32, 32, 32)).modules() if hasattr(m, "out_channels")]
    assert widths == [384, 192, 96, 48, 48, 1]
    deconv = UpsamplingHead(768, 1, (32, 32, 32), "deconv")
    assert [m.out_channels for m in deconv.modules() if hasattr(m, "out_channels")] == [384, 192, 96, 48, 1]
    with pytest.raises(ValueError, match="form must be"):
        UpsamplingHead(8, 1, (2, 2), "nearest")


def test_a_single_place_is_refused_where_it_cannot_be_normalised():
    x = torch.rand(2, 8, 1, 1)
    with pytest.raises(ValueError, match="twice as long"):
        UpsamplingHead(8, 1, (4, 4))(x)
    assert UpsamplingHead(8, 1, (4, 4), "deconv")(x).shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("name", "dims", "arguments", "expected"),
    [
        ("resnet10", 2, {}, (32, 32)),
        ("densenet121", 2, {}, (32, 32)),
        ("segresnet", 3, {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, (4, 4, 4)),
        ("vit", 2, {"img_size": 32, "patch_size": 8, "hidden_size": 8, "mlp_dim": 8, "num_heads": 2}, (8, 8)),
    ],
)
def test_the_stride_is_measured_and_nothing_else_changes(name, dims, arguments, expected):
    encoder = build_encoder(name, dims, **arguments)
    encoder.net.eval()  # a mode of its own, which must come back
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert measure_stride(encoder) == expected
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert encoder.training and not encoder.net.training


@pytest.mark.parametrize(("name", "arguments", "channels", "strides"), DECODERS)
def test_each_map_is_measured(name, arguments, channels, strides):
    whole = {"out_channels": 2} if len(channels) == len(strides) and name in ("swinunetr", "unetr") else {}
    encoder = build_encoder(name, 2, **arguments, **whole)
    expected = [(width, (stride, stride)) for width, stride in zip(channels, strides, strict=True)]
    assert measure_maps(encoder) == expected
