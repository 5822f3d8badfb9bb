# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks as encoders: stages, decoders that equal MONAI's, keys that are MONAI's."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from network_cases import DECODERS, SMALL_DYNUNET, SMALL_SEGRESNET, SMALL_SWIN

from monai_ssl.networks import EncoderDecoder, ImageEncoder, build_encoder

PLAIN = {
    "segresnet": lambda dims, given: nets.SegResNet(dims, in_channels=1, out_channels=3, **given),
    "unet": lambda dims, given: nets.UNet(dims, 1, 3, strides=(2, 2), **given),
    "flexibleunet": lambda dims, given: nets.FlexibleUNet(1, 3, spatial_dims=dims, **given),
    "basicunet": lambda dims, given: nets.BasicUNet(dims, in_channels=1, out_channels=3, **given),
    "dynunet": lambda dims, given: nets.DynUNet(
        dims, 1, 3, kernel_size=[3] * 4, upsample_kernel_size=[2] * 3, deep_supervision=True, **given
    ),
    "swinunetr": lambda dims, given: nets.SwinUNETR(1, 3, spatial_dims=dims, **given),
    "mednext": lambda dims, given: nets.MedNeXt(dims, in_channels=1, out_channels=3, deep_supervision=True, **given),
    "unetr": lambda dims, given: nets.UNETR(1, 3, spatial_dims=dims, **given),
}
LAST = {  # the layers that the task decides
    "segresnet": ["conv_final"],
    "unet": ["model.2"],
    "basicunet": ["final_conv"],
    "dynunet": ["output_block", "deep_supervision_heads"],
    "flexibleunet": ["segmentation_head"],
    "swinunetr": ["out"],
    "mednext": ["out_0", "out_blocks"],
    "unetr": ["out"],
}
cases = pytest.mark.parametrize("architecture, arguments, channels, strides", DECODERS, ids=[c[0] for c in DECODERS])


def image(spatial_dims: int, size: int = 32, architecture: str = "") -> torch.Tensor:
    shape = [size] * spatial_dims
    if architecture == "swinunetr":  # its decoder normalises the deepest map, which must have two voxels
        shape[0] = 64
    return torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))


@cases
@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_pyramid_pooled_features_and_decoder(architecture, arguments, channels, strides, spatial_dims):
    encoder = build_encoder(architecture, spatial_dims, out_channels=1, **arguments).eval()
    x = image(spatial_dims, architecture=architecture)
    maps = encoder.feature_maps(x)
    assert [m.shape[1] for m in maps] == channels == list(encoder.map_channels)
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(n // s for n in x.shape[2:]) for s in strides]
    assert encoder.size_divisor == (strides[-1],) * spatial_dims
    assert (encoder.num_features, encoder.out_channels) == (channels[-1], 1)
    torch.testing.assert_close(encoder(x), maps[-1].flatten(2).mean(2))
    torch.testing.assert_close(encoder.decode(maps), encoder.net(x))


@cases
@torch.no_grad()
def test_without_decoder_the_features_are_the_same(architecture, arguments, channels, strides):
    whole = build_encoder(architecture, out_channels=1, **arguments).eval()
    alone = build_encoder(architecture, **arguments).eval()
    alone.net.load_state_dict(whole.encoder_state_dict())  # strict: nothing else is in it
    assert alone.out_channels is None
    torch.testing.assert_close(alone(image(2)), whole(image(2)))
    torch.testing.assert_close(alone.net(image(2)), whole(image(2)))
    with pytest.raises(ValueError, match=f"has no decoder: build_encoder.'{architecture}', ..., out_channels=1"):
        alone.decode(alone.feature_maps(image(2)))


@cases
def test_keys_are_those_of_plain_monai_networks(architecture, arguments, channels, strides):
    net = PLAIN[architecture](2, arguments)
    wrapped = ImageEncoder(net)
    assert isinstance(wrapped, EncoderDecoder) and wrapped.out_channels == 3
    encoder = build_encoder(architecture, out_channels=1, **arguments)
    for with_decoder in (False, True):
        own = {key: value.shape for key, value in encoder.encoder_state_dict(with_decoder).items()}
        theirs = {key: value.shape for key, value in wrapped.encoder_state_dict(with_decoder).items()}
        assert own == theirs and own.items() <= {k: v.shape for k, v in net.state_dict().items()}.items()
    # Encoder, decoder and the task's last layers: every parameter is one of them.
    parameters = dict(net.named_parameters(remove_duplicate=False))
    unnamed = {id(p) for p in net.parameters()} - {id(p) for name, p in parameters.items() if name in own}
    assert unnamed == {id(p) for name in LAST[architecture] for p in net.get_submodule(name).parameters()}


@cases
def test_no_parameter_stays_without_gradient(architecture, arguments, channels, strides):
    encoder = build_encoder(architecture, out_channels=1, **arguments)
    encoder.decode(encoder.feature_maps(image(2, architecture=architecture))).square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None and p.requires_grad]


