# SPDX-License-Identifier: Apache-2.0
"""A segmentation network's start, its loss and steps, the views of its patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from distributed_helper import run_processes
from ignite.engine import Events
from monai.losses import DiceCELoss

from monai_ssl.engines import PretrainTrainer
from monai_ssl.evaluation import (
    Preprocessing,
    SegmentationMethod,
    SegmentationStart,
    build_segmenter,
    read_size_for,
    sliding_window,
)
from monai_ssl.evaluation.segmentation_method import _batch_dice
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import IntensityStandardize, MultiView, ViewChain, volume_augmentation
from monai_ssl.weights import WeightsMismatchError, save_encoder

TINY = {
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "unet": {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1, "norm": "batch"},
    "dynunet": {"filters": [4, 8, 8], "strides": [1, 2, 2], "kernel_size": [3, 3, 3]},
}


def batch_of(size: int = 16, seed: int = 0) -> dict:
    """Bright cubes of class 1 and dark ones of class 2, in noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(4, 1, size, size, size, generator=generator) * 0.2
    labels = torch.zeros(4, 1, size, size, size, dtype=torch.uint8)
    labels[:, :, 2:7, 3:8, 4:9], labels[:2, :, 9:13, 9:13, 9:13] = 1, 2
    image = image + 2.0 * (labels == 1) - 2.0 * (labels == 2)
    return {"views": [image], "label_map": [labels]}


def saved(path, architecture: str, with_decoder: bool = True, **manifest):
    torch.manual_seed(1)
    decoder = {"out_channels": 1} if with_decoder else {}
    encoder = build_encoder(architecture, 3, **TINY[architecture], **decoder)
    save_encoder(encoder, path, {"method": "MAE", "patch_size": [16, 16, 16], **manifest}, with_decoder)
    return path


@pytest.mark.parametrize("architecture", list(TINY))
@pytest.mark.parametrize("with_decoder", [False, True])
def test_weights_come_in_with_their_decoder(architecture, with_decoder, tmp_path):
    path = saved(tmp_path / "w.safetensors", architecture, with_decoder)
    start = SegmentationStart(encoder_weights=path)
    encoder = start.build(2)
    assert (start.mode, start.architecture, encoder.out_channels) == ("finetune", architecture, 3)
    assert start.preprocessing.image_size == (16, 16, 16) and start.lineage[0]["method"] == "MAE"
    from safetensors.torch import load_file

    file, own = load_file(path), encoder.net.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in file.items())
    assert any(not encoder.is_encoder_key(key) for key in file) == with_decoder


@pytest.mark.parametrize("architecture", list(TINY))
def test_frozen_encoder_does_not_move(architecture, tmp_path):
    start = SegmentationStart("frozen", saved(tmp_path / "w.safetensors", architecture))
    method = SegmentationMethod(start.build(2), weight_average=0)
    before = {key: value.clone() for key, value in method.network.state_dict().items()}
    train(method, 2)
    changed = {key for key, value in method.network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not [key for key in changed if method.encoder.is_encoder_key(key)]


def train(method: SegmentationMethod, steps: int, rate: float = 0.01) -> list[float]:
    optimizer = torch.optim.AdamW(method.groups(rate))
    losses = []
    for step in range(steps):
        method.train()
        output = method(batch_of(seed=step))
        optimizer.zero_grad(set_to_none=True)
        output["loss"].backward()
        optimizer.step()
        method.after_step(step / steps)
        losses.append(output["loss"].item())
    return losses


def test_encoder_warmup_ends():
    torch.manual_seed(0)
    encoder = build_segmenter("unet", 2, **TINY["unet"])
    method = SegmentationMethod(encoder, encoder_warmup_steps=2, weight_average=0)
    key = encoder.stem_key
    statistics = next(
        name for name in encoder.net.state_dict() if name.startswith("model.0") and "running_mean" in name
    )
    seen = []
    optimizer = torch.optim.SGD(method.groups(0.1))
    for step in range(4):
        method.train()
        before = {name: value.clone() for name, value in encoder.net.state_dict().items()}
        optimizer.zero_grad(set_to_none=True)
        method(batch_of(seed=step))["loss"].backward()
        optimizer.step()
        method.after_step(step / 4)
        after = encoder.net.state_dict()
        seen.append((not torch.equal(before[key], after[key]), not torch.equal(before[statistics], after[statistics])))
    assert seen == [(False, False), (False, False), (True, True), (True, True)]


def warm_up_in_a_group(rank: int, world_size: int) -> list[float]:
    """Train on other images in each process; return the encoder's sum after each step."""
    torch.manual_seed(0)
    method = SegmentationMethod(build_segmenter("segresnet", 2, **TINY["segresnet"]), encoder_warmup_steps=2)
    images = [
        {"image": b["views"][0], "label_map": b["label_map"][0]}
        for b in (batch_of(seed=rank + 9 * n) for n in range(4))
    ]
    trainer = PretrainTrainer(
        "cpu",
        1,
        images,
        method,
        torch.optim.SGD(method.groups(0.1)),
        MultiView([ViewChain([IntensityStandardize(mean=0.0, std=1.0)])]),
        precision="fp32",
        channels_last=False,
        find_unused_parameters=True,
    )
    sums = []
    stem = dict(method.network.named_parameters())[method.encoder.stem_key]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: sums.append(stem.double().sum().item()))
    trainer.run()
    return sums


