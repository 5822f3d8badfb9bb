# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_ssl.losses import GroupNTXentLoss, group_nt_xent, nt_xent


def draw(batch=6, dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=dtype) for _ in range(2)]


def slow_group_nt_xent(
    a: np.ndarray, b: np.ndarray, groups: list[int], temperature: float, exclude: list[int] | None = None
) -> float:
    views = [row / np.linalg.norm(row) for row in np.concatenate([a, b])]
    codes = [*groups, *groups]
    patients = list(range(len(views))) if exclude is None else [*exclude, *exclude]
    losses = []
    for i, anchor in enumerate(views):
        others = [j for j in range(len(views)) if j != i]
        told_from = [j for j in others if codes[j] == codes[i] or patients[j] != patients[i]]
        total = sum(math.exp(anchor @ views[j] / temperature) for j in told_from)
        positives = [j for j in others if codes[j] == codes[i]]
        losses.append(-np.mean([math.log(math.exp(anchor @ views[j] / temperature) / total) for j in positives]))
    return float(np.mean(losses))


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [7, 7, -1, -1, 3, 3], [0, 1, 0, 2, 0, 1], [4] * 6])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_the_literal_formula(groups, temperature):
    a, b = draw()
    expected = slow_group_nt_xent(a.numpy(), b.numpy(), groups, temperature)
    assert group_nt_xent(a, b, torch.tensor(groups), temperature).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 3], [4] * 6])
@pytest.mark.parametrize("exclude", [[0, 0, 0, 1, 1, 1], [3, 3, 3, 3, 4, 5], [9] * 6, [0, 1, 2, 3, 4, 5]])
def test_what_is_excluded_is_no_negative(groups, exclude):
    a, b = draw()
    expected = slow_group_nt_xent(a.numpy(), b.numpy(), groups, 0.2, exclude)
    ours = group_nt_xent(a, b, torch.tensor(groups), 0.2, exclude=torch.tensor(exclude))
    assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_without_negatives_the_loss_is_finite_and_pulls_together():
    a, b = (x.requires_grad_() for x in draw())
    alone = group_nt_xent(a, b, torch.arange(6), 0.2, exclude=torch.zeros(6, dtype=torch.long))
    assert alone.item() == pytest.approx(0, abs=1e-12)  # the own pair is all there is
    assert all(gradient.abs().max() < 1e-12 for gradient in torch.autograd.grad(alone, (a, b)))
    same = torch.ones(6, 5, dtype=torch.float64)
    one_patient = group_nt_xent(same, same, torch.zeros(6, dtype=torch.long), 0.2)
    assert one_patient.item() == pytest.approx(math.log(11))  # log |P|, its least value
    assert group_nt_xent(a, b, torch.zeros(6, dtype=torch.long), 0.2) > one_patient


def test_memory_stays_near_one_similarity_matrix():
    batch = 512
    a, b = (x.requires_grad_() for x in draw(batch, 128, dtype=torch.float32))
    groups, exclude = torch.arange(batch) // 2, torch.arange(batch) // 8
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        group_nt_xent(a, b, groups, 0.1, exclude=exclude).backward()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        highest = max(highest, held)
    matrix = (2 * batch) ** 2 * 4
    assert matrix <= highest < 3 * matrix


def test_groups_of_one_sample_are_nt_xent():
    a, b = (x.requires_grad_() for x in draw(16, 8))
    ours, plain = group_nt_xent(a, b, torch.randperm(16), 0.1), nt_xent(a, b, 0.1)
    torch.testing.assert_close(ours, plain)
    for x, y in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(plain, (a, b)), strict=True):
        torch.testing.assert_close(x, y)


def test_gradients():
    groups = torch.tensor([0, 0, 1, 2, 1, 0])
    exclude = torch.tensor([0, 0, 1, 0, 1, 0])
    inputs = [x.requires_grad_() for x in draw()]
    assert torch.autograd.gradcheck(lambda a, b: group_nt_xent(a, b, groups, 0.3), inputs)
    assert torch.autograd.gradcheck(lambda a, b: group_nt_xent(a, b, groups, 0.3, exclude=exclude), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_a_low_temperature(dtype):
    a, b = (x.requires_grad_() for x in draw(32, 16, dtype=dtype))
    loss = GroupNTXentLoss(0.05)(a, b, torch.arange(32) // 2, torch.arange(32) // 4)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite() and a.grad.isfinite().all() and b.grad.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((4, 3), (4, 3), (3,)), 0.1, r"groups \(B,\)"),
        (((4, 3), (5, 3), (4,)), 0.1, "one shape"),
        (((1, 3), (1, 3), (1,)), 0.1, "at least two samples"),
        (((4, 3), (4, 3), (4,)), 0.0, "temperature"),
    ],
)
def test_bad_input(shapes, temperature, message):
    a, b, groups = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        group_nt_xent(a, b, groups.long(), temperature)


def test_an_exclusion_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"exclude must have the shape of groups \(4,\), got \(3,\)"):
        group_nt_xent(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4), exclude=torch.arange(3))
