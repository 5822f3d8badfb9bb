# SPDX-License-Identifier: Apache-2.0
"""SwAV: the loss is the paper's, codes come from the large views, the queue only helps, it learns and resumes."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from cluster_cases import SMALL, PooledEncoder, make_views, train
from torch.nn.functional import log_softmax, normalize
from toy_training import LossLog, ToyImages, toy_trainer

from monai_ssl.losses import sinkhorn
from monai_ssl.methods import SwAV
from monai_ssl.metrics import effective_rank
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import multi_crop_views


def make(**options) -> SwAV:
    return SwAV(PooledEncoder(), **SMALL | options)


def step(method: SwAV, views: list, progress: float = 0.5) -> dict:
    out = method({"views": views})
    out["loss"].backward()
    method.after_step(progress)
    return out


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_runs_in_2d_and_3d_with_gradients_where_they_belong(spatial_dims):
    method = SwAV(build_encoder("resnet18", spatial_dims=spatial_dims), **SMALL | {"queue_size": 8})
    out = method({"views": make_views(4, (32, 32, 16), spatial_dims=spatial_dims)})
    out["loss"].backward()
    assert out["embedding"].shape == (4, 8) and not out["embedding"].requires_grad
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(4))
    assert not [name for name, p in method.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not [name for name, b in method.named_buffers() if b.requires_grad]
    assert all(
        value.ndim == 0 and not value.requires_grad for name, value in out.items() if name not in ("loss", "embedding")
    )


def test_the_loss_is_the_papers_formula():
    method, views = make(), make_views()
    out = method({"views": views})
    # The projector's BatchNorm sees all views at once, as one large batch.
    features = torch.cat([method.encoder(view) for view in views])
    z = normalize(method.head(features)).chunk(4)
    s = [own @ method.prototypes.weight.T for own in z]
    q = [sinkhorn(own.detach(), 0.05, 3) for own in s[:2]]
    expected = 0.0
    for a in range(2):
        others = [v for v in range(4) if v != a]
        expected += sum(-(q[a] * log_softmax(s[v] / 0.1, 1)).sum(1).mean() for v in others) / len(others)
    assert out["loss"].item() == pytest.approx(expected.item() / 2, rel=1e-5)
    assert out["agreement"].item() == pytest.approx((s[0].argmax(1) == s[1].argmax(1)).float().mean().item())
    entropy = -(torch.stack(q) * torch.stack(q).log()).sum(2).mean()
    assert out["code_entropy"].item() == pytest.approx(entropy.item(), rel=1e-4)


def test_only_large_views_give_codes():
    """A small view has no influence on what the large ones are told to predict."""
    method, views = make().eval(), make_views()
    scores = method.score(method.embed(views), torch.zeros(6, dtype=torch.int64))
    codes = method.assign(scores[:2], torch.zeros(6, dtype=torch.int64))
    assert codes.shape == (2, 6, 6) and not codes.requires_grad
    torch.testing.assert_close(codes[1], sinkhorn(scores[1].detach()))


def test_defaults_are_the_papers():
    method = SwAV(PooledEncoder())
    linear, _, _, last = method.head.layers
    assert (linear.out_features, last.out_features) == (2048, 128)
    assert method.prototypes.weight.shape == (3000, 128) and method.prototypes.freeze_steps == 313
    loss = method.criterion
    assert (loss.temperature, loss.epsilon, loss.iterations, method.queue) == (0.1, 0.05, 3, None)


def test_initial_loss_is_that_of_random_unit_features():
    """log K + 1 / (2 D t^2) in expectation for independent features; see the loss's own test for 2 x 3000."""
    method = make(num_prototypes=512, embedding_dim=128)
    z = normalize(torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(0)), dim=2)
    source = torch.zeros(256, dtype=torch.int64)
    scores = method.score(z, source)
    loss = method.criterion(scores, method.assign(scores.detach(), source))
    assert loss.item() == pytest.approx(math.log(512) + 1 / (2 * 128 * 0.01), abs=0.1)


def test_a_forward_pass_changes_no_state_but_statistics():
    method = make(freeze_steps=2, queue_size=12, queue_start=0.0)
    before = copy.deepcopy(method.state_dict())
    method({"views": make_views()})["loss"].backward()
    changed = [name for name, value in method.state_dict().items() if not torch.equal(value, before[name])]
    assert all("running" in name or "num_batches" in name for name in changed)


def test_the_order_of_the_batch_and_of_the_large_views_does_not_matter():
    method, views = make(), make_views()
    loss = method({"views": views})["loss"].item()
    order = torch.randperm(6)
    assert method({"views": [view[order] for view in views]})["loss"].item() == pytest.approx(loss, rel=1e-5)
    swapped = [views[1], views[0], views[3], views[2]]
    assert method({"views": swapped})["loss"].item() == pytest.approx(loss, rel=1e-5)


def test_frozen_prototypes_stay_and_the_encoder_learns():
    method = make(freeze_steps=3)
    start, head = method.prototypes.weight.detach().clone(), method.head.layers[0].weight.detach().clone()
    train(method, 3)
    assert torch.equal(method.prototypes.weight, start)
    assert not torch.equal(method.head.layers[0].weight, head)
    train(method, 1, start=3)
    assert not torch.equal(method.prototypes.weight, start)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6))


def test_prototypes_are_not_decayed():
    decayed, others = make().parameter_groups(0.1)
    weight = next(p for p in others["params"] if p.ndim > 1)
    assert weight.shape == (6, 8) and others["weight_decay"] == 0
    assert len(decayed["params"]) == 3  # the convolution and the two linear layers