@pytest.mark.slow
def test_an_encoder_that_wakes_up_learns_the_same_in_every_process():
    first, second = run_processes(warm_up_in_a_group, timeout=400)
    assert first == second and first[0] == first[1] and len(set(first)) == 3


@pytest.mark.parametrize("architecture", ["segresnet", "dynunet"])
def test_learns_two_classes(architecture):
    torch.manual_seed(0)
    more = {"deep_supervision": True, "deep_supr_num": 1} if architecture == "dynunet" else {}
    method = SegmentationMethod(build_segmenter(architecture, 2, **TINY[architecture], **more), weight_average=0.5)
    losses = train(method, 40, rate=0.02)
    assert losses[-1] < 0.4 * losses[0]
    batch = batch_of(seed=99)
    with torch.no_grad():
        predicted = method.segmenter(batch["views"][0]).argmax(1)
    assert _batch_dice(predicted, batch["label_map"][0][:, 0].long(), 3) > 0.8


def test_loss_is_monais_and_counts_every_output():
    torch.manual_seed(0)
    method = SegmentationMethod(build_segmenter("segresnet", 2, **TINY["segresnet"])).eval()
    batch = batch_of()
    with torch.no_grad():
        output = method(batch)
        logits = method.network(batch["views"][0])
    plain = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert output["loss"].item() == pytest.approx(plain(logits, batch["label_map"][0]).item(), rel=1e-6)
    deep = SegmentationMethod(
        build_segmenter("dynunet", 2, **TINY["dynunet"], deep_supervision=True, deep_supr_num=1)
    ).train()
    first, second = deep.network(batch["views"][0]).unbind(1)
    expected = plain(first, batch["label_map"][0]) + 0.5 * plain(second, batch["label_map"][0])
    assert deep(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    short = {"views": [batch["views"][0][:2]], "label_map": batch["label_map"]}  # as precision is measured
    assert method(short)["loss"].isfinite()


def test_batch_dice_by_hand():
    true = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]])
    predicted = torch.tensor([[0, 1, 0, 2], [1, 0, 1, 1]])
    assert _batch_dice(predicted, true, 4).item() == pytest.approx((2 * 3 / 8 + 1) / 2)  # class 3 does not occur
    assert _batch_dice(true * 0, true * 0, 4).item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_warmup_steps": -1}, "at least 0"),
        ({"dice_weight": 0, "ce_weight": 0}, "one weight above it"),
        ({"class_weights": [1, 2]}, "class_weights must be 3 numbers"),
    ],
)
def test_wrong_arguments_of_the_method(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMethod(build_segmenter("segresnet", 2, **TINY["segresnet"]), **arguments)


def test_wrong_starts(tmp_path):
    path = saved(tmp_path / "w.safetensors", "segresnet")
    with pytest.raises(ValueError, match="has no decoder and cannot segment"):
        SegmentationStart(architecture="densenet121").build(1)
    with pytest.raises(ValueError, match="must be multiples of"):
        SegmentationStart(encoder_weights=path, patch_size=17).build(1)
    with pytest.raises(WeightsMismatchError):
        SegmentationStart("finetune", path, network_args={**TINY["segresnet"], "init_filters": 16}).build(1)
    with pytest.raises(ValueError, match="mode must be one of frozen, finetune, scratch"):
        SegmentationStart("linear")
    with pytest.raises(ValueError, match="unknown architecture"):
        build_segmenter("segresnot", 1)


def test_a_resnet_goes_into_a_flexible_unet(tmp_path):
    encoder = build_encoder("resnet10", 3)
    save_encoder(encoder, tmp_path / "r.safetensors", {"method": "MoCo", "patch_size": [32, 32, 32]})
    start = SegmentationStart("finetune", tmp_path / "r.safetensors")
    assert (start.architecture, start.network_args) == ("flexibleunet", {"backbone": "resnet10"})


def test_spacing_and_orientation_are_checked(volume_store, tmp_path):
    path = saved(tmp_path / "w.safetensors", "segresnet", spacing_mm=[1.5, 1.5, 1.5], orientation="SPL")
    prepared = SegmentationStart(encoder_weights=path).preprocessing.with_store(volume_store)
    assert prepared.spacing_mm == (1.5, 1.5, 1.5) and prepared.orientation == "SPL"
    assert Preprocessing.from_dict(prepared.to_dict()) == prepared
    other = SegmentationStart(encoder_weights=path, spacing_mm=2).preprocessing
    assert other.spacing_mm == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match=r"at a spacing of 2 x 2 x 2 mm, the volumes in .* 1.5 x 1.5 x 1.5 mm"):
        other.with_store(volume_store)
    turned = saved(tmp_path / "t.safetensors", "segresnet", orientation="RAS")
    with pytest.raises(ValueError, match="axes run to RAS"):
        SegmentationStart(encoder_weights=turned).preprocessing.with_store(volume_store)
    with pytest.raises(ValueError, match="spacing_mm must be one distance in mm, or 3"):
        SegmentationStart(spacing_mm=[1, 2])


