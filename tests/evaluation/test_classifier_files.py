# SPDX-License-Identifier: Apache-2.0
"""Classifier files, the evaluators' handlers, the head's start and the verdict after pretraining."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from monai_ssl.data import PadCollate, StoreDataset, pretraining_rows
from monai_ssl.evaluation import (
    BestClassifier,
    ClassifierCard,
    ClassifierEvaluator,
    ClassifierReportWriter,
    LabelledStoreDataset,
    PredictionWriter,
    RocAreaScore,
    StartingPoint,
    classification_labels,
    find_classifier,
    fit_head,
    load_classifier,
    pretraining_summary,
    read_classifier_card,
    save_classifier,
)
from monai_ssl.metrics import area_under_roc
from monai_ssl.weights import WeightsFileError


@pytest.fixture
def made(toy_store, encoder_file, tmp_path):
    """A question, a start, a network with a fitted head and its card."""
    labels = classification_labels(toy_store, "label", output_dir=tmp_path)
    start = StartingPoint("linear", encoder_file)
    torch.manual_seed(0)
    network = start.build(3)
    preparation = start.preprocessing.with_store(toy_store)
    card = ClassifierCard.describe(start, labels, preparation, 512, 0)
    return labels, start, network.eval(), preparation, card


def loader_of(store, labels, split):
    return DataLoader(LabelledStoreDataset(store, labels, split), batch_size=5, collate_fn=PadCollate())


def test_files_round_trip(made, tmp_path):
    _, _, network, _, card = made
    path = tmp_path / "out/model.pt"
    save_classifier(network, card, path, val_auc=0.75)
    again = read_classifier_card(path)
    assert again.metrics == {"val_auc": 0.75} and again.weights_sha256 and again.lineage[0]["method"] == "C2L"
    twin = again.build()
    assert load_classifier(twin, path) == again
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in twin.state_dict().items())
    assert set(torch.load(path, weights_only=True)) == set(network.state_dict())
    assert again.prepared().image_size == (32, 32) and again.intensity_policy().kind == "radiograph"
    assert find_classifier([tmp_path / "nowhere", tmp_path / "out"]) == str(path)
    assert find_classifier([tmp_path / "nowhere", tmp_path / "models"]) == str(tmp_path / "models/model.pt")


def test_wrong_files_are_refused(made, tmp_path):
    _, _, network, _, card = made
    path = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError, match="train one"):
        load_classifier(network, path)
    save_classifier(network, card, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(WeightsFileError, match=r"damaged, or model\.json beside it"):
        load_classifier(network, path)
    path.write_bytes(whole)
    other = StartingPoint(architecture="densenet121").build(3)
    with pytest.raises(WeightsFileError, match="another network than DenseNet121"):
        load_classifier(other, path)
    path.with_suffix(".json").write_text('{"schema": 1}')
    with pytest.raises(WeightsFileError, match="damaged"):
        read_classifier_card(path)
    path.with_suffix(".json").write_text('{"schema": 99}')
    with pytest.raises(WeightsFileError, match="newer"):
        read_classifier_card(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.pt and model.json together"):
        load_classifier(network, path)


def test_head_is_the_probe(made, toy_store):
    labels, start, network, preparation, _ = made
    before = network.class_layers.out.weight.clone()
    probe = fit_head(network, start, toy_store, labels, preparation.view(), pool_images=20)
    assert not torch.equal(network.class_layers.out.weight, before)
    torch.testing.assert_close(network.class_layers.out.weight, probe.as_linear_layer().weight)
    scratch = StartingPoint()
    assert fit_head(network, scratch, toy_store, labels, preparation.view()) is None
    with pytest.raises(ValueError, match="head_init"):
        fit_head(network, start, toy_store, labels, preparation.view(), head_init="zero")


def test_validation_report_and_predictions(made, toy_store, tmp_path, capsys):
    labels, start, network, preparation, card = made
    fit_head(network, start, toy_store, labels, preparation.view())
    path = tmp_path / "model.pt"
    keeper = BestClassifier(network, card, path)
    report = ClassifierReportWriter(path, toy_store, labels.groups, tmp_path, "val_report", resamples=20)
    evaluator = ClassifierEvaluator(
        "cpu",
        loader_of(toy_store, labels, "val"),
        network,
        preparation.view(),
        key_val_metric={"val_auc": RocAreaScore(class_names=labels.class_names)},
        val_handlers=[keeper, report],
    )
    evaluator.run()
    with torch.no_grad():
        rows = labels.rows["val"]
        images = [preparation.view()(torch.from_numpy(toy_store.read(int(row)))[None, None]) for row in rows]
        logits = network.eval()(torch.cat(images))
    auc = area_under_roc(labels.targets[rows], logits.softmax(1).numpy())
    assert evaluator.state.metrics["val_auc"] == pytest.approx(auc, abs=1e-6)
    assert keeper.best == evaluator.state.metrics["val_auc"]
    assert read_classifier_card(path).metrics["val_auc"] == keeper.best
    assert report.report.auc == pytest.approx(auc, abs=1e-6)
    first = report.report.rows[0]
    assert (first["mode"], first["split_hash"], first["num_labels"]) == ("linear", labels.split_hash, 36)
    assert "val AUC" in capsys.readouterr().out
    with open(tmp_path / "val_report_predictions.csv", newline="") as file:
        written = list(csv.DictReader(file))
    np.testing.assert_allclose(
        [[float(row[name]) for name in labels.class_names] for row in written], logits.softmax(1), atol=1e-4
    )
    names = toy_store.table["label"].to_pylist()
    assert [row["truth"] for row in written] == [names[row] for row in rows]


def test_best_classifier_keeps_the_best_through_a_resume(made, tmp_path):
    _, _, network, _, card = made
    keeper = BestClassifier(network, card, tmp_path / "model.pt")

    class Engine:
        def __init__(self, value):
            self.state = type("State", (), {"metrics": {"val_auc": value}})()

    for value, expected in ((0.6, 0.6), (0.5, 0.6), (0.7, 0.7)):
        keeper._validated(Engine(value))
        assert read_classifier_card(tmp_path / "model.pt").metrics["val_auc"] == expected
    resumed = BestClassifier(network, card, tmp_path / "model.pt")
    resumed.load_state_dict(keeper.state_dict())
    resumed._validated(Engine(0.65))
    assert read_classifier_card(tmp_path / "model.pt").metrics["val_auc"] == 0.7
    last = BestClassifier(network, card, tmp_path / "last.pt", keep="last")
    for value in (0.6, 0.5):
        last._validated(Engine(value))
    assert read_classifier_card(tmp_path / "last.pt").metrics["val_auc"] == 0.5
    with pytest.raises(ValueError, match="keep must be"):
        BestClassifier(network, card, "x", keep="first")


def test_predictions_without_labels(made, toy_store, tmp_path):
    _, _, network, preparation, card = made
    save_classifier(network, card, tmp_path / "model.pt")
    loader = DataLoader(StoreDataset(toy_store, range(7)), batch_size=4, collate_fn=PadCollate())
    writer = PredictionWriter(tmp_path / "model.pt", toy_store, tmp_path / "out/predictions.json")
    ClassifierEvaluator("cpu", loader, network, preparation.view(), val_handlers=[writer]).run()
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["path"] for image in content["images"]] == toy_store.table["path"].to_pylist()[:7]
    for image in content["images"]:
        assert sum(image["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert image["decision"] == max(image["probabilities"], key=image["probabilities"].get)
    assert content["preprocessing"] == card.preprocessing
    assert content["model"]["weights_sha256"] == read_classifier_card(tmp_path / "model.pt").weights_sha256


def test_score_of_findings_and_of_a_missing_class():
    score = RocAreaScore(multilabel=True)
    logits, labels = torch.randn(20, 2), torch.randint(0, 2, (20, 2))
    score.update((logits[:12], labels[:12]))
    score.update((logits[12:], labels[12:]))
    assert score.compute() == pytest.approx(area_under_roc(labels.numpy(), logits.numpy()))
    score.reset()
    score.update((torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])))
    with pytest.warns(UserWarning, match="class 2"):
        assert 0 <= score.compute() <= 1


def test_summary_with_and_without_labels(toy_store, encoder_file, tmp_path, capsys):
    start = StartingPoint("linear", encoder_file)
    rows = pretraining_rows(toy_store)
    labels = classification_labels(toy_store, "label", splits=("train", "val"))
    (tmp_path / "loss_curve.png").write_bytes(b"x")
    summary = pretraining_summary(
        encoder_file,
        toy_store,
        rows,
        start.preprocessing,
        tmp_path,
        labels=labels,
        resamples=20,
        downstream_bundle="bundles/radiograph_classification",
        next_arguments={"dataset_dir": "my images", "label_column": None},
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["probe"]["num_labels"] == 36 and summary["probe"]["num_scored"] == 12
    pretrained, untrained = summary["probe"]["pretrained"], summary["probe"]["untrained"]
    assert untrained["auc"] == 0.5  # this network's features are dead without running statistics
    assert pretrained["low"] <= pretrained["auc"] <= pretrained["high"] and pretrained["auc"] != 0.5
    assert summary["probe"]["difference"]["auc"] == pytest.approx(pretrained["auc"] - 0.5)
    text = (tmp_path / "summary.md").read_text()
    for part in ("linear probe", "effective rank", "loss_curve.png", "--dataset_dir 'my images'", str(encoder_file)):
        assert part in text
    assert "label_column" not in summary["next_command"]
    assert "linear probe" in capsys.readouterr().out

    without = pretraining_summary(encoder_file, toy_store, rows, start.preprocessing, tmp_path / "b")
    assert (
        without["probe"] is None and "No labels" in without["verdict"] and without["effective_rank"]["pretrained"] > 1
    )
    with pytest.raises(ValueError, match="need the splits train and test"):
        pretraining_summary(encoder_file, toy_store, rows, start.preprocessing, tmp_path, labels=labels, split="test")


def test_summary_tells_what_few_labels_give(toy_store, encoder_file, tmp_path, capsys):
    labels = classification_labels(toy_store, "label", splits=("train", "val"))
    preprocessing = StartingPoint("linear", encoder_file).preprocessing
    rows = pretraining_rows(toy_store)
    options = {"labels": labels, "few_labels": 12}
    found = pretraining_summary(encoder_file, toy_store, rows, preprocessing, tmp_path, **options)
    few = found["probe"]["few_labels"]
    assert few["num_labels"] == 12 and 1 <= few["draws"] <= 10 and 0 <= few["draws_ahead"] <= few["draws"]
    assert few["untrained"] == {"auc": 0.5, "low": 0.5, "high": 0.5}
    assert few["pretrained"]["low"] < few["pretrained"]["auc"] < few["pretrained"]["high"]
    assert "12 labels, mean and range of" in capsys.readouterr().out


def test_summary_tells_a_collapsed_encoder(toy_store, encoder_file, tmp_path):
    with safe_open(encoder_file, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(encoder_file)
    for key in tensors:
        if key.startswith("features.norm5"):
            tensors[key] = torch.ones_like(tensors[key]) if "running" not in key else torch.zeros_like(tensors[key])
    tensors["features.norm5.weight"].zero_()
    save_file(tensors, tmp_path / "flat.safetensors", metadata)
    start = StartingPoint("linear", encoder_file)
    found = pretraining_summary(
        tmp_path / "flat.safetensors", toy_store, pretraining_rows(toy_store), start.preprocessing, tmp_path
    )
    assert "collapsed" in found["verdict"]


def test_volumes_have_a_card_of_their_own_kind(volume_store, tmp_path, capsys):
    labels = classification_labels(volume_store, "cube", output_dir=tmp_path)
    start = StartingPoint(
        "scratch", architecture="segresnet", network_args={"blocks_down": [1, 1]}, spatial_dims=3, image_size=16
    )
    network = start.build(2)
    preparation = start.preprocessing.with_store(volume_store)
    card = ClassifierCard.describe(start, labels, preparation, None, 0, modality="CT", crop_foreground=True)
    path = tmp_path / "model.pt"
    save_classifier(network, card, path)
    again = read_classifier_card(path)
    assert (again.modality, again.crop_foreground, again.max_side, again.noun) == ("CT", True, None, "volumes")
    assert again.prepared().spacing_mm == (1.5, 1.5, 1.5) and load_classifier(again.build(), path) == again

    report = ClassifierReportWriter(path, volume_store, labels.groups, tmp_path, resamples=20)
    writer = PredictionWriter(path, volume_store, tmp_path / "predictions.json")
    loader = loader_of(volume_store, labels, "test")
    ClassifierEvaluator("cpu", loader, network, preparation.view(), val_handlers=[report, writer]).run()
    text = (tmp_path / "test_report.md").read_text()
    assert "| class | volumes with | without |" in text and f"The network sees {preparation.describe()}." in text
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert len(content["volumes"]) == len(labels.rows["test"]) and "images" not in content
    assert "2 volumes classified" in capsys.readouterr().out


def test_older_cards_lack_what_came_later(made, tmp_path):
    _, _, network, _, card = made
    path = tmp_path / "model.pt"
    save_classifier(network, card, path)
    values = json.loads(path.with_suffix(".json").read_text())
    for later in ("kind", "modality", "crop_foreground"):
        del values[later]
    path.with_suffix(".json").write_text(json.dumps(values))
    assert read_classifier_card(path) == load_classifier(card.build(), path)
    assert read_classifier_card(path).noun == "images"
    del values["task"]
    path.with_suffix(".json").write_text(json.dumps(values))
    with pytest.raises(WeightsFileError, match="damaged"):
        read_classifier_card(path)
