# SPDX-License-Identifier: Apache-2.0
"""Clustering of several sources: codes within each, own or shared prototypes, missing sources, learning, resuming."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from cluster_cases import SMALL, PooledEncoder, make_views, train
from torch.nn.functional import log_softmax, normalize

from monai_ssl.losses import sinkhorn
from monai_ssl.methods import ModalityClustering, SwAV
from monai_ssl.metrics import effective_rank
from monai_ssl.networks import build_encoder

SOURCE = torch.tensor([0, 2, 0, 0, 2, 2])  # of three; source 1 is missing
every_kind = pytest.mark.parametrize("prototypes", ["shared", "per_source"])


def make(**options) -> ModalityClustering:
    return ModalityClustering(PooledEncoder(), **SMALL | {"num_sources": 3} | options)


def step(method: ModalityClustering, views: list, source: torch.Tensor = SOURCE, progress: float = 0.5) -> dict:
    out = method({"views": views, "source": source})
    out["loss"].backward()
    method.after_step(progress)
    return out


@every_kind
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_runs_in_2d_and_3d_with_gradients_where_they_belong(spatial_dims, prototypes):
    encoder = build_encoder("resnet18", spatial_dims=spatial_dims)
    method = ModalityClustering(encoder, 3, **SMALL | {"prototypes": prototypes, "queue_size": 4})
    out = step(method, make_views(6, (32, 32, 16), spatial_dims=spatial_dims))
    assert out["embedding"].shape == (6, 8) and not out["embedding"].requires_grad
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    if prototypes == "per_source":
        moved = method.prototypes.weight.grad.unflatten(0, (3, 6)).abs().sum((1, 2)) > 0
        assert moved.tolist() == [True, False, True]  # those of the missing source stay


@every_kind
def test_the_loss_is_swavs_within_each_source(prototypes):
    method, views = make(prototypes=prototypes), make_views()
    out = method({"views": views, "source": SOURCE})
    z = normalize(method.head(torch.cat([method.encoder(view) for view in views]))).chunk(4)
    sets = method.prototypes.weight.chunk(3) if prototypes == "per_source" else [method.prototypes.weight] * 3
    each = torch.zeros(6)
    for source in (0, 2):
        own = source == SOURCE
        s = [view[own] @ sets[source].T for view in z]
        for a in range(2):
            q = sinkhorn(s[a].detach())
            each[own] += sum(-(q * log_softmax(s[v] / 0.1, 1)).sum(1) for v in range(4) if v != a).detach() / 6
    assert out["loss"].item() == pytest.approx(each.mean().item(), rel=1e-5)
    assert out["loss_source_0"].item() == pytest.approx(each[SOURCE == 0].mean().item(), rel=1e-5)
    assert out["loss_source_2"].item() == pytest.approx(each[SOURCE == 2].mean().item(), rel=1e-5)


def test_one_source_alone_is_swav():
    ours, views = make(), make_views()
    swav = SwAV(PooledEncoder(), **SMALL)
    swav.load_state_dict({name: value for name, value in ours.state_dict().items() if name != "last_losses"})
    expected = swav({"views": views})["loss"].item()
    for options in ({}, {"assign_within": "batch"}):
        method = make(**options)
        method.load_state_dict(ours.state_dict())
        assert method({"views": views, "source": torch.full((6,), 1)})["loss"].item() == pytest.approx(
            expected, rel=1e-5
        )
    mixed = make(assign_within="batch")
    mixed.load_state_dict(ours.state_dict())
    assert mixed({"views": views, "source": SOURCE})["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert ours({"views": views, "source": SOURCE})["loss"].item() != pytest.approx(expected, rel=1e-4)


def test_mixed_codes_divide_the_prototypes_by_source_and_codes_within_do_not():
    """The shortcut that codes within each source are there against: two sources that look different."""
    use = {}
    for within in ("batch", "source"):
        method = make(num_sources=2, assign_within=within, num_prototypes=8, embedding_dim=8)
        generator = torch.Generator().manual_seed(0)
        offset = torch.tensor([[1.0], [-1.0]]).repeat(32, 8) * torch.tensor([2.0, *[0.0] * 7])
        z = normalize(offset + 0.5 * torch.randn(2, 64, 8, generator=generator), dim=2)
        source = torch.tensor([0, 1]).repeat(32)
        codes = method.assign(method.score(z, source).detach(), source)[0]
        by_source = torch.stack([codes[source == number].sum(0) for number in range(2)])  # (2, K)
        use[within] = (by_source / by_source.sum(0)).max(0).values.mean().item()  # 0.5: shared alike, 1: divided
    assert use["batch"] > 0.85 and use["source"] < 0.6


def test_a_missing_source_keeps_its_latest_loss():
    method = make()
    first = step(method, make_views(seed=0))
    assert first["loss_source_1"].item() == pytest.approx(math.log(6))  # nothing is known yet
    second = step(method, make_views(seed=1), torch.tensor([1, 1, 1, 0, 1, 0]))
    assert second["loss_source_2"].item() == pytest.approx(first["loss_source_2"].item())
    assert second["loss_source_1"].item() != pytest.approx(math.log(6), rel=1e-3)
    third = step(method, make_views(seed=2), torch.zeros(6, dtype=torch.int64))
    assert third["loss_source_1"].item() == pytest.approx(second["loss_source_1"].item())
    assert third["loss"].item() == pytest.approx(third["loss_source_0"].item(), rel=1e-6)
    assert method.last_losses.isfinite().all()


@every_kind
def test_each_source_is_assigned_with_its_own_queue_once_that_is_full(prototypes):
    method = make(prototypes=prototypes, queue_size=5, queue_start=0.0)
    for seed in range(2):
        step(method, make_views(seed=seed), torch.tensor([0, 0, 0, 0, 2, 2]))
    assert method.queue_in_use and method.queue.full.tolist() == [True, False, False]
    views = make_views(seed=7)
    scores = method.score(method.embed(views), SOURCE)[:2].detach()
    codes = method.assign(scores, SOURCE)
    weight = method.prototypes.weight[:6]
    queued = method.queue.features[0].unflatten(1, (2, 8)) @ weight.T  # (Q, 2, K)
    for a in range(2):
        with_queue = sinkhorn(torch.cat([queued[:, a].detach(), scores[a][SOURCE == 0]]))[5:]
        torch.testing.assert_close(codes[a][SOURCE == 0], with_queue, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(codes[a][SOURCE == 2], sinkhorn(scores[a][SOURCE == 2]), rtol=1e-4, atol=1e-6)


def test_a_forward_pass_changes_no_state_but_statistics():
    method = make(freeze_steps=2, queue_size=12, queue_start=0.0)
    before = copy.deepcopy(method.state_dict())
    method({"views": make_views(), "source": SOURCE})["loss"].backward()
    changed = [name for name, value in method.state_dict().items() if not torch.equal(value, before[name])]
    assert all("running" in name or "num_batches" in name for name in changed)


@every_kind
def test_overfits_a_few_images_without_collapse_and_resumes_exactly(prototypes):
    source = torch.arange(32) % 2
    options = {
        "num_prototypes": 8,
        "prototypes": prototypes,
        "queue_size": 32,
        "queue_start_step": 5,
        "freeze_steps": 3,
    }
    method = make(**options)
    log, _ = train(method, 80, source=source)
    assert sum(entry["loss"] for entry in log[-10:]) < 0.6 * sum(entry["loss"] for entry in log[:10])
    assert all(log[-1][f"loss_source_{number}"] < 0.6 * math.log(8) for number in range(2))
    with torch.no_grad():
        embeddings = method.embed(make_views(64, (8, 8)))[0]
    assert effective_rank(embeddings) > 3
    _, state = train(make(**options), 8, source=source)
    resumed, _ = train(make(**options), 4, start=8, state=state, source=source)
    assert resumed == log[8:12]


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        (SOURCE, {}, "3 of the batch for each source"),
        (SOURCE, {"queue_size": 3}, None),
        (SOURCE, {"assign_within": "batch"}, None),
        (torch.ones(6, dtype=torch.int64), {}, None),
    ],
)
def test_fewer_images_of_a_source_than_prototypes_are_told(caplog, source, options, told):
    with caplog.at_level(logging.WARNING):
        step(make(**options), make_views(), source)
    assert len(caplog.records) == (told is not None)
    assert told is None or told in caplog.records[0].message


def test_sources_have_names():
    method = make(source_names=["CT", "MR", "radiograph"])
    out = method({"views": make_views(), "source": SOURCE})
    assert {name for name in out if name.startswith("loss_")} == {"loss_CT", "loss_MR", "loss_radiograph"}


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({}, r"batch\['source'\], .* does not have"),
        ({"source": SOURCE[:5]}, r"int64 of shape \(6,\)"),
        ({"source": SOURCE.float()}, "int64"),
        ({"source": SOURCE + 1}, r"from 0 to 2 \(num_sources=3\), got \[1, 3\]"),
        ({"source": SOURCE - 1}, r"got \[-1, 1\]"),
        ({"source": SOURCE, "views": []}, "2 or more views"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, words):
    with pytest.raises(ValueError, match=words):
        make()({"views": make_views()} | batch)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_sources": 0}, "num_sources"),
        ({"prototypes": "own"}, "prototypes must be"),
        ({"assign_within": "patient"}, "assign_within"),
        ({"prototypes": "per_source", "assign_within": "batch"}, "assign_within='source'"),
        ({"source_names": ["CT", "MR"]}, "source_names"),
        ({"source_names": ["CT", "MR", "CT"]}, "source_names"),
    ],
)
def test_wrong_settings_name_themselves(options, word):
    with pytest.raises(ValueError, match=word):
        make(**options)
