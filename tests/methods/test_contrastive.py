# SPDX-License-Identifier: Apache-2.0
"""SimCLR and MoCo v3: their formulas, both spatial dimensions, learning and resuming."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from overfitting import overfit
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from monai_ssl.losses import nt_xent
from monai_ssl.methods import MoCoV3, Relatives, SimCLR, SSLMethod
from monai_ssl.metrics import effective_rank
from monai_ssl.networks import build_encoder


class FlatEncoder(nn.Module):
    """The smallest encoder with a nonlinearity, for views of 8 x 8 pixels."""

    num_features, spatial_dims, in_channels = 32, 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def make_batch(size: int = 6, side: int = 8, views: int = 2, spatial_dims: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    shape = (size, 1) + (side,) * spatial_dims
    return {"views": [torch.rand(shape, generator=generator) for _ in range(views)], "index": torch.arange(size)}


def make(method_class: type[SSLMethod], encoder: nn.Module | None = None, **options) -> SSLMethod:
    torch.manual_seed(0)
    small = {"hidden_features": 24} if method_class is MoCoV3 else {}
    return method_class(encoder or FlatEncoder(), **{"embedding_dim": 16} | small | options)


@pytest.mark.parametrize("method_class", [SimCLR, MoCoV3])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_runs_in_2d_and_3d_with_gradients_where_they_belong(method_class, spatial_dims):
    method = make(method_class, build_encoder("resnet18", spatial_dims=spatial_dims))
    state = copy.deepcopy(method.state_dict())
    out = method(make_batch(4, 32 if spatial_dims == 2 else 16, spatial_dims=spatial_dims))
    out["loss"].backward()
    assert out["embedding"].shape == (4, 16)
    assert not out["embedding"].requires_grad and not out["positive_similarity"].requires_grad
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(4))
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {name for name, _ in method.named_parameters() if not name.startswith("teacher.")}
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, state[key])}
    assert all("running_" in key or "num_batches" in key for key in changed), "forward changes no other state"


def test_simclr_is_algorithm_1():
    method, batch = make(SimCLR, temperature=0.5), make_batch()
    out = method(batch)
    with torch.no_grad():
        z = normalize(method.head(method.encoder(torch.cat(batch["views"])))).double().numpy()
    total = 0.0
    for i in range(12):
        j = (i + 6) % 12
        total -= math.log(math.exp(z[i] @ z[j] / 0.5) / sum(math.exp(z[i] @ z[k] / 0.5) for k in range(12) if k != i))
    assert out["loss"].item() == pytest.approx(total / 12, rel=1e-5)
    assert out["positive_similarity"].item() == pytest.approx(np.mean((z[:6] * z[6:]).sum(1)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_simclr_heads(batch_norm):
    head = make(SimCLR, head_layers=3, head_features=20, head_batch_norm=batch_norm).head
    widths = [tuple(layer.weight.shape) for layer in head.layers if isinstance(layer, nn.Linear)]
    assert widths == [(20, 32), (20, 20), (16, 20)]
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in head.layers) == (3 if batch_norm else 0)
    assert make(SimCLR).head.layers[0].out_features == 32, "as wide as the features"


def test_more_views_are_contrasted_pair_by_pair():
    method, batch = make(SimCLR, temperature=0.3), make_batch(views=3)
    z = method.head(method.encoder(torch.cat(batch["views"]))).chunk(3)
    expected = (nt_xent(z[0], z[1], 0.3) + nt_xent(z[0], z[2], 0.3) + nt_xent(z[1], z[2], 0.3)) / 3
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_small_crops_are_contrasted_with_large_ones_only():
    method = make(SimCLR, build_encoder("resnet18"), temperature=0.3)
    batch = make_batch(4, 32)
    batch["views"] += make_batch(4, 16)["views"]
    large = method.head(method.encoder(torch.cat(batch["views"][:2]))).chunk(2)
    small = method.head(method.encoder(torch.cat(batch["views"][2:]))).chunk(2)
    pairs = [(large[0], large[1]), *((a, b) for a in large for b in small)]
    expected = sum(nt_xent(a, b, 0.3) for a, b in pairs) / 5
    out = method(batch)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    out["loss"].backward()


def test_moco_v3_is_algorithm_1():
    method, batch = make(MoCoV3), make_batch()
    method.teacher.update(make(MoCoV3, nn_encoder_of_another_seed()).teacher.module, 0.5)
    out = method(batch)
    x = torch.cat(batch["views"])
    q1, q2 = normalize(method.predictor(method.projector(method.encoder(x)))).chunk(2)
    k1, k2 = normalize(method.teacher(x)).chunk(2)

    def ctr(q, k):
        return 2 * 0.2 * cross_entropy(q @ k.T / 0.2, torch.arange(6))

    assert out["loss"].item() == pytest.approx((ctr(q1, k2) + ctr(q2, k1)).item(), rel=1e-5)
    assert out["positive_similarity"].item() == pytest.approx((q1 * k2).sum(1).mean().item(), rel=1e-4)


def nn_encoder_of_another_seed() -> nn.Module:
    torch.manual_seed(5)
    return FlatEncoder()


def test_moco_v3_heads_are_the_papers():
    method = MoCoV3(FlatEncoder())
    for head, widths in ((method.projector, (32, 4096, 4096, 256)), (method.predictor, (256, 4096, 256))):
        linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
        assert [layer.in_features for layer in linear] + [256] == list(widths)
        norms = [layer for layer in head.layers if isinstance(layer, nn.BatchNorm1d)]
        assert [norm.affine for norm in norms] == [True] * (len(linear) - 1) + [False]
    assert not isinstance(make(MoCoV3, predictor_batch_norm=False).predictor.layers[-1], nn.BatchNorm1d)
    assert len(method.teacher.module) == 2, "the teacher has no predictor"


def test_moco_v3_momentum_rises_to_one():
    method = make(MoCoV3, momentum=0.9)
    with torch.no_grad():
        method.encoder.net[1].weight.add_(1)

    def gap() -> torch.Tensor:
        return method.encoder.net[1].weight.detach() - method.teacher.module[0].net[1].weight

    for progress, share in ((1e-9, 0.9), (0.5, 0.95), (1.0, 1.0)):
        before = gap()
        method.after_step(progress)
        torch.testing.assert_close(gap(), share * before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_patch_embedding_of_a_vit_stays_as_it_is(freeze):
    torch.manual_seed(0)
    arguments = {"img_size": 16, "patch_size": 8, "hidden_size": 12, "mlp_dim": 24, "num_layers": 2, "num_heads": 2}
    method = make(MoCoV3, build_encoder("vit", **arguments), freeze_patch_embedding=freeze)
    frozen = dict(method.encoder.net.patch_embedding.patch_embeddings.named_parameters())
    before = {name: value.detach().clone() for name, value in frozen.items()}
    optimizer = torch.optim.SGD(method.parameter_groups(0.1), lr=1.0)
    method(make_batch(4, 16))["loss"].backward()
    optimizer.step()
    trained = {id(p) for group in method.parameter_groups(0.1) for p in group["params"]}
    assert method.encoder.net.patch_embedding.position_embeddings.grad is not None
    for name, parameter in frozen.items():
        assert (id(parameter) in trained) is not freeze
        assert (parameter.grad is None) is freeze
        assert torch.equal(parameter, before[name]) is freeze


@pytest.mark.parametrize("name", ["unetr"])
def test_other_networks_with_a_patch_embedding_are_treated_alike(name):
    arguments = {"img_size": 32, "hidden_size": 12, "mlp_dim": 24, "num_heads": 2}
    encoder = build_encoder(name, **arguments)
    make(MoCoV3, encoder)
    assert not any(p.requires_grad for p in encoder.net.vit.patch_embedding.patch_embeddings.parameters())


@pytest.mark.parametrize("method_class", [SimCLR, MoCoV3])
def test_initial_loss_is_that_of_unrelated_features(method_class):
    """methods.md, 6: log J + 1 / (2 d t^2) for J candidates; MoCo v3 sums both directions, each times 2 t."""
    generator = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.randn(128, 128, generator=generator)) for _ in range(2))
    if method_class is SimCLR:
        assert nt_xent(a, b, 0.5).item() == pytest.approx(5.558, abs=0.03)
        return
    method = make(MoCoV3)
    one_way = method._contrast(a, b, Relatives()).item()
    assert one_way == pytest.approx(2 * 0.2 * (math.log(128) + 1 / (2 * 128 * 0.2**2)), abs=0.03)


def train(method: SSLMethod, steps: int, start: int = 0, state: dict | None = None) -> tuple[list[float], dict]:
    """Overfit 32 images with noise as the views' difference."""
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=1e-2)
    return overfit(method, optimizer, images, steps, noise=0.05, total_steps=100, start=start, state=state)


