# SPDX-License-Identifier: Apache-2.0
"""The bundle volume_classification on tiny made-up volumes, every config and mode, NIfTI and DICOM."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_runs import BundleRuns, untouched_logging
from safetensors.torch import load_file
from toy_volumes import make_toy_volumes, toy_volume, write_ct_series

from monai_ssl.data import volume_policy
from monai_ssl.evaluation import read_classifier_card
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

BUNDLE = BundleRuns("volume_classification")
TINY = {"init_filters": 8, "blocks_down": [1, 1, 1]}
DENSE = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}
QUICK = {
    "modality": "CT",
    "label_column": "cube",
    "image_size": 16,
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "batch_size": 2,
    "precision": "fp32",
    "channels_last": False,
    "resamples": 20,
    "store::num_workers": 0,
}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return make_toy_volumes(tmp_path_factory.mktemp("toy") / "volumes", num_patients=20, cube_side=8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A SegResNet with its decoder, as masked modelling leaves it."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    encoder = build_encoder("segresnet", 3, out_channels=1, blocks_up=[1, 1], **TINY)
    manifest = {
        "method": "SparK3D",
        "images_seen": 64,
        "patch_size": [16, 16, 16],
        "spacing_mm": [2.0, 2.0, 2.0],
        "orientation": "SPL",
        "intensity": {"policy": volume_policy("ct").to_dict(), "mean": 0.4, "std": 0.2},
    }
    save_encoder(encoder, path, manifest, with_decoder=True)
    return path


@pytest.fixture
def settings(volumes, tmp_path) -> dict:
    return QUICK | {
        "dataset_dir": str(volumes),
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(volumes.parent / "cache"),
    }


@pytest.fixture
def scratch(settings) -> dict:
    return settings | {"network_args": TINY}


def using(settings: dict) -> dict:
    kept = ("dataset_dir", "output_dir", "cache_dir", "resamples", "store::num_workers")
    return {key: settings[key] for key in kept}


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_from_weights_to_predictions(mode, settings, weights, volumes):
    out = Path(settings["output_dir"])
    settings = {key: value for key, value in settings.items() if key != "image_size"}
    more = {"head_warmup_steps": 2, "label_fraction": 0.5, "fit": "native"} if mode == "finetune" else {}
    workflow = BUNDLE.run("train", settings | {"mode": mode, "encoder_weights": str(weights), **more})
    card = read_classifier_card(out / "model.pt")
    assert (card.mode, card.lineage_in_words) == ("linear" if mode == "frozen" else mode, "SparK3D (64 images seen)")
    assert (card.task, card.num_labels, card.modality) == ("binary", 6 if more else 12, "CT")
    prepared = card.prepared()
    assert (prepared.image_size, prepared.fit) == ((16, 16, 16), "native" if more else "stretch")
    assert (prepared.spacing_mm, prepared.orientation, prepared.mean) == ((2.0, 2.0, 2.0), "SPL", 0.4)

    report = workflow.parser.get_parsed_content("start").report
    pretrained, trained = load_file(weights), workflow.parser.get_parsed_content("network_def").state_dict()
    encoder_keys = {key for key in pretrained if not key.startswith("up_")}
    assert report.coverage == 1 and set(report.loaded) == encoder_keys < pretrained.keys()
    moved = {key: not torch.equal(pretrained[key], trained[key]) for key in encoder_keys}
    assert any(moved.values()) == (mode == "finetune")

    report = json.loads((out / "test_report.json").read_text())
    first = report["rows"][0]
    assert (first["lineage"], first["split_hash"], first["mode"]) == (card.lineage_in_words, card.split_hash, card.mode)
    assert first["positives"] == first["negatives"] == 2
    assert first["seen"] == prepared.describe() and "| volumes with |" in (out / "test_report.md").read_text()
    BUNDLE.run("evaluate", using(settings) | {"report_name": "again"})
    again = json.loads((out / "again.json").read_text())
    assert [row["auc"] for row in again["rows"]] == [row["auc"] for row in report["rows"]]
    BUNDLE.run("evaluate", using(settings) | {"split": "all", "where": "site=B"})
    assert json.loads((out / "all_report.json").read_text())["rows"][0]["positives"] == 5

    BUNDLE.run("inference", {"dataset_dir": str(volumes), "output_dir": str(out), "store::num_workers": 0})
    content = json.loads((out / "predictions.json").read_text())
    found = {entry["path"]: entry["probabilities"]["1"] for entry in content["volumes"]}
    with open(out / "again_predictions.csv", newline="") as file:
        expected = {row["path"]: float(row["1"]) for row in csv.DictReader(file)}
    assert {path: found[path] for path in expected} == pytest.approx(expected, abs=1e-4)


def test_scratch_learns_and_classifies_new_files(scratch, tmp_path, volumes):
    longer = {"max_epochs": 2, "steps_per_epoch": 20, "batch_size": 6, "learning_rate": 0.01, "weight_average": 0.8}
    longer |= {
        "keep": "last",
        "architecture": "densenet121",
        "network_args": DENSE,
        "image_size": 32,
        "spacing_mm": 2,
        "fit": "native",
    }
    with untouched_logging():
        BUNDLE.run("train", scratch | longer, logging_file=None)
    out = Path(scratch["output_dir"])
    first = json.loads((out / "test_report.json").read_text())["rows"][0]
    assert (first["auc"], first["lineage"]) == (1.0, "random")

    folder, rng = tmp_path / "new", np.random.default_rng(5)
    folder.mkdir()
    shutil.copy(volumes / "images/p05.nii.gz", folder / "without.nii.gz")
    array, _ = toy_volume(rng, (28, 24, 20), cube_side=8)
    write_ct_series(folder / "series", array.transpose(2, 1, 0), np.eye(3)[:2], (2.0, 1.5, 1.0))
    (folder / "broken.nii.gz").write_bytes(b"no volume")
    BUNDLE.run("inference", {"dataset_dir": str(folder), "output_dir": str(out), "store::num_workers": 0})
    content = json.loads((out / "predictions.json").read_text())
    found = {entry["path"]: entry["probabilities"]["1"] for entry in content["volumes"]}
    assert found.keys() == {"series", "without.nii.gz"} and found["series"] > found["without.nii.gz"] + 0.1
    assert [(refused["path"], bool(refused["reason"])) for refused in content["refused"]] == [("broken.nii.gz", True)]
    assert content["preprocessing"]["fit"] == "native"


def test_resume_ends_with_the_same_weights(scratch):
    settings = scratch | {"max_epochs": 2, "keep": "last", "train::handlers::2::every_steps": 2}
    whole = settings | {"output_dir": scratch["output_dir"] + "_whole"}
    BUNDLE.run("train", whole)
    BUNDLE.run("train", settings)
    out = Path(settings["output_dir"])
    sorted((out / "checkpoints").glob("training_*.pt"))[-1].unlink()  # as if killed in the second epoch
    (out / "model.pt").unlink()
    BUNDLE.run("train", settings | {"resume": True})
    first, second = (torch.load(Path(s["output_dir"]) / "model.pt", weights_only=True) for s in (whole, settings))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_mistakes_are_answered(settings, scratch, weights, tmp_path):
    assert "did you mean 'cube'" in BUNDLE.message("train", scratch | {"label_column": "cub"})
    assert "learning_rate" in BUNDLE.message("train", scratch | {"learning_rte": 0.1})
    assert "fit must be one of stretch, pad, crop, native" in BUNDLE.message("train", scratch | {"fit": "natve"})
    assert "3 sides" in BUNDLE.message("train", scratch | {"image_size": [16, 16]})
    assert "mode must be one of linear" in BUNDLE.message("train", scratch | {"mode": "probe"})
    other = settings | {"encoder_weights": str(weights), "policy": "ct_bone", "cache_dir": str(tmp_path / "cache")}
    assert "another intensity policy" in BUNDLE.message("train", other)
    nowhere = {"dataset_dir": settings["dataset_dir"], "output_dir": str(tmp_path / "no"), "store::num_workers": 0}
    nowhere |= {"modality": "CT"}
    assert "there is no trained classifier" in BUNDLE.message("inference", nowhere)


@pytest.mark.realdata
def test_nodules_keep_their_size(real_data, tmp_path):
    """LIDC crops: with fit "native" voxels are mm, so a nodule's size reaches the network; "stretch" takes it away."""
    source, folder = real_data / "volumes_ct/lidc_nodules", tmp_path / "nodules"
    with open(source / "lidc_nodules.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["nz"]) >= 6]
    chosen = []
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for malignant in "01":
            chosen += [row for row in rows if (row["split"], row["malignant"]) == (split, malignant)][:count]
    (folder / "image").mkdir(parents=True)
    names = ("image", "patient_id", "split", "malignant", "diameter_mm")
    with open(folder / "nodules.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *names[1:]])
        for row in chosen:
            shutil.copy(source / row["image"], folder / row["image"])
            writer.writerow([row[name] for name in names])
    settings = QUICK | {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "network_args": TINY}
    settings |= {"label_column": "malignant", "policy": "ct_lung", "spacing_mm": [2.0, 1.0, 1.0], "fit": "native"}
    BUNDLE.run("train", settings | {"image_size": [16, 32, 32]})
    card = read_classifier_card(tmp_path / "out/model.pt")
    assert card.prepared().describe() == "the middle of 16 x 32 x 32 voxels as they are, at 2 x 1 x 1 mm"
    first = json.loads((tmp_path / "out/test_report.json").read_text())["rows"][0]
    assert first["positives"] == first["negatives"] == 3


@pytest.mark.slow
def test_two_processes_train_one_model(settings, weights):
    printed = BUNDLE.train_in_two_processes(settings | {"encoder_weights": str(weights), "head_warmup_steps": 2})
    out = Path(settings["output_dir"])
    assert printed.count("test AUC") == 1
    assert (out / "model.pt").is_file() and (out / "test_report.md").is_file()
