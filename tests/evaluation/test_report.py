# SPDX-License-Identifier: Apache-2.0
"""The classification report and its files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score

from monai_ssl.evaluation import RunFacts, classifier_report, describe_lineage
from monai_ssl.evaluation.plots import confusion_png

FACTS = RunFacts("linear", "random", 0.1, 40, 3, "abc123", 12.5, "cpu (2 threads)")


def example(kind: str, n: int = 120):
    rng = np.random.default_rng(0)
    if kind == "multilabel":
        y = (rng.random((n, 3)) < [0.5, 0.3, 0.2]).astype(int)
        return y, 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(size=(n, 3))))), ["effusion", "nodule", "mass"]
    names = ["normal", "bacterial", "viral"] if kind == "multiclass" else ["normal", "ill"]
    y = np.arange(n) % len(names)
    p = np.exp(2 * np.eye(len(names))[y] + rng.normal(size=(n, len(names))))
    return y, p / p.sum(1, keepdims=True), names


def test_multiclass_equals_scikit_learn():
    y, p, names = example("multiclass")
    report = classifier_report(y, p, names, FACTS, resamples=50)
    assert [row["class"] for row in report.rows] == ["all", *names]
    assert report.auc == pytest.approx(roc_auc_score(y, p, multi_class="ovr"))
    assert report.rows[2]["auc"] == pytest.approx(roc_auc_score(y == 1, p[:, 1]))
    assert report.rows[0]["sensitivity"] == pytest.approx(recall_score(y, p.argmax(1), average="macro"))
    table = np.array([row[1:] for row in report.confusion["rows"]])
    np.testing.assert_array_equal(table, confusion_matrix(y, p.argmax(1)))
    for row in report.rows:
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert (row["split_hash"], row["seed"], row["num_labels"]) == ("abc123", 3, 40)
        assert {"torch", "monai", "monai_ssl"} <= row["versions"].keys()


def test_binary_has_one_row_about_the_second_class():
    y, p, names = example("binary")
    report = classifier_report(y, p, names, FACTS, resamples=20)
    assert len(report.rows) == 1
    assert report.auc == pytest.approx(roc_auc_score(y, p[:, 1]))
    assert report.rows[0]["sensitivity"] == pytest.approx(recall_score(y, p.argmax(1)))
    assert report.rows[0]["positives"] == (y == 1).sum()


def test_multilabel_counts_known_labels_only():
    y, p, names = example("multilabel")
    labels = y.astype(float)
    labels[:50, 2] = np.nan
    report = classifier_report(labels, p, names, FACTS, resamples=20)
    assert report.rows[3]["auc"] == pytest.approx(roc_auc_score(y[50:, 2], p[50:, 2]))
    assert report.rows[3]["positives"] + report.rows[3]["negatives"] == 70
    assert report.confusion["rows"][2][0] == "mass" and sum(report.confusion["rows"][2][1:]) == 70


def test_intervals_by_patient_are_wider():
    rng = np.random.default_rng(0)
    y, p, names = example("binary", 40)
    p = np.clip(p + 0.2 * rng.normal(size=p.shape), 0.01, 0.99)
    y, p, patients = np.repeat(y, 10), np.repeat(p, 10, axis=0), np.repeat(np.arange(40), 10)
    by_image, by_patient = (classifier_report(y, p, names, FACTS, groups=g, resamples=200) for g in (None, patients))
    widths = [r.rows[0]["auc_high"] - r.rows[0]["auc_low"] for r in (by_image, by_patient)]
    assert widths[1] > 2 * widths[0]
    assert "resamples of patients" in str(by_patient) and "resamples of images" in str(by_image)


def test_files_say_the_same(tmp_path):
    y, p, names = example("multiclass")
    report = classifier_report(y, p, names, FACTS, resamples=20, title="test split")
    path = report.save(tmp_path / "out", "test_report")
    assert sorted(f.name for f in path.parent.iterdir()) == [
        "test_report.csv",
        "test_report.json",
        "test_report.md",
        "test_report_confusion.png",
    ]
    data = json.loads((tmp_path / "out/test_report.json").read_text())
    assert data["rows"] == report.rows and data["confusion"] == report.confusion
    with open(tmp_path / "out/test_report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["auc"]) for row in rows] == [row["auc"] for row in report.rows]
    assert json.loads(rows[0]["versions"]) == report.rows[0]["versions"]
    text = path.read_text()
    assert f"| bacterial | 40 | 80 | {report.rows[2]['auc']:.3f} |" in text
    for word in ("split_hash: abc123", "seed: 3", "label_fraction: 0.1", "lineage: random", "wall_time_s: 12.5"):
        assert word in text
    with Image.open(tmp_path / "out/test_report_confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 100


def test_no_interval_where_one_patient_has_the_class():
    y = np.array([0] * 10 + [1])
    p = np.stack([1 - np.linspace(0, 1, 11), np.linspace(0, 1, 11)], 1)
    report = classifier_report(y, p, ["normal", "ill"], FACTS, groups=[0] * 5 + [1] * 6, resamples=20)
    assert report.auc == 1.0
    one_group = classifier_report(y, p, ["normal", "ill"], FACTS, groups=[0] * 11, resamples=20)
    assert one_group.rows[0]["auc_low"] is None
    assert "- to -" in str(one_group)


def test_bad_input_is_named():
    y, p, names = example("multiclass")
    with pytest.raises(ValueError, match="class viral has no positive sample"):
        classifier_report(np.where(y == 2, 0, y), p, names, FACTS, resamples=5)
    with pytest.raises(ValueError, match="2 class names"):
        classifier_report(y, p, names[:2], FACTS)


def test_lineage_in_words():
    assert describe_lineage(()) == "random"


def test_picture_survives_an_empty_row():
    table = confusion_png({"columns": ["truth", "a", "b"], "rows": [["a", 0, 0], ["b", 1, 2]]}, "x")
    assert table.startswith(b"\x89PNG")
