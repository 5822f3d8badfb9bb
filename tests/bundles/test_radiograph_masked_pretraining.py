# SPDX-License-Identifier: Apache-2.0
"""The bundle of masked pretraining on a few small radiographs: every config runs, resumes and leaves usable weights."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bundle_runs import BundleRuns
from monai.networks.nets import UNet
from pretraining_runs import RadiographBundle, mistake

from monai_ssl.data import make_example_radiographs
from monai_ssl.weights import load_encoder, read_manifest

SMALL_NET = {
    "network_args": {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 2, "norm": ["group", {"num_groups": 1}]}
}
TINY_VIT = {"img_size": [32, 32], "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}


BUNDLE = RadiographBundle("radiograph_masked_pretraining", block_size=8, probe_every=1, **SMALL_NET)
train, started = BUNDLE.train, BUNDLE.started


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_example_radiographs(tmp_path_factory.mktemp("radiographs") / "images", num_patients=30, size=64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


def test_training_leaves_weights_for_a_plain_network_pictures_and_a_verdict(folder, prepared, tmp_path, capsys):
    train(folder, prepared, tmp_path, max_epochs=2, label_column="effusion", probe_split="test")
    for name in ("encoder.safetensors", "summary.json", "summary.md", "loss_curve.png", "reconstructions.png"):
        assert (tmp_path / name).is_file(), name
    assert "knn" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"]) == ("MaskedAutoencoderCNN", [32, 32])
    assert manifest["images_seen"] == 2 * 4 * (manifest["images_seen"] // 8) > 0
    assert manifest["intensity"]["standardize_mode"] == "per_image" and manifest["data_fingerprint"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["probe"]["pretrained"]["auc"] > 0 and summary["probe"]["untrained"]["auc"] > 0
    assert "untrained" in capsys.readouterr().out
    net = UNet(2, 1, 4, **SMALL_NET["network_args"])  # another task: as many classes as you like
    report = load_encoder(net, tmp_path / "encoder.safetensors")
    assert report.coverage == 1 and not report.missing
    # The same pixels may be read again for features.
    table = pq.read_table(BUNDLE.features(folder, tmp_path, stored_side=64, **SMALL_NET))
    assert len(table) == len(list((folder / "images").iterdir()))
    assert table["features"].type.list_size == manifest["network"]["num_features"] == 8


def test_properties_of_the_workflow_are_complete(folder, prepared, tmp_path):
    assert not started(folder, prepared, tmp_path).check_properties()


@pytest.mark.parametrize(
    ("fragments", "overrides"),
    [
        (["sparse.yaml"], {}),
        (["vit.yaml"], {"network_args": TINY_VIT}),
        (["simmim.yaml"], {"network_args": TINY_VIT}),
        (["multi_gpu_train.yaml"], {}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(folder, prepared, tmp_path, fragments, overrides):
    train(folder, prepared, tmp_path, *fragments, **overrides)
    assert (tmp_path / "encoder.safetensors").is_file() and (tmp_path / "reconstructions.png").is_file()


@pytest.mark.parametrize("fragments", [[], ["vit.yaml"]], ids=["unet", "vit"])
def test_a_classifier_starts_from_the_weights(folder, prepared, tmp_path, fragments):
    overrides = {"network_args": TINY_VIT} if fragments else {}
    train(folder, prepared, tmp_path, *fragments, **overrides)
    settings = {
        "dataset_dir": str(folder),
        "cache_dir": str(prepared),
        "output_dir": str(tmp_path / "classifier"),
        "encoder_weights": str(tmp_path / "encoder.safetensors"),
        "stored_side": 64,
        "label_column": "pneumothorax",
        "max_epochs": 1,
        "steps_per_epoch": 1,
        "batch_size": 4,
        "resamples": 20,
        "precision": "fp32",
        "channels_last": False,
        "probe_c": 1.0,
    }
    run = BundleRuns("radiograph_classification").run("train", settings)
    start = run.parser.get_parsed_content("start")
    assert start.mode == "finetune" and start.preprocessing.image_size == (32, 32)
    assert start.report.loaded and not start.report.missing


def test_resumed_training_repeats_the_losses(folder, prepared, tmp_path):
    BUNDLE.assert_resumes(folder, prepared, tmp_path)


def test_what_is_dark_can_be_left_out(folder, prepared, tmp_path):
    run = started(folder, prepared, tmp_path, valid_above=0.5)
    trainer = run.parser.get_parsed_content("train#trainer")
    trainer.run()
    output, (view,) = trainer.state.output, trainer.state.batch["views"]
    assert output["counted"] == pytest.approx((output["mask"] & (view > 0.5)).float().mean().item())
    assert 0 < output["counted"] < output["mask"].float().mean()


def test_a_stage_continues_another(folder, prepared, tmp_path):
    train(folder, prepared, tmp_path / "first")
    weights = str(tmp_path / "first/encoder.safetensors")
    train(folder, prepared, tmp_path / "second", "sparse.yaml", encoder_weights=weights)
    (stage,) = read_manifest(tmp_path / "second/encoder.safetensors")["lineage"]
    assert stage["method"] == "MaskedAutoencoderCNN"


def test_mistakes_are_explained(folder, prepared, tmp_path):
    assert "'mask_ratio'" in mistake(lambda: started(folder, prepared, tmp_path, mask_ratoi=0.5))
    assert "block size" in mistake(lambda: train(folder, prepared, tmp_path, block_size=7))
    assert "decoder" in mistake(lambda: train(folder, prepared, tmp_path, decoder_args={}))
    assert "label" in mistake(lambda: train(folder, prepared, tmp_path, label_column="lable"))
    (tmp_path / "empty").mkdir()
    assert "no images" in mistake(lambda: train(tmp_path / "empty", tmp_path / "cache", tmp_path))
