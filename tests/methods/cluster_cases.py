# SPDX-License-Identifier: Apache-2.0
"""What the tests of online clustering share: a small encoder for views of any size, batches, and a short training."""

from __future__ import annotations

import copy

import torch
from torch import nn

from monai_ssl.methods import OnlineClustering

SMALL = {"num_prototypes": 6, "embedding_dim": 8, "hidden_features": 16, "freeze_steps": 0}


class PooledEncoder(nn.Module):
    """Means over four cells of a convolution, so that views of every size fit."""

    def __init__(self, spatial_dims: int = 2, in_channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.num_features = 8 * 2**spatial_dims
        conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if spatial_dims == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
        self.net = nn.Sequential(conv(in_channels, 8, 3, padding=1), nn.Tanh(), pool(2), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def make_views(size: int = 6, sides: tuple[int, ...] = (8, 8, 4, 4), seed: int = 0, spatial_dims: int = 2) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand((size, 1) + (side,) * spatial_dims, generator=generator) for side in sides]


def train(
    method: OnlineClustering,
    steps: int,
    start: int = 0,
    state: dict | None = None,
    source: torch.Tensor | None = None,
    total: int = 100,
) -> tuple[list[dict[str, float]], dict]:
    """Overfit 32 images; views differ by noise and the small ones are corners."""
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=5e-3)
    if state:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    log = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        views = [images + 0.05 * torch.randn(images.shape, generator=generator) for _ in range(3)]
        batch = {"views": [*views[:2], views[2][..., :6, :6]]}
        out = method(batch if source is None else batch | {"source": source})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / total)
        log.append({name: value.item() for name, value in out.items() if value.ndim == 0})
    return log, {"method": copy.deepcopy(method.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
