# SPDX-License-Identifier: Apache-2.0
"""Rotation prediction and PIRL: what the network is asked, the loss by its definition, learning, resuming, misuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate, normalize
from toy_training import LossLog, ToyImages, toy_trainer

from monai_ssl.methods import PIRL, RotationPrediction
from monai_ssl.networks import build_encoder

SEGRESNET = {"blocks_down": [1, 1], "blocks_up": [1]}


def rotation(spatial_dims: int = 2, channels: int = 1, **options) -> RotationPrediction:
    return RotationPrediction(build_encoder("segresnet", spatial_dims, channels, **SEGRESNET), **options)


def pirl(spatial_dims: int = 2, channels: int = 1, **options) -> PIRL:
    defaults = {"num_data": 40, "embedding_dim": 16, "grid": (2,) * spatial_dims}
    return PIRL(build_encoder("segresnet", spatial_dims, channels, **SEGRESNET), **defaults | options)


every_method = pytest.mark.parametrize("make", [rotation, pirl])


def make_batch(spatial_dims: int = 2, channels: int = 1, batch: int = 4, seed: int = 0) -> dict:
    x = torch.rand(batch, channels, *[16] * spatial_dims, generator=torch.Generator().manual_seed(9))
    index = torch.tensor([30, 2, 17, 5])[:batch]
    return {"views": [x], "index": index, "generator": torch.Generator().manual_seed(seed)}


@every_method
@pytest.mark.parametrize("spatial_dims, channels", [(2, 1), (3, 2)])
def test_what_comes_out(make, spatial_dims, channels):
    torch.manual_seed(0)
    method, batch = make(spatial_dims, channels), make_batch(spatial_dims, channels)
    if make is pirl:  # with an empty memory there is nothing to learn
        method.bank.update(torch.arange(40), torch.randn(40, 16))
    state = {key: value.clone() for key, value in method.state_dict().items()}
    out = method(batch)
    out["loss"].backward()
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items()), "forward changes state"
    assert len(out["embedding"]) == 4 and not out["embedding"].requires_grad
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(4))
    assert not [name for name, p in method.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert all(not value.requires_grad for name, value in out.items() if name != "loss")
    other = make_batch(spatial_dims, channels)
    assert method(other)["loss"].item() == pytest.approx(out["loss"].item()), "the batch's generator decides"


def test_the_turns_are_those_of_the_plane():
    x = torch.rand(3, 1, 5, 5)
    turned = rotation().turn(x, torch.tensor([0, 1, 3]))
    for got, quarters, image in zip(turned, (0, 1, 3), x, strict=True):
        assert torch.equal(got, torch.rot90(image, quarters, (1, 2)))


def test_ten_turns_of_a_volume_are_ten_different_ones():
    method = rotation(3, turns="axes")
    assert method.num_turns == 10 and method.head.out_features == 10
    x = torch.rand(1, 1, 4, 4, 4).expand(10, -1, -1, -1, -1)
    turned = method.turn(x, torch.arange(10))
    assert torch.equal(turned[0], x[0])
    assert len({tuple(image.flatten().tolist()) for image in turned}) == 10
    for first, plane in ((1, (2, 3)), (4, (1, 3)), (7, (1, 2))):
        for quarters in (1, 2, 3):
            assert torch.equal(turned[first + quarters - 1], torch.rot90(x[0], quarters, plane))
    assert rotation(2, turns="axes").num_turns == 4
    wide = torch.rand(2, 1, 4, 6, 6)
    assert rotation(3).turn(wide, torch.tensor([1, 2])).shape == wide.shape  # the body's axis may be shorter
    with pytest.raises(ValueError, match="sides of one length in the plane"):
        method.turn(wide, torch.tensor([1, 4]))


@pytest.mark.parametrize("copies", ["all", "one"])
@pytest.mark.parametrize("dims, turns", [(2, "axis"), (3, "axis"), (3, "axes")])
def test_the_rotation_loss_is_the_cross_entropy_of_every_turn(copies, dims, turns):
    torch.manual_seed(0)
    method, batch = rotation(dims, turns=turns, copies=copies), make_batch(dims)
    out = method(batch)
    x, count = batch["views"][0], method.num_turns
    if copies == "all":
        losses = []
        for turn in range(count):
            label = torch.full((4,), turn)
            losses.append(cross_entropy(method.head(method.encoder(method.turn(x, label))), label))
        expected = sum(losses) / count
    else:
        label = torch.randint(count, (4,), generator=torch.Generator().manual_seed(0))
        expected = cross_entropy(method.head(method.encoder(method.turn(x, label))), label)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert out["loss"].item() == pytest.approx(math.log(count), abs=0.3)


def test_patches_are_parts_of_their_cells():
    """An image of its own rows and columns shows where each patch was cut."""
    method = pirl(patch_share=0.75, patch_size=6)  # cells of 8, patches of 6
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    x = torch.stack([rows, columns])[None].expand(50, -1, -1, -1)
    patches = method.cut(x, torch.Generator().manual_seed(0))
    assert patches.shape == (50, 4, 2, 6, 6)
    torch.testing.assert_close(patches[..., 0, 1:, :] - patches[..., 0, :-1, :], torch.ones(50, 4, 5, 6))
    corner = torch.tensor([[0, 0], [0, 8], [8, 0], [8, 8]])
    first = patches[:, :, :, 0, 0] - corner  # within the cell, from its first pixel
    assert first.min() >= -1e-4 and first.max() <= 2 + 1e-4 and first.max() - first.min() > 1.5
    default = pirl()  # 64 / 85 of a cell of 8 pixels is 6.02; the network's stride is 2
    assert default.stride == (2, 2) and default.cut(x[:, :1], None).shape[3:] == (8, 8)
    three = PIRL(build_encoder("segresnet", 3, **SEGRESNET), 10)
    assert three.grid == (2, 2, 2) and PIRL(build_encoder("segresnet", 2, **SEGRESNET), 10).grid == (3, 3)


def test_pirls_loss_is_the_papers_formula():
    torch.manual_seed(0)
    method, batch = pirl(puzzle_weight=0.3), make_batch()
    known = torch.tensor([2, 5, 8, 9, 17, 39])
    method.bank.update(known, torch.randn(6, 16))
    out = method(batch)
    x, generator = batch["views"][0], torch.Generator().manual_seed(0)
    f = normalize(method.image_head(method.encoder(x)))
    patches = method.cut(x, generator)
    h = method.patch_head(method.encoder(patches.flatten(0, 1))).view(4, 4, 16)
    order = torch.rand(4, 4, generator=generator).argsort(1)
    g = normalize(method.puzzle_head(torch.stack([row[o].flatten() for row, o in zip(h, order, strict=True)])))
    losses = []
    for v in (g, f):
        terms = []
        for b, own in enumerate(batch["index"].tolist()):
            memory = method.bank.features[own] if own in known else f[b].detach()
            near = (v[b] @ memory / 0.07).exp()
            far = sum((v[b] @ method.bank.features[i] / 0.07).exp() for i in known.tolist() if i != own)
            terms.append(-(near / (near + far)).log())
        losses.append(sum(terms) / 4)
    assert out["puzzle_loss"].item() == pytest.approx(losses[0].item(), rel=1e-4)
    assert out["image_loss"].item() == pytest.approx(losses[1].item(), rel=1e-4, abs=1e-5)
    assert out["loss"].item() == pytest.approx((0.3 * losses[0] + 0.7 * losses[1]).item(), rel=1e-4)
    assert out["remembered"].item() == pytest.approx(3 / 4)


def test_the_order_of_the_patches_is_random():
    torch.manual_seed(0)
    method = pirl()
    patches = method.cut(make_batch()["views"][0].expand(4, -1, -1, -1), torch.Generator().manual_seed(0))[:1]
    seen = {round(method.solve(patches, torch.Generator().manual_seed(seed))[0, 0].item(), 5) for seed in range(60)}
    assert 8 < len(seen) <= 24


def test_the_memory_moves_after_the_step():
    torch.manual_seed(0)
    method, batch = pirl(), make_batch()
    first = method(batch)
    assert first["loss"] == 0 and first["remembered"] == 0 and not method.bank.seen.any()
    method.after_step(0.1)
    assert method.bank.seen.nonzero().flatten().tolist() == [2, 5, 17, 30]
    torch.testing.assert_close(method.bank.features[batch["index"]], first["embedding"])
    second = method(batch)
    assert second["remembered"] == 1 and second["loss"] > 0
    method.eval()
    method(batch)
    method.train()
    before = method.bank.features.clone()
    method.after_step(0.2)  # once, not also for the evaluation
    torch.testing.assert_close(method.bank.features[batch["index"]], before[batch["index"]], atol=1e-4, rtol=0)


def test_a_large_memory_is_drawn_from():
    torch.manual_seed(0)
    method = pirl(num_data=1000, num_negatives=50)
    method.bank.update(torch.arange(1000), torch.randn(1000, 16))
    features, mask = method._negatives(torch.tensor([3, 900]), torch.Generator().manual_seed(0))
    assert features.shape == (50, 16) and mask.shape == (2, 50) and mask.sum() <= 2
    loss = method(make_batch(batch=2))["puzzle_loss"].item()
    assert loss == pytest.approx(math.log(51) + 1 / (2 * 16 * 0.07**2), abs=8)  # so few dimensions spread far


def test_random_memory_starts_where_it_should():
    """log J + 1 / (2 d t^2)."""
    torch.manual_seed(0)
    method = pirl(num_data=2000, embedding_dim=128)
    method.bank.update(torch.arange(2000), torch.randn(2000, 128))
    losses = [method(make_batch(seed=seed) | {"index": torch.arange(4) * (seed + 1)})["loss"] for seed in range(8)]
    assert sum(losses).item() / 8 == pytest.approx(math.log(2000) + 1 / (2 * 128 * 0.07**2), abs=1)


@every_method
def test_overfits_32_images(make):
    """Images in [-2, 2] that lie alike: brighter below."""
    torch.manual_seed(0)
    method = make() if make is rotation else make(num_data=32)
    coarse = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    images = 4 * interpolate(coarse, (16, 16), mode="bilinear") - 3 + 2 * torch.linspace(0, 1, 16)[:, None]
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for step in range(30):
        out = method({"views": [images], "index": torch.arange(32), "generator": generator})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / 30)
        losses.append(out["loss"].item())
    assert sum(losses[-5:]) < 0.65 * sum(losses[1:6]), losses
    if make is pirl:
        assert (out["embedding"] @ out["embedding"].T).mean() < 0.8
    else:
        assert out["rotation_accuracy"] > 0.8


class OneNoisyView:
    def __call__(self, image, generator=None, extent=None):
        return [image + 0.02 * torch.randn(image.shape, generator=generator)]


@every_method
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_trains_and_resumes_to_the_same_numbers(make, spatial_dims):
    def train(**options):
        dataset = ToyImages(8, 16, spatial_dims)
        settings = {"method": lambda: make(spatial_dims), "dataset": dataset, "views": OneNoisyView(), "max_epochs": 3}
        return toy_trainer(**settings | {"optimizer": "adamw", "learning_rate": 1e-3} | options)

    whole, first, second = LossLog(), LossLog(3), LossLog()
    train(train_handlers=[whole]).run()
    interrupted = train(train_handlers=[first])
    interrupted.run()
    resumed = train(train_handlers=[second], seed=99)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.run()
    assert first.losses | second.losses == whole.losses and len(whole.losses) == 6


@every_method
def test_half_precision_stays_near(make):
    losses = []
    for precision in ("fp32", "bf16"):
        log = LossLog()
        settings = {"dataset": ToyImages(8, 16), "views": OneNoisyView(), "max_epochs": 2}
        toy_trainer(method=make, precision=precision, train_handlers=[log], learning_rate=1e-3, **settings).run()
        losses.append(log.losses[3])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="RotationPrediction takes one view of each image, got 2"):
        rotation()({"views": make_batch()["views"] * 2})
    with pytest.raises(ValueError, match="turns must be 'axis' or 'axes', got 'all'"):
        rotation(turns="all")
    with pytest.raises(ValueError, match="copies must be 'all' or 'one', got 4"):
        rotation(copies=4)
    with pytest.raises(ValueError, match="PIRL takes 1 to 2 views of each image, got 3"):
        pirl()(make_batch() | {"views": make_batch()["views"] * 3})
    with pytest.raises(ValueError, match=r"PIRL needs batch\['index'\]"):
        pirl()({"views": make_batch()["views"]})
    with pytest.raises(ValueError, match=r"room for 20 images \(num_data\), and the batch has numbers from 2 to 30"):
        pirl(num_data=20)(make_batch())
    with pytest.raises(ValueError, match=r"on a 2D encoder takes views \(B, 1, H, W\), got \(4, 1, 16, 16, 16\)"):
        pirl()(make_batch(3))
    with pytest.raises(ValueError, match="grid needs 2 positive numbers"):
        pirl(grid=(2, 2, 2))
    for options in ({"patch_share": 0}, {"puzzle_weight": 2}, {"num_negatives": 0}):
        with pytest.raises(ValueError, match=r"patch_share must be in \(0, 1\]"):
            pirl(**options)
