# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import pytest
import torch
from loss_references import slow_nt_xent
from monai.losses import ContrastiveLoss

from monai_ssl.losses import NTXentLoss, nt_xent


def draw(batch=5, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=dtype) for _ in range(2)]


@pytest.mark.parametrize(("batch", "dim", "temperature"), list(itertools.product((2, 3, 8), (2, 9), (0.05, 0.1, 0.5))))
def test_equals_the_literal_formula(batch, dim, temperature):
    a, b = draw(batch, dim)
    assert nt_xent(a, b, temperature).item() == pytest.approx(slow_nt_xent(a.numpy(), b.numpy(), temperature), rel=1e-9)


@pytest.mark.parametrize("batch", [2, 16, 64])
def test_equals_monai(batch):
    a, b = (x.requires_grad_() for x in draw(batch, 32, dtype=torch.float32))
    ours, theirs = nt_xent(a, b, 0.1), ContrastiveLoss(temperature=0.1)(a, b)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for x, y in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)


def test_random_features_start_where_theory_says():
    values = [nt_xent(*draw(128, 128, seed=seed), 0.5).item() for seed in range(5)]
    # log(2N - 1) + 1 / (2 d t^2)
    assert sum(values) / len(values) == pytest.approx(5.558, abs=0.01)
    assert math.log(255) == pytest.approx(5.541, abs=0.001)


def test_equal_features_give_log_of_the_number_of_candidates():
    x = torch.ones(16, 4)
    assert nt_xent(x, x, 0.1).item() == pytest.approx(math.log(31), abs=1e-5)


def test_orthogonal_samples_have_a_closed_form():
    x = torch.eye(8, dtype=torch.float64)
    expected = math.log(1 + 14 * math.exp(-1 / 0.25))
    assert nt_xent(x, x, 0.25).item() == pytest.approx(expected, rel=1e-9)


def test_symmetry_rotation_and_permutation():
    a, b = draw(6, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    order = torch.randperm(6)
    loss = nt_xent(a, b)
    torch.testing.assert_close(nt_xent(b, a), loss)
    torch.testing.assert_close(nt_xent(a @ rotation, b @ rotation), loss)
    torch.testing.assert_close(nt_xent(a[order], b[order]), loss)
    assert not torch.isclose(nt_xent(a[order.roll(1)], b[order]), loss)


def test_gradients():
    a, b = (x.requires_grad_() for x in draw())
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nt_xent, (a, b, temperature))


def test_a_second_backward_through_a_retained_graph_is_the_same():
    a, b = (x.requires_grad_() for x in draw())
    loss = nt_xent(a, b)
    first = torch.autograd.grad(loss, a, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, a)[0], first)


def test_memory_stays_near_one_similarity_matrix():
    batch = 512
    a, b = (x.requires_grad_() for x in draw(batch, 128, dtype=torch.float32))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        nt_xent(a, b, 0.1).backward()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        highest = max(highest, held)
    matrix = (2 * batch) ** 2 * 4
    assert matrix <= highest < 3 * matrix


def test_refuses_what_cannot_be():
    a, b = draw()
    with pytest.raises(ValueError, match="at least two samples"):
        nt_xent(a[:1], b[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        nt_xent(a, b[:, :3])
    with pytest.raises(ValueError, match="must have one shape"):
        nt_xent(a[0], b[0])
    with pytest.raises(ValueError, match="temperature must be positive"):
        NTXentLoss(temperature=0)


def test_module_is_the_function():
    a, b = draw()
    torch.testing.assert_close(NTXentLoss(0.2)(a, b), nt_xent(a, b, 0.2))  # no process group: nothing to gather
    assert NTXentLoss.distribution == "gathers_negatives"
    assert NTXentLoss().state_dict() == {}
