# SPDX-License-Identifier: Apache-2.0
"""The bundle of Models Genesis on a few tiny volumes: every config runs, and encoder and decoder go downstream."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch
from monai.networks.nets import UNet
from pretraining_runs import PretrainingBundle, mistake, segment

from monai_ssl.weights import load_encoder, read_manifest

SMALL_NET = {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}
SMALL_SEGRESNET = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
WAY_UP = "model.1.submodule.2."
BUNDLE = PretrainingBundle("volume_genesis_pretraining", patch_size=[16, 16, 16], network_args=SMALL_NET)


@pytest.fixture(scope="module")
def output(folder, prepared, tmp_path_factory):
    """A run of two epochs."""
    output = tmp_path_factory.mktemp("genesis")
    BUNDLE.train(folder, prepared, output, max_epochs=2)
    return output


def test_training_leaves_encoder_and_decoder_and_a_picture(folder, output):
    for name in ("summary.json", "loss_curve.png", "metrics.csv", "reconstructions.png"):
        assert (output / name).is_file(), name
    manifest = read_manifest(output / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"], manifest["images_seen"]) == ("ModelsGenesis", [16] * 3, 12)
    intensity = manifest["intensity"]
    assert (intensity["standardize_mode"], intensity["mean"], intensity["std"]) == ("fixed", 0.0, 1.0)
    report = load_encoder(UNet(3, 1, 4, **SMALL_NET), output / "encoder.safetensors")
    assert report.coverage == 1 and not report.missing and any(key.startswith(WAY_UP) for key in report.loaded)
    table = pq.read_table(BUNDLE.features(folder, output, network_args=SMALL_NET))
    assert len(table["features"][0].as_py()) == manifest["network"]["num_features"]


def test_segmentation_starts_from_both_and_sees_the_same_range(folder, prepared, output, tmp_path):
    run = segment(folder, prepared, tmp_path, output / "encoder.safetensors", augmentation=0.0, spacing_mm=10)
    start = run.parser.get_parsed_content("start")
    assert start.report.coverage == 1 and any(key.startswith(WAY_UP) for key in start.report.loaded)
    (view,) = run.parser.get_parsed_content("train::trainer").state.batch["views"]
    low, high = view.aminmax()
    assert 0 <= low < 0.1 and 0.5 < high <= 1.001
    assert (tmp_path / "test_report.md").is_file()


def test_views_are_in_the_range_of_the_noise(folder, prepared, tmp_path):
    run = BUNDLE.started(folder, prepared, tmp_path, **{"preprocessing::mean": 0.5, "preprocessing::std": 0.25})
    trainer = run.parser.get_parsed_content("train#trainer")
    trainer.run()
    target, corrupted = trainer.state.output["target"], trainer.state.output["corrupted"]
    assert -2.01 <= target.min() < -1 and 0 < target.max() <= 2.01
    assert corrupted.min() >= -2.01 and corrupted.max() <= 2.01 and not torch.equal(target, corrupted)


@pytest.mark.parametrize(
    ("fragments", "overrides"),
    [
        (["segresnet.yaml"], {"architecture": "segresnet", "network_args": SMALL_SEGRESNET}),
        (["paper.yaml"], {"network_args": SMALL_NET | {"norm": "BATCH"}, "where": "modality=CT", "policy": "auto"}),
        (["multi_gpu_train.yaml"], {"balance_by": ["modality"]}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(folder, prepared, tmp_path, fragments, overrides):
    quick = {name: BUNDLE.settings[name] for name in ("patch_size", "max_epochs", "steps_per_epoch", "batch_size")}
    BUNDLE.train(folder, prepared, tmp_path, *fragments, **(quick | overrides))
    assert (tmp_path / "encoder.safetensors").is_file()


def test_mistakes_are_explained(folder, prepared, tmp_path):
    each = {"preprocessing::standardize_mode": "per_image"}
    assert "use 'fixed'" in mistake(lambda: BUNDLE.train(folder, prepared, tmp_path, **each))
    assert "'shuffle_prob'" in mistake(lambda: BUNDLE.started(folder, prepared, tmp_path, shuffle_porb=0.5))
