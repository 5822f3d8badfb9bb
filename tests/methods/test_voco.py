# SPDX-License-Identifier: Apache-2.0
"""VoCo: crops and overlaps are what they should be, the loss is the formula, places are learned."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch.nn.functional import cosine_similarity
from toy_training import LossLog, ToyImages, toy_trainer

from monai_ssl.losses import base_orthogonality, overlap_prediction
from monai_ssl.methods import VoCo
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import RandomGaussianNoise, RandomMirror
from monai_ssl.weights import load_encoder, save_encoder

SMALL = {"crop_size": 8, "hidden_features": 32, "embedding_dim": 16}
SEGRESNET = {"blocks_down": [1, 1], "blocks_up": [1]}
VARIANTS = {"paper": {}, "released": {"formula": "released", "teacher_momentum": 0.9}}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def make(spatial_dims: int = 2, channels: int = 1, **options) -> VoCo:
    encoder = build_encoder("segresnet", spatial_dims, channels, **SEGRESNET)
    return VoCo(encoder, **SMALL | {"grid": (1, 2, 2)[-spatial_dims:]} | options)


def make_batch(spatial_dims: int = 2, channels: int = 1, seed: int = 0, side: int = 16) -> dict:
    x = torch.rand(3, channels, *[side] * spatial_dims, generator=torch.Generator().manual_seed(9))
    return {"views": [x], "generator": torch.Generator().manual_seed(seed)}


@every_variant
@pytest.mark.parametrize("spatial_dims, channels", [(2, 1), (3, 2)])
def test_what_comes_out(variant, spatial_dims, channels):
    torch.manual_seed(0)
    method, batch = make(spatial_dims, channels, **VARIANTS[variant]), make_batch(spatial_dims, channels)
    x = batch["views"][0].requires_grad_()
    before = x.detach().clone()
    out = method(batch)
    out["loss"].backward()
    assert torch.equal(x, before) and x.grad is None
    assert out["embedding"].shape == (3, 16) and not out["embedding"].requires_grad
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(3))
    assert out["loss"].item() == pytest.approx((out["overlap_loss"] + out["orthogonality_loss"]).item(), rel=1e-6)
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name, p in method.named_parameters() if name.startswith("teacher.") and p.requires_grad]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_crops_and_their_overlaps(spatial_dims):
    method, x = make(spatial_dims, num_crops=5), make_batch(spatial_dims)["views"][0]
    crops, overlap = method.cut(x, torch.Generator().manual_seed(1))
    assert crops.shape == (3, 9, 1, *[8] * spatial_dims) and overlap.shape == (3, 5, 4)
    torch.testing.assert_close(overlap.sum(2), torch.ones(3, 5))
    # In plane a cell has the crop's size, so that base crops are pieces of the image; in 3D the first axis is halved.
    flat = x if spatial_dims == 2 else (x[:, :, 0::2] + x[:, :, 1::2]) / 2
    torch.testing.assert_close(crops[:, 5], flat[..., :8, :8], atol=1e-4, rtol=0)
    torch.testing.assert_close(crops[:, 8], flat[..., 8:, 8:], atol=1e-4, rtol=0)
    # An image of one bright cell shows each random crop's overlap as its mean, up to the interpolated edge.
    bright = torch.zeros_like(x)
    bright[..., :8, 8:] = 1
    crops, overlap = method.cut(bright, torch.Generator().manual_seed(1))
    torch.testing.assert_close(crops[:, :5].flatten(2).mean(2), overlap[..., 1], atol=0.01, rtol=0)


@every_variant
def test_the_loss_is_the_papers_formula(variant):
    torch.manual_seed(0)
    method, batch = make(orthogonality_weight=0.3, num_crops=3, **VARIANTS[variant]), make_batch()
    if method.teacher is not None:
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    out = method(batch)
    crops, overlap = method.cut(batch["views"][0], torch.Generator().manual_seed(0))
    flat = crops.flatten(0, 1)
    student = method.head(method.encoder(flat)).unflatten(0, (3, 7))
    cosines = lambda a, b: cosine_similarity(a[:, :3, None], b[:, None, 3:], dim=3)  # noqa: E731
    similarity = cosines(student, student)
    if variant == "released":
        teacher = method.teacher(flat).unflatten(0, (3, 7))
        similarity = (cosines(student, teacher) + cosines(teacher, student)) / 2
    predicted = overlap_prediction(similarity, overlap, variant)
    apart = base_orthogonality(student[:, 3:], variant)
    assert out["overlap_loss"].item() == pytest.approx(predicted.item(), rel=1e-4)
    assert out["orthogonality_loss"].item() == pytest.approx(apart.item(), rel=1e-4)
    assert out["loss"].item() == pytest.approx((predicted + 0.3 * apart).item(), rel=1e-4)
    assert out["located"].item() == pytest.approx((similarity.argmax(2) == overlap.argmax(2)).float().mean().item())


@every_variant
def test_base_crops_learn_from_the_overlap_only_beside_a_teacher(variant, monkeypatch):
    torch.manual_seed(0)
    method, kept = make(orthogonality_weight=0, **VARIANTS[variant]), []
    split = method._split

    def keep(features, batch):
        parts = split(features, batch)
        kept.append(parts)
        if parts[0].requires_grad:
            for part in parts:
                part.retain_grad()
        return parts

    monkeypatch.setattr(method, "_split", keep)
    method(make_batch())["loss"].backward()
    place, base = kept[0]
    assert place.grad.abs().sum() > 0
    if variant == "paper":
        assert base.grad is None or base.grad.abs().sum() == 0  # stop-gradient
    else:
        assert base.grad.abs().sum() > 0 and not kept[1][0].requires_grad and not kept[1][1].requires_grad


def test_the_generator_decides():
    torch.manual_seed(0)
    method = make()
    first, same, other = (method(make_batch(seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert first["loss"] != other["loss"]
    state = torch.random.get_rng_state()
    method(make_batch())
    assert torch.equal(state, torch.random.get_rng_state()), "drawn from the global generator"


def test_the_teacher_follows_after_the_step():
    method = make(teacher_momentum=0.75)
    with torch.no_grad():
        method.head.layers[-1].weight.add_(1)
    gap = lambda: method.head.layers[-1].weight - method.teacher.module[1].layers[-1].weight  # noqa: E731
    before = gap().detach().clone()
    method(make_batch())["loss"].backward()
    assert torch.equal(gap(), before)
    method.after_step(0.5)
    torch.testing.assert_close(gap(), 0.75 * before)
    assert not any("teacher" in name for name in make().state_dict())
    make().after_step(0.5)


def test_crops_can_be_transformed():
    torch.manual_seed(0)
    x = make_batch()["views"][0]
    plain, _ = make().cut(x, torch.Generator().manual_seed(1))
    noisy, _ = make(crop_transform=RandomGaussianNoise((0.1, 0.1), prob=1.0)).cut(x, torch.Generator().manual_seed(1))
    assert noisy.shape == plain.shape and (noisy - plain).std().item() == pytest.approx(0.1, rel=0.1)
    assert make(crop_transform=RandomMirror(1.0))(make_batch())["loss"].isfinite()


def test_defaults_are_the_papers():
    encoder = build_encoder("segresnet", 3, **SEGRESNET)
    method = VoCo(encoder)
    assert method.grid == (1, 4, 4) and method.crop_size == (64, 64, 64)
    assert VoCo(build_encoder("segresnet", 2, **SEGRESNET)).grid == (4, 4)
    assert method.head.out_features == 2048 and method.teacher is None


@every_variant
def test_places_are_learned(variant):
    """Images that are alike but for noise and brightness, as bodies are: where a crop lies can be read off it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    body = torch.rand(1, 1, 4, 4, generator=generator)
    body = torch.nn.functional.interpolate(body, (24, 24), mode="bilinear")
    method = make(crop_size=12, num_crops=4, **VARIANTS[variant])
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=2e-3)
    losses, located = [], []
    for step in range(60):
        images = body + 0.02 * torch.randn(6, 1, 24, 24, generator=generator)
        out = method({"views": [images], "generator": generator})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / 60)
        losses.append(out["loss"].item())
        located.append(out["located"].item())
    assert sum(losses[-15:]) < 0.6 * sum(losses[:15])
    assert sum(located[-15:]) / 15 > 0.75, "chance is 1/4"


