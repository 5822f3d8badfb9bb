# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's codes: the literal iterations, equal use of the prototypes, groups, and no overflow anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from monai_ssl.losses import sinkhorn


def draw(batch: int, prototypes: int, dim: int = 128, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z, c = (normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64)) for n in (batch, prototypes))
    return (z @ c.T).to(dtype)


def slow_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """The paper's algorithm on the transport plan itself: one loop a prototype, one a sample."""
    batch, prototypes = scores.shape
    plan = np.exp(scores.astype(np.float64) / epsilon)
    plan /= plan.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            plan[:, k] /= plan[:, k].sum() * prototypes
        for b in range(batch):
            plan[b] /= plan[b].sum() * batch
    return plan * batch


@pytest.mark.parametrize("iterations", [1, 3, 7])
@pytest.mark.parametrize(("batch", "prototypes", "epsilon"), [(1, 5, 0.05), (12, 1, 0.05), (9, 4, 0.03), (6, 20, 0.5)])
def test_equals_the_literal_iterations(batch, prototypes, epsilon, iterations):
    scores = draw(batch, prototypes, dim=5, dtype=torch.float64)
    expected = slow_sinkhorn(scores.numpy(), epsilon, iterations)
    np.testing.assert_allclose(sinkhorn(scores, epsilon, iterations).numpy(), expected, rtol=1e-9, atol=1e-12)
    narrow = sinkhorn(scores.float(), epsilon, iterations)
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("prototypes", "off"), [(64, 0.03), (512, 0.02), (3000, 0.004)])
def test_all_prototypes_are_used_alike(prototypes, off):
    scores = draw(256, prototypes)
    codes = sinkhorn(scores)
    assert (codes.sum(dim=1) - 1).abs().max() < 1e-6
    use = codes.sum(dim=0) * prototypes / 256
    assert (use - 1).abs().max() < off
    closer = sinkhorn(scores, iterations=12).sum(dim=0) * prototypes / 256
    assert (closer - 1).abs().max() < 0.5 * (use - 1).abs().max()
    alone = (scores / 0.05).softmax(dim=1).sum(dim=0) * prototypes / 256
    assert (alone - 1).abs().max() > 5 * off  # without it they are not


def test_constant_scores_give_uniform_codes():
    torch.testing.assert_close(sinkhorn(torch.full((6, 8), 0.3)), torch.full((6, 8), 1 / 8))


def test_permutations_permute():
    scores = draw(10, 7)
    rows, columns = torch.randperm(10), torch.randperm(7)
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns]), sinkhorn(scores)[rows][:, columns])


def test_smaller_epsilon_makes_harder_codes():
    entropies = [torch.special.entr(sinkhorn(draw(64, 16), epsilon)).sum(1).mean() for epsilon in (0.02, 0.05, 0.5)]
    assert entropies[0] < entropies[1] < entropies[2]


def test_no_gradient_and_the_scores_stay():
    scores = draw(4, 3).requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores).requires_grad
    assert torch.equal(scores.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ends_here(dtype):
    scores = draw(16, 8, dtype=dtype)
    codes = sinkhorn(scores)
    assert codes.dtype == torch.float32 and torch.equal(codes, sinkhorn(scores.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn(scores), codes)


@pytest.mark.parametrize("iterations", [1, 3, 100])
@pytest.mark.parametrize("spread", [1.0, 30.0, 3000.0])
def test_no_range_of_scores_breaks_it(spread, iterations):
    scores = spread * torch.randn(20, 7, generator=torch.Generator().manual_seed(1))
    scores[0] = -spread * 5  # far from everything
    codes = sinkhorn(scores, 0.05, iterations)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(20))


def test_a_group_is_a_batch_of_its_own():
    scores = draw(11, 6)
    groups = torch.tensor([0, 3, 0, 1, 1, 0, 3, 3, 3, 0, 1])  # there is none of group 2
    codes = sinkhorn(scores, groups=groups, num_groups=5)
    for group in (0, 1, 3):
        torch.testing.assert_close(codes[groups == group], sinkhorn(scores[groups == group]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        sinkhorn(scores, groups=torch.ones(11, dtype=torch.int64), num_groups=2), sinkhorn(scores)
    )


def test_no_samples_give_no_codes():
    assert sinkhorn(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"scores": torch.zeros(3)}, "scores"),
        ({"scores": torch.zeros(3, 0)}, "scores"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"iterations": 0}, "iterations"),
        ({"groups": torch.zeros(2, dtype=torch.int64)}, "groups"),
        ({"groups": torch.zeros(3, dtype=torch.int64), "num_groups": 0}, "num_groups"),
    ],
)
def test_wrong_arguments_name_themselves(options, word):
    with pytest.raises(ValueError, match=word):
        sinkhorn(options.pop("scores", torch.zeros(3, 2)), **options)
