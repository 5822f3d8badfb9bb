# SPDX-License-Identifier: Apache-2.0
"""Encoder weights into MONAI networks: where they go, what is refused, and that features stay the same."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch import nn
from weight_cases import SMALL_VIT, THIN, assert_same_state, lived_in, saved, state_of, thin_resnet

from monai_ssl.networks import ImageEncoder, build_classifier, build_encoder
from monai_ssl.weights import WeightsMismatchError, load_encoder, open_encoder

IMAGE = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_into_an_encoder(tmp_path):
    encoder, other = thin_resnet(), build_encoder("resnet10", **THIN).eval()
    report = load_encoder(other, saved(encoder, tmp_path))
    assert torch.equal(other(IMAGE), encoder(IMAGE))
    assert report.coverage == 1 and report.location == "" and not report.notes and not report.adapted
    assert not report.missing and not report.mismatched and not report.unexpected
    assert sum(report.loaded.values()) == sum(v.nbytes for v in encoder.net.state_dict().values())


@torch.no_grad()
def test_into_classifiers_with_three_classes(tmp_path):
    encoder = thin_resnet()
    path = saved(encoder, tmp_path)
    own = build_classifier("resnet10", 3, **THIN).eval()
    plain = nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=3, conv1_t_stride=2, **THIN).eval()
    for net in (own, plain):
        head = net.fc.weight.clone()
        report = load_encoder(net, path)
        assert report.coverage == 1 and not report.notes
        assert torch.equal(ImageEncoder(net)(IMAGE), encoder(IMAGE))
        assert torch.equal(net.fc.weight, head), "the head is left alone"
        assert not any(key.startswith("fc") for key in [*report.loaded, *report.missing])


@pytest.mark.parametrize(
    "architecture, arguments",
    [("resnet10", {}), ("resnet18", {"shortcut_type": "A"}), ("efficientnet-b0", {})],
)
@torch.no_grad()
def test_into_flexible_unet_with_equal_feature_maps(tmp_path, architecture, arguments):
    """resnet10: the U-Net's shortcuts have no bias, the encoder's bias moves into the BatchNorm behind it."""
    encoder = lived_in(build_encoder(architecture, **arguments))
    unet = lived_in(nets.FlexibleUNet(1, 2, architecture, spatial_dims=2), seed=1)
    decoder = state_of(unet.decoder)
    report = load_encoder(unet, saved(encoder, tmp_path))
    assert report.location == "encoder" and report.coverage == 1 and not report.notes
    for ours, theirs in zip(encoder.feature_maps(IMAGE), unet.encoder(IMAGE), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert_same_state(unet.decoder, decoder)
    assert len(report.adapted) == (3 if architecture == "resnet10" else 0)


@torch.no_grad()
def test_shortcuts_without_weights_are_noted_both_ways(tmp_path):
    with_weights, without = thin_resnet(), thin_resnet(shortcut_type="A")
    path = saved(with_weights, tmp_path)
    report = load_encoder(without, path)
    assert all("downsample" in key for key in report.unexpected) and len(report.unexpected) == 18
    assert "no weights in its shortcuts" in str(report)
    report = load_encoder(with_weights, saved(without, tmp_path), min_coverage=0.5)
    assert all("downsample" in key for key in report.missing)
    assert "stay as they were" in str(report)


@torch.no_grad()
def test_a_bias_the_file_does_not_have_becomes_zero(tmp_path):
    encoder = thin_resnet(bias_downsample=False)
    net = lived_in(build_encoder("resnet10", **THIN), seed=1)
    report = load_encoder(net, saved(encoder, tmp_path))
    torch.testing.assert_close(net(IMAGE), encoder(IMAGE))
    assert report.coverage == 1 and len(report.adapted) == 3 and "set to 0" in str(report)


@torch.no_grad()
def test_into_unetr(tmp_path):
    arguments = SMALL_VIT | {"num_layers": 12}
    encoder = lived_in(build_encoder("vit", **arguments))
    unetr = nets.UNETR(1, 2, 32, feature_size=8, hidden_size=24, mlp_dim=32, num_heads=2, spatial_dims=2).eval()
    report = load_encoder(unetr, saved(encoder, tmp_path))
    assert report.location == "vit" and report.coverage == 1 and not report.adapted
    torch.testing.assert_close(unetr.vit(IMAGE)[0].mean(1), encoder(IMAGE))


@torch.no_grad()
def test_position_embeddings_are_interpolated(tmp_path):
    encoder = lived_in(build_encoder("vit", **SMALL_VIT))
    positions = encoder.net.patch_embedding.position_embeddings
    positions.copy_(torch.linspace(-1, 1, 24).expand_as(positions))  # the same at every place
    path = saved(encoder, tmp_path)
    wide = build_encoder("vit", **SMALL_VIT | {"img_size": [32, 96]})
    report = load_encoder(wide, path)
    torch.testing.assert_close(
        wide.net.patch_embedding.position_embeddings, torch.linspace(-1, 1, 24).expand(1, 12, 24)
    )
    assert "interpolated from a grid of [2, 2] to [2, 6] patches" in str(report) and report.coverage == 1
    # Rows stay rows: the wide network's embeddings vary along its rows only, and still do after coming back.
    ramp = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 2, 6, 24).reshape(1, 12, 24)
    wide.net.patch_embedding.position_embeddings.copy_(ramp)
    load_encoder(encoder, saved(wide, tmp_path))
    back = positions.view(2, 2, 24)
    torch.testing.assert_close(back[0], back[1])
    assert (back[:, 1] > back[:, 0] + 1).all()


@torch.no_grad()
def test_through_wrappers(tmp_path):
    encoder = thin_resnet()
    path = saved(encoder, tmp_path)
    for wrap, location in [
        (nn.DataParallel, "module"),
        (lambda net: nn.Sequential(nn.Identity(), net), "1"),
        (lambda net: nn.ModuleDict({"student": ImageEncoder(net)}), "student.net"),
    ]:
        net = build_classifier("resnet10", 3, **THIN).eval()
        report = load_encoder(wrap(net), path)
        assert report.location == location
        assert set(report.loaded) == {f"{location}.{key}" for key in encoder.net.state_dict()}
        assert torch.equal(ImageEncoder(net)(IMAGE), encoder(IMAGE))


def test_two_equal_places_are_refused(tmp_path):
    twins = nn.ModuleDict({"left": thin_resnet(), "right": lived_in(thin_resnet(), seed=4)})
    before = state_of(twins)
    path = saved(thin_resnet(), tmp_path)
    with pytest.raises(WeightsMismatchError, match=r"fits left\.net and right\.net .* pass the one that is meant"):
        load_encoder(twins, path)
    assert_same_state(twins, before)
    load_encoder(twins["right"], path)
    assert_same_state(twins["right"], state_of(thin_resnet()))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: nets.DenseNet121(2, 1, 3, block_config=(2, 2)), "no tensor of .* fits into this DenseNet121"),
        (lambda: build_encoder("resnet18", **THIN), r"only \d\d\.\d% fit, at least 90\.0% must"),
        (lambda: build_encoder("resnet10", widen_factor=0.25), "no tensor of .*fits|first layer"),
        (lambda: build_encoder("resnet10", spatial_dims=3, **THIN), r"first layer does not fit .* file \[8, 1, 7, 7\]"),
        (lambda: build_encoder("resnet10", in_channels=2, **THIN), "1 -> 2 input channels: channel_policy='sum'"),
        (lambda: build_encoder("resnet10", conv1_t_size=3, **THIN), "first layer does not fit"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "no tensor of .* fits into this Sequential"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_network_untouched(tmp_path, build, message):
    path = saved(thin_resnet(), tmp_path)
    net = build()
    before = state_of(net)
    with pytest.raises(WeightsMismatchError, match=message) as caught:
        load_encoder(net, path)
    assert "resnet10" in str(caught.value) and str(path) in str(caught.value)
    assert_same_state(net, before)
    assert getattr(net, "lineage", ()) == ()


def test_the_report_of_a_refusal_is_readable(tmp_path):
    with pytest.raises(WeightsMismatchError) as caught:
        load_encoder(build_encoder("resnet18", **THIN), saved(thin_resnet(), tmp_path))
    report = caught.value.report
    assert len(report.missing) == 40 and not report.mismatched and not report.unexpected
    lines = str(caught.value).splitlines()
    assert lines[1].endswith("of the net's encoder, 100.0% of the file")
    assert lines[2].split()[:3] == ["loaded", "75", "tensors"]
    assert lines[3].split()[:3] == ["missing", "40", "tensors"] and lines[3].endswith("and 36 more")
    # The threshold is the caller's.
    loaded = load_encoder(build_encoder("resnet18", **THIN), saved(thin_resnet(), tmp_path), min_coverage=0.3)
    assert loaded.net_coverage < 0.5 and loaded.file_coverage == 1


@torch.no_grad()
def test_channel_policies_while_loading(tmp_path):
    encoder = thin_resnet()
    path = saved(encoder, tmp_path)
    net = build_encoder("resnet10", in_channels=4, **THIN).eval()
    report = load_encoder(net, path, channel_policy="sum")
    assert "conv1.weight: 1 -> 4 input channels, policy 'sum'" in str(report) and report.coverage == 1
    torch.testing.assert_close(net(IMAGE.expand(-1, 4, -1, -1)), encoder(IMAGE))
    with pytest.raises(ValueError, match="one of sum, mean, first, repeat, got 'average'"):
        load_encoder(net, path, channel_policy="average")
    with pytest.raises(ValueError, match="can't make 4 channels of 1"):
        load_encoder(net, path, channel_policy="first")
    with pytest.raises(ValueError, match=r"min_coverage must be in \[0, 1\]"):
        load_encoder(net, path, min_coverage=90)


def test_differences_that_change_no_shape_are_noted(tmp_path):
    path = saved(thin_resnet(), tmp_path)
    monai_default = nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=3, **THIN)
    assert "stride [1, 1] here, [2, 2] where the weights come from" in str(load_encoder(monai_default, path))
    other = build_encoder("resnet10", no_max_pool=True, **THIN)
    assert "built with no_max_pool=True here, MONAI's default where" in str(load_encoder(other, path))


@pytest.mark.parametrize(
    "architecture, spatial_dims, arguments",
    [
        ("resnet10", 3, {**THIN, "norm": ("instance", {"affine": True})}),
        ("densenet121", 2, {"block_config": [2, 2], "init_features": 8, "growth_rate": 4}),
        ("vit", 3, {**SMALL_VIT, "hidden_size": 36, "pos_embed_type": "sincos"}),
    ],
)
@torch.no_grad()
def test_open_encoder_rebuilds_what_was_saved(tmp_path, architecture, spatial_dims, arguments):
    encoder = lived_in(build_encoder(architecture, spatial_dims, 2, **arguments))
    again = open_encoder(saved(encoder, tmp_path)).eval()
    assert (again.architecture, again.in_channels, again.network_args) == (architecture, 2, encoder.network_args)
    x = torch.rand(1, 2, *[32] * spatial_dims)
    assert torch.equal(again(x), encoder(x))


def test_open_encoder_takes_known_architectures_only(tmp_path):
    net = nets.resnet10(spatial_dims=2, n_input_channels=1, **THIN)
    with pytest.raises(ValueError, match="unknown architecture 'ResNet'"):
        open_encoder(saved(ImageEncoder(net), tmp_path))
