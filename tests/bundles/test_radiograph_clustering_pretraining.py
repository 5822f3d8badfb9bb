# SPDX-License-Identifier: Apache-2.0
"""The bundle of online clustering on a handful of radiographs and slices: all configs run, resume, name mistakes."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from bundle_runs import BundleRuns
from pretraining_runs import PretrainingBundle

from monai_ssl.data import EXAMPLE_FINDINGS, make_example_radiographs
from monai_ssl.networks import build_encoder
from monai_ssl.weights import load_encoder, read_manifest

NAME = "radiograph_clustering_pretraining"
THIN = {"widen_factor": 0.125}
SMALL = {
    "image_size": 32,
    "small_size": 16,
    "num_small": 1,
    "stored_side": 64,
    "batch_size": 4,
    "images_per_epoch": 16,
    "num_prototypes": 4,
    "queue_size": 8,
    "freeze_steps": 1,
    "network_args": THIN,
}
BUNDLE = PretrainingBundle(NAME, **SMALL)
BUNDLE.settings.pop("steps_per_epoch")


@pytest.fixture(scope="module")
def chest(tmp_path_factory) -> Path:
    return make_example_radiographs(tmp_path_factory.mktemp("radiographs") / "images", num_patients=30, size=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(chest, folder, cache, tmp_path):
    """Train on radiographs, CT and MR; or, with dataset_dir, on that folder."""

    def run(*fragments: str, output: Path = tmp_path, place: str | None = None, begin_only: bool = False, **overrides):
        sources = {
            "chest": {"kind": "images", "dataset_dir": str(chest), "max_side": 64},
            "ct": {"kind": "volumes", "dataset_dir": str(folder), "modality": "CT"},
            "mr": {"kind": "volumes", "dataset_dir": str(folder), "modality": "MR"},
        }
        settings = {"sources": sources, "cache_dir": str(cache), "output_dir": str(output)}
        settings = BUNDLE.settings | settings | {"label_column": "effusion", "probe_split": "test"} | overrides
        workflow = BUNDLE.workflow("train.yaml", *fragments, **settings)
        workflow.initialize()
        if not begin_only:
            workflow.run()
            workflow.finalize()
        return workflow

    return run


def rows(output: Path) -> list[dict[str, str]]:
    with open(output / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_training_on_three_sources_leaves_an_encoder_and_a_verdict(train, chest, tmp_path):
    run = train(max_epochs=2)
    assert run.check_properties() == []
    assert {"loss_chest", "loss_ct", "loss_mr", "agreement"} <= rows(tmp_path)[-1].keys()
    trainer = run.parser.get_parsed_content("train#trainer")
    assert len(set(trainer.state.batch["source"].tolist())) == 1  # batches of one source
    assert [view.shape[-1] for view in trainer.state.batch["views"]] == [32, 32, 16]
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"]) == ("ModalityClustering", [32, 32])
    assert set(manifest["intensity"]["policy"]["policies"]) == {"chest", "ct", "mr"}
    assert not load_encoder(build_encoder("resnet18", **THIN), tmp_path / "encoder.safetensors").missing
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["probe"]["pretrained"]["auc"] > 0
    assert "radiograph_classification" in summary["next_command"] and str(chest) in summary["next_command"]
    table = pq.read_table(BUNDLE.features(chest, tmp_path, network_args=THIN, stored_side=64))
    assert table["features"].type.list_size == 64


@pytest.mark.slow
def test_resumed_training_repeats_the_losses(train, tmp_path):
    train(output=tmp_path / "whole", max_epochs=3)
    half = train(output=tmp_path / "halves", max_epochs=3, begin_only=True)
    trainer = half.parser.get_parsed_content("train#trainer")
    from ignite.engine import Events

    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda engine: engine.request_stop("stopped by the test"))
    with pytest.raises(SystemExit):
        trainer.run()
    train(output=tmp_path / "halves", max_epochs=3, resume=True)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "halves")]
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.parametrize(
    ("fragments", "overrides", "method"),
    [
        pytest.param(["swav.yaml"], {}, "SwAV", marks=pytest.mark.slow),
        pytest.param(
            ["per_source_prototypes.yaml"], {"num_prototypes": 4}, "ModalityClustering", marks=pytest.mark.slow
        ),
        pytest.param(["mixed_batches.yaml"], {"batch_size": 8}, "ModalityClustering", marks=pytest.mark.slow),
        (["hybrid.yaml"], {"label_fraction": 0.5, "task_ramp": [0, 0.1]}, "Hybrid(ModalityClustering)"),
        (["paper.yaml"], {"architecture": "resnet18", "num_workers": 0}, "ModalityClustering"),
        (["multi_gpu_train.yaml"], {}, "ModalityClustering"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(train, tmp_path, fragments, overrides, method):
    run = train(*fragments, **(BUNDLE.settings | overrides))
    assert read_manifest(tmp_path / "encoder.safetensors")["method"] == method
    batch = run.parser.get_parsed_content("train#trainer").state.batch
    if fragments == ["mixed_batches.yaml"]:
        assert len(set(batch["source"].tolist())) > 1


def test_the_fragment_of_sources_names_folders_that_the_user_fills_in(train, chest, folder, tmp_path):
    config = BUNDLE.workflow("train.yaml", "sources.yaml").parser.config["sources"]
    assert list(config) == ["chest", "ct", "mr", "ultrasound"]
    places = {"chest": chest, "ct": folder, "mr": folder, "ultrasound": chest}  # a stand-in
    filled = {name: source | {"dataset_dir": str(places[name])} for name, source in config.items()}
    filled["ultrasound"]["max_side"] = filled["chest"]["max_side"] = 64
    train("sources.yaml", sources=filled)
    assert "loss_ultrasound" in rows(tmp_path)[-1]


def test_one_folder_of_radiographs_needs_no_table(train, chest, tmp_path):
    run = train(dataset_dir=str(chest), label_column=None, probe_split="val")
    assert list(run.parser.get_parsed_content("opened")) == ["radiographs"]
    assert rows(tmp_path)[-1]["loss_radiographs"]


def test_volumes_alone_are_sliced(train, folder, tmp_path):
    """Without flat images there is no probe, and the summary looks at slices."""
    sources = {"ct": {"kind": "volumes", "dataset_dir": str(folder), "modality": "CT"}}
    train(sources=sources, label_column=None, images_per_epoch=None)
    assert json.loads((tmp_path / "summary.json").read_text())["probe"] is None


def test_hybrid_sees_the_labels_of_its_fraction_only(train):
    run = train("hybrid.yaml", label_column=list(EXAMPLE_FINDINGS[:2]), label_fraction=6, begin_only=True)
    dataset = run.parser.get_parsed_content("train#dataset")
    labels = run.parser.get_parsed_content("labels")
    shown = dataset.datasets[0].labels["label"]
    assert shown.shape == (len(dataset.datasets[0]), 2)
    assert int((shown >= 0).any(1).sum()) == len(labels.rows["train"]) < len(shown) / 2
    assert dataset[len(dataset) - 1]["label"].tolist() == [-1, -1]  # a slice


def test_too_many_prototypes_are_told(train, caplog):
    with caplog.at_level(logging.WARNING):
        train(num_prototypes=64)
    assert "num_prototypes" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"learning_rte": 0.1}, "learning_rate"),
        ({"sources": {"ct": {"kind": "volumes", "dataset_dir": "nowhere/ct", "modality": "CT"}}}, "nowhere"),
        ({"sources": {"chest": {"kind": "picture"}}}, "chest"),
        ({"sources": {"chest": {"kind": "images", "max_sid": 64}}}, "max_side"),
        ({"probe_source": "chets"}, "chest"),
        ({"small_size": 32}, "smaller"),
        ({"batch_size": 4096}, "batch_size"),
        ({"shares": {"chest": 1.0}}, "shares"),
        ({"prototypes": "each"}, "per_source"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(train, overrides, words):
    with pytest.raises((Exception, SystemExit)) as caught:
        train(**overrides)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__
    assert any(words in message for message in chain), chain


@pytest.mark.slow
def test_two_processes_train_together(chest, tmp_path):
    settings = SMALL | {"dataset_dir": chest, "output_dir": tmp_path, "max_epochs": 2, "precision": "fp32"}
    BundleRuns(NAME).train_in_two_processes(settings)
    assert len(rows(tmp_path)) == 2 and torch.isfinite(torch.tensor(float(rows(tmp_path)[-1]["loss"])))