@torch.no_grad()
def test_every_stage_gets_what_was_made_of_the_last_ones_map():
    encoder = build_encoder("segresnet", **SMALL_SEGRESNET)
    seen = []
    maps = encoder.feature_maps(image(2), after_stage=lambda m: seen.append(m.shape[2]) or m * 0)
    assert seen == [32, 16, 8] and all((m == 0).all() for m in maps)


@torch.no_grad()
def test_dropout_and_unequal_strides():
    with_dropout = build_encoder("segresnet", dropout_prob=0.5, **SMALL_SEGRESNET).train()
    assert not torch.equal(with_dropout.feature_maps(image(2))[0], with_dropout.feature_maps(image(2))[0])
    flat = build_encoder("dynunet", 3, filters=[4, 4, 8], strides=[1, 2, [1, 2, 2]], out_channels=2).eval()
    assert flat.size_divisor == (2, 4, 4)
    assert flat.network_args["upsample_kernel_size"] == [2, [1, 2, 2]]
    x = image(3, 8)
    assert [tuple(m.shape[2:]) for m in flat.feature_maps(x)] == [(8, 8, 8), (4, 4, 4), (4, 2, 2)]
    assert flat.decode(flat.feature_maps(x)).shape == (2, 2, 8, 8, 8)
    for arguments in ({}, {"out_channels": 1}):
        deep = build_encoder("dynunet", deep_supervision=True, **SMALL_DYNUNET, **arguments)
        assert not any("deep_supervision" in key or "super_head" in key for key in deep.state_dict())


def test_flexible_unet_with_another_backbone_is_refused():
    with pytest.raises(ValueError, match="needs a ResNet as backbone, not EfficientNetEncoder"):
        build_encoder("flexibleunet", backbone="efficientnet-b0")
    with pytest.raises(ValueError, match="needs a ResNet as backbone"):
        ImageEncoder(nets.FlexibleUNet(1, 2, "efficientnet-b0"))


@torch.no_grad()
def test_maps_of_swinunetr_are_those_its_transformer_gives_out():
    for arguments in (
        SMALL_SWIN,
        SMALL_SWIN | {"use_v2": True, "downsample": "mergingv2"},
        SMALL_SWIN | {"normalize": False},
    ):
        net = nets.SwinUNETR(1, 2, spatial_dims=3, **arguments).eval()
        encoder = ImageEncoder(net)
        x = image(3, architecture="swinunetr")
        maps = encoder.feature_maps(x)
        for ours, theirs in zip(maps[1:], net.swinViT(x, net.normalize), strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(encoder.decode(maps), net(x))
        torch.testing.assert_close(encoder(x), maps[-1].flatten(2).mean(2))


def test_the_sizes_of_mednext_are_monais():
    for architecture, theirs in {
        "mednext-s": nets.MedNeXtS,
        "mednext-b": nets.MedNeXtB,
        "mednext-m": nets.MedNeXtM,
        "mednext-l": nets.MedNeXtL,
    }.items():
        with torch.device("meta"):
            net = build_encoder(architecture, 3, out_channels=2).net
            plain = theirs(spatial_dims=3, in_channels=1, out_channels=2)
        assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
        assert str(net) == str(plain)
    assert build_encoder("mednext-s", init_filters=8, kernel_size=5).num_features == 128


def test_unetr_asks_for_its_image_size_and_for_patches_made_by_convolution():
    with pytest.raises(ValueError, match="a unetr needs img_size"):
        build_encoder("unetr")
    with pytest.raises(ValueError, match="proj_type='conv'"):
        ImageEncoder(nets.UNETR(1, 2, 32, proj_type="perceptron", hidden_size=24, num_heads=2, mlp_dim=32))
