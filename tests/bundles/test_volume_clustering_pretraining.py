# SPDX-License-Identifier: Apache-2.0
"""The bundle of online clustering on a few tiny volumes: every config runs, resumes, and names mistakes."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bundle_runs import BundleRuns
from ignite.engine import Events
from pretraining_runs import PretrainingBundle, losses

from monai_ssl.losses import IGNORED_LABEL
from monai_ssl.weights import read_manifest

NAME = "volume_clustering_pretraining"
SMALL_NET = {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}
ORGANS = ["liver", "spleen", "kidneys"]
SMALL = {
    "patch_size": [8, 16, 16],
    "small_size": [8, 8, 8],
    "num_small": 1,
    "batch_size": 4,
    "num_prototypes": 4,
    "queue_size": 8,
    "freeze_steps": 1,
    "probe_split": "val",
    "probe_classes": ORGANS,
    "network_args": SMALL_NET,
}
BUNDLE = PretrainingBundle(NAME, **SMALL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(folder, cache, tmp_path):
    """Train on CT and MR; or, with dataset_dir, on that folder."""

    def run(*fragments: str, output: Path = tmp_path, begin_only: bool = False, **overrides):
        sources = {
            name.lower(): {"kind": "volumes", "dataset_dir": str(folder), "modality": name} for name in ("CT", "MR")
        }
        settings = {"sources": sources, "cache_dir": str(cache), "output_dir": str(output)}
        workflow = BUNDLE.workflow("train.yaml", *fragments, **(BUNDLE.settings | settings | overrides))
        workflow.initialize()
        if not begin_only:
            workflow.run()
            workflow.finalize()
        return workflow

    return run


def columns(output: Path) -> set[str]:
    with open(output / "metrics.csv", newline="") as file:
        return set(next(csv.reader(file)))


def test_training_on_two_sources_leaves_an_encoder_and_a_verdict(train, folder, tmp_path):
    run = train(max_epochs=2)
    assert run.check_properties() == []
    assert {"loss_ct", "loss_mr", "agreement"} <= columns(tmp_path)
    batch = run.parser.get_parsed_content("train#trainer").state.batch
    assert len(set(batch["source"].tolist())) == 1  # batches of one source
    assert [tuple(view.shape[2:]) for view in batch["views"]] == [(8, 16, 16)] * 2 + [(8, 8, 8)]
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"]) == ("ModalityClustering", [8, 16, 16])
    assert manifest["orientation"] == "SPL" and set(manifest["intensity"]["policy"]["policies"]) == {"ct", "mr"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["probed"] == "places" and summary["probe"]["classes"] == ["none", *ORGANS]
    table = pq.read_table(BUNDLE.features(folder, tmp_path, network_args=SMALL_NET, view_size=[16, 32, 32]))
    assert len(table["features"][0].as_py()) == manifest["network"]["num_features"]


def test_resumed_training_repeats_the_losses(train, tmp_path):
    train(output=tmp_path / "whole", max_epochs=3)
    trainer = train(output=tmp_path / "halves", max_epochs=3, begin_only=True).parser.get_parsed_content(
        "train#trainer"
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda engine: engine.request_stop("stopped by the test"))
    with pytest.raises(SystemExit):
        trainer.run()
    train(output=tmp_path / "halves", max_epochs=3, resume=True)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 3


@pytest.mark.parametrize(
    ("fragments", "overrides", "method"),
    [
        (["swav.yaml"], {}, "SwAV"),
        (["per_source_prototypes.yaml"], {"num_prototypes": 4}, "ModalityClustering"),
        (["mixed_batches.yaml"], {}, "ModalityClustering"),
        (["hybrid.yaml"], {"label_fraction": 2, "task_ramp": [0, 0.1]}, "Hybrid(ModalityClustering)"),
        (
            ["paper.yaml"],
            {"architecture": "resnet18", "network_args": {"widen_factor": 0.125}, "num_workers": 0},
            "ModalityClustering",
        ),
        (["multi_gpu_train.yaml"], {}, "ModalityClustering"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(train, tmp_path, fragments, overrides, method):
    run = train(*fragments, **(BUNDLE.settings | overrides))
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert manifest["method"] == method
    batch = run.parser.get_parsed_content("train#trainer").state.batch
    if fragments == ["mixed_batches.yaml"]:
        assert len(set(batch["source"].tolist())) > 1
    if fragments == ["hybrid.yaml"]:
        assert manifest["network"]["decoder"] is not None
        assert batch["label_map"][0].shape == batch["views"][0].shape


def test_hybrid_shows_the_label_maps_of_its_fraction_only(train):
    run = train("hybrid.yaml", label_fraction=0.25, begin_only=True, label_classes={"one": [1, 2], "other": [3, 4]})
    mixture, maps = (run.parser.get_parsed_content(name) for name in ("train#dataset", "label_maps"))
    for name, dataset in zip(mixture.names, mixture.datasets, strict=True):
        assert set(dataset.rows[dataset.shows_labels]) == set(maps.rows[name])
        assert 0 < dataset.shows_labels.sum() < len(dataset)
    values = {int(value) for i in range(len(mixture)) for value in mixture[i]["label_map"].unique()}
    assert IGNORED_LABEL in values and values <= {0, 1, 2, IGNORED_LABEL}


def test_one_folder_needs_no_table(train, folder, tmp_path):
    run = train(dataset_dir=str(folder), modality="CT")
    assert list(run.parser.get_parsed_content("opened")) == ["volumes"]
    assert "loss_volumes" in columns(tmp_path)


def test_the_fragment_of_sources_names_folders_that_the_user_fills_in(train, folder, tmp_path):
    config = BUNDLE.workflow("train.yaml", "sources.yaml").parser.config["sources"]
    assert list(config) == ["ct", "mr", "ultrasound"]
    filled = {name: config[name] | {"dataset_dir": str(folder), "spacing_mm": None} for name in ("ct", "mr")}
    train("sources.yaml", sources=filled)
    assert {"loss_ct", "loss_mr"} <= columns(tmp_path)


def test_too_many_prototypes_are_told(train, caplog):
    with caplog.at_level(logging.WARNING):
        train(num_prototypes=64)
    assert "num_prototypes" in caplog.text


@pytest.mark.parametrize(
    ("fragments", "overrides", "words"),
    [
        ([], {"learning_rte": 0.1}, "learning_rate"),
        ([], {"sources": {"ct": {"kind": "volumes", "dataset_dir": "nowhere/ct", "modality": "CT"}}}, "nowhere"),
        ([], {"sources": {"ct": {"kind": "images"}}}, "spatial_dims is 3"),
        ([], {"small_size": [8, 16, 16]}, "smaller"),
        ([], {"small_size": [8, 32, 32]}, "smaller"),
        ([], {"temper": 2.0}, "temper"),
        ([], {"probe_sources": ["tc"]}, "ct"),
        (["hybrid.yaml"], {"label_classes": None}, "classes"),
        (["hybrid.yaml"], {"label_classes": {"lung": 9}}, "lung"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(train, fragments, overrides, words):
    with pytest.raises((Exception, SystemExit)) as caught:
        train(*fragments, **overrides)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__
    assert any(words in message for message in chain), chain


@pytest.mark.slow
def test_two_processes_train_together(folder, tmp_path):
    settings = BUNDLE.settings | {"dataset_dir": folder, "modality": "CT", "output_dir": tmp_path, "max_epochs": 2}
    BundleRuns(NAME).train_in_two_processes(settings)
    assert len(losses(tmp_path)) == 2
