# SPDX-License-Identifier: Apache-2.0
"""C2L and MoCo v2: the checklist of C2L, its closed forms, both spatial dimensions, learning and resuming."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from overfitting import overfit
from torch import nn
from torch.nn.functional import normalize

from monai_ssl.losses import group_nt_xent, nt_xent
from monai_ssl.methods import C2L, MoCoV2, MomentumContrast
from monai_ssl.metrics import effective_rank
from monai_ssl.networks import build_encoder


class FlatEncoder(nn.Module):
    """A linear encoder without bias or BatchNorm, for which feature mixing equals image mixing."""

    def __init__(self, pixels: int = 64, num_features: int = 16, hidden: bool = False) -> None:
        super().__init__()
        self.num_features, self.spatial_dims, self.in_channels = num_features, 2, 1
        layers = [nn.Flatten(), nn.Linear(pixels, num_features, bias=False)]
        self.net = nn.Sequential(*layers, nn.Tanh()) if hidden else nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def make_batch(size: int = 6, side: int = 8, seed: int = 0, spatial_dims: int = 2) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 1) + (side,) * spatial_dims
    views = [torch.rand(shape, generator=generator) for _ in range(2)]
    return {"views": views, "index": torch.arange(size), "generator": generator}


def make_c2l(**options) -> C2L:
    torch.manual_seed(0)
    return C2L(FlatEncoder(hidden=options.pop("hidden", False)), embedding_dim=8, queue_size=32, **options)


@pytest.mark.parametrize("method_class", [C2L, MoCoV2])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_runs_in_2d_and_3d(method_class, spatial_dims):
    method = method_class(build_encoder("resnet18", spatial_dims=spatial_dims), queue_size=16)
    out = method(make_batch(4, 32, spatial_dims=spatial_dims))
    out["loss"].backward()
    assert out["embedding"].shape == (4, 128)
    assert not out["embedding"].requires_grad
    trained = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert trained and all(name.startswith(("encoder.", "head.")) for name in trained)


def test_terms_are_the_papers_formulas():
    """Recompute the three terms from their definition, with the mixture that the method drew."""
    method = make_c2l(enqueue="end_of_step", hidden=True)
    batch = make_batch()
    generator = batch["generator"]
    state = generator.get_state()
    out = method(batch)
    generator.set_state(state)
    gammas = torch._standard_gamma(torch.ones(2), generator=generator)
    lam = max(gammas[0] / gammas.sum(), gammas[1] / gammas.sum())
    pi = torch.randperm(6, generator=generator)
    x1, x2 = batch["views"]
    student = lambda x: method.head(method.encoder(x))  # noqa: E731
    teacher = method.teacher.module
    q, k = student(x1), teacher(x2)
    qm = student(lam * x1 + (1 - lam) * x1[pi])
    km = teacher(lam * x2 + (1 - lam) * x2[pi])
    kf = lam * k + (1 - lam) * k[pi]

    def nce(a, b):
        a, b = normalize(a), normalize(b)
        logits = torch.cat([(a * b).sum(1, keepdim=True), a @ method.queue.features.T], 1) / 0.07
        return -logits.log_softmax(1)[:, 0].mean()

    assert out["mix"] == pytest.approx(float(lam))
    for name, expected in (("homogeneous", nce(q, k)), ("image_mix", nce(qm, km)), ("feature_mix", nce(qm, kf))):
        assert out[name].item() == pytest.approx(expected.item(), rel=1e-5), name
    assert out["loss"].item() == pytest.approx(sum(out[t].item() for t in method.terms) / 3, rel=1e-6)


def test_feature_mix_equals_image_mix_for_a_linear_encoder():
    method = make_c2l(enqueue="end_of_step")
    with torch.no_grad():
        method.head.bias.zero_()
        method.teacher.module[1].bias.zero_()
    for seed in range(5):
        out = method(make_batch(seed=seed))
        assert out["feature_mix"].item() == pytest.approx(out["image_mix"].item(), rel=1e-5)


def test_mixture_is_at_least_half_and_uniform():
    method = make_c2l()
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([method._draw_mixture(4, torch.device("cpu"), generator)[0] for _ in range(4000)])
    assert draws.min() >= 0.5 and draws.max() <= 1
    assert draws.mean().item() == pytest.approx(0.75, abs=0.01)  # of U(0.5, 1)
    assert draws.std().item() == pytest.approx(0.5 / math.sqrt(12), abs=0.005)


def test_without_mixing_the_terms_are_equal(monkeypatch):
    method = make_c2l(enqueue="end_of_step", hidden=True)
    monkeypatch.setattr(method, "_draw_mixture", lambda size, *_: (torch.tensor(1.0), torch.randperm(size)))
    out = method(make_batch())
    assert out["homogeneous"].item() == out["image_mix"].item() == out["feature_mix"].item()


def test_initial_loss_is_that_of_random_unit_features():
    """methods: log(K + 1) + 1 / (2 d t^2) in expectation for independent features."""
    method = make_c2l()
    method.queue = type(method.queue)(16384, 128)
    generator = torch.Generator().manual_seed(0)
    query, key = (normalize(torch.randn(256, 128, generator=generator)) for _ in range(2))
    loss = method.criterion(query, key, method.queue.features)
    assert loss.item() == pytest.approx(math.log(16385) + 1 / (2 * 128 * 0.07**2), abs=0.25)


def test_loss_ignores_the_order_of_the_batch():
    torch.manual_seed(0)
    method = MoCoV2(build_encoder("resnet18"), queue_size=16)
    batch = make_batch(4, 32)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {**batch, "views": [view[order] for view in batch["views"]]}
    assert method(batch)["loss"].item() == pytest.approx(method(shuffled)["loss"].item(), rel=1e-4)


@pytest.mark.parametrize(("enqueue", "keys"), [("per_loss", 18), ("end_of_step", 18), ("homogeneous", 6)])
def test_keys_enter_the_queue(enqueue, keys):
    method = make_c2l(enqueue=enqueue)
    before = method.queue.features.clone()
    method(make_batch())["loss"].backward()
    assert method.queue.total_enqueued == (keys if enqueue == "per_loss" else 0)
    method.after_step(0.5)
    assert method.queue.total_enqueued == keys
    assert torch.equal(method.queue.features[keys:], before[keys:])
    assert torch.allclose(method.queue.features[:keys].norm(dim=1), torch.ones(keys), atol=1e-5)
    for _ in range(math.ceil(32 / keys)):
        method(make_batch())["loss"].backward()
        method.after_step(0.5)
    assert not (method.queue.features[:, None] == before[None]).all(-1).any(), "an initial entry is still there"


@pytest.mark.parametrize("criterion", ["info_nce", "nce"])
def test_keys_of_the_batch_can_be_negatives(criterion):
    method = make_c2l(in_batch_negatives=True, criterion=criterion, num_data=100)
    query, key = (normalize(torch.randn(6, 8)) for _ in range(2))
    loss = method.contrast(query, key)
    if criterion == "info_nce":  # then it is a cross-entropy over all keys of the batch and the queue
        logits = torch.cat([query @ key.T, query @ method.queue.features.T], 1) / 0.07
        assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, torch.arange(6)).item(), rel=1e-5)
    method(make_batch())["loss"].backward()
    assert method.encoder.net[1].weight.grad.isfinite().all()


def test_keys_of_the_student_have_gradient_and_use_neither_queue_nor_teacher():
    method = make_c2l(keys="student", hidden=True)
    batch = make_batch()
    out = method(batch)
    query, key = method.student(torch.cat(batch["views"])).chunk(2)  # both views share BatchNorm's statistics
    assert out["homogeneous"].item() == pytest.approx(nt_xent(query, key, 0.07).item(), rel=1e-5)
    out["loss"].backward()
    method.after_step(0.5)
    assert method.queue.total_enqueued == 0
    from_keys = torch.autograd.grad(nt_xent(query.detach(), key, 0.07), method.head.weight)[0]
    assert from_keys.abs().sum() > 0


def test_images_of_one_patient_are_positives_of_one_another():
    method = make_c2l(keys="student", terms=["homogeneous"])
    batch = make_batch()
    groups = torch.tensor([0, 0, 1, 2, 2, 3])
    query, key = method.student(torch.cat(batch["views"])).chunk(2)
    loss = method(batch | {"group_id": groups})["loss"].item()
    assert loss == pytest.approx(group_nt_xent(query, key, groups, 0.07).item(), rel=1e-5)
    assert loss != pytest.approx(method(batch)["loss"].item(), rel=1e-3)


def test_evaluation_leaves_the_queue_alone():
    method = make_c2l().eval()
    method(make_batch())
    method.after_step(0.5)
    assert method.queue.total_enqueued == 0


@pytest.mark.parametrize("terms", [["homogeneous"], ["image_mix"], ["feature_mix"], ["homogeneous", "feature_mix"]])
@pytest.mark.parametrize("criterion", ["info_nce", "nce"])
def test_every_ingredient_can_be_switched_off(terms, criterion):
    method = make_c2l(terms=terms, criterion=criterion, num_data=100)
    out = method(make_batch())
    out["loss"].backward()
    assert {name for name in out if name in ("homogeneous", "image_mix", "feature_mix")} == set(terms)
    assert method.encoder.net[1].weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_teacher_follows_by_its_momentum():
    method = make_c2l(momentum=0.9, final_momentum=1.0)
    with torch.no_grad():
        method.head.weight.add_(1)
    gap = (method.head.weight - method.teacher.module[1].weight).clone()
    method.after_step(1e-9)
    assert torch.allclose(method.head.weight - method.teacher.module[1].weight, 0.9 * gap, atol=1e-6)
    gap = (method.head.weight - method.teacher.module[1].weight).clone()
    method.after_step(1.0)  # the schedule has reached 1: the teacher stands still
    assert torch.allclose(method.head.weight - method.teacher.module[1].weight, gap)


def test_shuffling_changes_nothing_in_one_process():
    torch.manual_seed(0)
    plain = C2L(build_encoder("resnet18"), queue_size=16, enqueue="end_of_step", terms=["homogeneous"])
    shuffled = copy.deepcopy(plain)
    shuffled.shuffle_batch_norm = True
    assert plain(make_batch(4, 32))["loss"].item() == pytest.approx(
        shuffled(make_batch(4, 32))["loss"].item(), rel=1e-4
    )


def test_weight_decay_spares_biases_unless_told():
    sparing, decaying = make_c2l(), make_c2l(decay_all=True)
    assert [group["weight_decay"] for group in sparing.parameter_groups(0.1)] == [0.1, 0.0]
    assert [group["weight_decay"] for group in decaying.parameter_groups(0.1)] == [0.1, 0.1]
    assert sum(len(group["params"]) for group in sparing.parameter_groups(0.1)) == 3  # encoder, head weight and bias


def train(method: MomentumContrast, steps: int, start: int = 0, state: dict | None = None) -> tuple[list[float], dict]:
    """Overfit 32 images with noise as the views' difference."""
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=1e-2)
    return overfit(method, optimizer, images, steps, noise=0.05, total_steps=200, start=start, state=state)


