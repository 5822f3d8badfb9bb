# SPDX-License-Identifier: Apache-2.0
"""The manifest: complete, checked, without identifiers, and what becomes of it in later stages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_cases import saved, thin_resnet

from monai_ssl.networks import build_encoder
from monai_ssl.weights import (
    MANIFEST_FIELDS,
    WeightsFileError,
    build_manifest,
    check_manifest,
    load_encoder,
    open_encoder,
    read_manifest,
)

FULL = {
    "method": "C2L",
    "method_args": {"temperature": 0.07, "queue_size": 16384},
    "intensity": {"policy": "radiograph", "value_range": [0, 1], "mean": 0.5, "std": 0.25},
    "spacing_mm": (0.14, 0.14),
    "patch_size": (224, 224),
    "images_seen": np.int64(1200),
    "data_fingerprint": "9f86d081884c7d65",
    "seeds": {"seed": 0},
    "metrics": {"knn_auc": torch.tensor(0.75), "loss": float("nan")},
}


def test_every_field_comes_back_from_the_file(tmp_path):
    manifest = read_manifest(saved(thin_resnet(), tmp_path, **FULL))
    assert list(manifest) == list(MANIFEST_FIELDS)
    assert manifest["spacing_mm"] == [0.14, 0.14] and manifest["images_seen"] == 1200
    assert manifest["metrics"] == {"knn_auc": 0.75, "loss": None}, "not finite is null"
    assert manifest["network"] == {
        "class": "monai.networks.nets.resnet.ResNet",
        "architecture": "resnet10",
        "spatial_dims": 2,
        "in_channels": 1,
        "num_features": 64,
        "arguments": {"conv1_t_stride": 2, "widen_factor": 0.125},
        "stem": {"key": "conv1.weight", "kernel": [7, 7], "stride": [2, 2]},
    }
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["lineage"] == [] and manifest["created"].endswith("+00:00")


def test_fields_left_out_are_null():
    manifest = build_manifest(thin_resnet(), {"method": "MoCo v2"})
    assert list(manifest) == list(MANIFEST_FIELDS)
    assert manifest["images_seen"] is None and manifest["intensity"] is None


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"imgs_seen": 3}, r"no field 'imgs_seen'; did you mean 'images_seen'\?"),
        ({"zzz": 3}, r"no field 'zzz'; there are schema, created"),
        ({"images_seen": "many"}, "'images_seen' must be integer or null, got str"),
        ({"images_seen": True}, "'images_seen' must be integer or null, got bool"),
        ({"spacing_mm": 0.5}, "'spacing_mm' must be list of numbers or null"),
        ({"lineage": ["a"]}, "'lineage' must be list of objects or null"),
        ({"metrics": [1]}, "'metrics' must be object or null"),
        ({"seeds": {"seed": object()}}, "holds numbers, text, lists and objects, not object"),
        ({"schema": 2}, "fields schema are filled in from the encoder"),
        ({"method": ""}, "needs the name of the method"),
        ({"intensity": {"policy": "x" * 301}}, "holds text of 301 characters"),
        ({"data_fingerprint": "/home/smith/images"}, "'data_fingerprint' holds an absolute path"),
        ({"method_args": {"weights": "from ~/start.pt"}}, "holds an absolute path"),
        ({"seeds": {"C:\\users\\smith": 1}}, "holds an absolute path"),
        ({"metrics": {"a": ["file:///x"]}}, "holds an absolute path"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build_manifest(thin_resnet(), {"method": "C2L"} | fields)


def test_harmless_text_is_accepted():
    check_manifest({"method": "C2L (paper 1/3 weights), km/h, a / b, https://arxiv.org/abs/2007.07423"})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m | {"schema": 99}, "written by a newer monai_ssl"),
        (lambda m: m | {"unknown": 1}, "damaged: a manifest has no field"),
        (lambda m: m | {"network": {}}, "damaged: the network is not described"),
        (lambda m: m | {"network": None}, "manifest of .* is damaged"),
        (lambda m: [], "manifest of .* is damaged"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path, change, message):
    path = saved(thin_resnet(), tmp_path)
    save_file(load_file(path), path, {"monai_ssl": json.dumps(change(read_manifest(path)))})
    with pytest.raises(WeightsFileError, match=message):
        read_manifest(path)


def test_lineage_grows_with_each_stage(tmp_path):
    first = saved(thin_resnet(), tmp_path / "1", method="MoCo v2", images_seen=10)
    second = thin_resnet()
    report = load_encoder(second, first)
    assert second.lineage == report.lineage and len(report.lineage) == 1
    assert report.lineage[0].items() >= {"method": "MoCo v2", "images_seen": 10, "architecture": "resnet10"}.items()
    third = open_encoder(saved(second, tmp_path / "2", images_seen=20))
    assert [stage["images_seen"] for stage in third.lineage] == [10, 20]
    assert [stage["method"] for stage in read_manifest(saved(third, tmp_path / "3"))["lineage"]] == ["MoCo v2", "C2L"]
    assert build_encoder("resnet10").lineage == ()
