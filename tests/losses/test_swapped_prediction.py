# SPDX-License-Identifier: Apache-2.0
"""Swapped prediction: the literal formula, the values that theory gives at the start, symmetries, precision, memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from monai_ssl.losses import SwappedPredictionLoss, sinkhorn, swapped_prediction


def unit(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def draw(crops: int, batch: int, prototypes: int, dim: int = 8, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Scores of independent random features."""
    return unit(crops, batch, dim, seed=seed, dtype=dtype) @ unit(prototypes, dim, seed=seed + 1, dtype=dtype).T


def codes_of(scores: torch.Tensor) -> torch.Tensor:
    return torch.stack([sinkhorn(own) for own in scores])


def slow_swapped_prediction(scores: np.ndarray, codes: np.ndarray, temperature: float, assigning) -> float:
    losses = []
    for place, a in enumerate(assigning):
        terms = []
        for v in range(len(scores)):
            if v == a:
                continue
            for b in range(scores.shape[1]):
                p = np.exp(scores[v, b] / temperature)
                p /= p.sum()
                terms.append(-sum(codes[place, b, k] * np.log(p[k]) for k in range(len(p))))
        losses.append(np.mean(terms))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("crops", "assigning"), [(2, (0, 1)), (5, (0, 1)), (3, (2,)), (4, (3, 0, 2))])
def test_equals_the_literal_formula(crops, assigning, temperature):
    scores = draw(crops, 6, 5)
    codes = codes_of(scores[list(assigning)])
    expected = slow_swapped_prediction(scores.numpy(), codes.numpy(), temperature, assigning)
    loss = swapped_prediction(scores, codes, temperature, assigning=assigning)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    each = swapped_prediction(scores, codes, temperature, assigning=assigning, reduction="none")
    assert each.shape == (6,) and each.mean().item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("prototypes", "batch", "random", "same"), [(3000, 64, 8.40, 7.04), (512, 256, 6.63, 5.18), (64, 256, 4.55, 3.23)]
)
def test_random_features_start_where_theory_says(prototypes, batch, random, same):
    """log K + 1 / (2 D t^2) for independent views; the values for identical ones are simulated."""
    assert math.log(prototypes) + 1 / (2 * 128 * 0.1**2) == pytest.approx(random, abs=0.01)
    loss = SwappedPredictionLoss()
    drawn = [draw(2, batch, prototypes, 128, seed, torch.float32) for seed in range(0, 6, 2)]
    assert np.mean([loss(scores).item() for scores in drawn]) == pytest.approx(random, abs=0.05)
    alike = [loss(scores[:1].expand(2, -1, -1)).item() for scores in drawn]
    assert np.mean(alike) == pytest.approx(same, abs=0.05)


def test_equal_features_cost_at_least_log_k():
    prototypes = unit(50, 8)
    scores = (unit(1, 1, 8).expand(2, 12, 8) @ prototypes.T).contiguous()
    assert SwappedPredictionLoss()(scores).item() >= math.log(50)
    assert SwappedPredictionLoss()(torch.zeros(2, 12, 50)).item() == pytest.approx(math.log(50), rel=1e-6)


def test_swaps_permutations_and_rotations_change_nothing():
    z, c = unit(2, 9, 8), unit(6, 8, seed=5)
    loss = SwappedPredictionLoss()
    value = loss(z @ c.T)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    torch.testing.assert_close(loss(z.flip(0) @ c.T), value)
    torch.testing.assert_close(loss(z[:, torch.randperm(9)] @ c[torch.randperm(6)].T), loss(z[:, :] @ c.T))
    torch.testing.assert_close(loss((z @ rotation) @ (c @ rotation).T), value)
    assert not torch.isclose(loss(torch.stack([z[0], z[1].flip(0)]) @ c.T), value)  # other pairs are another loss


def test_gradients():
    scores = draw(3, 4, 5).requires_grad_()
    codes = codes_of(scores.detach()[:2])
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: swapped_prediction(s, codes, t), (scores, temperature))
    codes.requires_grad_()
    swapped_prediction(scores, codes).backward()
    assert codes.grad is None


def test_a_sole_assigning_crop_gets_no_gradient():
    scores = draw(3, 4, 5).requires_grad_()
    swapped_prediction(scores, codes_of(scores.detach()[1:2]), assigning=[1]).backward()
    assert scores.grad[1].abs().sum() == 0
    assert all(scores.grad[crop].abs().sum() > 0 for crop in (0, 2))


@pytest.mark.parametrize("temperature", [0.1, 0.005])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_computed_in_full(dtype, temperature):
    scores = draw(2, 16, 8).to(dtype).requires_grad_()
    loss = SwappedPredictionLoss(temperature)(scores)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and scores.grad.isfinite().all()
    assert loss.item() == pytest.approx(SwappedPredictionLoss(temperature)(scores.detach().float()).item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SwappedPredictionLoss(temperature)(scores) == loss
    assert SwappedPredictionLoss(temperature)(scores.detach().double()).dtype == torch.float64


def test_codes_are_made_within_groups():
    loss, scores, groups = SwappedPredictionLoss(), draw(2, 8, 4), torch.tensor([0, 1] * 4)
    codes = torch.stack([loss.assign(own, groups, 2) for own in scores])
    torch.testing.assert_close(codes[0, ::2], sinkhorn(scores[0, ::2]))
    assert loss(scores, codes) != loss(scores)


def test_memory_stays_near_two_score_matrices():
    """The codes and the gradient; the scores themselves are the caller's."""
    scores = draw(2, 512, 512, dtype=torch.float32).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        swapped_prediction(scores, codes_of(scores.detach())).backward()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    highest = np.cumsum([e.nbytes() for e in sorted(changes, key=lambda event: event.start_ns())]).max()
    matrix = 2 * 512**2 * 4
    assert matrix <= highest < 2.2 * matrix


def test_state_and_repr():
    loss = SwappedPredictionLoss(0.2, 0.03, 5)
    assert not loss.state_dict() and loss.distribution == "reduces_statistics"
    assert repr(loss) == "SwappedPredictionLoss(temperature=0.2, epsilon=0.03, iterations=5)"


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda s, q: swapped_prediction(s[:1], q), "two or more crops"),
        (lambda s, q: swapped_prediction(s[0], q), "scores"),
        (lambda s, q: swapped_prediction(s, q[:, :2]), "codes"),
        (lambda s, q: swapped_prediction(s, q, 0.0), "temperature"),
        (lambda s, q: swapped_prediction(s, q, reduction="sum"), "reduction"),
        (lambda s, q: swapped_prediction(s, q, assigning=[0]), "assigning"),
        (lambda s, q: swapped_prediction(s, q, assigning=[1, 1]), "assigning"),
        (lambda s, q: swapped_prediction(s, q, assigning=[0, 3]), "assigning"),
        (lambda s, q: swapped_prediction(s, q[:0]), "assigning"),
        (lambda s, q: SwappedPredictionLoss(temperature=-1), "temperature"),
        (lambda s, q: SwappedPredictionLoss(epsilon=0), "epsilon"),
        (lambda s, q: SwappedPredictionLoss(iterations=0), "iterations"),
    ],
)
def test_wrong_arguments_name_themselves(call, word):
    scores = draw(3, 4, 5)
    with pytest.raises(ValueError, match=word):
        call(scores, codes_of(scores[:2]))
