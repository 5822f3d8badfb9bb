# SPDX-License-Identifier: Apache-2.0
"""VoCo's losses: the literal formulas of paper and released code, closed forms, gradients, half precision."""

from __future__ import annotations

import math

import pytest
import torch
from loss_references import slow_base_orthogonality, slow_overlap_prediction

from monai_ssl.losses import BaseOrthogonalityLoss, OverlapPredictionLoss, base_orthogonality, overlap_prediction

both = pytest.mark.parametrize("formula", ["paper", "released"])


def draw(batch: int = 3, crops: int = 2, cells: int = 5, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities within (-1, 1), and overlaps that sum to 1 with zeros among them."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(batch, crops, cells, generator=generator, dtype=dtype) * 1.6 - 0.7
    overlap = torch.rand(batch, crops, cells, generator=generator, dtype=dtype) - 0.4
    overlap = overlap.clamp(min=0) + 1e-3 * (torch.arange(cells) == 0)
    return similarity, overlap / overlap.sum(2, keepdim=True)


def features(batch: int = 3, cells: int = 4, dim: int = 6, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(batch, cells, dim, generator=torch.Generator().manual_seed(1), dtype=dtype)


@both
@pytest.mark.parametrize(("batch", "crops", "cells"), [(1, 1, 2), (3, 2, 5), (2, 4, 16)])
def test_equals_the_literal_formula(formula, batch, crops, cells):
    similarity, overlap = draw(batch, crops, cells)
    expected = slow_overlap_prediction(similarity.numpy(), overlap.numpy(), formula)
    assert overlap_prediction(similarity, overlap, formula).item() == pytest.approx(expected, rel=1e-9)
    base = features(batch, cells)
    expected = slow_base_orthogonality(base.numpy(), formula)
    assert base_orthogonality(base, formula).item() == pytest.approx(expected, rel=1e-9)


@both
def test_closed_forms(formula):
    _, overlap = draw()
    assert overlap_prediction(overlap, overlap, formula).item() == pytest.approx(0, abs=1e-12)
    half = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    nothing = overlap_prediction(torch.zeros(1, 1, 4), half, formula).item()
    assert nothing == pytest.approx(math.log(2) / (2 if formula == "paper" else 1))  # half the cells, or all the weight
    collapsed = overlap_prediction(torch.full((1, 1, 4), 0.5), half, formula).item()
    assert collapsed == pytest.approx(math.log(2) / 2 if formula == "paper" else 0.25)
    assert base_orthogonality(torch.eye(5)[None], formula) == 0
    assert base_orthogonality(torch.ones(2, 5, 3), formula).item() == pytest.approx(1)
    against = torch.tensor([[[1.0, 0.0], [-3.0, 0.0]]])
    assert base_orthogonality(against, formula).item() == pytest.approx(1.0 if formula == "paper" else 0.0)


@both
def test_order_of_images_crops_and_cells_does_not_matter(formula):
    similarity, overlap = draw()
    loss = overlap_prediction(similarity, overlap, formula)
    for dim in range(3):
        order = torch.randperm(similarity.shape[dim], generator=torch.Generator().manual_seed(dim))
        moved = [x.index_select(dim, order) for x in (similarity, overlap)]
        torch.testing.assert_close(overlap_prediction(*moved, formula), loss)
    base = features()
    torch.testing.assert_close(base_orthogonality(base.flip(1), formula), base_orthogonality(base, formula))
    torch.testing.assert_close(base_orthogonality(7 * base, formula), base_orthogonality(base, formula))


@both
def test_gradients(formula):
    similarity, overlap = draw()
    similarity.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: overlap_prediction(x, overlap, formula), (similarity,))
    base = features().requires_grad_()
    if formula == "paper":
        assert torch.autograd.gradcheck(lambda x: base_orthogonality(x, formula), (base,))
        return
    base_orthogonality(base, formula).backward()  # the second of a pair is a constant: the last one has no gradient
    assert base.grad[:, :-1].abs().amax(2).gt(0).any() and (base.grad[:, -1] == 0).all()


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_worst_cases_stay_finite(formula, dtype):
    similarity = torch.tensor([[[1.0, -1.0, 1.0, 0.0]]], dtype=dtype, requires_grad=True)
    overlap = torch.tensor([[[0.0, 1.0, 1.0, 1.0]]])
    base = torch.cat([torch.zeros(1, 1, 4), torch.ones(1, 2, 4)], 1).to(dtype).requires_grad_()
    loss = overlap_prediction(similarity, overlap, formula) + base_orthogonality(base, formula)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert similarity.grad.isfinite().all() and base.grad.isfinite().all() and base.grad.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = overlap_prediction(similarity, overlap, formula) + base_orthogonality(base, formula)
    assert again == loss


def test_modules_are_the_functions_and_misuse_is_named():
    similarity, overlap = draw()
    for formula in ("paper", "released"):
        torch.testing.assert_close(
            OverlapPredictionLoss(formula)(similarity, overlap), overlap_prediction(similarity, overlap, formula)
        )
        torch.testing.assert_close(BaseOrthogonalityLoss(formula)(features()), base_orthogonality(features(), formula))
    assert BaseOrthogonalityLoss.distribution == "local" and "released" in repr(OverlapPredictionLoss("released"))
    with pytest.raises(ValueError, match="must have one shape"):
        overlap_prediction(similarity, overlap[0])
    with pytest.raises(ValueError, match="N >= 2"):
        base_orthogonality(torch.ones(2, 1, 4))
    for module in (OverlapPredictionLoss, BaseOrthogonalityLoss):
        with pytest.raises(ValueError, match="formula must be 'paper' or 'released'"):
            module("code")