@pytest.mark.parametrize("method_class", [C2L, MoCoV2])
def test_overfits_a_few_images_without_collapse_and_resumes_exactly(method_class):
    def fresh() -> MomentumContrast:
        torch.manual_seed(0)
        return method_class(
            FlatEncoder(num_features=32, hidden=True), embedding_dim=16, queue_size=96, momentum=0.9, temperature=0.1
        )

    method = fresh()
    losses, _ = train(method, 200)
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])
    with torch.no_grad():
        embeddings = method.student(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)))
    assert effective_rank(embeddings) > 4
    _, state = train(fresh(), 7)
    assert train(fresh(), 5, start=7, state=state)[0] == losses[7:12]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"terms": []}, "terms"),
        ({"terms": ["mixup"]}, "terms"),
        ({"criterion": "ce"}, "criterion"),
        ({"criterion": "nce"}, "num_data"),
        ({"keys": "both"}, "keys"),
        ({"keys": "student", "criterion": "nce", "num_data": 9}, "info_nce"),
        ({"enqueue": "never"}, "enqueue"),
        ({"mixup_alpha": 0}, "mixup_alpha"),
        ({"head": "conv"}, "head"),
        ({"momentum": 1.5}, "momentum"),
        ({"final_momentum": -1}, "final_momentum"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_wrong_settings_name_themselves(options, word):
    with pytest.raises(ValueError, match=word):
        make_c2l(**options)
