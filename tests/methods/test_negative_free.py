# SPDX-License-Identifier: Apache-2.0
"""BYOL, SimSiam, Barlow Twins and VICReg: their formulas, where gradients go, patients, learning and resuming."""

from __future__ import annotations

import pytest
import torch
from overfitting import overfit
from torch import nn
from torch.nn.functional import cosine_similarity
from toy_training import LossLog, ToyEncoder, ToyImages, toy_trainer

from monai_ssl.engines import build_optimizer, warmup_cosine
from monai_ssl.methods import BYOL, BarlowTwins, SimSiam, SSLMethod, VICReg
from monai_ssl.metrics import effective_rank, feature_std
from monai_ssl.networks import build_encoder

METHODS = {
    "byol": lambda encoder, **options: BYOL(encoder, hidden_features=32, embedding_dim=16, **options),
    "simsiam": lambda encoder, **options: SimSiam(
        encoder, hidden_features=32, embedding_dim=16, predictor_features=8, **options
    ),
    "barlow_twins": lambda encoder, **options: BarlowTwins(encoder, hidden_features=32, embedding_dim=48, **options),
    "vicreg": lambda encoder, **options: VICReg(encoder, hidden_features=32, embedding_dim=48, **options),
}


class SmallEncoder(ToyEncoder):
    spatial_dims, in_channels = 2, 1


def make(name: str, **options) -> SSLMethod:
    torch.manual_seed(0)
    return METHODS[name](SmallEncoder(), **options)


def make_batch(size: int = 6, side: int = 8, seed: int = 0, spatial_dims: int = 2) -> dict:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((size, 1) + (side,) * spatial_dims, generator=generator)
    views = [images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(2)]
    return {"views": views, "index": torch.arange(size), "generator": generator}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_runs_in_2d_and_3d(name, spatial_dims):
    method = METHODS[name](build_encoder("resnet18", spatial_dims=spatial_dims))
    out = method(make_batch(3, 32, spatial_dims=spatial_dims))
    out["loss"].backward()
    assert all(not value.requires_grad for key, value in out.items() if key != "loss")
    for key in ("embedding", "embedding_pair"):
        torch.testing.assert_close(out[key].norm(dim=1), torch.ones(3))
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == (not key.startswith("target.")), key
        assert parameter.grad is None or parameter.grad.isfinite().all()
    method.after_step(0.5)


def passes(method: SSLMethod, views: list[torch.Tensor], head: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return head(method.encoder(torch.cat(views))).chunk(2)


def test_byol_is_the_papers_formula():
    method, batch = make("byol"), make_batch()
    for parameter in method.target.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    z1, z2 = passes(method, batch["views"], method.projector)
    p1, p2 = method.predictor(torch.cat([z1, z2])).chunk(2)
    t1, t2 = method.target(torch.cat(batch["views"])).chunk(2)
    expected = (2 - 2 * cosine_similarity(p1, t2)).mean() + (2 - 2 * cosine_similarity(p2, t1)).mean()
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_simsiam_is_the_papers_formula():
    method, batch = make("simsiam"), make_batch()
    z1, z2 = passes(method, batch["views"], method.projector)
    p1, p2 = method.predictor(torch.cat([z1, z2])).chunk(2)
    expected = -(cosine_similarity(p1, z2.detach()).mean() + cosine_similarity(p2, z1.detach()).mean()) / 2
    out = method(batch)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(out["loss"], method.encoder.net[0].weight)[0]
    wanted = torch.autograd.grad(expected, method.encoder.net[0].weight)[0]
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-5, msg="the target has no gradient")


def test_barlow_twins_is_the_papers_formula():
    method, batch = make("barlow_twins", redundancy_weight=0.1), make_batch()
    z1, z2 = (z - z.mean(0) for z in passes(method, batch["views"], method.projector))
    c = (z1 / z1.norm(dim=0)).T @ (z2 / z2.norm(dim=0))
    on_diagonal = (1 - c.diagonal()).square().sum()
    off_diagonal = c.square().sum() - c.diagonal().square().sum()
    out = method(batch)
    assert out["invariance"].item() == pytest.approx(on_diagonal.item(), rel=1e-2)  # eps
    assert out["redundancy"].item() == pytest.approx(off_diagonal.item(), rel=1e-2)
    assert out["loss"].item() == pytest.approx((out["invariance"] + 0.1 * out["redundancy"]).item(), rel=1e-6)


