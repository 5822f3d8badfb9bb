# SPDX-License-Identifier: Apache-2.0
"""Barlow Twins' and VICReg's losses: the formulas entry by entry, both ways of the off-diagonal sum, closed forms."""

from __future__ import annotations

import pytest
import torch
from loss_references import slow_redundancy_reduction, slow_vicreg_terms
from monai.losses import BarlowTwinsLoss

from monai_ssl.losses import (
    RedundancyReductionLoss,
    VICRegLoss,
    redundancy_reduction,
    redundancy_terms,
    vicreg,
    vicreg_terms,
)

LOSSES = {"redundancy reduction": RedundancyReductionLoss(0.5), "vicreg": VICRegLoss(target_std=1.5)}
SHAPES = [(2, 3), (9, 4), (3, 12), (6, 12), (5, 1)]  # with more than twice as many dimensions as samples and without


def draw(batch=5, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(batch, dim, generator=generator, dtype=dtype) + 2
    return [a, a + 0.5 * torch.randn(batch, dim, generator=generator, dtype=dtype)]


@pytest.mark.parametrize(("batch", "dim"), SHAPES)
def test_redundancy_reduction_equals_the_literal_formula(batch, dim):
    a, b = draw(batch, dim)
    expected = slow_redundancy_reduction(a.numpy(), b.numpy(), 0.3)
    assert redundancy_reduction(a, b, 0.3, eps=1e-12).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("batch", "dim"), SHAPES)
def test_vicreg_equals_the_literal_formula(batch, dim):
    a, b = draw(batch, dim)
    expected = slow_vicreg_terms(a.numpy(), b.numpy(), 1.5, 1e-4)
    assert [x.item() for x in vicreg_terms(a, b, target_std=1.5)] == pytest.approx(expected, rel=1e-8, abs=1e-12)
    weighted = 2 * expected[0] + 3 * expected[1] + 5 * expected[2]
    assert vicreg(a, b, 2, 3, 5, target_std=1.5).item() == pytest.approx(weighted, rel=1e-8)
    assert VICRegLoss(2, 3, 5, 1.5)(a, b).item() == pytest.approx(weighted, rel=1e-8)


@pytest.mark.parametrize("batch", [2, 16, 64])
def test_equals_monai_but_for_its_mix_of_two_deviations(batch):
    """MONAI divides by the unbiased deviation and by B, so its correlation is (B - 1) / B of equation 2's."""
    a, b = draw(batch, 8)
    theirs = BarlowTwinsLoss(lambd=0.01)(a, b).item()
    share = (batch - 1) / batch
    x, y = ((z - z.mean(0)) / (z - z.mean(0)).norm(dim=0) for z in (a, b))
    c = share * x.T @ y
    diagonal = c.diagonal()
    expected = ((1 - diagonal) ** 2).sum() + 0.01 * ((c**2).sum() - (diagonal**2).sum())
    assert theirs == pytest.approx(expected.item(), rel=1e-4)
    assert BarlowTwinsLoss()(a, a).item() > 8 / batch**2 * 0.999, "equal views still cost something"
    assert redundancy_terms(a, a)[0].item() < 1e-6 or batch == 2
    ours = redundancy_reduction(a, b, 0.01).item()
    assert ours < theirs


def test_closed_forms():
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)  # uncorrelated
    assert redundancy_reduction(x, x).item() == pytest.approx(0, abs=1e-8)
    assert redundancy_reduction(x, 5 * x + 3).item() == pytest.approx(0, abs=1e-8), "scale and offset are free"
    assert redundancy_reduction(x, -x).item() == pytest.approx(8, abs=1e-3)
    equal = x[:, :1].expand(4, 3)
    assert redundancy_reduction(equal, equal, 0.01).item() == pytest.approx(6 * 0.01, abs=1e-5)
    # Var of x (n - 1) is 4 / 3, so the hinge is off, nothing co-varies, nothing differs
    assert vicreg(x, x).item() == pytest.approx(0, abs=1e-12)
    assert vicreg(x, x + 0.5).item() == pytest.approx(25 * 0.25)
    point = torch.ones(8, 4)
    assert vicreg(point, point).item() == pytest.approx(2 * 25 * (1 - 0.01))
    cov = 4 / 3
    assert vicreg(equal, equal).item() == pytest.approx(2 * 6 * cov**2 / 3)


