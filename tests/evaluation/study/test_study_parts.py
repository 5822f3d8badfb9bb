# SPDX-License-Identifier: Apache-2.0
"""What a study is read from, how images are changed, groups of patients, maps of features."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from study_files import radiograph_task, write_study

from monai_ssl.data import CTIntensity, RadiographIntensity
from monai_ssl.evaluation import Preprocessing
from monai_ssl.evaluation.study import PERTURBATIONS, perturbed_view, read_study, robustness_figures, study_cells
from monai_ssl.evaluation.study.representation import embedding_map, nearest_rows, representation_row
from monai_ssl.evaluation.study.results import Predictions, numbered
from monai_ssl.evaluation.study.subgroups import group_values, subgroup_rows
from monai_ssl.evaluation.study.training_cells import validation_curve
from monai_ssl.metrics import area_under_roc

ROOT = Path(__file__).parents[3]


def test_defaults_and_order_of_the_cells(tmp_path, toy_images):
    study = read_study(write_study(tmp_path, radiograph_task(toy_images), fractions=[1.0, 0.1], seeds=[3, 5]))
    assert study.modes == ("linear", "finetune") and study.fractions == (0.1, 1.0) and study.seeds == (3, 5)
    names = [cell.name for cell in study_cells(study)]
    assert names[0] == "toy/random/linear/fraction-0.1/seed-3" and len(names) == len(set(names)) == 8
    moved = read_study(tmp_path / "study.yaml", output_dir=tmp_path / "else", dataset_dir="other")
    assert moved.output_dir == tmp_path / "else" and moved.tasks["toy"].settings["dataset_dir"] == "other"


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ({"fraction": [1.0]}, {}, "unknown key 'fraction'; did you mean 'fractions'"),
        ({}, {"lable_column": "label"}, "unknown key 'lable_column'; did you mean 'label_column'"),
        ({}, {"seed": 1}, "sets seed, which the study sets"),
        ({}, {"bundle": "no_such"}, "names the bundle"),
        ({}, {"bundle": "radiograph_c2l_pretraining"}, "no bundle that learns from labels"),
        ({"encoders": {"x": "missing.safetensors"}}, {}, "the weights of 'x' are not at"),
        ({"encoders": {"random": "x"}}, {}, "stands for the start without pretraining"),
        ({"modes": ["probe"]}, {}, "modes has 'probe'"),
        ({"modes": ["frozen"]}, {}, "is a classification; modes must have one of"),
        ({"modes": "linear"}, {}, "modes must be a list"),
        ({"fractions": [0]}, {}, "fractions are shares"),
        ({"fractions": [1, 1.0]}, {}, "different values"),
        ({"seeds": [0, -1]}, {}, "seeds are whole numbers"),
        ({"seeds": 0}, {}, "seeds must be one or more"),
        ({"robustness": ["blurr"]}, {}, "robustness has 'blurr'"),
        ({"confidence": 1.5}, {}, "confidence"),
        ({"tasks": {}}, {}, "lacks 'tasks'"),
    ],
)
def test_mistakes_are_named(tmp_path, toy_images, content, task, message):
    path = write_study(tmp_path, radiograph_task(toy_images, **task), **content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_study(path)


@pytest.mark.parametrize("path", [*(ROOT / "benchmarks/studies").glob("*.yaml"), ROOT / "docs/how-to/evaluate.md"])
def test_studies_of_the_documentation_are_read(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    parts = [part.split("```")[0] for part in text.split("```yaml\n")[1:]] if path.suffix == ".md" else [text]
    for part in parts:
        content = yaml.safe_load(part)
        weights = tmp_path / "encoder.safetensors"
        weights.touch()
        content["encoders"] = dict.fromkeys(content["encoders"], str(weights))
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        assert study_cells(read_study(tmp_path / "study.yaml"))


def test_the_documentation_lists_every_perturbation():
    text = (ROOT / "docs/how-to/evaluate.md").read_text()
    assert all(f"`{name}`" in text for name in PERTURBATIONS)


def smooth_images(*shape: int) -> torch.Tensor:
    """Rough noise, enlarged: something that turns and scales visibly."""
    coarse = torch.rand(2, 1, *(side // 8 for side in shape), generator=torch.Generator().manual_seed(0))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, size=shape, mode=mode).clamp(0, 1)


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("shape", [(48, 40), (16, 24, 32)])
def test_stronger_levels_change_more_and_the_identity_nothing(name, shape):
    change, x = PERTURBATIONS[name], smooth_images(*shape)
    preprocessing = Preprocessing((32, 32) if len(shape) == 2 else (16, 16, 16))
    policy = CTIntensity(window_hu=(-1000.0, 1000.0))
    plain = preprocessing.view()(x)
    torch.testing.assert_close(perturbed_view(name, change.identity, preprocessing, policy)(x), plain)

    def moved(level: float) -> float:
        return float((perturbed_view(name, level, preprocessing, policy)(x) - plain).abs().mean())

    for side in (-1, 1):
        ordered = sorted((v for v in change.levels if (v - change.identity) * side > 0), key=lambda v: v * side)
        amounts = [moved(level) for level in ordered]
        assert all(0 < a < b for a, b in itertools.pairwise(amounts)) and (not amounts or amounts[0] > 0)
    assert moved(change.levels[0]) == moved(change.levels[0]), "the same images change alike"
    assert len(change.source) > 10


def test_formulas_of_single_levels():
    preprocessing = Preprocessing((16, 16), mean=0.0, std=1.0)
    x, policy = torch.rand(3, 1, 16, 16), RadiographIntensity()
    torch.testing.assert_close(perturbed_view("brightness", 1.2, preprocessing, policy)(x), 1.2 * x)
    torch.testing.assert_close(perturbed_view("gamma", 2.0, preprocessing, policy)(x), x**2)
    mean = x.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(perturbed_view("contrast", 0.6, preprocessing, policy)(x), mean + 0.6 * (x - mean))
    difference = perturbed_view("noise", 0.1, preprocessing, policy)(x.expand(3, 8, 16, 16)) - x
    assert float(difference.std()) == pytest.approx(0.1, rel=0.05)
    back = perturbed_view("rotation", 90.0, preprocessing, policy)(x)
    assert any(torch.allclose(back, torch.rot90(x, k, (2, 3)), atol=1e-4) for k in (1, 3))
    with pytest.raises(ValueError, match="'window' is for CT"):
        perturbed_view("window", 0.5, preprocessing, policy)


def test_robustness_figures():
    truth = np.array([0, 0, 1, 1])
    good, bad = (np.stack([1 - p, p], 1) for p in (np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.2, 0.8, 0.1])))
    outcomes = np.stack([good, good, good, good, bad])
    found = robustness_figures([area_under_roc(truth, p) for p in outcomes], outcomes, "noise")
    assert found["scores"][:3] == [1, 1, 1] and found["worst_level"] == 0.2
    assert found["worst_drop"] == 1 - found["scores"][3] == 4 * found["mean_drop"]
    each = np.std([0.1, 0.1, 0.1, 0.1, 0.9])
    assert found["spread"] == pytest.approx(each / 2)  # half of the images change, both classes alike
    outcomes[:, 0, 0] = np.nan  # a class that a volume does not have
    assert np.isfinite(robustness_figures([1, 1, 1, 1, 0.5], outcomes, "noise")["spread"])


def test_ages_become_bands():
    values = ["045Y", "006M", "17", 18, "39.9", "080Y", "200", "old", "", None]
    expected = ["40-59", "0-17", "0-17", "18-39", "18-39", "80+", "unknown", "unknown", "unknown", "unknown"]
    assert group_values(pa.chunked_array([[None if v is None else str(v) for v in values]]), "age").tolist() == expected
    assert group_values(pa.chunked_array([["F", None]]), "sex").tolist() == ["F", "unknown"]


def test_groups_that_are_too_small_or_lack_a_class_have_no_figures():
    rng = np.random.default_rng(0)
    truth, sites = rng.integers(0, 2, 90), np.repeat(["A", "B", "C"], [50, 35, 5])
    truth[50:85] = 1
    p = np.clip(0.5 + 0.2 * (truth - 0.5) + rng.normal(0, 0.1, 90), 0, 1)
    made = Predictions(np.arange(90), truth, np.stack([1 - p, p], 1), np.arange(90))
    table = pa.table({"site": sites.tolist(), "name": [f"n{i}" for i in range(90)]})
    a, b, c, name, none = subgroup_rows(table, [made, made], ["site", "name", "sex"], min_patients=20, resamples=50)
    assert a["patients"] == 50 and a["auc_low"] < a["auc"] < a["auc_high"]
    assert b["patients"] == 35 and b["auc"] is None and "not defined" in b["note"]
    assert c["patients"] is None and "fewer than 20" in c["note"]
    assert "more than 12 groups" in name["note"] and "no such column" in none["note"]


def test_patients_become_numbers():
    assert numbered(np.array(["x9", "a1", "x9", "b"])).tolist() == [0, 1, 0, 2]


def test_curves_leave_out_values_that_are_only_repeated(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val_auc\n1,10,\n2,20,0.6\n3,30,0.6\n4,40,0.6\n5,50,0.6\n")
    assert validation_curve(tmp_path, "val_auc", 2) == ([20, 40], [0.6, 0.6])
    assert validation_curve(tmp_path, "val_dice") is None and validation_curve(tmp_path / "no", "val_auc") is None


def test_features_that_collapsed_are_told_and_maps_part_classes():
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(60, 8)).astype(np.float32)
    assert not representation_row(spread)["collapsed"]
    assert representation_row(np.ones((60, 8), np.float32) + np.outer(spread[:, 0], np.ones(8)))["collapsed"]
    two = spread + 20 * (np.arange(60) % 2)[:, None]
    for method in ("pca", "tsne"):
        points, chosen = embedding_map(two, method)
        assert points.shape == (60, 2) and (chosen == np.arange(60)).all()
        near = nearest_rows(points, points, 2)[:, 1]
        assert method == "pca" or ((near % 2) == (np.arange(60) % 2)).mean() > 0.9
    with pytest.raises(ValueError, match="three features"):
        embedding_map(spread[:2])
    assert (nearest_rows(spread[:5], spread, 1)[:, 0] == np.arange(5)).all()
