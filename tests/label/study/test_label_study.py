# SPDX-License-Identifier: Apache-2.0
"""Studies of labelling: rounds add up, are computed once, go on after an interruption, and end in a report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from toy_volumes import make_toy_volumes

from monai_ssl.__main__ import main
from monai_ssl.label.study import area_under_curve, read_label_study, run_label_study, study_tables, write_label_report
from monai_ssl.label.study.probe_learner import PartialProbe
from monai_ssl.label.study.rounds import read_chain
from monai_ssl.label.volume_uncertainty import dropout_on

BUNDLES = Path(__file__).parents[3] / "bundles"


@pytest.fixture
def config(tmp_path, toy_folder, toy_encoder):
    """Write a study's file."""

    def write(**changes) -> Path:
        content = {
            "output_dir": str(tmp_path / "out"),
            "encoder": str(toy_encoder),
            "task": {
                "bundle": str(BUNDLES / "radiograph_classification"),
                "dataset_dir": str(toy_folder),
                "label_column": "label",
            },
            "strategies": ["typicality", "margin", "epistemic"],
            "budgets": [2, 6, 12],
            "seeds": 2,
            "members": 3,
            "resamples": 20,
        } | changes
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_the_verb_writes_a_page_that_needs_nothing_else(config, tmp_path, capsys):
    assert main(["label-study", str(config())]) == 0
    assert "9 done" in capsys.readouterr().out
    out = tmp_path / "out"
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")
    assert not any(f"p{number:02d}_" in page for number in range(30)), "no image is named"
    report = json.loads((out / "report.json").read_text())
    assert {row["strategy"] for row in report["strategies"]} == {"random", "typicality", "margin", "epistemic"}
    assert report["target"] == pytest.approx(0.9 * report["full_score"])
    assert report["full_labels"] == 36
    with open(out / "tables/rounds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 3
    first = {row["strategy"]: row["chosen_by"] for row in rows if row["round"] == "0"}
    assert first == {"random": "random", "typicality": "typicality", "margin": "random", "epistemic": "random"}
    assert all(row["chosen_by"] == row["strategy"] for row in rows if row["round"] != "0")


def test_rounds_add_up_and_no_image_is_chosen_twice(config):
    study = read_label_study(config(seeds=1))
    run_label_study(study)
    for name in ("random", "typicality", "margin", "epistemic"):
        rounds = read_chain(study, name, 0)
        chosen = [position for content in rounds for position in content["chosen"]]
        assert len(set(chosen)) == len(chosen) == 12
        assert [len(content["chosen"]) for content in rounds] == [2, 4, 6]
        assert all(content["values"].shape == (12, 3) for content in rounds)
        np.testing.assert_allclose([content["values"].sum(axis=1) for content in rounds], 1)


def test_an_interrupted_chain_goes_on_and_ends_the_same(config, tmp_path):
    path = config(strategies=["epistemic"], seeds=1)
    study = read_label_study(path)
    assert run_label_study(study) == {"done": 3}
    before = {name: read_chain(study, name, 0) for name in ("random", "epistemic")}
    assert run_label_study(study) == {"kept": 3}
    (tmp_path / "out/rounds/epistemic/seed-0/round-01/round.json").unlink()  # as if it had been killed there
    assert run_label_study(study) == {"kept": 2, "done": 1}
    again = read_chain(study, "epistemic", 0)
    assert [one["chosen"] for one in again] == [one["chosen"] for one in before["epistemic"]]
    assert [one["score"] for one in again] == [one["score"] for one in before["epistemic"]]
    longer = read_label_study(config(strategies=["epistemic"], seeds=1, budgets=[2, 6, 12, 20]))
    run_label_study(longer)
    assert [one["labels"] for one in read_chain(longer, "random", 0)] == [2, 6, 12, 20]


@pytest.mark.slow
def test_rounds_of_another_recipe_are_not_mixed_in(config):
    run_label_study(read_label_study(config(strategies=["margin"], seeds=1)))
    counts = run_label_study(read_label_study(config(strategies=["margin"], seeds=1, cold_start="core_set")))
    assert counts == {"failed": 3}
    counts = run_label_study(read_label_study(config(strategies=["margin"], seeds=1, budgets=[3, 6])))
    assert counts["failed"] == 2


@pytest.mark.slow
def test_findings_are_studied_too(config, toy_folder):
    task = {
        "bundle": str(BUNDLES / "radiograph_classification"),
        "dataset_dir": str(toy_folder),
        "label_column": ["spot_left", "spot_right"],
    }
    study = read_label_study(config(task=task, strategies=["entropy", "cluster_uncertainty"], seeds=1))
    assert run_label_study(study)["failed"] == 0
    assert 0 <= study_tables(study).full_score <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": ["margin"]}, "unknown key 'strategy'; did you mean 'strategies'"),
        ({"strategies": ["typical"]}, "strategies has 'typical'; there are random, typicality"),
        ({"budgets": [10, 5]}, "budgets are ascending"),
        ({"budgets": [5, 5]}, "different values"),
        ({"cold_start": "margin"}, "cold_start has 'margin'"),
        ({"encoder": "/nowhere/encoder.safetensors"}, "weights are not at"),
        ({"mode": "finetune"}, "mode has 'finetune'; there are linear"),
        ({"seeds": [-1]}, "seeds whole numbers from 0"),
        ({"members": 1}, "members is 2 or more"),
    ],
)
def test_mistakes_in_the_file_are_named(config, changes, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_label_study(config(**changes))


def test_more_labels_than_images_are_refused(config):
    with pytest.raises(ValueError, match="ask for 500 labels, but there are 36 different"):
        run_label_study(read_label_study(config(budgets=[5, 500])))
    with pytest.raises(FileNotFoundError):
        write_label_report(read_label_study(config()))


def test_the_area_is_a_mean_score():
    assert area_under_curve([1, 10, 100], [0.5, 0.7, 0.9]) == pytest.approx(0.7)
    assert area_under_curve([7], [0.8]) == 0.8
    assert area_under_curve([1, 2, 1024], [0.0, 1.0, 1.0]) == pytest.approx((0.5 + 9) / 10)


def test_probes_of_growing_labels():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    x = rng.normal(size=(60, 5)) + 4 * np.eye(5)[y]
    probe = PartialProbe(x, 3)
    np.testing.assert_array_equal(probe.fit(x[:4], y[:4])(x)[:, 0], 1)  # one class is all it knows
    two = probe.fit(x[10:30], y[10:30])(x)
    assert (two[:, 2] == 0).all() and (two[:20].argmax(1) == 0).mean() > 0.9
    three = probe.fit(x, y)(x)
    assert (three.argmax(1) == y).mean() > 0.9
    unsure = probe.uncertainty(probe.fit(x, y), x, y, np.vstack([x, x.mean(0)]), {"margin", "epistemic"}, members=4)
    assert unsure["margin"].argmax() == 60, "between the classes"
    assert set(unsure) == {"margin", "epistemic"}


@pytest.mark.slow
def test_segmentation_trains_its_bundle_each_round(tmp_path):
    make_toy_volumes(tmp_path / "volumes")
    task = {
        "bundle": str(BUNDLES / "volume_segmentation"),
        "dataset_dir": str(tmp_path / "volumes"),
        "modality": "CT",
        "network_args": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "dropout_prob": 0.2},
        "patch_size": [16, 16, 16],
        "max_epochs": 1,
        "steps_per_epoch": 2,
        "val_interval": 1,
    }
    content = {
        "output_dir": str(tmp_path / "out"), "task": task, "mode": "finetune", "strategies": ["entropy", "epistemic"],
        "budgets": [1, 2], "seeds": 1, "members": 2, "resamples": 10,
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    study = read_label_study(path)
    assert run_label_study(study)["failed"] == 0
    found = study_tables(study)
    assert found.measure == "dice" and len(found.curves) == 6
    assert not list((tmp_path / "out").rglob("model.pt"))


def test_dropout_draws_only_inside():
    from torch import nn

    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    with dropout_on(network):
        assert network[1].training and not network[0].training
    assert not network[1].training
    with pytest.raises(ValueError, match="needs a network with dropout"), dropout_on(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize(
    "path", sorted((BUNDLES.parent / "benchmarks/label_studies").glob("*.yaml")), ids=lambda p: p.stem
)
def test_studies_of_the_documentation_are_read(path, tmp_path, monkeypatch, toy_encoder):
    monkeypatch.chdir(BUNDLES.parent)
    study = read_label_study(path, encoder=str(toy_encoder))
    assert study.task.kind == "classification" and len(study.budgets) > 2