def test_random_features_start_where_theory_says():
    a, b = draw(256, 1024, seed=1)[0], draw(256, 1024, seed=2)[0]
    invariance, redundancy = redundancy_terms(a, b)
    # C_ij of independent features has variance 1 / (n - 1)
    assert invariance.item() == pytest.approx(1024 * (1 + 1 / 255), rel=0.02)
    assert redundancy.item() == pytest.approx(1024 * 1023 / 255, rel=0.02)
    _, variance, covariance = vicreg_terms(a, b)
    assert covariance.item() == pytest.approx(2 * 1023 / 255, rel=0.02)
    assert 0 <= variance.item() < 0.06


@pytest.mark.parametrize("name", LOSSES)
def test_symmetry_and_permutation(name):
    loss = LOSSES[name]
    a, b = draw(6, 8)
    order, dims = torch.randperm(6), torch.randperm(8)
    expected = loss(a, b)
    torch.testing.assert_close(loss(b, a), expected)
    torch.testing.assert_close(loss(a[order], b[order]), expected)
    torch.testing.assert_close(loss(a[:, dims], b[:, dims]), expected)
    assert not torch.isclose(loss(a.roll(1, 0), b), expected)


@pytest.mark.parametrize("shape", [(5, 4), (3, 8)])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, shape):
    a, b = (x.requires_grad_() for x in draw(*shape))
    assert torch.autograd.gradcheck(LOSSES[name], (a, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_finite(name, shape, dtype):
    a, b = ((1000 * x).to(dtype) for x in draw(*shape, dtype=torch.float32))  # squares and sums overflow fp16
    a[:, 0] = b[:, 0] = 1  # a dimension that says nothing
    a, b = a.requires_grad_(), b.requires_grad_()
    loss = LOSSES[name](a, b)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert LOSSES[name](a.double(), b.double()).item() == pytest.approx(loss.item(), rel=1e-4)
    for x in (a, b):
        assert x.grad.dtype == dtype
        if name == "redundancy reduction":  # VICReg's gradient grows with the features' cube
            assert x.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LOSSES[name](a, b) == loss, "autocast does not reach into the loss"


@pytest.mark.parametrize("shape", [(100, 250), (100, 150)])
def test_float32_keeps_its_digits(shape):
    """Just below and above where the (D, D) matrix is formed, with all dimensions alike: the difference is smallest."""
    a = draw(*shape)[0]
    for x in (a, a[:, :1] + 1e-3 * a):
        wide, narrow = redundancy_terms(x, x)[1].item(), redundancy_terms(x.float(), x.float())[1].item()
        assert narrow == pytest.approx(wide, rel=1e-5)


def test_wide_features_need_no_square_matrix():
    batch, dim = 32, 4096
    a, b = (x.requires_grad_() for x in draw(batch, dim, dtype=torch.float32))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        (redundancy_reduction(a, b) + vicreg(a, b)).backward()
    changes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert 0 < max(changes) <= 2 * batch * dim * 4 < dim * dim * 4


def test_modules_and_refusals():
    a, b = draw()
    assert RedundancyReductionLoss()(a, b) == redundancy_reduction(a, b)
    assert VICRegLoss()(a, b) == vicreg(a, b)
    for loss in LOSSES.values():
        assert loss.distribution == "reduces_statistics" and loss.state_dict() == {}
        with pytest.raises(ValueError, match="at least two samples"):
            loss(a[:1], b[:1])
        with pytest.raises(ValueError, match="one shape"):
            loss(a, b[:, :3])
    with pytest.raises(ValueError, match="redundancy_weight"):
        RedundancyReductionLoss(-1)
    with pytest.raises(ValueError, match="eps"):
        redundancy_reduction(a, b, eps=0)
    with pytest.raises(ValueError, match="weights"):
        VICRegLoss(covariance_weight=-1)
    with pytest.raises(ValueError, match="target_std"):
        VICRegLoss(target_std=0)
