# SPDX-License-Identifier: Apache-2.0
"""The bundle of SwinUNETR's pretraining on a few tiny volumes: every config runs, the weights go into SwinUNETR."""

from __future__ import annotations

import math

import pytest
from monai.networks.nets import SwinUNETR
from pretraining_runs import PretrainingBundle, losses, mistake, segment

from monai_ssl.weights import load_encoder, read_manifest

SMALL_NET = {"feature_size": 12, "window_size": 4, "depths": [1, 1, 1, 1]}
SMALL_UNET = {"channels": [4, 8, 16], "strides": [2, 2]}
BUNDLE = PretrainingBundle("volume_swin_unetr_pretraining", patch_size=[64, 32, 32], network_args=SMALL_NET)


@pytest.fixture(scope="module")
def output(folder, prepared, tmp_path_factory):
    """A run of one epoch."""
    output = tmp_path_factory.mktemp("swin_unetr")
    BUNDLE.train(folder, prepared, output)
    return output


def test_training_leaves_the_transformer_and_a_picture(output):
    for name in ("summary.json", "loss_curve.png", "metrics.csv", "reconstructions.png"):
        assert (output / name).is_file(), name
    assert float(losses(output)[0]) > 0.8 * (math.log(4) + math.log(3))  # rotation and contrast, untrained
    manifest = read_manifest(output / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"]) == ("SwinUNETRPretext", [64, 32, 32])
    assert (manifest["intensity"]["mean"], manifest["intensity"]["std"]) == (0.0, 1.0)
    report = load_encoder(SwinUNETR(1, 3, **SMALL_NET), output / "encoder.safetensors")
    assert report.coverage == 1 and all(key.startswith("swinViT.") for key in report.loaded)


def test_segmentation_starts_from_the_transformer(folder, prepared, output, tmp_path):
    run = segment(folder, prepared, tmp_path, output / "encoder.safetensors", steps_per_epoch=1, spacing_mm=10)
    start = run.parser.get_parsed_content("start")
    assert start.architecture == "swinunetr" and start.report.coverage == 1
    assert run.parser.get_parsed_content("preparation").image_size == (64, 32, 32)


@pytest.mark.parametrize(
    ("fragments", "overrides"),
    [
        (["unet.yaml"], {"patch_size": [8, 16, 16], "network_args": SMALL_UNET}),
        (["paper.yaml"], {"patch_size": [32, 32, 32], "network_args": SMALL_NET, "policy": "auto"}),
        (["released_code.yaml"], {"network_args": SMALL_NET, "patch_size": [64, 32, 32], "policy": "auto"}),
        (["multi_gpu_train.yaml"], {"steps_per_epoch": 1}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(folder, prepared, tmp_path, fragments, overrides):
    BUNDLE.train(folder, prepared, tmp_path, *fragments, **overrides)
    assert (tmp_path / "encoder.safetensors").is_file()


def test_mistakes_are_explained(folder, prepared, tmp_path):
    assert "at least two" in mistake(lambda: BUNDLE.train(folder, prepared, tmp_path, batch_size=1))
    assert "quarter turn" in mistake(lambda: BUNDLE.train(folder, prepared, tmp_path, patch_size=[32, 32, 64]))
    assert "single place" in mistake(lambda: BUNDLE.train(folder, prepared, tmp_path, patch_size=[32, 32, 32]))