def train(spatial_dims: int, **options):
    variant = options.pop("variant", {})
    return toy_trainer(
        **{
            "method": lambda: make(spatial_dims, **variant),
            "dataset": ToyImages(8, 16, spatial_dims),
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "views": lambda image, generator=None, extent=None: [image],
            "max_epochs": 2,
        }
        | options
    )


@every_variant
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_trains_and_resumes_to_the_same_numbers(variant, spatial_dims):
    whole, first, second = LossLog(), LossLog(3), LossLog()
    options = {"variant": VARIANTS[variant]}
    train(spatial_dims, train_handlers=[whole], **dict(options)).run()
    interrupted = train(spatial_dims, train_handlers=[first], **dict(options))
    interrupted.run()
    resumed = train(spatial_dims, train_handlers=[second], seed=99, **dict(options))
    resumed.load_state_dict(interrupted.state_dict())
    resumed.run()
    assert first.losses | second.losses == whole.losses and len(whole.losses) == 4


def test_half_precision_stays_near():
    losses = []
    for precision in ("fp32", "bf16"):
        log = LossLog()
        train(2, precision=precision, max_epochs=1, train_handlers=[log]).run()
        losses.append(log.losses[1])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_exported_encoder_loads_completely(tmp_path):
    method, path = make(teacher_momentum=0.9), tmp_path / "encoder.safetensors"
    save_encoder(method.encoder, path, {"method": "VoCo"})
    report = load_encoder(nets.SegResNet(2, out_channels=3, **SEGRESNET), path)
    assert report.coverage == 1 and not report.unexpected


def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"on a 2D encoder takes views \(B, 1, H, W\), got"):
        make(2)(make_batch(3))
    with pytest.raises(ValueError, match="takes one view of each image, got 2"):
        make()({"views": make_batch()["views"] * 2})
    for options, words in (
        ({"grid": (2, 2, 2)}, r"grid needs 2 positive numbers \(the encoder is 2D\)"),
        ({"grid": (1, 1)}, "one cell"),
        ({"crop_size": 0}, "crop_size needs 2"),
        ({"num_crops": 0}, "num_crops"),
        ({"teacher_momentum": 1.5}, "teacher_momentum"),
        ({"formula": "code"}, "formula must be"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**options)