def test_what_is_read_is_enough_for_the_patch():
    """Without a turn no patch reaches beyond what was read, however it is zoomed."""
    for strength in (0.0, 1.0, 2.0):
        size = read_size_for((12, 16, 16), strength)
        chain = volume_augmentation((12, 16, 16), strength=strength, flip_prob=0.0, elastic=0.0).chains[0]
        params = chain.transforms[0].draw((200, 1, *size), torch.Generator().manual_seed(0))
        assert (params["crop"] <= torch.tensor(size)).all()
    assert read_size_for((12, 16, 16), 0.0) == (12, 16, 16)


def test_padding_of_the_sliding_window_is_black():
    prepared = Preprocessing((16, 16, 16), mean=0.4, std=0.2)
    seen = []

    def network(window):
        seen.append(window.clone())
        return window.clone()

    out = sliding_window(prepared)(torch.ones(1, 1, 8, 20, 20), network)
    assert out.shape == (1, 1, 8, 20, 20) and np.isclose(out, 3).all()  # (1 - 0.4) / 0.2
    assert seen[0].min() == pytest.approx(-2.0)  # (0 - 0.4) / 0.2


@pytest.mark.parametrize("mode", ["fixed", "per_image"])
def test_a_window_is_standardised_as_a_patch_in_training(mode):
    """Also where it is larger than the volume and black fills the rest."""
    prepared = Preprocessing((16, 16, 16), standardize_mode=mode)
    volume = 0.3 + 0.6 * torch.rand(1, 1, 8, 12, 20, generator=torch.Generator().manual_seed(0))
    seen = []

    def network(window):
        seen.append(window.clone())
        return window[:, :1]

    sliding_window(prepared, batch_size=1)(volume, network)
    black = torch.zeros(1, 1, 16, 16, 16)
    black[..., 4:12, 2:14, :] = volume[..., :16]
    torch.testing.assert_close(seen[0], prepared.standardize()(black))
    if mode == "per_image":
        assert all(window.mean().abs() < 1e-5 for window in seen)
