# SPDX-License-Identifier: Apache-2.0
"""The bundle of joint-embedding methods on a few tiny volumes: every fragment trains, resumes, and is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from bundle_runs import BundleRuns
from monai.bundle import ConfigParser
from pretraining_runs import PretrainingBundle, mistake, segment

from monai_ssl.networks import build_encoder
from monai_ssl.weights import load_encoder, read_manifest

SMALL_NET = {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}
PATCH = [8, 16, 16]
SETTINGS = {"patch_size": PATCH, "network_args": SMALL_NET, "batch_size": 4, "places_per_volume": 2}
# Of all that follows a training, and of what watches it, one run is enough.
ONLY_TRAINING = {"run": ["$@train#trainer.run()"], "probe": None}
BUNDLE = PretrainingBundle("volume_joint_embedding_pretraining", **SETTINGS, **ONLY_TRAINING)
WHOLE = PretrainingBundle("volume_joint_embedding_pretraining", **SETTINGS)
CONFIGS = BUNDLE.root / "configs"
HANDLERS = [
    handler["_target_"] for handler in ConfigParser.load_config_file(CONFIGS / "train.yaml")["train"]["handlers"]
]
NO_PICTURES = {
    f"train::handlers::{HANDLERS.index(f'monai_ssl.handlers.{name}')}::_disabled_": True
    for name in ("TrainingCurves", "PretrainTensorBoard")
}
TINY_VIT = {"patch_size": [4, 8, 8], "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
HEAD = {"hidden_features": 32}
CROPS = {"small_size": [4, 8, 8], "num_small": 2}
CODES = CROPS | {"num_outputs": 16, "method::hidden_features": 32, "method::bottleneck_features": 16}
VIT = CODES | {"network_args": TINY_VIT | {"img_size": PATCH, "interpolate_positions": True}}
FRAGMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "c2l.yaml": ("C2L", {}),
    "moco_v2.yaml": ("MoCoV2", {"queue_size": 8}),
    "moco_v3.yaml": ("MoCoV3", HEAD),
    "byol.yaml": ("BYOL", HEAD),
    "simsiam.yaml": ("SimSiam", HEAD),
    "barlow_twins.yaml": ("BarlowTwins", HEAD),
    "vicreg.yaml": ("VICReg", HEAD),
    "swav.yaml": ("SwAV", CROPS | {"num_prototypes": 8, "method::hidden_features": 32}),
    "dino.yaml": ("DINO", CODES),
    "ibot.yaml": ("IBOT", VIT),
    "dinov2.yaml": ("DINOv2", VIT),
    "dense.yaml": ("DenseContrast", {"queue_size": 8, "method::hidden_features": 32}),
    "pirl.yaml": ("PIRL", {}),
    "rotation.yaml": ("RotationPrediction", {}),
    "supervised.yaml": ("Supervised", {}),
    "hybrid.yaml": ("Hybrid(SimCLR)", {"label_fraction": 0.5}),
    "resnet18.yaml": ("SimCLR", {"network_args": {"widen_factor": 0.125}}),
    "multi_gpu_train.yaml": ("SimCLR", {}),
}


@pytest.fixture(scope="module")
def trained(folder, prepared, tmp_path_factory) -> Path:
    """SimCLR with all that follows."""
    output = tmp_path_factory.mktemp("run")
    run = WHOLE.started(folder, prepared, output, probe_every=1, probe_split="test")
    assert not run.check_properties()
    run.run()
    run.finalize()
    return output


def test_training_leaves_an_encoder_and_a_verdict(trained):
    for name in ("encoder.safetensors", "summary.json", "summary.md", "loss_curve.png", "metrics.csv"):
        assert (trained / name).is_file(), name
    manifest = read_manifest(trained / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"], manifest["images_seen"]) == ("SimCLR", PATCH, 12)
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["probed"] == "places" and 0 <= summary["probe"]["pretrained"]["auc"] <= 1
    assert "volume_segmentation" in summary["next_command"]


def test_the_encoder_loads_into_the_downstream_bundle(trained, folder, prepared, tmp_path):
    run = segment(folder, prepared, tmp_path, trained / "encoder.safetensors")
    start = run.parser.get_parsed_content("start")
    assert (start.mode, start.architecture) == ("finetune", "unet")
    assert (tmp_path / "model.pt").is_file()


def test_inference_writes_features(trained, folder, tmp_path):
    settings = {"network_args": SMALL_NET, "view_size": PATCH, "dataset_dir": str(folder), "output_dir": str(tmp_path)}
    weights = trained / "encoder.safetensors"
    BundleRuns(BUNDLE.root.name).run("inference", settings | {"encoder_weights": str(weights)})
    table = pq.read_table(tmp_path / "features.parquet")
    assert table["features"].type.list_size == read_manifest(weights)["network"]["num_features"]


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_trains(folder, prepared, tmp_path, fragment):
    method, overrides = FRAGMENTS[fragment]
    run = BUNDLE.train(folder, prepared, tmp_path, fragment, **NO_PICTURES, **overrides)
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert (manifest["method"], manifest["images_seen"]) == (method, 12)
    fresh = build_encoder(manifest["network"]["architecture"], 3, **manifest["network"]["arguments"])
    assert not load_encoder(fresh, tmp_path / "encoder.safetensors").missing
    trainer = run.parser.get_parsed_content("train#trainer")
    assert trainer.optimizer_steps == 3 and np.isfinite(trainer.state.output["loss"])


def test_every_fragment_is_tried():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(FRAGMENTS) | {"train.yaml"}


@pytest.mark.parametrize("fragment", ["supervised.yaml", "hybrid.yaml"])
def test_methods_that_train_a_decoder_do_without(folder, prepared, tmp_path, fragment):
    overrides = FRAGMENTS[fragment][1] | {"network_args": {"widen_factor": 0.125}}
    run = BUNDLE.train(folder, prepared, tmp_path, fragment, "resnet18.yaml", **NO_PICTURES, **overrides)
    assert run.parser.get_parsed_content("with_decoder") is False


def test_a_supervised_stage_leaves_its_decoder_to_the_next(folder, prepared, tmp_path):
    first = BUNDLE.train(folder, prepared, tmp_path / "first", "supervised.yaml", **NO_PICTURES)
    labels = first.parser.get_parsed_content("supervision")
    assert first.parser.get_parsed_content("pool_rows").tolist() == labels.rows["train"].tolist()
    weights = tmp_path / "first/encoder.safetensors"
    BUNDLE.train(folder, prepared, tmp_path / "second", encoder_weights=str(weights), **NO_PICTURES)
    manifest = read_manifest(tmp_path / "second/encoder.safetensors")
    assert (manifest["method"], [stage["method"] for stage in manifest["lineage"]]) == ("SimCLR", ["Supervised"])
    whole = build_encoder("unet", 3, out_channels=1 + len(labels.class_names), **SMALL_NET)
    assert load_encoder(whole.net, weights).coverage == 1


def test_a_share_of_the_labels_is_that_of_fine_tuning(folder, prepared, tmp_path):
    run = BUNDLE.started(folder, prepared, tmp_path, "hybrid.yaml", label_fraction=0.5)
    labels, dataset = (run.parser.get_parsed_content(name) for name in ("supervision", "train#dataset"))
    assert dataset.rows.tolist() == run.parser.get_parsed_content("pool_rows").tolist()
    shown = [int(row) for i, row in enumerate(dataset.rows) if dataset[i]["labelled"]]
    assert shown == labels.rows["train"].tolist() and 0 < len(shown) < len(dataset)
    assert run.parser.get_parsed_content("summary#next_arguments")["label_fraction"] == 0.5


def test_resumed_training_repeats_the_losses(folder, prepared, tmp_path):
    BUNDLE.assert_resumes(folder, prepared, tmp_path)


@pytest.mark.parametrize(
    ("fragments", "overrides", "words"),
    [
        ([], {"temperature": 0}, "temperature"),
        ([], {"where": "modality=XA"}, "modality"),
        (["dense.yaml", "resnet18.yaml"], {"network_args": {}}, "must be a multiple of (32, 32, 32)"),
        (["supervised.yaml"], {"probe_classes": {"heart": 200}}, "heart"),
        (["hybrid.yaml"], {"label_fraction": 0}, "label_fraction"),
        (["dinov2.yaml"], {"architecture": "resnet18", "network_args": {}}, "vit"),
        (["swav.yaml"], CROPS | {"small_size": [32, 32, 32]}, "small_size"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, (dict, list)) else "",
)
def test_mistakes_are_explained(folder, prepared, tmp_path, fragments, overrides, words):
    said = mistake(lambda: BUNDLE.train(folder, prepared, tmp_path, *fragments, **overrides))
    assert words in said.lower(), said
