# SPDX-License-Identifier: Apache-2.0
"""A small prepared store, a small classifier and an encoder file, shared by the tests of this folder."""

from __future__ import annotations

import pytest
import torch
from toy_radiographs import make_toy_radiographs
from toy_volumes import make_toy_volumes, open_toy_volumes

from monai_ssl.data import ImageStore, open_radiographs
from monai_ssl.networks import build_classifier, build_encoder
from monai_ssl.weights import save_encoder

TINY = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory) -> ImageStore:
    folder = tmp_path_factory.mktemp("toy")
    make_toy_radiographs(folder / "images")
    return open_radiographs(folder / "images", folder / "cache", num_workers=0, drop_duplicates=False, progress=False)


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory, toy_store):
    torch.manual_seed(0)
    encoder = build_encoder("densenet121", **TINY)
    with torch.no_grad():  # running statistics as after a training, without which the features die out
        for _ in range(30):
            encoder(torch.randn(4, 1, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    intensity = {"policy": toy_store.policy.to_dict(), "mean": 0.4, "std": 0.2}
    save_encoder(encoder, path, {"method": "C2L", "images_seen": 640, "patch_size": [32, 32], "intensity": intensity})
    return path


@pytest.fixture
def tiny_classifier():
    torch.manual_seed(0)
    return build_classifier("densenet121", 3, **TINY)


@pytest.fixture(scope="session")
def volume_store(tmp_path_factory) -> ImageStore:
    """Ten tiny CT volumes with label maps (values 1 and 4), at 1.5 mm."""
    folder = tmp_path_factory.mktemp("volumes")
    make_toy_volumes(folder / "data")
    return open_toy_volumes(folder / "data", folder / "cache", spacing_mm=(1.5, 1.5, 1.5))
