# SPDX-License-Identifier: Apache-2.0
"""The C2L bundle on a handful of example images: every config runs, resumes, refuses mistakes and leaves its files."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_ssl.data import make_example_radiographs
from monai_ssl.networks import build_encoder
from monai_ssl.weights import load_encoder, read_manifest, save_encoder

BUNDLE = Path(__file__).parents[2] / "bundles/radiograph_c2l_pretraining"
THIN = {"widen_factor": 0.125}
SMALL = {
    "stored_side": 64,
    "image_size": 32,
    "max_epochs": 1,
    "batch_size": 4,
    "network_args": THIN,
    "precision": "fp32",
    "channels_last": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_example_radiographs(tmp_path_factory.mktemp("radiographs") / "images", num_patients=30, size=64)


def workflow(*files: str, workflow_type: str = "train", **overrides) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / file) for file in files],
        logging_file=False,
        workflow_type=workflow_type,
        bundle_root=str(BUNDLE),
        **overrides,
    )


def train(folder: Path | None, output: Path, *fragments: str, **overrides) -> ConfigWorkflow:
    settings = SMALL | {"dataset_dir": None if folder is None else str(folder), "output_dir": str(output)} | overrides
    run = workflow("train.yaml", *fragments, **settings)
    run.initialize()
    run.run()
    run.finalize()
    return run


def save_thin_encoder(output: Path) -> None:
    fields = {"method": "C2L", "patch_size": [32, 32], "intensity": {}}
    save_encoder(build_encoder("resnet18", **THIN), output / "encoder.safetensors", fields)


def losses(output: Path) -> list[str]:
    with open(output / "metrics.csv", newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_training_leaves_an_encoder_and_a_verdict(folder, tmp_path, capsys):
    train(folder, tmp_path, max_epochs=2, label_column="effusion", probe_split="test")
    for name in ("encoder.safetensors", "summary.json", "summary.md", "loss_curve.png", "metrics.csv"):
        assert (tmp_path / name).is_file(), name
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert manifest["method"] == "C2L"
    assert manifest["patch_size"] == [32, 32]
    assert manifest["images_seen"] == 2 * 4 * (manifest["images_seen"] // 8) > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["probe"]["pretrained"]["auc"] > 0
    printed = capsys.readouterr().out
    assert "radiograph_classification" in printed and "untrained" in printed
    report = load_encoder(build_encoder("resnet18", **THIN), tmp_path / "encoder.safetensors")
    assert not report.missing


def test_properties_of_the_workflows_are_complete(folder, tmp_path):
    train_workflow = workflow("train.yaml", **SMALL, dataset_dir=str(folder), output_dir=str(tmp_path))
    train_workflow.initialize()
    save_thin_encoder(tmp_path)
    assert not train_workflow.check_properties()
    inference = workflow("inference.json", workflow_type="inference", dataset_dir=str(folder), output_dir=str(tmp_path))
    inference.initialize()
    assert not inference.check_properties()


@pytest.mark.parametrize(
    ("fragments", "overrides"),
    [
        (["moco_v2.yaml"], {"queue_size": 8}),
        (["teacher_keys.yaml"], {"queue_size": 8}),
        (["paper.yaml"], {"queue_size": 8}),
        (["densenet121.yaml"], {"network_args": {}, "image_size": 64}),
        (["vit.yaml"], {"network_args": {"img_size": [32, 32], "hidden_size": 24, "mlp_dim": 32, "num_heads": 2}}),
        (["multi_gpu_train.yaml"], {}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(folder, tmp_path, fragments, overrides):
    train(folder, tmp_path, *fragments, **overrides)
    assert (tmp_path / "encoder.safetensors").is_file()


def test_imagenet_style_start(folder, tmp_path):
    """A checkpoint with torchvision's names, which for a ResNet are MONAI's, and three channels."""
    source = build_encoder("resnet18", in_channels=3, bias_downsample=False, **THIN).net.state_dict()
    torch.save(source | {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}, tmp_path / "imagenet.pth")
    overrides = {"encoder_weights": str(tmp_path / "imagenet.pth"), "network_args": THIN | {"bias_downsample": False}}
    train(folder, tmp_path / "run", "imagenet_start.yaml", **overrides)
    manifest = read_manifest(tmp_path / "run/encoder.safetensors")
    assert len(manifest["lineage"]) == 1


def test_a_stage_continues_another(folder, tmp_path):
    train(folder, tmp_path / "first")
    train(folder, tmp_path / "second", "moco_v2.yaml", encoder_weights=str(tmp_path / "first/encoder.safetensors"))
    manifest = read_manifest(tmp_path / "second/encoder.safetensors")
    assert (manifest["method"], [stage["method"] for stage in manifest["lineage"]]) == ("MoCoV2", ["C2L"])


def test_resumed_training_repeats_the_losses(folder, tmp_path):
    train(folder, tmp_path / "whole", max_epochs=3)
    # The schedule knows the length of the training, so the first half is a run of three epochs that ends early.
    run = workflow(
        "train.yaml", **SMALL | {"max_epochs": 3}, dataset_dir=str(folder), output_dir=str(tmp_path / "halves")
    )
    run.initialize()
    trainer = run.parser.get_parsed_content("train#trainer")
    from ignite.engine import Events

    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda engine: engine.request_stop("stopped by the test"))
    with pytest.raises(SystemExit):
        trainer.run()
    train(folder, tmp_path / "halves", max_epochs=3, resume=True)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")


def test_images_without_labels_are_enough(folder, tmp_path):
    bare = tmp_path / "bare"
    (bare / "sub").mkdir(parents=True)
    for path in list((folder / "images").iterdir())[:16]:
        (bare / "sub" / path.stem).write_bytes(path.read_bytes())  # without a suffix, too
    train(bare, tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["probe"] is None
    assert "No labels" in summary["verdict"]


def test_inference_writes_features(folder, tmp_path):
    save_thin_encoder(tmp_path)
    run = workflow(
        "inference.json",
        workflow_type="inference",
        dataset_dir=str(folder),
        output_dir=str(tmp_path),
        network_args=THIN,
        stored_side=64,
    )
    run.initialize()
    run.run()
    table = pq.read_table(tmp_path / "features.parquet")
    assert len(table) == len(list((folder / "images").iterdir()))
    assert table["features"].type.list_size == 64


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"learning_rte": 0.1}, "learning_rate"),
        ({"label_column": "lable"}, "label"),
        ({"where": "source=nobody*"}, "source"),
        ({"dataset_dir": "nowhere"}, "nowhere"),
        ({"architecture": "resnet19"}, "resnet18"),
        ({"batch_size": 4096}, "batch_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(folder, tmp_path, overrides, words):
    settings = {"dataset_dir": str(folder)} | overrides
    with pytest.raises((Exception, SystemExit)) as caught:
        train(None, tmp_path, **settings)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__
    assert any(words in message for message in chain), chain


def test_weights_of_another_network_are_refused(folder, tmp_path):
    path = tmp_path / "other.safetensors"
    save_encoder(build_encoder("resnet18", widen_factor=0.25), path, {"method": "C2L"})
    with pytest.raises(Exception) as caught:
        train(folder, tmp_path / "run", encoder_weights=str(path))
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert type(error).__name__ == "WeightsMismatchError"


@pytest.mark.slow
def test_two_processes_train_together(folder, tmp_path):
    """torchrun with gloo on the CPU; the command of the README."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = shell_command(folder, tmp_path, "train.yaml", "multi_gpu_train.yaml", launcher=launcher, max_epochs=2)
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "summary.json").is_file()
    assert len(losses(tmp_path)) == 2


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_same_losses(folder, tmp_path):
    """``kill -9`` at random moments, and each time the same command with ``--resume True``."""
    epochs = 8
    train(folder, tmp_path / "whole", max_epochs=epochs)
    killed = tmp_path / "killed"
    for earliest in (1, 3, 6):  # epochs whose checkpoint is there when the clock of the kill starts
        command = shell_command(folder, killed, "train.yaml", max_epochs=epochs, resume=True)
        process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and epochs_done(killed) < earliest:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        message = process.communicate()[1].decode()
        assert process.returncode == -9, message[-3000:]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(killed) == losses(tmp_path / "whole")
    assert len(losses(killed)) == epochs


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def shell_command(folder: Path, output: Path, *files: str, launcher: list[str] | None = None, **overrides) -> list[str]:
    command = [sys.executable, *(launcher or []), "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE)]
    command += ["--config_file", str([str(BUNDLE / "configs" / name) for name in files])]
    settings = SMALL | {"dataset_dir": str(folder), "output_dir": str(output)} | overrides
    return command + [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def epochs_done(output: Path) -> int:
    try:
        return len(losses(output))
    except FileNotFoundError:
        return 0
