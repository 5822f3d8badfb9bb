# SPDX-License-Identifier: Apache-2.0
"""Encoders over MONAI networks: shapes, keys, equality with the MONAI network, scripting."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from monai.networks import nets
from network_cases import ENCODERS, FAMILIES, NOT_SCRIPTABLE, SMALL_VIT

from monai_ssl.networks import ImageEncoder, MeanTokenViT, build_classifier, build_encoder, encoder_architectures


def image(spatial_dims: int, channels: int = 1, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, *[32] * spatial_dims, generator=torch.Generator().manual_seed(0))


def eval_twins(architecture: str, spatial_dims: int, arguments: dict) -> tuple[ImageEncoder, torch.nn.Module]:
    """An encoder and the classifier of the same architecture with the encoder's weights, in evaluation mode."""
    encoder = build_encoder(architecture, spatial_dims, **arguments).eval()
    classifier = build_classifier(architecture, 3, spatial_dims, **arguments).eval()
    unknown = classifier.load_state_dict(encoder.encoder_state_dict(), strict=False).unexpected_keys
    assert not unknown
    return encoder, classifier


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("architecture, arguments, features, channels", ENCODERS, ids=[case[0] for case in ENCODERS])
@torch.no_grad()
def test_pooled_features_and_pyramid(architecture, arguments, features, channels, spatial_dims):
    encoder = build_encoder(architecture, spatial_dims, **arguments).eval()
    assert (encoder.num_features, encoder.spatial_dims, encoder.in_channels) == (features, spatial_dims, 1)
    x = image(spatial_dims)
    assert encoder(x).shape == (2, features)
    maps = encoder.feature_maps(x)
    assert [m.shape[1] for m in maps] == channels
    strides = [8] * 4 if architecture == "vit" else [2, 4, 8, 16, 32]
    assert [tuple(m.shape[2:]) for m in maps] == [(32 // s,) * spatial_dims for s in strides]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("architecture, arguments", FAMILIES, ids=[family[0] for family in FAMILIES])
@torch.no_grad()
def test_classifier_classifies_the_encoders_features(architecture, arguments, spatial_dims):
    encoder, classifier = eval_twins(architecture, spatial_dims, arguments)
    head = [module for module in classifier.modules() if isinstance(module, torch.nn.Linear)][-1]
    x = image(spatial_dims)
    logits = classifier(x)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(head(encoder(x)), logits)
    # A classifier given to ImageEncoder is seen as the encoder it contains.
    seen = ImageEncoder(classifier).eval()
    torch.testing.assert_close(seen(x), encoder(x))
    assert list(seen.encoder_state_dict()) == list(encoder.encoder_state_dict())


@torch.no_grad()
def test_the_pyramid_ends_in_the_pooled_features():
    for architecture, arguments in FAMILIES[:2]:
        encoder = build_encoder(architecture, **arguments).eval()
        x = image(2)
        torch.testing.assert_close(encoder.feature_maps(x)[-1].mean((2, 3)), encoder(x))


def test_keys_are_those_of_plain_monai_networks():
    plain = {
        "resnet18": nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=3),
        "densenet121": nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=3),
        "efficientnet-b0": nets.EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=1),
        "vit": nets.ViT(in_channels=1, spatial_dims=2, **SMALL_VIT),
    }
    for architecture, net in plain.items():
        arguments = SMALL_VIT if architecture == "vit" else {}
        own = build_encoder(architecture, **arguments).encoder_state_dict()
        theirs = net.state_dict()
        assert {key: value.shape for key, value in own.items()}.items() <= {
            key: value.shape for key, value in theirs.items()
        }.items()
        heads = {key for key in theirs if key not in own}
        assert all(key.startswith(("fc.", "class_layers.", "_fc.")) for key in heads)
        assert bool(heads) == (architecture != "vit")


def test_stem_stride_is_two_unless_asked_for():
    assert build_encoder("resnet18").net.conv1.stride == (2, 2)
    assert build_classifier("resnet18", 2).conv1.stride == (2, 2)
    finer = build_encoder("resnet18", conv1_t_stride=1)
    assert finer.net.conv1.stride == (1, 1)
    assert finer.feature_maps(image(2))[0].shape[2:] == (32, 32)
    unpooled = build_encoder("resnet10", no_max_pool=True).feature_maps(image(2))
    assert [m.shape[2] for m in unpooled] == [16, 16, 8, 4, 2]


