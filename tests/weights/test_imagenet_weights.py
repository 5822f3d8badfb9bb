# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of torchvision, timm and others into MONAI networks; hostile and broken files."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from foreign_names import PAIRS, RESNET18, as_foreign, with_buffers
from monai.networks import nets
from safetensors.torch import save_file
from weight_cases import SMALL_VIT, THIN, assert_same_state, lived_in, state_of

from monai_ssl.networks import build_classifier, build_encoder
from monai_ssl.weights import (
    WeightsFileError,
    WeightsMismatchError,
    adapt_channels,
    describe_weights,
    load_imagenet_weights,
    read_checkpoint,
)
from monai_ssl.weights.imagenet_names import recognise

IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL_DENSENET = {"block_config": [2, 2, 2, 2], "init_features": 8, "growth_rate": 4}
QKV_VIT = SMALL_VIT | {"qkv_bias": True}
KINDS = {
    "densenet": ("densenet121", SMALL_DENSENET),
    "densenet_old": ("densenet121", SMALL_DENSENET),
    "efficientnet_torchvision": ("efficientnet-b0", {}),
    "efficientnet_lukemelas": ("efficientnet-b0", {}),
    "vit_timm": ("vit", QKV_VIT),
    "vit_torchvision": ("vit", QKV_VIT),
}


def resnet18_checkpoint(seed: int = 3) -> dict[str, torch.Tensor]:
    """What torchvision's file holds, thin: every name typed, shapes from MONAI, values at random."""
    donor = lived_in(build_classifier("resnet18", 10, in_channels=3, bias_downsample=False, **THIN), seed)
    state = donor.state_dict()
    return {name: state[name] for name in with_buffers(RESNET18)}


@torch.no_grad()
def test_torchvision_resnet18_with_every_real_name(tmp_path):
    checkpoint = resnet18_checkpoint()
    assert len(checkpoint) == 122, "tensors in torchvision's resnet18"
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(checkpoint, path)
    encoder = lived_in(build_encoder("resnet18", in_channels=3, **THIN))
    report = load_imagenet_weights(encoder, path)
    donor = lived_in(build_encoder("resnet18", in_channels=3, bias_downsample=False, **THIN))
    donor.net.load_state_dict({key: value for key, value in checkpoint.items() if not key.startswith("fc.")})
    torch.testing.assert_close(encoder(IMAGE), donor(IMAGE))
    assert report.coverage == 1 and not report.unexpected and not report.notes, "the classifier is not counted"
    assert list(report.adapted) == [f"layer{i}.0.downsample.0.bias" for i in (2, 3, 4)]
    assert encoder.lineage[0].items() >= {"method": "checkpoint", "naming": "torchvision or timm ResNet"}.items()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_naming_fills_the_encoder_completely(tmp_path, kind):
    architecture, arguments = KINDS[kind]
    donor = lived_in(build_encoder(architecture, in_channels=3, **arguments), 3)
    checkpoint = as_foreign(donor.encoder_state_dict(), kind)
    for theirs, ours in PAIRS[kind]:  # the renaming above is checked against names typed by hand
        assert torch.equal(checkpoint[theirs], donor.net.state_dict()[ours])
    path = tmp_path / "weights.pth"
    torch.save(checkpoint | {"classifier.weight": torch.zeros(2)}, path)
    encoder = lived_in(build_encoder(architecture, in_channels=3, **arguments), 4)
    report = load_imagenet_weights(encoder, path)
    assert report.net_coverage == 1 and not report.missing and not report.mismatched
    torch.testing.assert_close(encoder(IMAGE), donor(IMAGE))
    converted = recognise(checkpoint)
    names = converted[0].to_monai(converted[1])
    for theirs, ours in PAIRS[kind]:
        assert torch.equal(names[ours], checkpoint[theirs])