@pytest.mark.parametrize("method_class", [SimCLR, MoCoV3])
def test_overfits_a_few_images_without_collapse_and_resumes_exactly(method_class):
    method = make(method_class)
    losses, _ = train(method, 60)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:3] * 3 + losses[:1])
    with torch.no_grad():
        features = method.encoder(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)))
    assert effective_rank(features) > 4
    _, state = train(make(method_class), 7)
    assert train(make(method_class), 5, start=7, state=state)[0] == losses[7:12]


@pytest.mark.parametrize("method_class", [SimCLR, MoCoV3])
def test_views_that_do_not_fit(method_class):
    method, batch = make(method_class), make_batch()
    name = method_class.__name__
    with pytest.raises(ValueError, match=f"{name} takes 2 .*views of each image, got 1"):
        method({"views": batch["views"][:1]})
    with pytest.raises(ValueError, match=r"all views must be of the same images, got \[6, 4\]"):
        method({"views": [batch["views"][0], batch["views"][1][:4]]})
    with pytest.raises(ValueError, match=rf"{name} on a 2D encoder takes views \(B, 1, H, W\)"):
        method({"views": [view.expand(-1, 3, -1, -1) for view in batch["views"]]})
    if method_class is MoCoV3:
        with pytest.raises(ValueError, match="takes 2 views of each image, got 3"):
            method(make_batch(views=3))


@pytest.mark.parametrize("method_class", [SimCLR, MoCoV3])
def test_one_image_has_no_negatives(method_class):
    method = make(method_class)
    with pytest.raises(ValueError, match="at least two"):
        method(make_batch(1))


@pytest.mark.parametrize(
    ("method_class", "options", "word"),
    [
        (SimCLR, {"temperature": 0}, "temperature"),
        (SimCLR, {"head_layers": 0}, "num_layers"),
        (MoCoV3, {"temperature": -1}, "temperature"),
        (MoCoV3, {"momentum": 1.1}, "momentum"),
        (MoCoV3, {"final_momentum": -0.1}, "final_momentum"),
        (MoCoV3, {"projector_layers": 0}, "num_layers"),
    ],
)
def test_wrong_settings_name_themselves(method_class, options, word):
    with pytest.raises(ValueError, match=word):
        make(method_class, **options)
