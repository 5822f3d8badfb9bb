# SPDX-License-Identifier: Apache-2.0
"""The probe of organs: what a patch is about, watched online and told in the summary."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from toy_volumes import make_toy_volumes, open_toy_volumes

from monai_ssl.evaluation import Preprocessing, online_place_probe, place_probe, pretraining_summary
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

SIZE = (8, 8, 8)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    return open_toy_volumes(make_toy_volumes(root / "volumes", num_patients=20), root / "cache")


def test_splits_are_of_different_patients_and_all_classes_are_there(store):
    probe = place_probe(store, Preprocessing(SIZE), SIZE, {"ball": 1, "cube": 4}, split="test")
    train, test = (set(probe.labels.groups[probe.labels.rows[name]]) for name in ("train", "test"))
    assert train and test and not train & test
    assert probe.labels.class_names == ["none", "ball", "cube"]
    assert np.array_equal(probe.labels.targets, probe.places.labels)


def test_without_names_every_value_is_a_class(store):
    assert place_probe(store, Preprocessing(SIZE), SIZE).labels.class_names == ["none", "label 1", "label 4"]


def test_no_label_maps_no_probe(store, monkeypatch):
    monkeypatch.setattr(type(store), "has_label_map", lambda self, row: False)
    assert place_probe(store, Preprocessing(SIZE), SIZE) is None
    assert online_place_probe(None) is None


def test_the_summary_judges_by_places(store, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = build_encoder("unet", 3, 1, channels=[8, 16, 16], strides=[2, 2], num_res_units=1)
    weights = tmp_path / "encoder.safetensors"
    save_encoder(encoder, weights, {"method": "Test"})
    probe = place_probe(store, Preprocessing((16, 16, 16)), (16, 16, 16), split="test", per_class=2)
    summary = pretraining_summary(
        weights, store, range(len(store)), Preprocessing((16, 16, 16)), tmp_path, places=probe, split="test"
    )
    found = summary["probe"]
    assert found["num_labels"] == len(probe.labels.rows["train"]) and found["classes"][0] == "none"
    assert found["pretrained"]["auc"] > 0.6, "a ball and a cube are brighter than what is round them"
    assert "places of test" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["probed"] == "places"
