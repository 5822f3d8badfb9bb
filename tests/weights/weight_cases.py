# SPDX-License-Identifier: Apache-2.0
"""Small encoders with lived-in weights and buffers, for the tests of weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from monai_ssl.networks import ImageEncoder, build_encoder
from monai_ssl.weights import save_encoder

THIN = {"widen_factor": 0.125}
SMALL_VIT = {"img_size": 32, "patch_size": 16, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
FIELDS = {"method": "C2L"}


def lived_in(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and buffer a value of its own, so that a wrong or forgotten one shows; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value.normal_(std=0.3, generator=generator)
    return net.eval()


def thin_resnet(**arguments) -> ImageEncoder:
    return lived_in(build_encoder("resnet10", **{**THIN, **arguments}))


def saved(encoder: ImageEncoder, folder: Path, **fields) -> Path:
    path = folder / "encoder.safetensors"
    save_encoder(encoder, path, FIELDS | fields)
    return path


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def assert_same_state(net: nn.Module, state: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
