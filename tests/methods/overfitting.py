# SPDX-License-Identifier: Apache-2.0
"""A training that several tests share: 32 images learnt by heart, from any step on."""

from __future__ import annotations

import copy

import torch

from monai_ssl.methods import SSLMethod


def overfit(
    method: SSLMethod,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    steps: int,
    *,
    noise: float,
    total_steps: int,
    start: int = 0,
    state: dict | None = None,
    extra: dict | None = None,
) -> tuple[list[float], dict]:
    """Train on images whose views differ by noise; the losses, and the state to go on from.

    ``extra`` is what each batch has beside its views.
    """
    if state:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    losses = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        views = [images + noise * torch.randn(images.shape, generator=generator) for _ in range(2)]
        out = method({"views": views, "generator": generator, **(extra or {})})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / total_steps)
        losses.append(out["loss"].item())
    return losses, {"method": copy.deepcopy(method.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
