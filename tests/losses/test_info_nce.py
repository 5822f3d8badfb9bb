# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from loss_references import slow_info_nce

from monai_ssl.losses import InfoNCELoss, info_nce


def draw(batch=4, dim=6, negatives=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=dtype) for n in (batch, batch, negatives)]


@pytest.mark.parametrize(
    ("batch", "dim", "negatives", "temperature"), list(itertools.product((1, 5), (2, 7), (1, 11), (0.05, 0.07, 1.0)))
)
def test_equals_the_literal_formula(batch, dim, negatives, temperature):
    q, k, n = draw(batch, dim, negatives)
    expected = slow_info_nce(q.numpy(), k.numpy(), n.numpy(), temperature)
    assert info_nce(q, k, n, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_random_unit_features_start_where_theory_says():
    q, k, n = draw(256, 128, 16384, dtype=torch.float32)
    # log(K + 1) + 1 / (2 d t^2): logits of random unit vectors are nearly normal with variance 1 / (d t^2)
    expected = math.log(16385) + 1 / (2 * 128 * 0.07**2)
    assert expected == pytest.approx(10.50, abs=0.005)
    assert info_nce(q, k, n, 0.07).item() == pytest.approx(expected, abs=0.25)


def test_perfect_positives_among_random_negatives():
    q, _, n = draw(256, 128, 16384, dtype=torch.float32)
    assert info_nce(q, q, n, 0.07).item() == pytest.approx(0.02, abs=0.005)


def test_equal_logits_give_log_of_the_number_of_candidates():
    x = torch.ones(3, 4)
    assert info_nce(x, x, torch.ones(10, 4), 0.07).item() == pytest.approx(math.log(11), abs=1e-5)


def test_rotation_and_permutations_change_nothing():
    q, k, n = draw(6, 8, 12)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    order, queue_order = torch.randperm(6), torch.randperm(12)
    loss = info_nce(q, k, n)
    torch.testing.assert_close(info_nce(q @ rotation, k @ rotation, n @ rotation), loss)
    torch.testing.assert_close(info_nce(q[order], k[order], n[queue_order]), loss)
    torch.testing.assert_close(info_nce(3 * q, 0.1 * k, 7 * n), loss)  # only directions count


def test_query_and_key_may_swap_when_negatives_are_alike():
    q, k, _ = draw(2, 4)
    ring = torch.cat([torch.eye(4, dtype=torch.float64), -torch.eye(4, dtype=torch.float64)])
    a, b = q[:1].abs(), q[:1].abs().flip(1)  # the same distances to the symmetric set of negatives
    torch.testing.assert_close(info_nce(a, b, ring), info_nce(b, a, ring))
    assert info_nce(a, k[:1], ring) != info_nce(a, b, ring)


def test_normalized_inputs_are_taken_as_they_are():
    q, k, n = draw()
    unit = [F.normalize(x, dim=1) for x in (q, k, n)]
    torch.testing.assert_close(info_nce(*unit, normalized=True), info_nce(q, k, n))
    assert not torch.isclose(info_nce(q, k, n, normalized=True), info_nce(q, k, n))


def test_gradients():
    q, k, n = (x.requires_grad_() for x in draw())
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[0, :3] = mask[2, 5] = True
    assert torch.autograd.gradcheck(info_nce, (q, k, n, temperature))
    assert torch.autograd.gradcheck(lambda *x: info_nce(*x, negative_mask=mask), (q, k, n, temperature))


def test_gradient_equals_cross_entropy_of_concatenated_logits():
    q, k, n = (x.requires_grad_() for x in draw(8, 16, 40, dtype=torch.float32))
    a, b, c = (F.normalize(x, dim=1) for x in (q, k, n))
    logits = torch.cat([(a * b).sum(1, keepdim=True), a @ c.T], dim=1) / 0.1
    expected = torch.autograd.grad(F.cross_entropy(logits, torch.zeros(8, dtype=torch.long)), (q, k, n))
    for ours, reference in zip(torch.autograd.grad(info_nce(q, k, n, 0.1), (q, k, n)), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_excluded_negatives_do_not_count():
    q, k, n = draw()
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    loss = info_nce(q, k, n, 0.2, negative_mask=mask)
    assert loss.item() == pytest.approx(slow_info_nce(q.numpy(), k.numpy(), n.numpy(), 0.2, mask.numpy()), rel=1e-9)
    mask[:, 2:] = True
    mask[:, :2] = False
    torch.testing.assert_close(info_nce(q, k, n, negative_mask=mask), info_nce(q, k, n[:2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_query_without_negatives_has_no_loss_and_no_gradient(dtype):
    q, k, n = (x.requires_grad_() for x in draw(dtype=dtype))
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[1] = True
    loss = info_nce(q, k, n, 0.01, negative_mask=mask)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in (q, k, n))
    assert (q.grad[1] == 0).all()
    assert (q.grad[0] != 0).any()


@pytest.mark.parametrize("normalized", [False, True])
def test_a_queue_may_change_before_the_backward_pass(normalized):
    q, k, queue = (F.normalize(x, dim=1) for x in draw())
    q.requires_grad_()
    expected = torch.autograd.grad(info_nce(q, k, queue.clone().requires_grad_(), normalized=normalized), q)[0]
    loss = info_nce(q, k, queue, normalized=normalized)
    queue.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, q)[0], expected)


def test_only_keys_or_negatives_may_need_a_gradient():
    q, k, n = draw()
    for i in range(3):
        x = [tensor.clone().requires_grad_(j == i) for j, tensor in enumerate((q, k, n))]
        assert torch.autograd.gradcheck(info_nce, x)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        InfoNCELoss(temperature)
    with pytest.raises(ValueError, match="temperature must be positive"):
        info_nce(*draw(), temperature)


def test_refuses_shapes_that_do_not_fit():
    q, k, n = draw()
    with pytest.raises(ValueError, match="query and key must have one shape"):
        info_nce(q, k[:2], n)
    with pytest.raises(ValueError, match=r"negatives must have shape \(K, 6\)"):
        info_nce(q, k, n[:, :3])
    with pytest.raises(ValueError, match="negatives must have shape"):
        info_nce(q, k, n[:0])
    with pytest.raises(ValueError, match="negative_mask must be boolean"):
        info_nce(q, k, n, negative_mask=torch.zeros(4, 9))
    with pytest.raises(ValueError, match="negative_mask must be boolean"):
        info_nce(q, k, n, negative_mask=torch.zeros(4, 8, dtype=torch.bool))


def test_module_is_the_function():
    q, k, n = draw()
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, 0] = True
    loss = InfoNCELoss(0.2)
    torch.testing.assert_close(loss(q, k, n), info_nce(q, k, n, 0.2))
    torch.testing.assert_close(loss(q, k, n, negative_mask=mask), info_nce(q, k, n[1:], 0.2))
    assert loss.distribution == "local"
    assert loss.state_dict() == {}
