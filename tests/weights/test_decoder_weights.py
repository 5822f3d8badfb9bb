# SPDX-License-Identifier: Apache-2.0
"""Encoders inside segmentation networks: with or without their decoder, into MONAI's own networks."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from weight_cases import FIELDS, assert_same_state, lived_in, saved, state_of

from monai_ssl.networks import ImageEncoder, build_classifier, build_encoder
from monai_ssl.weights import (
    WeightsMismatchError,
    describe_weights,
    load_encoder,
    open_encoder,
    read_manifest,
    save_encoder,
)

SEGRESNET = {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
NESTED = {"channels": [4, 8, 16]}
FLEXIBLE = {"backbone": "resnet10", "decoder_channels": [8, 8, 8, 8, 8]}
UNET = {"features": [4, 4, 8, 8, 16, 4]}
DYNUNET = {"filters": [4, 8, 8, 16], "strides": [1, 2, 2, 2]}
SWIN = {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_size": 4}
MEDNEXT = {"init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1, 1], "blocks_bottleneck": 1, "kernel_size": 3}
UNETR = {"img_size": 32, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "feature_size": 4}


def dynunet(dims: int, **arguments) -> nets.DynUNet:
    return nets.DynUNet(dims, 1, 3, [3] * 4, upsample_kernel_size=[2] * 3, **DYNUNET, **arguments)


CASES = [
    ("segresnet", SEGRESNET, lambda dims: nets.SegResNet(dims, out_channels=3, **SEGRESNET)),
    ("unet", NESTED, lambda dims: nets.UNet(dims, 1, 3, strides=(2, 2), num_res_units=2, **NESTED)),
    ("unet", NESTED | {"num_res_units": 0}, lambda dims: nets.UNet(dims, 1, 3, strides=(2, 2), **NESTED)),
    ("flexibleunet", FLEXIBLE, lambda dims: nets.FlexibleUNet(1, 3, spatial_dims=dims, **FLEXIBLE)),
    ("basicunet", UNET, lambda dims: nets.BasicUNet(dims, 1, 3, **UNET)),
    ("dynunet", DYNUNET, dynunet),
    ("dynunet", DYNUNET | {"res_block": True}, lambda dims: dynunet(dims, res_block=True)),
    ("dynunet", DYNUNET, lambda dims: dynunet(dims, deep_supervision=True, deep_supr_num=2)),
    ("mednext", MEDNEXT, lambda dims: nets.MedNeXt(dims, out_channels=3, deep_supervision=True, **MEDNEXT)),
    ("swinunetr", SWIN, lambda dims: nets.SwinUNETR(1, 3, spatial_dims=dims, **SWIN)),
    ("unetr", UNETR, lambda dims: nets.UNETR(1, 3, spatial_dims=dims, **UNETR)),
]
LAST = {"segresnet": "conv_final", "unet": "model.2", "basicunet": "final_conv", "dynunet": "output_block"}
LAST |= {"flexibleunet": "segmentation_head", "swinunetr": "out", "mednext": "out_0", "unetr": "out"}
cases = pytest.mark.parametrize(
    "architecture, arguments, plain", CASES, ids=[case[0] + str(i) for i, case in enumerate(CASES)]
)


def image(spatial_dims: int, architecture: str = "") -> torch.Tensor:
    shape = [32] * spatial_dims
    if architecture == "swinunetr":  # its decoder takes no map of a single voxel
        shape[0] = 64
    return torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))


@cases
@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_encoder_alone_into_monais_network(tmp_path, architecture, arguments, plain, spatial_dims):
    encoder = lived_in(build_encoder(architecture, spatial_dims, out_channels=1, **arguments))
    net = lived_in(plain(spatial_dims), seed=1)
    before = state_of(net)
    report = load_encoder(net, saved(encoder, tmp_path))
    assert report.coverage == 1 and report.location == "" and not report.notes
    assert set(report.loaded) == set(encoder.encoder_state_dict())
    torch.testing.assert_close(ImageEncoder(net)(image(spatial_dims)), encoder(image(spatial_dims)))
    rest = [key for key in before if key.startswith(encoder.decoder_prefixes)]
    assert rest and all(torch.equal(net.state_dict()[key], before[key]) for key in rest)


@cases
@torch.no_grad()
def test_encoder_and_decoder_into_monais_network(tmp_path, architecture, arguments, plain):
    encoder = lived_in(build_encoder(architecture, out_channels=1, **arguments))
    path = tmp_path / "encoder.safetensors"
    assert save_encoder(encoder, path, FIELDS, with_decoder=True)["network"]["arguments"]["out_channels"] == 1
    net = lived_in(plain(2), seed=1)
    report = load_encoder(net, path)
    assert report.coverage == 1 and set(report.loaded) == set(encoder.encoder_state_dict(with_decoder=True))
    outputs = []  # of the last block before the task's own layer
    for each in (net, encoder.net):
        last = each.get_submodule(LAST[architecture])
        last.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0].clone()))
        each(image(2, architecture))
    torch.testing.assert_close(*outputs)
    # The encoder alone, if that is wanted; and where there is no decoder, its tensors are left over.
    other = lived_in(plain(2), seed=2)
    report = load_encoder(other, path, with_decoder=False)
    assert report.coverage == 1 and set(report.loaded) == set(encoder.encoder_state_dict())
    alone = build_classifier(architecture, 3, **arguments).eval()
    report = load_encoder(alone, path)
    assert report.coverage == 1 and "decoder" in str(report) and "has no place here" in str(report)
    torch.testing.assert_close(ImageEncoder(alone)(image(2)), encoder(image(2)))


@cases
@torch.no_grad()
def test_open_encoder_builds_what_the_file_holds(tmp_path, architecture, arguments, plain):
    encoder = lived_in(build_encoder(architecture, 3, out_channels=1, **arguments))
    alone = open_encoder(saved(encoder, tmp_path)).eval()
    assert alone.out_channels is None and "out_channels" not in alone.network_args
    assert "decoder" not in read_manifest(tmp_path / "encoder.safetensors")["network"]
    torch.testing.assert_close(alone(image(3)), encoder(image(3)))
    save_encoder(encoder, tmp_path / "whole.safetensors", FIELDS, with_decoder=True)
    assert "decoder included" in describe_weights(tmp_path / "whole.safetensors")
    assert "decoder included" not in describe_weights(tmp_path / "encoder.safetensors")
    whole = open_encoder(tmp_path / "whole.safetensors").eval()
    assert whole.out_channels == 1
    for key, value in encoder.encoder_state_dict(with_decoder=True).items():
        assert torch.equal(whole.net.state_dict()[key], value)


def test_a_decoder_of_another_shape_is_refused_with_the_way_out(tmp_path):
    encoder = lived_in(build_encoder("segresnet", out_channels=1, **SEGRESNET))
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path, FIELDS, with_decoder=True)
    net = nets.SegResNet(2, out_channels=3, **SEGRESNET | {"blocks_up": [4, 4]})
    before = state_of(net)
    with pytest.raises(WeightsMismatchError, match="with_decoder=False loads the encoder only"):
        load_encoder(net, path)
    assert_same_state(net, before)
    assert load_encoder(net, path, with_decoder=False).coverage == 1


def test_the_report_names_what_stays_as_it_was(tmp_path):
    """Deep supervision: encoder and decoder come from a file without such heads, the heads start anew."""
    encoder = lived_in(build_encoder("dynunet", out_channels=1, **DYNUNET))
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path, FIELDS, with_decoder=True)
    net = dynunet(2, deep_supervision=True, deep_supr_num=2)
    report = load_encoder(net, path)
    assert report.coverage == 1 and not (report.missing or report.unexpected or report.notes)
    heads = ("output_block.", "deep_supervision_heads.")
    assert set(report.kept) == {key for key in net.state_dict() if key.startswith(heads)}
    assert "kept           6 tensors" in str(report) and "output_block, deep_supervision_heads" in str(report)
    assert net.train()(image(2)).shape == (2, 3, 3, 32, 32)
    report = load_encoder(net, path, with_decoder=False)
    assert "  upsamples, output_block, deep_supervision_heads" in str(report)
    whole = {id(value) for value in net.parameters()}
    assert len(report.loaded) + len(report.kept) == len(whole)


def test_the_report_gives_nested_modules_that_stay_their_whole_name(tmp_path):
    encoder = lived_in(build_encoder("unet", out_channels=1, **NESTED))
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path, FIELDS, with_decoder=True)
    net = nets.UNet(2, 1, 3, strides=(2, 2), num_res_units=2, **NESTED)
    assert str(load_encoder(net, path)).endswith("  model.2")
    assert str(load_encoder(net, path, with_decoder=False)).endswith("  model.1.submodule.2, model.2")


@torch.no_grad()
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_plain_vit_goes_into_monais_unetr_and_back(tmp_path, spatial_dims):
    vit = {"img_size": 32, "patch_size": 16, "hidden_size": 24, "mlp_dim": 32, "num_layers": 12, "num_heads": 2}
    encoder = lived_in(build_encoder("vit", spatial_dims, **vit))
    net = nets.UNETR(1, 3, spatial_dims=spatial_dims, **UNETR).eval()
    report = load_encoder(net, saved(encoder, tmp_path))
    assert report.location == "vit" and report.coverage == 1 and not report.notes
    torch.testing.assert_close(net.vit(image(spatial_dims))[0].mean(1), encoder(image(spatial_dims)))
    back = build_encoder("vit", spatial_dims, **vit).eval()
    inside = ImageEncoder(lived_in(build_encoder("unetr", spatial_dims, **UNETR), seed=3).net.vit)
    assert load_encoder(back, saved(inside, tmp_path)).coverage == 1
    torch.testing.assert_close(back(image(spatial_dims)), inside(image(spatial_dims)))


@torch.no_grad()
def test_more_channels_reach_the_convolutions_around_the_transformer(tmp_path):
    """SwinUNETR's and UNETR's ``encoder1`` take the image as well as the patch embedding does."""
    for architecture, arguments in (("swinunetr", SWIN), ("unetr", UNETR)):
        encoder = lived_in(build_encoder(architecture, out_channels=1, **arguments))
        path = tmp_path / "encoder.safetensors"
        save_encoder(encoder, path, FIELDS, with_decoder=True)
        net = build_encoder(architecture, 2, 2, out_channels=1, **arguments).eval()
        report = load_encoder(net, path, channel_policy="sum")
        convolutions = {f"encoder1.layer.{name}.conv.weight" for name in ("conv1", "conv3")}
        assert set(report.adapted) == {net.stem_key} | convolutions and report.coverage == 1
        x = image(2, architecture)
        for ours, theirs in zip(net.feature_maps(x.expand(-1, 2, -1, -1)), encoder.feature_maps(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_decoder_to_save(tmp_path):
    for encoder in (build_encoder("segresnet", **SEGRESNET), build_encoder("resnet10", widen_factor=0.125)):
        with pytest.raises(ValueError, match="has no decoder"):
            save_encoder(encoder, tmp_path / "encoder.safetensors", FIELDS, with_decoder=True)


@torch.no_grad()
def test_channel_policies_reach_a_shortcut_around_the_first_layer(tmp_path):
    encoder = lived_in(build_encoder("unet", **NESTED))
    net = build_encoder("unet", in_channels=2, **NESTED).eval()
    report = load_encoder(net, saved(encoder, tmp_path), channel_policy="sum")
    assert set(report.adapted) == {"model.0.conv.unit0.conv.weight", "model.0.residual.weight"}
    assert report.coverage == 1
    torch.testing.assert_close(net(image(2).expand(-1, 2, -1, -1)), encoder(image(2)))


@torch.no_grad()
def test_the_resnet_inside_a_flexible_unet_goes_into_a_classifier(tmp_path):
    encoder = lived_in(build_encoder("flexibleunet", out_channels=1, **FLEXIBLE))
    classifier = build_classifier("resnet10", 3, bias_downsample=False).eval()
    assert load_encoder(classifier, saved(ImageEncoder(encoder.net.encoder), tmp_path)).coverage == 1
    torch.testing.assert_close(ImageEncoder(classifier)(image(2)), encoder(image(2)))
