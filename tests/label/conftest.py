# SPDX-License-Identifier: Apache-2.0
"""A folder of toy radiographs and a tiny encoder, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_radiographs import make_toy_radiographs

from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    return make_toy_radiographs(tmp_path_factory.mktemp("toy") / "images")


@pytest.fixture(scope="session")
def toy_encoder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    encoder = build_encoder("densenet121", init_features=8, growth_rate=4, block_config=[1, 1, 1, 1])
    with torch.no_grad():  # running statistics as after a training, without which the features die out
        for _ in range(30):
            encoder(torch.randn(4, 1, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_encoder(encoder, path, {"method": "C2L", "patch_size": [32, 32], "intensity": {"mean": 0.4, "std": 0.2}})
    return path
