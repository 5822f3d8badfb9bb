# SPDX-License-Identifier: Apache-2.0
"""Several reports side by side."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from monai_ssl.evaluation import RunFacts, classifier_report, collect_reports, compare_predictions, report_table


def write_run(folder, seed, quality, mode="linear", fraction=0.1, split_hash="abc"):
    rng = np.random.default_rng(seed)
    y = np.arange(60) % 3
    z = quality * np.eye(3)[y] + rng.normal(size=(60, 3))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    names = ["normal", "bacterial", "viral"]
    facts = RunFacts(mode, "C2L" if quality > 1 else "random", fraction, 14, seed, split_hash, 10.0 * seed, "cpu")
    classifier_report(y, p, names, facts, resamples=5).save(folder, "test_report")
    with open(folder / "test_report_predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "truth", *names])
        for i in rng.permutation(60):
            writer.writerow([f"{i:02d}.png", names[y[i]], *p[i]])


def test_table_of_means_over_seeds(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"good{seed}", seed, 3.0)
        write_run(tmp_path / f"poor{seed}", seed, 0.5)
    write_run(tmp_path / "all", 1, 3.0, fraction=1.0)
    rows = collect_reports(tmp_path)
    assert len(rows) == 7 and {row["run"] for row in rows} >= {"good1", "poor3", "all"}
    header, _, good, poor = report_table(rows).splitlines()
    assert header == "| mode | encoder | 10 % | 100 % | s a run |"
    aucs = [row["auc"] for row in rows if row["run"].startswith("good")]
    assert f"| linear | C2L | {np.mean(aucs):.3f} ± {np.std(aucs, ddof=1):.3f} (3) |" in good
    assert poor.startswith("| linear | random |") and poor.endswith("|  | 20 |")


def test_paired_comparison(tmp_path):
    write_run(tmp_path / "a", 1, 3.0)
    write_run(tmp_path / "b", 2, 0.5)
    files = [tmp_path / run / "test_report_predictions.csv" for run in ("a", "b")]
    found = compare_predictions(*files, n=100, groups={f"{i:02d}.png": str(i // 2) for i in range(60)})
    rows = {row["run"]: row["auc"] for row in collect_reports(tmp_path)}
    assert found.value == pytest.approx(rows["a"] - rows["b"], abs=1e-6)
    assert found.low > 0 and found.p_value < 0.05
    same = compare_predictions(files[0], files[0], n=20)
    assert same.value == 0 and same.p_value == 1.0
    (tmp_path / "short.csv").write_text(files[0].read_text()[:200].rsplit("\n", 1)[0])
    with pytest.raises(ValueError, match="not of the same images"):
        compare_predictions(files[0], tmp_path / "short.csv")


def test_reports_that_do_not_belong_together(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no test_report\.json"):
        collect_reports(tmp_path)
    write_run(tmp_path / "a", 1, 1.0)
    write_run(tmp_path / "b", 1, 1.0, split_hash="other")
    with pytest.raises(ValueError, match="2 different splits"):
        collect_reports(tmp_path)
