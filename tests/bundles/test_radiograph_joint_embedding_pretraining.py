# SPDX-License-Identifier: Apache-2.0
"""The bundle of joint-embedding methods on a handful of radiographs: every fragment trains, resumes, and is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bundle_runs import BundleRuns
from monai.bundle import ConfigWorkflow
from pretraining_runs import RadiographBundle

from monai_ssl.data import make_example_radiographs
from monai_ssl.engines.plain_errors import own_error
from monai_ssl.networks import build_encoder
from monai_ssl.weights import load_encoder, read_manifest

THIN = {"widen_factor": 0.125}
TINY_VIT = {"img_size": [32, 32], "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
BUNDLE = RadiographBundle(
    "radiograph_joint_embedding_pretraining", network_args=THIN, **{"train::trainer::epoch_length": 3}
)
# Of all that follows a training, and of what watches it, one run is enough.
train, started, NO_PICTURES = BUNDLE.train_only, BUNDLE.started, BUNDLE.no_pictures
HEAD = {"hidden_features": 32}
CROPS = {"small_size": 16, "num_small": 2}
CODES = CROPS | {"num_outputs": 16, "method::hidden_features": 32, "method::bottleneck_features": 16}
VIT = CODES | {"network_args": TINY_VIT | {"interpolate_positions": True}}
LABELS = {"label_column": ["effusion", "nodule"]}
FRAGMENTS: dict[str, tuple[str, dict[str, Any]]] = {
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
    "supervised.yaml": ("Supervised", LABELS),
    "hybrid.yaml": ("Hybrid(SimCLR)", LABELS | {"label_fraction": 0.5}),
    "vit.yaml": ("SimCLR", {"network_args": TINY_VIT}),
    "densenet121.yaml": ("SimCLR", {"network_args": {"init_features": 8, "growth_rate": 4, "block_config": [1, 1]}}),
    "multi_gpu_train.yaml": ("SimCLR", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_example_radiographs(tmp_path_factory.mktemp("radiographs") / "images", num_patients=24, size=64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def trained(folder, prepared, tmp_path_factory) -> Path:
    """SimCLR with all that follows."""
    output = tmp_path_factory.mktemp("run")
    settings = {"label_column": "effusion", "probe_split": "test", "probe_every": 1, "max_epochs": 2}
    run = started(folder, prepared, output, **settings)
    assert not run.check_properties()
    run.run()
    run.finalize()
    return output


def test_training_leaves_an_encoder_and_a_verdict(trained):
    for name in ("encoder.safetensors", "summary.json", "summary.md", "loss_curve.png", "metrics.csv"):
        assert (trained / name).is_file(), name
    manifest = read_manifest(trained / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"], manifest["images_seen"]) == ("SimCLR", [32, 32], 24)
    summary = json.loads((trained / "summary.json").read_text())
    assert 0 <= summary["probe"]["pretrained"]["auc"] <= 1
    assert "radiograph_classification" in summary["next_command"]


def test_the_encoder_loads_into_the_downstream_bundle(trained, folder, prepared, tmp_path):
    settings = {
        "dataset_dir": str(folder),
        "output_dir": str(tmp_path),
        "cache_dir": str(prepared),
        "stored_side": 64,
        "encoder_weights": str(trained / "encoder.safetensors"),
        "label_column": "effusion",
        "max_epochs": 1,
        "steps_per_epoch": 2,
        "batch_size": 4,
        "resamples": 20,
        "precision": "fp32",
        "channels_last": False,
        "head_init": "random",
    }
    run = BundleRuns("radiograph_classification").run("train", settings)
    assert run.parser.get_parsed_content("start").mode == "finetune"
    assert "SimCLR" in (tmp_path / "test_report.md").read_text()


def test_inference_writes_features(trained, folder, tmp_path):
    settings = {
        "dataset_dir": str(folder),
        "output_dir": str(tmp_path),
        "encoder_weights": str(trained / "encoder.safetensors"),
        "network_args": THIN,
        "stored_side": 64,
    }
    BundleRuns(BUNDLE.root.name).run("inference", settings)
    table = pq.read_table(tmp_path / "features.parquet")
    assert len(table) == len(list((folder / "images").iterdir()))
    assert table["features"].type.list_size == 64


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_trains(folder, prepared, tmp_path, fragment):
    method, overrides = FRAGMENTS[fragment]
    run = train(folder, prepared, tmp_path, fragment, **NO_PICTURES, **overrides)
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert (manifest["method"], manifest["images_seen"]) == (method, 12)
    trainer = run.parser.get_parsed_content("train#trainer")
    fresh = build_encoder(manifest["network"]["architecture"], **manifest["network"]["arguments"])
    assert not load_encoder(fresh, tmp_path / "encoder.safetensors").missing
    assert trainer.optimizer_steps == 3 and np.isfinite(trainer.state.output["loss"])


def test_every_fragment_is_tried():
    others = {"train.yaml", "imagenet_start.yaml"}  # the latter needs a checkpoint, and has its own test
    assert {path.name for path in (BUNDLE.root / "configs").glob("*.yaml")} == set(FRAGMENTS) | others


def test_an_imagenet_checkpoint_starts_a_training(folder, prepared, tmp_path):
    source = build_encoder("resnet18", in_channels=3, bias_downsample=False, **THIN).net.state_dict()
    torch.save(source | {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}, tmp_path / "imagenet.pth")
    arguments = {"network_args": THIN | {"bias_downsample": False}, "encoder_weights": str(tmp_path / "imagenet.pth")}
    train(folder, prepared, tmp_path / "run", "imagenet_start.yaml", **NO_PICTURES, **arguments)
    assert len(read_manifest(tmp_path / "run/encoder.safetensors")["lineage"]) == 1


def test_a_supervised_stage_precedes_another(folder, prepared, tmp_path):
    train(folder, prepared, tmp_path / "first", "supervised.yaml", **NO_PICTURES, **LABELS)
    weights = str(tmp_path / "first/encoder.safetensors")
    train(folder, prepared, tmp_path / "second", encoder_weights=weights, **NO_PICTURES)
    manifest = read_manifest(tmp_path / "second/encoder.safetensors")
    assert (manifest["method"], [stage["method"] for stage in manifest["lineage"]]) == ("SimCLR", ["Supervised"])


def test_a_share_of_the_labels_is_that_of_fine_tuning(folder, prepared, tmp_path):
    run = started(folder, prepared, tmp_path, "hybrid.yaml", label_column="effusion", label_fraction=0.5)
    labels, dataset = (run.parser.get_parsed_content(name) for name in ("supervision", "train#dataset"))
    assert dataset.rows.tolist() == run.parser.get_parsed_content("pool_rows").tolist()
    shown = [
        row
        for row, item in zip(dataset.rows, map(dataset.__getitem__, range(len(dataset))), strict=True)
        if item["label"] >= 0
    ]
    assert shown == labels.rows["train"].tolist() and 0 < len(shown) < len(dataset)
    assert {"label", "group_id"} <= dataset[0].keys()
    assert "--label_fraction 0.5" in _next_arguments(run)
    whole = started(folder, prepared, tmp_path / "whole", "supervised.yaml", label_column="effusion")
    rows = whole.parser.get_parsed_content("train#dataset").rows.tolist()
    assert rows == whole.parser.get_parsed_content("pool_rows").tolist() and set(shown) < set(rows)


def _next_arguments(run: ConfigWorkflow) -> str:
    given = run.parser.get_parsed_content("summary#next_arguments")
    return " ".join(f"--{name} {value}" for name, value in given.items())


def test_resumed_training_repeats_the_losses(folder, prepared, tmp_path):
    BUNDLE.assert_resumes(folder, prepared, tmp_path, **BUNDLE.ONLY_TRAINING)


def test_a_collapsed_run_ends_if_asked(folder, prepared, tmp_path):
    collapsing = {"stop_on_collapse": True, "train::handlers::3::every_steps": 1, "train::handlers::3::grace": 0}
    steps = {"max_epochs": 12, "train::trainer::epoch_length": 3}
    run = started(folder, prepared, tmp_path, **(BUNDLE.ONLY_TRAINING | NO_PICTURES | collapsing | steps))
    trainer = run.parser.get_parsed_content("train#trainer")
    with torch.no_grad():
        for parameter in trainer.method.encoder.parameters():
            parameter.zero_()  # all images look alike from now on
    with pytest.raises(SystemExit) as stopped:
        trainer.run()
    assert "collapsed" in str(stopped.value) and trainer.optimizer_steps < 36


@pytest.mark.parametrize(
    ("fragments", "overrides", "words"),
    [
        ([], {"learning_rte": 0.1}, "learning_rate"),
        ([], {"label_column": "lable"}, "label"),
        ([], {"temperature": 0}, "temperature"),
        ([], {"dataset_dir": "nowhere"}, "nowhere"),
        ([], {"batch_size": 4096}, "batch_size"),
        (["supervised.yaml"], {"label_column": "efusion"}, "effusion"),
        (["hybrid.yaml"], LABELS | {"label_fraction": 0}, "label_fraction"),
        (["ibot.yaml"], {"architecture": "resnet18"}, "vit"),
        (["swav.yaml"], CROPS | {"num_small": -1}, "num_small"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, (dict, list)) else "",
)
def test_mistakes_are_named(folder, prepared, tmp_path, fragments, overrides, words):
    with pytest.raises((Exception, SystemExit)) as caught:
        started(folder, prepared, tmp_path, *fragments, **overrides).run()
    error = own_error(caught.value) or caught.value
    assert words.lower() in str(error).lower(), str(error)
