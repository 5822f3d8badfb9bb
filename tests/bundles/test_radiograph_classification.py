# SPDX-License-Identifier: Apache-2.0
"""The bundle radiograph_classification on tiny made-up images, every config, mode and kind of question."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_runs import BundleRuns, untouched_logging
from PIL import Image
from toy_radiographs import make_toy_radiographs

from monai_ssl.data import RadiographIntensity
from monai_ssl.evaluation import read_classifier_card
from monai_ssl.networks import build_encoder
from monai_ssl.weights import WeightsMismatchError, save_encoder

BUNDLE = BundleRuns("radiograph_classification")
TINY = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}
QUICK = {
    "image_size": 32,
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "batch_size": 8,
    "precision": "fp32",
    "channels_last": False,
    "resamples": 20,
    "store::num_workers": 0,
    "store::drop_duplicates": False,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_toy_radiographs(tmp_path_factory.mktemp("toy") / "images")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    encoder = build_encoder("densenet121", **TINY)
    with torch.no_grad():
        for _ in range(30):
            encoder(torch.randn(4, 1, 32, 32))
    intensity = {"policy": RadiographIntensity().to_dict(), "mean": 0.4, "std": 0.2}
    save_encoder(encoder, path, {"method": "C2L", "images_seen": 64, "patch_size": [32, 32], "intensity": intensity})
    return path


@pytest.fixture
def settings(images, tmp_path) -> dict:
    return QUICK | {
        "dataset_dir": str(images),
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(images.parent / "cache"),
        "label_column": "label",
    }


@pytest.fixture
def scratch(settings) -> dict:
    return settings | {"architecture": "densenet121", "network_args": TINY}


def evaluation_settings(settings: dict) -> dict:
    kept = ("dataset_dir", "output_dir", "cache_dir", "resamples", "store::num_workers", "store::drop_duplicates")
    return {key: settings[key] for key in kept}


@pytest.mark.parametrize(
    ("mode", "question", "task"),
    [
        ("linear", {"label_column": "label"}, "multiclass"),
        ("finetune", {"label_column": "sick", "label_fraction": 0.5}, "binary"),
        ("finetune", {"label_column": ["spot_left", "spot_right"], "class_weight_power": 0.5}, "multilabel"),
    ],
)
def test_from_weights_to_predictions(mode, question, task, settings, weights):
    out = Path(settings["output_dir"])
    settings |= {"mode": mode, "encoder_weights": str(weights), **question}
    BUNDLE.run("train", settings)
    card = read_classifier_card(out / "model.pt")
    assert (card.mode, card.task, card.lineage_in_words) == (mode, task, "C2L (64 images seen)")
    assert card.num_labels == (18 if "label_fraction" in question else 36)
    report = json.loads((out / "test_report.json").read_text())
    first = report["rows"][0]
    assert (first["lineage"], first["split_hash"], first["mode"]) == ("C2L (64 images seen)", card.split_hash, mode)
    assert (out / "metrics.csv").exists() == (mode != "linear")

    BUNDLE.run("evaluate", evaluation_settings(settings) | {"report_name": "again", "split": "test"})
    again = json.loads((out / "again.json").read_text())
    assert [row["auc"] for row in again["rows"]] == pytest.approx([row["auc"] for row in report["rows"]], abs=1e-6)
    BUNDLE.run("evaluate", evaluation_settings(settings) | {"split": "all", "where": "site=B"})
    assert (out / "all_report.md").is_file()

    predictions = out / "predictions.json"
    BUNDLE.run("inference", {key: settings[key] for key in ("dataset_dir", "output_dir")} | {"store::num_workers": 0})
    content = json.loads(predictions.read_text())
    assert len(content["images"]) == 60 and content["refused"] == []
    assert list(content["images"][0]["probabilities"]) == card.class_names
    assert content["preprocessing"]["mean"] == 0.4 and content["preprocessing"]["image_size"] == [32, 32]


def test_scratch_learns_the_bright_squares(scratch, tmp_path):
    longer = {"max_epochs": 3, "steps_per_epoch": 10, "batch_size": 16, "learning_rate": 0.02, "weight_average": 0.8}
    with untouched_logging():
        BUNDLE.run("train", scratch | longer | {"balanced_sampling": True, "flip_prob": 0.0}, logging_file=None)
    out = Path(scratch["output_dir"])
    report = json.loads((out / "test_report.json").read_text())
    assert report["rows"][0]["auc"] > 0.9 and report["rows"][0]["lineage"] == "random"

    folder = tmp_path / "new"
    folder.mkdir()
    bright = np.full((50, 50), 90, np.uint8)
    bright[16:34, 8:20] = 200
    Image.fromarray(bright).save(folder / "one.png")
    (folder / "broken.dcm").write_bytes(b"no image")
    BUNDLE.run("inference", {"dataset_dir": str(folder), "output_dir": str(out), "store::num_workers": 0})
    content = json.loads((out / "predictions.json").read_text())
    assert [image["path"] for image in content["images"]] == ["one.png"]
    assert [(refused["path"], bool(refused["reason"])) for refused in content["refused"]] == [("broken.dcm", True)]


def test_resume_ends_with_the_same_weights(scratch):
    settings = scratch | {"max_epochs": 2, "keep": "last", "train::handlers::2::every_steps": 2}
    whole = settings | {"output_dir": scratch["output_dir"] + "_whole"}
    BUNDLE.run("train", whole)
    BUNDLE.run("train", settings)
    out = Path(settings["output_dir"])
    files = sorted((out / "checkpoints").glob("training_*.pt"))
    assert [file.name for file in files] == ["training_00000004.pt", "training_00000006.pt"]
    files[-1].unlink()  # as if killed in the second epoch
    (out / "model.pt").unlink()
    BUNDLE.run("train", settings | {"resume": True})
    first, second = (torch.load(Path(s["output_dir"]) / "model.pt", weights_only=True) for s in (whole, settings))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_mistakes_are_answered(settings, scratch, weights, tmp_path):
    assert "did you mean 'label'" in BUNDLE.message("train", scratch | {"label_column": "lable"})
    assert "did you mean 'right'" in BUNDLE.message("train", scratch | {"classes": ["normal", "rigth"]})
    assert "learning_rate" in BUNDLE.message("train", scratch | {"learning_rte": 0.1})
    assert "needs encoder_weights" in BUNDLE.message("train", scratch | {"mode": "finetune"})
    nowhere = evaluation_settings(settings) | {"output_dir": str(tmp_path / "nowhere")}
    assert "there is no trained classifier" in BUNDLE.message(
        "inference",
        {"output_dir": nowhere["output_dir"]} | {"dataset_dir": settings["dataset_dir"], "store::num_workers": 0},
    )
    assert "split" in BUNDLE.message("evaluate", nowhere)
    error = BUNDLE.error("train", settings | {"encoder_weights": str(weights), "architecture": "resnet18"})
    assert isinstance(error, WeightsMismatchError)


def test_class_absent_from_a_split(scratch, images, tmp_path):
    rows = (images / "labels.csv").read_text().splitlines()
    labels = [row for row in rows if not (",val," in row and ",right," in row)]
    (tmp_path / "labels.csv").write_text("\n".join(labels))
    changed = {"labels_file": str(tmp_path / "labels.csv"), "cache_dir": str(tmp_path / "cache")}
    assert "the split 'val' has no image of right" in BUNDLE.message("train", scratch | changed)


def test_weights_of_another_intensity_policy(settings, tmp_path):
    encoder = build_encoder("densenet121", **TINY)
    policy = RadiographIntensity(stretch_percentiles=(1.0, 99.0)).to_dict()
    manifest = {"method": "C2L", "patch_size": [32, 32], "intensity": {"policy": policy}}
    save_encoder(encoder, tmp_path / "other.safetensors", manifest)
    assert "another intensity policy" in BUNDLE.message(
        "train", settings | {"encoder_weights": str(tmp_path / "other.safetensors")}
    )


@pytest.mark.slow
def test_two_processes_train_one_model(scratch):
    printed = BUNDLE.train_in_two_processes(scratch)
    out = Path(scratch["output_dir"])
    assert printed.count("test AUC") == 1
    assert (out / "model.pt").is_file() and (out / "test_report.md").is_file()
