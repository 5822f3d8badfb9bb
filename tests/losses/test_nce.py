# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import pytest
import torch
from loss_references import slow_nce, slow_z

from monai_ssl.losses import ConstantZNCELoss, estimate_log_z, nce_constant_z


def draw(batch=4, dim=6, negatives=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=dtype) for n in (batch, batch, negatives)]


@pytest.mark.parametrize(
    ("batch", "dim", "negatives", "temperature"), list(itertools.product((1, 5), (2, 7), (1, 11), (0.05, 0.07, 1.0)))
)
def test_equals_the_literal_formula(batch, dim, negatives, temperature):
    q, k, n = draw(batch, dim, negatives)
    arrays = [x.numpy() for x in (q, k, n)]
    z = slow_z(*arrays, 300, temperature)
    assert estimate_log_z(q, k, n, 300, temperature).item() == pytest.approx(math.log(z), rel=1e-9)
    expected = slow_nce(*arrays, 2.5 * z, 300, temperature)
    assert nce_constant_z(q, k, n, math.log(2.5 * z), 300, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_random_unit_features_start_where_theory_says():
    q, k, n = draw(256, 128, 16384, dtype=torch.float32)
    # the data term is InfoNCE's 10.50; the noise terms sum to about 1 because Z was fitted to these very pairs
    assert 11.25 < ConstantZNCELoss(num_data=50_000)(q, k, n).item() < 11.75


def test_equal_logits_have_a_closed_form():
    x, n = torch.ones(3, 4), torch.ones(10, 4)
    # P = 1 / n_data for every pair, so L = log(1 + K) + K log(1 + 1 / K)
    expected = math.log(11) + 10 * math.log(1.1)
    assert ConstantZNCELoss(num_data=77)(x, x, n).item() == pytest.approx(expected, abs=1e-4)


def test_rotation_and_permutations_change_nothing():
    q, k, n = draw(6, 8, 12)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    order, queue_order = torch.randperm(6), torch.randperm(12)
    loss = nce_constant_z(q, k, n, 5.0, 100)
    torch.testing.assert_close(nce_constant_z(q @ rotation, k @ rotation, n @ rotation, 5.0, 100), loss)
    torch.testing.assert_close(nce_constant_z(q[order], k[order], n[queue_order], 5.0, 100), loss)


def test_gradients():
    q, k, n = (x.requires_grad_() for x in draw())
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[0, :3] = mask[2, 5] = True
    assert torch.autograd.gradcheck(lambda *x: nce_constant_z(*x[:3], 6.0, 50, x[3]), (q, k, n, temperature))
    assert torch.autograd.gradcheck(lambda *x: nce_constant_z(*x, 6.0, 50, negative_mask=mask), (q, k, n))


def test_excluded_negatives_do_not_count():
    q, k, n = draw()
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    arrays = [x.numpy() for x in (q, k, n)]
    expected = slow_nce(*arrays, 40.0, 50, 0.2, mask.numpy())
    loss = nce_constant_z(q, k, n, math.log(40.0), 50, 0.2, negative_mask=mask)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    log_z = estimate_log_z(q, k, n, 50, 0.2, negative_mask=mask)
    assert log_z.item() == pytest.approx(math.log(slow_z(*arrays, 50, 0.2, mask.numpy())), rel=1e-9)


def test_a_query_without_negatives_has_no_loss_and_no_gradient():
    q, k, n = (x.requires_grad_() for x in draw(dtype=torch.float32))
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[0] = False
    loss = nce_constant_z(q, k, n, 5.0, 50, 0.01, negative_mask=mask)
    loss.backward()
    assert loss.item() == pytest.approx(nce_constant_z(q[:1], k[:1], n, 5.0, 50, 0.01).item() / 4, rel=1e-5)
    assert all(x.grad.isfinite().all() for x in (q, k, n))
    assert (q.grad[1:] == 0).all()


def test_z_comes_from_the_first_batch_and_stays():
    loss = ConstantZNCELoss(num_data=100, temperature=0.2)
    assert loss.log_z.isnan()
    first, second = draw(seed=0), draw(seed=1)
    loss(*first)
    expected = estimate_log_z(*first, 100, 0.2).float()
    assert loss.log_z == expected
    value = loss(*second)
    assert loss.log_z == expected
    torch.testing.assert_close(value, nce_constant_z(*second, expected, 100, 0.2))


def test_z_survives_a_checkpoint():
    trained, fresh = ConstantZNCELoss(100), ConstantZNCELoss(100)
    trained(*draw(seed=0))
    fresh.load_state_dict(trained.state_dict())
    assert fresh.log_z == trained.log_z
    batch = draw(seed=1)
    assert fresh(*batch) == trained(*batch)
    assert fresh.log_z == trained.log_z
    # and a fresh state loaded into a used module makes it estimate again
    trained.load_state_dict(ConstantZNCELoss(100).state_dict())
    trained(*batch)
    assert trained.log_z == estimate_log_z(*batch, 100).float()


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="num_data must be the number of training images"):
        ConstantZNCELoss(0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        ConstantZNCELoss(10, temperature=0)
    q, k, n = draw()
    with pytest.raises(ValueError, match="negatives must have shape"):
        ConstantZNCELoss(10)(q, k, n[:, :2])
    assert ConstantZNCELoss(10).distribution == "reduces_statistics"