@torch.no_grad()
def test_efficientnet_with_more_blocks(tmp_path):
    donor = lived_in(build_encoder("efficientnet-b2"), 3)
    state = donor.encoder_state_dict()
    torch.save(as_foreign(state, "efficientnet_lukemelas"), tmp_path / "b2.pth")
    encoder = lived_in(build_encoder("efficientnet-b2"), 4)
    assert load_imagenet_weights(encoder, tmp_path / "b2.pth").coverage == 1
    assert_same_state(encoder, state_of(donor))
    with pytest.raises(WeightsMismatchError, match="lukemelas EfficientNet"):
        load_imagenet_weights(build_encoder("efficientnet-b0"), tmp_path / "b2.pth")


@pytest.mark.parametrize("policy", ["sum", "mean", "first", "repeat"])
@torch.no_grad()
def test_three_channels_to_one(tmp_path, policy):
    checkpoint = resnet18_checkpoint()
    path = tmp_path / "weights.pth"
    torch.save(checkpoint, path)
    encoder = build_encoder("resnet18", **THIN)
    report = load_imagenet_weights(encoder, path, channel_policy=policy)
    w = checkpoint["conv1.weight"]
    expected = {"sum": w[:, 0] + w[:, 1] + w[:, 2], "mean": w.mean(1), "first": w[:, 0], "repeat": 3 * w[:, 0]}[policy]
    torch.testing.assert_close(encoder.net.conv1.weight[:, 0], expected)
    assert f"3 -> 1 input channels, policy {policy!r}" in str(report) and report.coverage == 1
    with pytest.raises(WeightsMismatchError, match="choose what to do with 3 -> 1 input channels"):
        load_imagenet_weights(encoder, path, channel_policy=None)