def test_vicreg_is_the_papers_formula():
    method, batch = make("vicreg", invariance_weight=2, variance_weight=3, covariance_weight=5), make_batch()
    z1, z2 = passes(method, batch["views"], method.expander)
    out = method(batch)
    assert out["invariance"].item() == pytest.approx((z1 - z2).square().mean().item(), rel=1e-4)
    hinge = sum((1 - (z.var(0) + 1e-4).sqrt()).relu().mean() for z in (z1, z2))
    assert out["variance"].item() == pytest.approx(hinge.item(), rel=1e-4)
    squares = [torch.cov(z.T).square() for z in (z1, z2)]
    covariance = sum((square.sum() - square.diagonal().sum()) / 48 for square in squares)
    assert out["covariance"].item() == pytest.approx(covariance.item(), rel=1e-4)
    weighted = 2 * out["invariance"] + 3 * out["variance"] + 5 * out["covariance"]
    assert out["loss"].item() == pytest.approx(weighted.item(), rel=1e-5)


def test_initial_losses():
    """Unrelated predictions and targets: 4 for BYOL, 0 for SimSiam."""
    generator = torch.Generator().manual_seed(0)
    batch = {"views": [torch.randn(64, 1, 8, 8, generator=generator) for _ in range(2)], "generator": generator}
    for name, expected, tolerance in (("byol", 4, 0.5), ("simsiam", 0, 0.15)):
        method = METHODS[name](build_encoder("resnet18"))
        assert method(batch)["loss"].item() == pytest.approx(expected, abs=tolerance), name


@pytest.mark.parametrize("name", METHODS)
def test_forward_alone_changes_no_parameter_and_draws_nothing(name):
    method, batch = make(name), make_batch()
    before = {key: value.clone() for key, value in method.named_parameters()}
    state = batch["generator"].get_state()
    first = method(batch)["loss"].item()
    assert method(batch)["loss"].item() == first
    assert all(torch.equal(value, before[key]) for key, value in method.named_parameters())
    assert torch.equal(batch["generator"].get_state(), state)


def test_byol_target_follows_along_half_a_cosine():
    method = make("byol", momentum=0.9)
    start = method.target.module[1].layers[0].weight.clone()
    with torch.no_grad():
        method.projector.layers[0].weight.add_(1)
    method.after_step(0.5)  # 1 - 0.1 * (cos(pi / 2) + 1) / 2 = 0.95
    torch.testing.assert_close(method.target.module[1].layers[0].weight, start + 0.05)
    method.after_step(1.0)
    torch.testing.assert_close(method.target.module[1].layers[0].weight, start + 0.05)
    constant = make("byol", momentum=0.9, final_momentum=None)
    assert constant.final_momentum == 0.9


