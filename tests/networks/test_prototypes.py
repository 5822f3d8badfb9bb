# SPDX-License-Identifier: Apache-2.0
"""Prototypes stay unit vectors and stand still while frozen; views of several sizes; queues of several sources."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import normalize

from monai_ssl.networks import FeatureQueue, Prototypes, SourceQueues, forward_by_size

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
}


def make(freeze_steps: int = 0) -> Prototypes:
    torch.manual_seed(0)
    return Prototypes(6, 4, freeze_steps)


def step(prototypes: Prototypes, optimizer: torch.optim.Optimizer, seed: int = 0) -> torch.Tensor:
    """Pull the prototypes towards random features; return the features' gradient."""
    x = normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    optimizer.zero_grad()
    (-prototypes(x).pow(2)).sum().backward()
    optimizer.step()
    prototypes.after_step()
    return x.grad


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_are_unit_vectors_after_each_step(name):
    prototypes = make()
    start = prototypes.weight.detach().clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(6))
    optimizer = OPTIMIZERS[name](prototypes.parameters())
    for seed in range(3):
        step(prototypes, optimizer, seed)
        torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(6))
    assert (prototypes.weight - start).abs().max() > 0.01


def test_scores_are_cosines_and_a_forward_pass_changes_nothing():
    prototypes = make(freeze_steps=2)
    before = copy.deepcopy(prototypes.state_dict())
    x = normalize(torch.randn(5, 4))
    torch.testing.assert_close(prototypes(x), torch.cosine_similarity(x[:, None], prototypes.weight[None], dim=2))
    prototypes(x).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in prototypes.state_dict().items())


def test_scores_are_full_precision_under_autocast():
    prototypes, x = make(), normalize(torch.randn(5, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prototypes(x), prototypes(x.clone()))
        assert prototypes(x).dtype == torch.float32
        assert prototypes(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_prototypes_do_not_move_but_pass_the_gradient_on(name):
    """Neither by their gradient, nor by weight decay, nor by what momentum is left of another training."""
    prototypes, free = make(freeze_steps=3), make()
    optimizer = OPTIMIZERS[name](prototypes.parameters())
    start = prototypes.weight.detach().clone()
    for seed in range(3):
        assert prototypes.frozen
        gradient = step(prototypes, optimizer, seed)
        assert torch.equal(prototypes.weight, start)
        assert prototypes.weight.grad is not None and prototypes.weight.grad.abs().sum() == 0
        torch.testing.assert_close(gradient, step(free, torch.optim.SGD(free.parameters(), lr=0.0), seed))
    assert not prototypes.frozen and prototypes.steps_done == 3
    step(prototypes, optimizer, 3)
    assert not torch.equal(prototypes.weight, start)
    assert prototypes.weight.grad.abs().sum() > 0


def test_freezing_survives_copies_and_checkpoints():
    prototypes = make(freeze_steps=2)
    step(prototypes, torch.optim.SGD(prototypes.parameters(), lr=0.1))
    for other in (copy.deepcopy(prototypes), make(freeze_steps=2)):
        other.load_state_dict(prototypes.state_dict())
        start = other.weight.detach().clone()
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        step(other, optimizer)
        assert torch.equal(other.weight, start) and other.steps_done == int(other.steps) == 2
        step(other, optimizer)
        assert not torch.equal(other.weight, start)
    assert set(prototypes.state_dict()) == {"weight", "steps"}


@pytest.mark.parametrize("options", [(0, 4), (4, 0), (4, 4, -1)])
def test_prototypes_refuse_what_they_can_not_be(options):
    with pytest.raises(ValueError, match=r"at least 1|negative"):
        Prototypes(*options)
    with pytest.raises(ValueError, match=r"\(B, 4\)"):
        make()(torch.zeros(3, 5))


def test_views_of_one_size_share_a_pass_and_keep_their_order():
    seen = []

    def net(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x.flatten(1).sum(1, keepdim=True)

    views = [torch.full((2, 1, side, side), float(number)) for number, side in enumerate((8, 8, 4, 8, 4))]
    outputs = forward_by_size(net, views)
    assert seen == [(6, 1, 8, 8), (4, 1, 4, 4)]
    assert [output.tolist() for output in outputs] == [[[n * s * s]] * 2 for n, s in enumerate((8.0, 8, 4, 8, 4))]


def test_views_of_one_size_share_batch_norm():
    norm = torch.nn.BatchNorm2d(1)
    first, second = forward_by_size(norm, [torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)])
    torch.testing.assert_close(first, -second)
    assert first.abs().min() > 0.9
    with pytest.raises(ValueError, match="no views"):
        forward_by_size(norm, [])


def test_one_source_is_a_feature_queue():
    queues, queue = SourceQueues(5, 3), FeatureQueue(5, 3)
    for count, seed in ((2, 0), (4, 1), (13, 2), (0, 3), (5, 4)):
        x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
        queues.enqueue(x, torch.zeros(count, dtype=torch.int64))
        queue.enqueue(x)
    assert torch.equal(queues.features[0], queue.features)
    assert queues.total_enqueued.tolist() == [queue.total_enqueued.item()] == [24]


def test_each_source_has_its_own_ring():
    generator = torch.Generator().manual_seed(0)
    queues, alone = SourceQueues(4, 2, num_sources=3), [FeatureQueue(4, 2) for _ in range(3)]
    for _ in range(6):
        x = torch.randn(7, 2, generator=generator)
        source = torch.randint(0, 2, (7,), generator=generator)
        queues.enqueue(x, source)
        for number in range(2):
            alone[number].enqueue(x[source == number])
    for number in range(2):
        assert torch.equal(queues.features[number], alone[number].features)
    assert queues.full.tolist() == [True, True, False] and queues.features[2].abs().sum() == 0
    loaded = SourceQueues(4, 2, num_sources=3)
    loaded.load_state_dict(queues.state_dict())
    assert torch.equal(loaded.features, queues.features) and loaded.full.tolist() == [True, True, False]


def test_queues_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="at least 1"):
        SourceQueues(0, 2)
    queues = SourceQueues(4, 2)
    for x, source in ((torch.zeros(3, 3), torch.zeros(3)), (torch.zeros(3, 2), torch.zeros(2))):
        with pytest.raises(ValueError, match="the queues take"):
            queues.enqueue(x, source.long())
