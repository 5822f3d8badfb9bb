# SPDX-License-Identifier: Apache-2.0
"""The report of a segmentation: figures, empty masks, files, pictures, comparison of two runs, many runs in a table."""

from __future__ import annotations

import csv
import json
from math import nan

import numpy as np
import pytest

from monai_ssl.evaluation import (
    RunFacts,
    collect_reports,
    compare_segmentations,
    report_table,
    segmentation_report,
)
from monai_ssl.evaluation.segmentation_plots import SlicedVolume, cut_slices, segmentation_png, slice_places
from monai_ssl.evaluation.segmentation_report import class_mean
from monai_ssl.metrics import MaskScore

ABSENT, MISSED, ALARM = MaskScore(nan, nan, nan, 0, 0), MaskScore(0, nan, nan, 2, 0), MaskScore(0, nan, nan, 0, 3)


def found(dice: float, distance: float = 1.0) -> MaskScore:
    return MaskScore(dice, distance, 2 * distance, 5.0, 4.0)


def facts(seed: int = 0, mode: str = "scratch", split_hash: str = "abc", fraction: float = 1.0) -> RunFacts:
    return RunFacts(mode, "random", fraction, 6, seed, split_hash, 10.0, "cpu")


def test_mean_over_classes_of_means_over_volumes():
    assert class_mean(np.array([[0.8, nan], [0.6, 0.2]])) == pytest.approx((0.7 + 0.2) / 2)
    assert class_mean(np.array([[0.8, nan]])) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="not defined on any volume"):
        class_mean(np.array([[nan, nan]]))


def test_rows_counts_and_files(tmp_path):
    scores = [[found(0.9), ABSENT], [found(0.7, 3.0), MISSED], [found(0.8), ALARM], [found(0.6), found(0.5)]]
    report = segmentation_report(
        scores,
        ["liver", "lesion"],
        facts(),
        paths=["a.nii", "b.nii", "c.nii", "d.nii"],
        groups=["P1", "P1", "P2", "P3"],
        spacing="2 x 2 x 2 mm",
        picture=b"png",
        resamples=30,
    )
    overall, liver, lesion = report.rows
    assert liver["dice"] == pytest.approx(0.75) and lesion["dice"] == pytest.approx(0.5 / 3)
    assert overall["dice"] == report.dice == pytest.approx((0.75 + 0.5 / 3) / 2)
    assert liver["surface_distance_mm"] == pytest.approx(6 / 4) and lesion["hausdorff95_mm"] == 2.0
    counts = {key: lesion[key] for key in ("found", "missed", "false_alarm", "rightly_absent")}
    assert counts == {"found": 1, "missed": 1, "false_alarm": 1, "rightly_absent": 1}
    assert liver["dice_low"] <= liver["dice"] <= liver["dice_high"] and liver["by_patient"]
    report.save(tmp_path, "test_report")
    markdown = (tmp_path / "test_report.md").read_text()
    assert "| lesion | 0.167" in markdown and "2 x 2 x 2 mm" in markdown and "- split_hash: abc" in markdown
    assert (tmp_path / "test_report_examples.png").read_bytes() == b"png"
    data = json.loads((tmp_path / "test_report.json").read_text())
    assert data["volumes"][1]["dice"] is None and "NaN" not in (tmp_path / "test_report.json").read_text()
    with open(tmp_path / "test_report_volumes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and rows[1]["dice"] == "" and rows[1]["outcome"] == "rightly absent"


def test_a_class_that_is_nowhere_and_one_patient():
    report = segmentation_report([[found(0.9), ABSENT]], ["liver", "lesion"], facts(), groups=["P1"], resamples=5)
    assert [row["dice"] for row in report.rows] == [0.9, 0.9, None] and report.rows[0]["dice_low"] is None
    assert "| lesion | - | - | - | 0 | 0 | 0 | 1 |" in str(report)
    single = segmentation_report([[found(0.9)], [found(0.7)]], ["liver"], facts(), resamples=5)
    assert [row["class"] for row in single.rows] == ["all"] and not single.rows[0]["by_patient"]
    with pytest.raises(ValueError, match="one score for each of 2 classes"):
        segmentation_report([[found(0.9)]], ["liver", "lesion"], facts())


def write_run(folder, seed: int, dice: float, **more):
    rng = np.random.default_rng(seed)
    scores = [[found(dice + rng.normal(0, 0.02)), found(dice / 2) if n % 2 else ABSENT] for n in range(12)]
    groups = [f"P{n // 2}" for n in range(12)]
    segmentation_report(
        scores,
        ["liver", "lesion"],
        facts(seed, **more),
        paths=[f"{n:02d}" for n in range(12)],
        groups=groups,
        resamples=5,
    ).save(folder, "test_report")


def test_two_runs_are_compared_volume_by_volume(tmp_path):
    write_run(tmp_path / "a", 1, 0.8, mode="finetune")
    write_run(tmp_path / "b", 2, 0.6)
    files = [tmp_path / run / "test_report_volumes.csv" for run in "ab"]
    difference = compare_segmentations(*files, n=100)
    by_run = {row["run"]: row["dice"] for row in collect_reports(tmp_path)}
    assert difference.value == pytest.approx(by_run["a"] - by_run["b"], abs=1e-5)
    assert difference.low > 0.05 and difference.p_value < 0.05
    assert compare_segmentations(*files, class_name="lesion", n=20).value == pytest.approx(0.1)
    assert compare_segmentations(*files, measure="hausdorff95_mm", n=20).value == 0
    with pytest.raises(ValueError, match="no class 'livr'"):
        compare_segmentations(*files, class_name="livr")
    with pytest.raises(ValueError, match="measure must be one of dice"):
        compare_segmentations(*files, measure="auc")
    (tmp_path / "short.csv").write_text("\n".join(files[0].read_text().splitlines()[:5]))
    with pytest.raises(ValueError, match="not of the same volumes"):
        compare_segmentations(files[0], tmp_path / "short.csv")


def test_table_of_runs(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"fine{seed}", seed, 0.8, mode="finetune")
    write_run(tmp_path / "scratch", 1, 0.5, fraction=0.5)
    rows = collect_reports(tmp_path)
    header, _, fine, scratch = report_table(rows).splitlines()
    assert header == "| mode | encoder | 50 % | 100 % | s a run |"
    dice = [row["dice"] for row in rows if row["mode"] == "finetune"]
    assert f"{np.mean(dice):.3f} ± {np.std(dice, ddof=1):.3f} (2)" in fine and scratch.startswith("| scratch |")
    with pytest.raises(ValueError, match="different kinds"):
        report_table([*rows, {"auc": 0.5}])


def test_slices_show_where_the_truth_is():
    truth = np.zeros((6, 8, 10), np.uint8)
    truth[4, 2:5, 7] = 2
    prediction = np.zeros_like(truth)
    prediction[1, 1:4, 1:4] = 1
    places = slice_places(truth, prediction)
    assert places[0] == 4 and places[1] in (2, 3, 4) and places[2] == 7
    assert slice_places(truth * 0, prediction)[0] == 1 and slice_places(truth * 0, truth * 0) == (3, 4, 5)
    shapes = [part.shape for part in cut_slices(truth, places)]
    assert shapes == [(8, 10), (6, 10), (6, 8)]
    image = [np.full(shape, 0.4) for shape in shapes]
    row = SlicedVolume("best", image, cut_slices(truth, places), cut_slices(prediction, places), (2.0, 1.0, 1.0))
    picture = segmentation_png([row, row], ["liver", "lesion"])
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert segmentation_png([row], ["liver", "lesion"]) != picture
