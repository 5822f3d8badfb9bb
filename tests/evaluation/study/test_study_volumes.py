# SPDX-License-Identifier: Apache-2.0
"""Studies of volumes: a probe of a classification, and a segmentation from a frozen encoder and from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from study_files import QUICK, write_study
from toy_volumes import make_toy_volumes

from monai_ssl.data import volume_policy
from monai_ssl.evaluation.study import read_study, run_study, write_study_report
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return make_toy_volumes(tmp_path_factory.mktemp("toy") / "volumes", num_patients=20, cube_side=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A SegResNet as masked modelling leaves it."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    net = build_encoder("segresnet", 3, out_channels=1, init_filters=8, blocks_down=[1, 1], blocks_up=[1])
    manifest = {
        "method": "MAE",
        "patch_size": [16, 16, 16],
        "spacing_mm": [2.0, 2.0, 2.0],
        "orientation": "SPL",
        "intensity": {"policy": volume_policy("ct").to_dict(), "mean": 0.4, "std": 0.2},
    }
    save_encoder(net, path, manifest, with_decoder=True)
    return path


def test_probe_of_volumes(volumes, encoder, tmp_path):
    task = {"bundle": "volume_classification", "dataset_dir": str(volumes), "modality": "CT", "label_column": "cube"}
    study = read_study(
        write_study(
            tmp_path,
            {**task, **QUICK},
            encoders={"mae": str(encoder)},
            modes=["linear", "knn"],
            fractions=[1.0],
            seeds=1,
            robustness=["window", "bias_field"],
            embedding="none",
        )
    )
    assert run_study(study) == {"done": 4}
    assert len(list((tmp_path / "study/data/toy").iterdir())) == 1  # prepared once, as the encoder needs it
    robustness = json.loads((tmp_path / "study/cells/toy/mae/linear/fraction-1/seed-0/robustness.json").read_text())
    assert set(robustness["perturbations"]) == {"window", "bias_field"}
    report = json.loads((write_study_report(study).parent / "report.json").read_text())
    (row,) = [row for row in report["tables"]["comparisons"] if row["mode"] == "linear"]
    assert row["p_delong"] is None or 0 <= row["p_delong"] <= 1


def test_segmentation_from_a_frozen_encoder_and_from_scratch(volumes, encoder, tmp_path):
    task = {
        "bundle": "volume_segmentation",
        "dataset_dir": str(volumes),
        "modality": "CT",
        "classes": {"ball": 1, "cube": 4},
        **QUICK,
        "max_epochs": 1,
        "val_interval": 1,
        "batch_size": 2,
        "overlap": 0.1,
    }
    study = read_study(
        write_study(
            tmp_path,
            task,
            encoders={"mae": str(encoder)},
            modes=["frozen", "finetune"],
            fractions=[1.0],
            seeds=1,
            robustness=["scale"],
        )
    )
    assert run_study(study) == {"done": 4}
    cells = tmp_path / "study/cells/toy"
    found = {
        (encoder, mode): json.loads((cells / f"{encoder}/{mode}/fraction-1/seed-0/cell.json").read_text())
        for encoder in ("random", "mae")
        for mode in ("frozen", "finetune")
    }
    assert all(cell["result"]["measure"] == "dice" and cell["num_labels"] == 12 for cell in found.values())
    assert found["random", "finetune"]["recipe"]["settings"]["mode"] == "scratch"
    assert found["random", "finetune"]["recipe"]["settings"]["architecture"] == "segresnet"
    tested = json.loads((cells / "mae/finetune/fraction-1/seed-0/robustness.json").read_text())
    assert tested["score"] == pytest.approx(found["mae", "finetune"]["result"]["score"], abs=1e-4)
    assert len(tested["perturbations"]["scale"]["scores"]) == 4 and tested["measure"] == "dice"
    report = write_study_report(study)
    assert "toy: dice by the number of labels" in report.read_text()
    assert "no test" in report.read_text()
