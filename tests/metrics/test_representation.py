# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_ssl.metrics import alignment, effective_rank, feature_std, uniformity


def draw(rows, dim, seed=0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def rotation(dim):
    return torch.linalg.qr(draw(dim, dim, seed=9))[0]


@pytest.mark.parametrize(("rows", "dim"), [(40, 8), (8, 40), (5, 5)])
@pytest.mark.parametrize("center", [False, True])
def test_effective_rank_equals_the_definition(rows, dim, center):
    x = draw(rows, dim).double().numpy() * np.linspace(0.01, 3, dim) + 0.5
    reference = x - x.mean(axis=0) if center else x
    sigma = np.linalg.svd(reference, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    expected = np.exp(-sum(value * math.log(value) for value in p))
    assert effective_rank(torch.from_numpy(x), center=center).item() == pytest.approx(expected, rel=1e-4)


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.eye(7)).item() == pytest.approx(7, rel=1e-4)
    line = draw(50, 1) * draw(1, 16, seed=1)
    assert effective_rank(line).item() == pytest.approx(1, abs=1e-2)
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert effective_rank(two, eps=0).item() == pytest.approx(math.exp(entropy), rel=1e-5)
    assert effective_rank(torch.zeros(5, 3)).item() == 0


def test_effective_rank_ignores_rotation_scale_and_order_and_sees_a_common_offset():
    x = draw(60, 10)
    rank = effective_rank(x)
    torch.testing.assert_close(effective_rank(x @ rotation(10)), rank)
    torch.testing.assert_close(effective_rank(17 * x.flip(0)), rank)
    assert effective_rank(x + 100) < 2
    torch.testing.assert_close(effective_rank(x + 100, center=True), effective_rank(x, center=True))


def test_feature_std_is_one_on_the_sphere_and_zero_when_collapsed():
    assert feature_std(draw(4000, 32)).item() == pytest.approx(1, abs=0.01)
    direction = draw(1, 32)
    assert feature_std(direction * torch.linspace(1, 5, 20)[:, None]).item() == pytest.approx(0, abs=1e-6)
    axes = torch.cat([torch.eye(4), -torch.eye(4)])  # mean 0, second moment 1/4 in every dimension
    assert feature_std(axes).item() == pytest.approx(1)


def test_alignment_of_known_angles():
    x = draw(20, 6)
    assert alignment(x, 3 * x).item() == pytest.approx(0, abs=1e-6)
    assert alignment(x, -x).item() == pytest.approx(4, rel=1e-6)
    right_angle = alignment(torch.eye(4)[:2], torch.eye(4)[2:])
    assert right_angle.item() == pytest.approx(2)
    assert alignment(torch.eye(4)[:2], torch.eye(4)[2:], alpha=1).item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("t", [1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_uniformity_equals_the_literal_formula(t, chunk_size):
    x = draw(23, 5).double().numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    terms = [np.exp(-t * np.sum((unit[i] - unit[j]) ** 2)) for i in range(23) for j in range(i)]
    value = uniformity(torch.from_numpy(x), t, chunk_size=chunk_size)
    assert value.item() == pytest.approx(math.log(np.mean(terms)), rel=1e-9)


def test_uniformity_of_known_arrangements():
    assert uniformity(torch.ones(10, 3)).item() == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.tensor([[1.0, 0], [-2, 0]])).item() == pytest.approx(-8)
    assert uniformity(torch.eye(6)).item() == pytest.approx(-4)
    assert uniformity(draw(2000, 128)).item() == pytest.approx(-4 + 8 / 128, abs=0.02)


def test_alignment_and_uniformity_ignore_rotation_and_have_gradients():
    a, b = draw(12, 6).double(), draw(12, 6, seed=1).double()
    turn = rotation(6).double()
    torch.testing.assert_close(alignment(a @ turn, b @ turn), alignment(a, b))
    torch.testing.assert_close(uniformity(a @ turn), uniformity(a))
    assert torch.autograd.gradcheck(lambda x: uniformity(x, chunk_size=5), a.requires_grad_())
    assert torch.autograd.gradcheck(alignment, (a, b))


@pytest.mark.parametrize("function", [effective_rank, feature_std, uniformity, lambda x: alignment(x, x)])
def test_half_precision_is_widened_and_bad_features_are_refused(function):
    x = draw(30, 8)
    value = function(x.bfloat16())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(function(x).item(), rel=0.02, abs=1e-4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        function(torch.full((3, 3), math.nan))
    with pytest.raises(ValueError, match=r"shape \(N, D\)"):
        function(torch.ones(4))
    with pytest.raises(ValueError, match=r"shape \(N, D\)"):
        function(torch.ones(0, 4))


def test_what_needs_pairs_says_so():
    with pytest.raises(ValueError, match="at least two rows"):
        uniformity(torch.ones(1, 4))
    with pytest.raises(ValueError, match="one shape"):
        alignment(torch.ones(2, 4), torch.ones(3, 4))
