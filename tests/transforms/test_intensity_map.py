# SPDX-License-Identifier: Apache-2.0
"""The Bezier map is the formula, keeps order or inverts it, and stays in the image's own range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ssl.transforms import RandomIntensityMap


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_map(values: np.ndarray, points: np.ndarray, falling: bool) -> np.ndarray:
    """The curve point by point, looked up between its own samples."""
    corners = np.array([[0.0, 0.0], *points, [1.0, 1.0]])
    s = np.linspace(0, 1, 20001)
    weights = [(1 - s) ** 3, 3 * (1 - s) ** 2 * s, 3 * (1 - s) * s**2, s**3]
    x, y = (sum(w * c[axis] for w, c in zip(weights, corners, strict=True)) for axis in (0, 1))
    return np.interp(values, x, y[::-1] if falling else y)


@pytest.mark.parametrize("shape", [(12, 2, 20, 15), (6, 1, 8, 9, 10)])
def test_equals_the_literal_curve(shape):
    transform, x = RandomIntensityMap(prob=0.8), torch.rand(shape, generator=seeded(1))
    params = transform.draw(shape, seeded(2))
    params["chosen"][0] = False
    assert 0 < params["falling"][1:].sum() < shape[0] - 1
    y = transform.apply(x, params)
    for i in range(shape[0]):
        if not params["chosen"][i]:
            assert torch.equal(y[i], x[i])
            continue
        expected = slow_map(x[i].double().numpy(), params["points"][i].double().numpy(), bool(params["falling"][i]))
        assert np.abs(y[i].numpy() - expected).max() < 0.02  # where the curve is all but upright
        assert np.abs(y[i].numpy() - expected).mean() < 2e-4


def test_order_is_kept_or_inverted_and_the_ends_are_the_ends():
    transform = RandomIntensityMap(prob=1)
    x = torch.linspace(0, 1, 4000).view(1, 1, 40, 100).expand(200, -1, -1, -1)
    params = transform.draw(x.shape, seeded())
    y = transform.apply(x, params).flatten(1)
    steps = torch.where(params["falling"][:, None], -1, 1) * y.diff(dim=1)
    assert steps.min() > -1e-6
    ends = torch.where(params["falling"][:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(y[:, [0, -1]], ends)
    assert params["falling"].float().mean().item() == pytest.approx(0.5, abs=0.12)


def test_equal_control_points_on_the_diagonal_change_nothing():
    transform, x = RandomIntensityMap(prob=1, falling_prob=0), torch.rand(2, 1, 30, 30, generator=seeded())
    params = transform.draw(x.shape, seeded())
    params["points"] = torch.tensor([[1 / 3, 1 / 3], [2 / 3, 2 / 3]]).expand(2, 2, 2)
    torch.testing.assert_close(transform.apply(x, params), x, atol=1e-5, rtol=0)
    assert torch.equal(RandomIntensityMap(prob=0)(x), x)


def test_other_ranges_are_the_same_map_and_what_is_beyond_is_the_end():
    unit, window = RandomIntensityMap(prob=1), RandomIntensityMap(prob=1, value_range=(-1000, 400))
    x = torch.rand(5, 1, 20, 20, generator=seeded())
    params = unit.draw(x.shape, seeded(3))
    expected = unit.apply(x, params) * 1400 - 1000
    torch.testing.assert_close(window.apply(x * 1400 - 1000, params), expected, atol=2, rtol=0)
    beyond = window.apply(torch.full_like(x, 3000.0), params)
    torch.testing.assert_close(beyond, window.apply(torch.full_like(x, 400.0), params))