def test_encoders_have_no_parameter_without_gradient():
    """A parameter that takes no part in the loss would stop DistributedDataParallel."""
    for architecture, arguments in FAMILIES:
        encoder = build_encoder(architecture, **arguments)
        encoder(image(2)).sum().backward()
        idle = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
        assert not idle, architecture


def test_the_stored_arguments_build_the_encoder_again():
    encoder = build_encoder("resnet10", 3, 2, norm=("instance", {"affine": True}), bias_downsample=False)
    assert encoder.network_args["norm"] == ["instance", {"affine": True}]
    again = build_encoder(encoder.architecture, encoder.spatial_dims, encoder.in_channels, **encoder.network_args)
    again.load_state_dict(encoder.state_dict())
    assert again.in_channels == 2


def test_vit_with_class_token_leaves_it_out_of_the_mean():
    net = nets.ViT(in_channels=1, spatial_dims=2, classification=True, **SMALL_VIT).eval()
    with torch.no_grad():
        net.cls_token.normal_()
    encoder = ImageEncoder(net)
    seen = []
    net.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = image(2)
    with torch.no_grad():
        net(x)
        pooled = encoder(x)
    assert seen[0].shape == (2, 17, 24)
    torch.testing.assert_close(pooled, seen[0][:, 1:].mean(1))
    assert encoder.feature_maps(x)[0].shape == (2, 24, 4, 4)
    assert "cls_token" in encoder.encoder_state_dict()


@pytest.mark.parametrize("architecture, arguments", [f for f in FAMILIES if f[0] not in NOT_SCRIPTABLE])
@torch.no_grad()
def test_torchscript_gives_the_same_features(architecture, arguments):
    encoder = build_encoder(architecture, **arguments).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(encoder)
        x = image(2)
        with torch.jit.optimized_execution(False):
            torch.testing.assert_close(scripted(x), encoder(x))
    assert scripted.state_dict().keys() == encoder.state_dict().keys()


def test_scripted_classifier_with_mean_tokens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(build_classifier("vit", 3, **SMALL_VIT))
        with torch.jit.optimized_execution(False):
            assert scripted(image(2)).shape == (2, 3)


def test_copies_keep_their_class_and_attributes():
    encoder = build_encoder("resnet10")
    twin = copy.deepcopy(encoder)
    assert type(twin) is type(encoder) and twin.network_args == {"conv1_t_stride": 2}
    assert "architecture='resnet10'" in repr(twin)


def test_subclasses_of_known_networks_are_known():
    unet = nets.FlexibleUNet(1, 2, "resnet18", spatial_dims=2)
    encoder = ImageEncoder(unet.encoder)
    assert encoder.architecture == "ResNetEncoder" and encoder.num_features == 512
    assert isinstance(MeanTokenViT(3, in_channels=1, spatial_dims=2, **SMALL_VIT), nets.ViT)
    maps, theirs = encoder.eval().feature_maps(image(2)), unet.encoder(image(2))
    for ours, other in zip(maps, theirs, strict=True):
        torch.testing.assert_close(ours, other)


def test_clear_errors():
    with pytest.raises(ValueError, match=r"unknown architecture 'resnet19'; known are basicunet, densenet121"):
        build_encoder("resnet19")
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3"):
        build_encoder("resnet18", 1)
    with pytest.raises(ValueError, match=r"resnet18 can't be built with .*blok=3"):
        build_encoder("resnet18", blok=3)
    with pytest.raises(ValueError, match="pretrained is not taken here"):
        build_encoder("resnet18", pretrained=True)
    with pytest.raises(ValueError, match="a vit needs img_size"):
        build_encoder("vit")
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        build_classifier("resnet18", 0)
    with pytest.raises(ValueError, match="knows no network of class Linear"):
        ImageEncoder(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="proj_type='conv'"):
        build_encoder("vit", proj_type="perceptron", **SMALL_VIT)
    with pytest.raises(ValueError, match=r"make 64 patches, but this ViT was built .* for 16"):
        build_encoder("vit", **SMALL_VIT)(torch.rand(1, 1, 64, 64))
    with pytest.raises(ValueError, match="network arguments must be numbers"):
        build_encoder("resnet10", act=("relu", {"inplace": torch.tensor(1)}))
    assert {"resnet18", "resnet50", "densenet121", "efficientnet-b4", "vit"} <= set(encoder_architectures())