def test_byol_target_normalises_by_its_own_batch():
    """In training the target's BatchNorm uses the batch, and its running statistics are its own."""
    method, batch = make("byol"), make_batch()
    norms = [layer for layer in method.target.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 2 and all(layer.training for layer in norms)
    before = norms[-1].running_mean.clone()
    method(batch)
    assert not torch.equal(norms[-1].running_mean, before)
    seen = []
    norms[-1].register_forward_hook(lambda _, args, out: seen.append(out.clone()))
    method(batch)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_exported_is_the_encoder_alone(name):
    method = METHODS[name](build_encoder("resnet18"))
    keys = set(method.encoder.encoder_state_dict())
    assert keys == set(build_encoder("resnet18").encoder_state_dict())
    own = {id(parameter) for parameter in method.encoder.parameters()}
    heads = [head for kind in ("projector", "predictor", "expander") if (head := getattr(method, kind, None))]
    assert heads and not own & {id(parameter) for head in heads for parameter in head.parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_parameter_groups_hold_all_and_spare_biases(name):
    method = make(name)
    groups = method.parameter_groups(0.1)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in method.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for p in group["params"])


def test_simsiam_keeps_the_predictors_rate():
    method = make("simsiam")
    trainer = toy_trainer(
        max_epochs=4, method=lambda: method, learning_rate=0.1, learning_rate_schedule=warmup_cosine(warmup_steps=2)
    )
    log = LossLog()
    log.attach(trainer)
    trainer.run()
    assert log.rates[0] == pytest.approx(0.05) and log.rates[-1] < 0.01, "the encoder's rate follows the schedule"
    predictor = {id(parameter) for parameter in method.predictor.parameters()}
    for group in trainer.optimizer.param_groups:
        constant = group.get("constant_lr", False)
        assert all((id(parameter) in predictor) == constant for parameter in group["params"])
        assert group["lr"] == (0.1 if constant else log.rates[-1])


@pytest.mark.parametrize("name", METHODS)
def test_another_image_of_the_patient_is_the_positive(name):
    """With two images a patient the second view's side is that of the other image; alone, one's own."""
    method, plain = make(name, patient_positives=True), make(name)
    batch = make_batch() | {"group_id": torch.tensor([0, 1, 0, 2, 1, 3])}
    partner = torch.tensor([2, 4, 0, 3, 1, 5])
    loss = method(batch)["loss"].item()
    if name in ("barlow_twins", "vicreg"):
        # BatchNorm's batch is the same in any order, so the plain method on re-ordered second views says the same
        swapped = batch | {"views": [batch["views"][0], batch["views"][1][partner]]}
        assert loss == pytest.approx(plain(swapped)["loss"].item(), rel=1e-4)
    else:
        x = torch.cat(batch["views"])
        z = method.projector(method.encoder(x))
        p1, p2 = method.predictor(z).chunk(2)
        t1, t2 = (method.target(x) if name == "byol" else z).chunk(2)
        cosines = cosine_similarity(p1, t2[partner]).mean() + cosine_similarity(p2, t1[partner]).mean()
        expected = 4 - 2 * cosines if name == "byol" else -cosines / 2
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert loss != pytest.approx(plain(batch)["loss"].item(), rel=1e-3)
    alone = batch | {"group_id": torch.arange(6)}
    assert method(alone)["loss"].item() == pytest.approx(plain(batch)["loss"].item(), rel=1e-5)
    with pytest.raises(ValueError, match="group_id"):
        method(make_batch())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(name, dtype):
    method, batch = make(name), make_batch()
    batch["views"] = [100 * view for view in batch["views"]]
    with torch.autocast("cpu", dtype=dtype):
        out = method(batch)
    out["loss"].backward()
    assert out["loss"].dtype == torch.float32 and out["loss"].isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters() if parameter.requires_grad)


def train(method: SSLMethod, steps: int, start: int = 0, state: dict | None = None) -> tuple[list[float], dict]:
    """Overfit 32 images with noise as the views' difference."""
    images = ToyImages(32).images
    images = (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)
    optimizer = build_optimizer(method, "adamw", 3e-3, 1e-4)
    return overfit(method, optimizer, images, steps, noise=0.5, total_steps=100, start=start, state=state)


@pytest.mark.parametrize("name", METHODS)
def test_overfits_a_few_images_without_collapse_and_resumes_exactly(name):
    options = {"momentum": 0.9} if name == "byol" else {}
    method = make(name, **options)
    losses, _ = train(method, 80)
    least = -1 if name == "simsiam" else 0
    assert sum(losses[-10:]) / 10 - least < 0.75 * (sum(losses[:10]) / 10 - least)
    images = ToyImages(32).images
    with torch.no_grad():
        embedding = method({"views": [images, images.clone()], "generator": None})["embedding"]
    assert feature_std(embedding) > 0.2 and effective_rank(embedding, center=True) > 2.5
    _, state = train(make(name, **options), 7)
    assert train(make(name, **options), 5, start=7, state=state)[0] == losses[7:12]


@pytest.mark.parametrize("name", METHODS)
def test_wrong_views_are_named(name):
    method, batch = make(name), make_batch()
    with pytest.raises(ValueError, match="takes 2 views of each image, got 3"):
        method(batch | {"views": [*batch["views"], batch["views"][0]]})
    with pytest.raises(ValueError, match="two views of one size"):
        method(batch | {"views": [batch["views"][0], batch["views"][1][..., :4]]})
    with pytest.raises(ValueError, match="takes views"):
        method(batch | {"views": [view[:, 0] for view in batch["views"]]})


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("byol", {"momentum": 1.5}, "momentum"),
        ("byol", {"final_momentum": -1}, "final_momentum"),
        ("barlow_twins", {"redundancy_weight": -1}, "redundancy_weight"),
        ("vicreg", {"variance_weight": -1}, "weights"),
    ],
)
def test_wrong_settings_name_themselves(name, options, word):
    with pytest.raises(ValueError, match=word):
        make(name, **options)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_one_image_has_no_statistics(name):
    with pytest.raises(ValueError, match="at least two samples"):
        make(name)(make_batch(1))
