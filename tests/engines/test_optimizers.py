# SPDX-License-Identifier: Apache-2.0
"""LARS against its formula in NumPy, and the builder of all optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_training import ToyMethod

from monai_ssl.engines import LARS, build_optimizer


def reference_lars(w, gradients, lr, momentum, decay, eta):
    """You et al. 2017, algorithm 1; vectors get plain SGD."""
    velocity = np.zeros_like(w)
    for g in gradients:
        scale = eta * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w)) if w.ndim > 1 else 1.0
        velocity = momentum * velocity + lr * scale * (g + decay * w)
        w = w - velocity
    return w


@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3, 3), (7,)])
def test_lars_equals_its_formula(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = LARS([parameter], lr=0.7, momentum=0.8, weight_decay=0.01, trust_coefficient=0.02)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    expected = reference_lars(start.numpy(), gradients.numpy(), 0.7, 0.8, 0.01, 0.02)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


def test_lars_survives_zero_weights_and_zero_gradients():
    weights, still = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weights, still], lr=0.5)
    weights.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(weights, torch.full((2, 2), -0.5)), "zero weights move by plain SGD"
    assert torch.equal(still, torch.ones(2, 2))


def test_the_trust_ratio_makes_the_step_independent_of_the_gradients_scale():
    moves = []
    for scale in (1.0, 1000.0):
        parameter = torch.nn.Parameter(torch.ones(3, 3))
        parameter.grad = scale * torch.arange(9.0).view(3, 3)
        LARS([parameter], lr=1.0).step()
        moves.append(1 - parameter.detach())
    torch.testing.assert_close(moves[0], moves[1])


@pytest.mark.parametrize(
    "name, kind", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("lars", LARS)]
)
def test_build_optimizer_takes_the_methods_groups(name, kind):
    method = ToyMethod()
    optimizer = build_optimizer(method, name, 0.1, 0.05)
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in method.parameters() if p.requires_grad}
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


def test_build_optimizer_passes_options_on():
    assert build_optimizer(ToyMethod(), "sgd", 0.1).defaults["momentum"] == 0.9
    assert build_optimizer(ToyMethod(), "sgd", 0.1, momentum=0.5, nesterov=True).defaults["nesterov"]


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (("rmsprop", 0.1), {}, "sgd, adam, adamw, lars"),
        (("sgd", 0.0), {}, "learning_rate"),
        (("sgd", 0.1, -1.0), {}, "weight_decay"),
        (("adamw", 0.1), {"momentum": 0.9}, "momentum"),
        (("lars", 0.1), {"trust_coefficient": 0.0}, "trust_coefficient"),
    ],
)
def test_build_optimizer_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(ToyMethod(), *arguments, **options)
