# SPDX-License-Identifier: Apache-2.0
"""The bundle of VoCo on a few tiny volumes: every config runs, resumes and leaves an encoder."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from pretraining_runs import PretrainingBundle, mistake

from monai_ssl.weights import read_manifest

SMALL_NET = {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}
SMALL_SWIN = {
    "network_args": {"feature_size": 12, "window_size": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
    "crop_size": [32, 32, 32],
    "policy": "auto",
}
BUNDLE = PretrainingBundle(
    "volume_voco_pretraining",
    view_size=[16, 32, 32],
    grid=[1, 2, 2],
    crop_size=[16, 16, 16],
    network_args=SMALL_NET,
)


def test_training_leaves_an_encoder(folder, prepared, tmp_path):
    run = BUNDLE.train(folder, prepared, tmp_path)
    batch = run.parser.get_parsed_content("train#trainer").state.batch
    store = run.parser.get_parsed_content("store")
    assert batch["image"].shape[2:] >= min(store.shape(row) for row in batch["index"].tolist())  # read whole
    assert tuple(batch["views"][0].shape[2:]) == (16, 32, 32)
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"]) == ("VoCo", [16, 16, 16])
    assert manifest["intensity"]["mean"] == 0.5 and not (tmp_path / "reconstructions.png").exists()
    table = pq.read_table(BUNDLE.features(folder, tmp_path, network_args=SMALL_NET, view_size=[16, 32, 32]))
    assert len(table["features"][0].as_py()) == manifest["network"]["num_features"]


def test_resumed_training_repeats_the_losses(folder, prepared, tmp_path):
    BUNDLE.assert_resumes(folder, prepared, tmp_path, teacher_momentum=0.9)


@pytest.mark.parametrize(
    ("fragments", "overrides"),
    [
        (["resnet18.yaml"], {"network_args": {"widen_factor": 0.125}}),
        (["paper.yaml"], SMALL_SWIN),
        (["released_code.yaml"], SMALL_SWIN),
        (["multi_gpu_train.yaml"], {"formula": "released"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(folder, prepared, tmp_path, fragments, overrides):
    BUNDLE.train(folder, prepared, tmp_path, *fragments, **overrides)
    assert (tmp_path / "encoder.safetensors").is_file()


def test_mistakes_are_explained(folder, prepared, tmp_path):
    assert "nothing to tell apart" in mistake(lambda: BUNDLE.train(folder, prepared, tmp_path, grid=[1, 1, 1]))
    assert "formula" in mistake(lambda: BUNDLE.train(folder, prepared, tmp_path, formula="papre"))
