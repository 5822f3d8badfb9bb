# SPDX-License-Identifier: Apache-2.0
"""The bundle volume_segmentation on tiny made-up volumes, every config and mode, NIfTI and DICOM."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from toy_volumes import make_toy_volumes, write_ct_series

from monai_ssl.data import CTIntensity, volume_policy
from monai_ssl.engines.plain_errors import own_error
from monai_ssl.evaluation import (
    Preprocessing,
    SegmenterCard,
    compare_segmentations,
    read_segmenter_card,
    save_segmenter,
)
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

BUNDLE = Path(__file__).parents[2] / "bundles/volume_segmentation"
TINY = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
QUICK = {
    "modality": "CT",
    "classes": {"ball": 1, "cube": 4},
    "patch_size": 16,
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "batch_size": 2,
    "val_interval": 1,
    "precision": "fp32",
    "channels_last": False,
    "resamples": 20,
    "store::num_workers": 0,
}
WORKFLOWS = {"train": "train", "evaluate": "evaluation", "inference": "inference"}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return make_toy_volumes(tmp_path_factory.mktemp("toy") / "volumes")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A SegResNet with its decoder, as masked modelling leaves it."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    encoder = build_encoder("segresnet", 3, out_channels=1, **TINY)
    manifest = {
        "method": "SparK3D",
        "images_seen": 64,
        "patch_size": [16, 16, 16],
        "spacing_mm": [1.5, 1.5, 1.5],
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


def run(name: str, settings: dict, **options) -> ConfigWorkflow:
    config = next((BUNDLE / "configs").glob(f"{name}.*"))
    workflow = ConfigWorkflow(
        config_file=str(config),
        workflow_type=WORKFLOWS[name],
        bundle_root=str(BUNDLE),
        **{"logging_file": False, **options},
        **settings,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


def failing(name: str, settings: dict) -> str:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(name, settings)
    error = own_error(caught.value)
    assert error is not None, caught.value
    return str(error)


def using(settings: dict, *more: str) -> dict:
    kept = ("dataset_dir", "output_dir", "cache_dir", "resamples", "store::num_workers", *more)
    return {key: settings[key] for key in kept}


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_from_weights_to_label_maps(mode, settings, weights):
    out = Path(settings["output_dir"])
    settings = {key: value for key, value in settings.items() if key != "patch_size"}
    more = {"encoder_warmup_steps": 2, "label_fraction": 0.5} if mode == "finetune" else {}
    workflow = run("train", settings | {"mode": mode, "encoder_weights": str(weights), **more})
    card = read_segmenter_card(out / "model.pt")
    assert (card.mode, card.lineage_in_words, card.num_labels) == (mode, "SparK3D (64 images seen)", 3 if more else 6)
    assert card.preprocessing["spacing_mm"] == [1.5, 1.5, 1.5] and card.preprocessing["orientation"] == "SPL"
    assert card.preprocessing["mean"] == 0.4 and card.preprocessing["image_size"] == [16, 16, 16]
    start = workflow.parser.get_parsed_content("start")
    assert start.report.coverage == 1 and any("up_layers" in key for key in start.report.loaded)
    moved = _moved(workflow, weights)
    assert any(moved[key] for key in moved if "up_layers" in key)
    assert any(moved[key] for key in moved if "down_layers" in key) == (mode == "finetune")

    report = json.loads((out / "test_report.json").read_text())
    first = report["rows"][0]
    assert (first["lineage"], first["split_hash"], first["mode"]) == (card.lineage_in_words, card.split_hash, mode)
    assert first["spacing"] == "1.5 x 1.5 x 1.5 mm" and (out / "test_report_examples.png").stat().st_size > 5000

    run("evaluate", using(settings) | {"report_name": "again"})
    again = json.loads((out / "again.json").read_text())
    assert again["volumes"] == report["volumes"]
    assert compare_segmentations(out / "again_volumes.csv", out / "test_report_volumes.csv", n=20).value == 0
    run("evaluate", using(settings) | {"split": "all", "where": "site=B"})
    assert json.loads((out / "all_report.json").read_text())["rows"][0]["volumes"] == 5


def _moved(workflow: ConfigWorkflow, weights: Path) -> dict[str, bool]:
    from safetensors.torch import load_file

    before, after = load_file(weights), workflow.parser.get_parsed_content("network_def").state_dict()
    return {key: not torch.equal(value, after[key]) for key, value in before.items()}


def test_scratch_learns_and_segments_new_files(scratch, tmp_path, volumes):
    handlers, level = logging.root.handlers[:], logging.root.level
    longer = {"max_epochs": 2, "steps_per_epoch": 40, "batch_size": 4, "learning_rate": 0.01, "weight_average": 0.8}
    try:
        run("train", scratch | longer | {"classes": {"ball": 1}, "spacing_mm": 2}, logging_file=None)
    finally:
        logging.root.handlers[:], logging.root.level = handlers, level
    out = Path(scratch["output_dir"])
    report = json.loads((out / "test_report.json").read_text())
    assert len(report["rows"]) == 1 and report["rows"][0]["dice"] > 0.6 and report["rows"][0]["lineage"] == "random"

    folder = tmp_path / "new"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(volumes / "images/p03.nii.gz", folder / "sub/oblique.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"no volume")
    run("inference", {"dataset_dir": str(folder), "output_dir": str(out), "store::num_workers": 0})
    content = json.loads((out / "predictions.json").read_text())
    (found,) = content["volumes"]
    assert (found["path"], found["label_map"]) == ("sub/oblique.nii.gz", "sub/oblique_seg.nii.gz")
    assert [(refused["path"], bool(refused["reason"])) for refused in content["refused"]] == [("broken.nii.gz", True)]
    written, source = nib.load(out / "segmentations" / found["label_map"]), nib.load(folder / "sub/oblique.nii.gz")
    truth = np.asarray(nib.load(volumes / "labels/p03.nii.gz").dataobj) == 1
    assert written.shape == source.shape and np.allclose(written.affine, source.affine, atol=1e-5)
    predicted = np.asarray(written.dataobj) == 1
    assert 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()) > 0.6
    assert found["ml"]["ball"] == pytest.approx(predicted.sum() * 3.0 / 1000, rel=1e-3)


def test_dicom_series_get_a_label_map_in_their_own_voxels(tmp_path):
    """An oblique series is resampled and cropped for a network that is told to find bright voxels, and comes back."""
    folder = tmp_path / "dicom"
    shape, spacing_mm = (24, 40, 36), (2.5, 1.5, 0.75)
    a, b = np.radians((20, -10))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    hounsfield = np.full(shape, -1000, np.int16)
    hounsfield[2:-2, 4:-4, 3:-3] = 0
    hounsfield[6:16, 10:24, 12:28] = 1000
    expected = write_ct_series(folder / "one", hounsfield, (about_z @ about_x).T[:2], spacing_mm)
    model = bright_voxel_model(tmp_path / "out")
    settings = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "model_path": str(model)}
    run("inference", settings | {"store::num_workers": 0})
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    (found,) = content["volumes"]
    assert found["label_map"] == "one_seg.nii.gz"
    written = nib.load(tmp_path / "out/segmentations/one_seg.nii.gz")
    np.testing.assert_allclose(written.affine, expected[:, [2, 1, 0, 3]], atol=1e-3)  # (column, row, slice)
    predicted, truth = np.asarray(written.dataobj).T == 1, hounsfield == 1000
    assert predicted.shape == shape
    assert 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()) > 0.9
    assert found["ml"]["bright"] == pytest.approx(truth.sum() * np.prod(spacing_mm) / 1000, rel=0.1)


def bright_voxel_model(folder: Path) -> Path:
    """A UNet of 1 x 1 x 1 convolutions whose logit of class 1 says that a voxel is above 500 HU."""
    arguments = {"channels": [1, 1], "strides": [1], "num_res_units": 0, "norm": None}
    policy = CTIntensity(window_hu=(-1000, 1000)).to_dict()
    prepared = Preprocessing((16, 16, 16), policy, spacing_mm=(2.0, 1.2, 1.0), orientation="SPL")
    card = SegmenterCard(
        architecture="unet",
        network_args={**arguments, "kernel_size": 1, "up_kernel_size": 1},
        spatial_dims=3,
        in_channels=1,
        class_names=["bright"],
        label_values=[[1]],
        preprocessing=prepared.to_dict(),
        modality="CT",
        crop_foreground=True,
    )
    network = card.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.model[0].conv.weight.fill_(1)
        network.model[0].adn.A.weight.fill_(1)  # lets negative values through
        network.model[2].conv.weight[0, 1] = 8  # the skipped image, -2 to 2 after the standardisation, to class 1
        network.model[2].conv.bias[1] = -8  # above 1, which is 500 HU
    save_segmenter(network, card, folder / "bright.pt")
    return folder / "bright.pt"


def test_resume_ends_with_the_same_weights(scratch):
    settings = scratch | {"max_epochs": 2, "keep": "last", "train::handlers::2::every_steps": 2}
    whole = settings | {"output_dir": scratch["output_dir"] + "_whole"}
    run("train", whole)
    run("train", settings)
    out = Path(settings["output_dir"])
    files = sorted((out / "checkpoints").glob("training_*.pt"))
    files[-1].unlink()  # as if killed in the second epoch
    (out / "model.pt").unlink()
    run("train", settings | {"resume": True})
    first, second = (torch.load(Path(s["output_dir"]) / "model.pt", weights_only=True) for s in (whole, settings))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_mistakes_are_answered(settings, scratch, weights, tmp_path):
    assert "no label map has a voxel of cube" in failing("train", scratch | {"classes": ["ball", "cube"]})
    assert "learning_rate" in failing("train", scratch | {"learning_rte": 0.1})
    assert "needs encoder_weights" in failing("train", scratch | {"mode": "finetune"})
    assert "has no decoder and cannot segment" in failing("train", settings | {"architecture": "densenet121"})
    assert "must be multiples of" in failing("train", scratch | {"patch_size": 15})
    assert "another intensity policy" in failing(
        "train", settings | {"encoder_weights": str(weights), "policy": "ct_bone", "cache_dir": str(tmp_path / "cache")}
    )
    nowhere = {"dataset_dir": settings["dataset_dir"], "output_dir": str(tmp_path / "no"), "store::num_workers": 0}
    assert "there is no no.json beside" in failing("inference", nowhere | {"model_path": str(tmp_path / "no.pt")})


@pytest.mark.slow
def test_two_processes_train_one_model(settings, weights):
    configs = BUNDLE / "configs"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE)]
    command += ["--config_file", str([str(configs / "train.yaml"), str(configs / "multi_gpu_train.yaml")])]
    settings = settings | {"encoder_weights": str(weights), "encoder_warmup_steps": 2, "steps_per_epoch": 5}
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    out = Path(settings["output_dir"])
    assert ended.stdout.count("test Dice") == 1
    assert (out / "model.pt").is_file() and (out / "test_report.md").is_file()
