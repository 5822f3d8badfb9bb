# SPDX-License-Identifier: Apache-2.0
"""The bundle of radiographs with reports on a handful of pairs: every fragment trains, resumes, and is used."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from bundle_runs import BundleRuns
from ignite.engine import Events
from pretraining_runs import RadiographBundle, epochs
from text_cases import write_bert

from monai_ssl.data import ReportTokenizer, make_example_radiographs
from monai_ssl.engines.plain_errors import own_error
from monai_ssl.networks import PretrainedTextEncoder, build_encoder
from monai_ssl.weights import load_encoder, load_image_text, open_encoder, read_manifest

THIN = {"widen_factor": 0.125}
SMALL_TEXT = {"text_encoder::hidden_size": 16, "text_encoder::num_layers": 2, "text_encoder::num_heads": 2}
BUNDLE = RadiographBundle(
    "radiograph_report_convirt_pretraining",
    network_args=THIN,
    vocab_size=300,
    embedding_dim=32,
    **SMALL_TEXT,
    **{"train::trainer::epoch_length": 3},
)
train, started, NO_PICTURES = BUNDLE.train_only, BUNDLE.started, BUNDLE.no_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_example_radiographs(tmp_path_factory.mktemp("radiographs") / "images", num_patients=24, size=64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def trained(folder, prepared, tmp_path_factory) -> Path:
    """The default with all that follows."""
    output = tmp_path_factory.mktemp("run")
    settings = {"label_column": "effusion", "probe_split": "test", "probe_every": 1, "max_epochs": 2}
    run = started(folder, prepared, output, **settings)
    assert not run.check_properties()
    run.run()
    run.finalize()
    return output


def test_training_leaves_both_towers_and_a_verdict(trained):
    for name in ("encoder.safetensors", "image_text.safetensors", "summary.json", "summary.md", "loss_curve.png"):
        assert (trained / name).is_file(), name
    manifest = read_manifest(trained / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"]) == ("ConVIRT", [32, 32])
    summary = json.loads((trained / "summary.json").read_text())
    assert 0 <= summary["probe"]["pretrained"]["auc"] <= 1
    assert "radiograph_classification" in summary["next_command"]
    model, tokenizer, both = load_image_text(trained / "image_text.safetensors")
    assert both["metrics"] == manifest["metrics"] and "val_loss" in both["metrics"]
    image = torch.rand(2, 1, 32, 32)
    encoder = build_encoder("resnet18", **THIN)
    load_encoder(encoder, trained / "encoder.safetensors")
    torch.testing.assert_close(encoder.eval()(image), model.image_encoder(image))
    tokens = torch.tensor(tokenizer.encode(["small left effusion"]))
    assert model.embed_tokens(tokens, tokens > 0).shape == (1, 32)


def test_the_weights_are_those_of_the_lowest_validation_loss(trained):
    losses = [float(row["val_loss"]) for row in epochs(trained)]
    assert len(losses) == 2
    kept = read_manifest(trained / "encoder.safetensors")["metrics"]["val_loss"]
    newest = read_manifest(trained / "encoder_last.safetensors")["metrics"]["val_loss"]
    assert (kept, newest) == pytest.approx((min(losses), losses[-1]))
    assert {"image_to_text_accuracy", "text_to_image_accuracy", "temperature"} <= epochs(trained)[0].keys()


def test_no_sentence_of_a_report_is_in_what_was_not_asked_to_hold_one(trained, folder):
    with open(folder / "labels.csv", newline="") as file:
        sentences = {row["report"].split(". ")[0][-30:].encode() for row in csv.DictReader(file)}
    for path in trained.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(sentence in content for sentence in sentences), path


def test_the_encoder_loads_into_the_downstream_bundle(trained, folder, prepared, tmp_path):
    settings = {
        "dataset_dir": str(folder),
        "output_dir": str(tmp_path),
        "cache_dir": str(prepared),
        "stored_side": 64,
        "encoder_weights": str(trained / "encoder.safetensors"),
        "label_column": "effusion",
        "max_epochs": 1,
        "steps_per_epoch": 2,
        "batch_size": 4,
        "resamples": 20,
        "precision": "fp32",
        "channels_last": False,
        "head_init": "random",
    }
    BundleRuns("radiograph_classification").run("train", settings)
    assert "ConVIRT" in (tmp_path / "test_report.md").read_text()


@pytest.mark.parametrize(
    ("fragment", "overrides", "expected"),
    [
        ("clip_temperature.yaml", {}, lambda method: method.contrast.log_scale is not None),
        ("image_term.yaml", {}, lambda method: method.image_head is not None),
        ("soft_targets.yaml", {}, lambda method: method._ids == ["study_id", "text_id"]),
        ("multi_gpu_train.yaml", {}, lambda method: method.contrast.image_to_text_weight == 0.75),
    ],
)
def test_every_fragment_trains(folder, prepared, tmp_path, fragment, overrides, expected):
    run = train(folder, prepared, tmp_path, fragment, **(NO_PICTURES | overrides))
    assert expected(run.parser.get_parsed_content("method"))
    assert open_encoder(tmp_path / "encoder.safetensors").num_features == 64


def test_the_papers_recipe_with_a_bert_of_ones_own(folder, prepared, tmp_path):
    """Both fragments together: another vocabulary, frozen layers, the plateau rule, and an end by it."""
    words = ["no", "acute", "left", "right", "pleural", "effusion", "heart", "lungs", "clear", ".", ",", "##s"]
    bert = write_bert(tmp_path / "bert", vocab_size=5 + len(words), max_position_embeddings=64)
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    small = {
        "bert_folder": str(bert),
        "architecture": "resnet10",
        "image_size": 32,
        "batch_size": 4,
        "frozen_layers": 1,
        "validate_every": 1,
        "patience": 1,
        "max_evaluations": 4,
        "max_epochs": 2,
        "tokenizer": "@vocabulary",  # this one knows few words
        **dict.fromkeys(SMALL_TEXT, ...),
    }
    run = train(folder, prepared, tmp_path / "run", "local_bert.yaml", "paper.yaml", **(NO_PICTURES | small))
    trainer, method = (run.parser.get_parsed_content(name) for name in ("train#trainer", "method"))
    assert trainer.optimizer_steps == 4, "max_evaluations of one step each"
    assert isinstance(method.model.text_encoder, PretrainedTextEncoder)
    assert method.model.text_encoder.frozen_layers == 1
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in method.parameters() if p.requires_grad}
    _, tokenizer, _ = load_image_text(tmp_path / "run/image_text.safetensors")
    assert tokenizer.fingerprint == ReportTokenizer.from_folder(bert).fingerprint


def test_a_bert_that_does_not_know_the_words_is_refused(folder, prepared, tmp_path):
    bert = write_bert(tmp_path / "bert", vocab_size=6, max_position_embeddings=64)
    (bert / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nno")
    removed = dict.fromkeys(SMALL_TEXT, ...)
    with pytest.raises(RuntimeError) as caught:
        train(folder, prepared, tmp_path, "local_bert.yaml", bert_folder=str(bert), frozen_layers=1, **removed)
    assert "sentences are unknown to the tokenizer" in str(own_error(caught.value))


def test_a_stopped_run_goes_on_to_the_same_numbers(folder, prepared, tmp_path):
    settings = {"max_epochs": 3, "learning_rate_schedule": None, "validate_every": 2, "patience": 1}
    train(folder, prepared, tmp_path / "whole", **settings)
    run = started(folder, prepared, tmp_path / "halves", **(BUNDLE.ONLY_TRAINING | settings))
    trainer = run.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda e: e.request_stop("stopped by the test"))
    with pytest.raises(SystemExit):
        trainer.run()
    assert len(epochs(tmp_path / "halves")) == 1
    train(folder, prepared, tmp_path / "halves", resume=True, **settings)
    for name in ("loss", "val_loss", "learning_rate"):
        halves, whole = ([row[name] for row in epochs(tmp_path / part)] for part in ("halves", "whole"))
        assert halves == whole, name


def test_images_without_reports_are_an_error_that_says_what_to_do(tmp_path, prepared, folder):
    with pytest.raises(RuntimeError) as caught:
        train(folder, prepared, tmp_path, text_column="no_such_column")
    assert "no_such_column" in str(own_error(caught.value))


@pytest.mark.slow
def test_two_processes(folder, prepared, tmp_path):
    settings = (
        BUNDLE.settings | BUNDLE.ONLY_TRAINING | {"dataset_dir": folder, "cache_dir": prepared, "output_dir": tmp_path}
    )
    settings = {name: value for name, value in settings.items() if name not in ("run", "probe_labels")}
    settings |= {"max_epochs": 1, "label_column": "effusion", "probe_split": "test"}
    BundleRuns(BUNDLE.root.name).train_in_two_processes(settings)
    assert (tmp_path / "image_text.safetensors").is_file()