def test_the_queue_holds_the_large_views_features():
    method = make(queue_size=15, queue_start=0.0)
    z = [method.embed(make_views(seed=seed))[:2].detach() for seed in range(3)]
    for seed in range(3):
        step(method, make_views(seed=seed))
    features, source = method._queued()
    assert features.shape == (2, 15, 8) and source.tolist() == [0] * 15
    torch.testing.assert_close(features[:, 3:6], z[0][:, 3:])  # the oldest three were overwritten
    torch.testing.assert_close(features[:, :3], z[2][:, 3:])
    assert not method.queue.features.requires_grad


def test_codes_are_those_of_the_batch_together_with_the_full_queue():
    method = make(queue_size=12, queue_start=0.0)
    plain = make()
    plain.load_state_dict({name: v for name, v in method.state_dict().items() if not name.startswith("queue")})
    for seed in range(2):
        views = make_views(seed=seed)
        # Not yet full: as if there were none.
        assert method({"views": views})["loss"].item() == pytest.approx(
            plain({"views": views})["loss"].item(), rel=1e-5
        )
        method.after_step(0.5)
    assert method.queue.full.all()
    views = make_views(seed=2)
    scores = method.score(method.embed(views), torch.zeros(6, dtype=torch.int64))
    queued = method.queue.features[0].unflatten(1, (2, 8)) @ method.prototypes.weight.T
    codes = method.assign(scores[:2].detach(), torch.zeros(6, dtype=torch.int64))
    for a in range(2):
        together = sinkhorn(torch.cat([queued[:, a], scores[a].detach()]))
        torch.testing.assert_close(codes[a], together[12:], rtol=1e-4, atol=1e-6)
    assert method({"views": views})["loss"].item() != pytest.approx(plain({"views": views})["loss"].item(), rel=1e-4)


@pytest.mark.parametrize("options", [{"queue_start": 0.6}, {"queue_start_step": 6, "queue_start": 0.0}])
def test_the_queue_waits_for_its_time(options):
    method = make(queue_size=6, **options)
    for number in range(1, 7):
        step(method, make_views(seed=number), progress=number / 10)
        assert method.queue_in_use == bool(method.queue_started) == (number == 6)
        loaded = make(queue_size=6, **options)
        loaded.load_state_dict(method.state_dict())
        assert loaded.queue_in_use == method.queue_in_use


def test_evaluation_leaves_the_queue_alone():
    method = make(queue_size=6).eval()
    step(method, make_views())
    assert method.queue.total_enqueued == 0


@pytest.mark.parametrize("options", [{}, {"queue_size": 64, "queue_start_step": 3}])
def test_overfits_a_few_images_without_collapse_and_resumes_exactly(options):
    options = {"num_prototypes": 16, "freeze_steps": 5} | options
    method = make(**options)
    log, _ = train(method, 80)
    losses = [entry["loss"] for entry in log]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert losses[-1] < 0.5 * math.log(16)
    assert log[-1]["agreement"] > 0.8
    with torch.no_grad():
        embeddings = method.embed(make_views(64, (8, 8)))[0]
    assert effective_rank(embeddings) > 3
    _, state = train(make(**options), 9)
    assert [entry["loss"] for entry in train(make(**options), 5, start=9, state=state)[0]] == losses[9:14]


def test_the_trainer_takes_it_with_multi_crop_and_measured_precision(caplog):
    log = LossLog()
    trainer = toy_trainer(
        dataset=ToyImages(16, 24),
        batch_size=8,
        method=lambda: SwAV(build_encoder("resnet18"), **SMALL | {"queue_size": 16, "queue_start": 0.5}),
        views=multi_crop_views(16, 8, 2),
        train_handlers=[log],
        precision="auto",
        learning_rate=0.01,
    )
    with caplog.at_level(logging.WARNING):
        trainer.run()
    assert len(log.losses) == 6 and all(map(math.isfinite, log.losses.values()))
    assert trainer.method.queue_in_use and trainer.method.prototypes.steps_done == 6
    assert not [record for record in caplog.records if "num_prototypes" in record.message]


@pytest.mark.parametrize(
    ("options", "warned"),
    [({"num_prototypes": 7}, True), ({}, False), ({"num_prototypes": 12, "queue_size": 6}, False)],
)
def test_fewer_images_than_prototypes_are_told_once(caplog, options, warned):
    method = make(**options)
    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            step(method, make_views(seed=seed))
    told = [record.message for record in caplog.records]
    assert len(told) == warned
    if warned:
        assert "num_prototypes to 6 or fewer, or queue_size to 1 or more" in told[0]


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ([], "2 or more views"),
        (make_views(sides=(8,)), "2 or more views of each image, got 1"),
        (make_views(sides=(8, 4)), "two large views of one size"),
        ([*make_views(sides=(8, 8)), *make_views(5, (4,))], "of the same images"),
        (make_views(sides=(8, 8), spatial_dims=3), r"2D encoder takes views \(B, 1, H, W\)"),
        ([torch.zeros(3, 2, 8, 8)] * 2, r"2D encoder takes views \(B, 1, H, W\)"),
    ],
)
def test_views_that_do_not_fit_are_refused(views, words):
    with pytest.raises(ValueError, match=words):
        make()({"views": views})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_prototypes": 0}, "num_prototypes"),
        ({"freeze_steps": -1}, "freeze_steps"),
        ({"temperature": 0.0}, "temperature"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"sinkhorn_iterations": 0}, "iterations"),
        ({"queue_size": -1}, "queue_size"),
        ({"queue_start": 1.5}, "queue_start"),
    ],
)
def test_wrong_settings_name_themselves(options, word):
    with pytest.raises(ValueError, match=word):
        make(**options)