@torch.no_grad()
def test_channel_policies_keep_the_response_where_they_promise():
    w = torch.randn(4, 3, 5, 5, 5, dtype=torch.float64)
    grey = torch.randn(1, 1, 8, 8, 8, dtype=torch.float64)
    conv = torch.nn.functional.conv3d
    old = conv(grey.expand(-1, 3, -1, -1, -1), w)
    torch.testing.assert_close(conv(grey, adapt_channels(w, 1, "sum")), old)
    torch.testing.assert_close(conv(grey.expand(-1, 2, -1, -1, -1), adapt_channels(w, 2, "sum")), old)
    torch.testing.assert_close(conv(grey, adapt_channels(w, 1, "mean")), old / 3)
    x = torch.randn(1, 3, 8, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(conv(x.repeat(1, 2, 1, 1, 1), adapt_channels(w, 6, "repeat")), conv(x, w))
    torch.testing.assert_close(adapt_channels(w, 4, "repeat")[:, 3], w[:, 0] * 3 / 4)
    torch.testing.assert_close(adapt_channels(w, 2, "first"), w[:, :2])
    for policy in ("sum", "mean", "first", "repeat"):
        new = adapt_channels(w, 2, policy)
        assert new.shape == (4, 2, 5, 5, 5) and new.is_contiguous() and new.data_ptr() != w.data_ptr()


@torch.no_grad()
def test_vit_class_token_position_and_grid(tmp_path):
    donor = lived_in(build_encoder("vit", in_channels=3, **QKV_VIT), 3)
    checkpoint = as_foreign(donor.encoder_state_dict(), "vit_timm")
    position = torch.randn(1, 1, 24)
    checkpoint |= {"cls_token": torch.ones(1, 1, 24), "head.weight": torch.zeros(10, 24)}
    checkpoint["pos_embed"] = torch.cat([position, checkpoint["pos_embed"]], 1)  # (1, 1 + 4, F)
    path = tmp_path / "vit.pth"
    torch.save(checkpoint, path)
    encoder = lived_in(build_encoder("vit", in_channels=3, **QKV_VIT), 4)
    report = load_imagenet_weights(encoder, path)
    torch.testing.assert_close(encoder(IMAGE), donor(IMAGE))
    assert list(report.unexpected) == ["cls_token"]
    # MONAI's ViT with a class token adds no position to it: the token takes it up.
    with_token = nets.ViT(3, spatial_dims=2, classification=True, **QKV_VIT)
    load_imagenet_weights(with_token, path)
    torch.testing.assert_close(with_token.cls_token, 1 + position)
    larger = build_encoder("vit", in_channels=3, **QKV_VIT | {"img_size": [48, 64]})
    assert "grid of [2, 2] to [3, 4] patches" in str(load_imagenet_weights(larger, path))
    plain = build_encoder("vit", in_channels=3, **SMALL_VIT)
    assert "build it with qkv_bias=True" in str(load_imagenet_weights(plain, path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {
            "model": {f"module.encoder_q.{k}": v for k, v in state.items()} | {"module.queue": torch.zeros(2)}
        },
        lambda state: {k: v.half() for k, v in state.items()},
    ],
    ids=["module", "moco", "half"],
)
def test_wrapped_checkpoints(tmp_path, wrap):
    checkpoint = resnet18_checkpoint()
    torch.save(wrap(checkpoint), tmp_path / "weights.pth.tar")
    encoder = build_encoder("resnet18", in_channels=3, **THIN)
    assert load_imagenet_weights(encoder, tmp_path / "weights.pth.tar").coverage == 1
    torch.testing.assert_close(encoder.net.conv1.weight, checkpoint["conv1.weight"], atol=1e-3, rtol=1e-3)


def test_safetensors_and_larger_networks(tmp_path):
    donor = lived_in(build_encoder("resnet10", in_channels=3, bias_downsample=False), 3)
    save_file(donor.encoder_state_dict(), tmp_path / "weights.safetensors")
    unet = nets.FlexibleUNet(3, 2, "resnet10", spatial_dims=2)
    report = load_imagenet_weights(unet, tmp_path / "weights.safetensors")
    assert report.location == "encoder" and report.coverage == 1 and not report.adapted
    assert_same_state(donor.net, state_of(unet.encoder))
    slow = nets.resnet10(spatial_dims=2, n_input_channels=3, num_classes=2)
    assert "stride [1, 1] here, [2, 2] where" in str(load_imagenet_weights(slow, tmp_path / "weights.safetensors"))


def test_volumes_do_not_take_weights_of_images(tmp_path):
    torch.save(resnet18_checkpoint(), tmp_path / "weights.pth")
    with pytest.raises(WeightsMismatchError, match=r"first layer does not fit .*net \[8, 1, 7, 7, 7\]"):
        load_imagenet_weights(build_encoder("resnet18", spatial_dims=3, **THIN), tmp_path / "weights.pth")


class Hostile:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(tmp_path, legacy):
    proof = tmp_path / "it-ran"
    path = tmp_path / "weights.pth"
    content = {"state_dict": resnet18_checkpoint(), "extra": Hostile(str(proof))}
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    encoder = build_encoder("resnet18", in_channels=3, **THIN)
    before = state_of(encoder)
    for call in (lambda: load_imagenet_weights(encoder, path), lambda: describe_weights(path)):
        with pytest.raises(WeightsFileError, match=r"weights\.pth was refused: .*could run code when loaded"):
            call()
    assert not proof.exists()
    assert_same_state(encoder, before)
    if legacy:
        pickle.loads(path.read_bytes())
        assert proof.exists(), "the test's pickle is harmless: it would not have shown anything"


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated_checkpoints_are_refused(tmp_path, part):
    path = tmp_path / "weights.pth"
    torch.save(resnet18_checkpoint(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(WeightsFileError, match=r"weights\.pth was refused: it is damaged"):
        read_checkpoint(path)


def test_unknown_contents_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"tower.weight": torch.zeros(2)}, path)
    with pytest.raises(
        WeightsFileError, match=r"names in .* \(tower\.weight, \.\.\.\) are not known; known are: torch"
    ):
        load_imagenet_weights(build_encoder("resnet10", **THIN), path)
    for content in ({"epoch": 3}, [torch.zeros(2)], torch.zeros(2)):
        torch.save(content, path)
        with pytest.raises(WeightsFileError, match="holds no state dictionary"):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_imagenet_weights(build_encoder("resnet10", **THIN), tmp_path / "nothing.pth")
