# SPDX-License-Identifier: Apache-2.0
"""A study: every cell once and by one process, honest folds, scores that start at 0, and a report of it all."""

from __future__ import annotations

import csv
import json
import multiprocessing
import shutil
from dataclasses import replace

import numpy as np
import pytest
from small_recipe import RECIPE

from monai_ssl.transferability import (
    MEASURES,
    CellBusyError,
    open_labelled_set,
    run_study,
    study_report,
    transfer_score,
    verdict,
)
from monai_ssl.transferability.correlation import Correlation
from monai_ssl.transferability.study_files import held_cell, write_cell
from monai_ssl.transferability.study_report import _correlations


def test_cells_are_all_pairs_with_self_and_random(finished_study):
    pairs = set(finished_study.cells())
    assert pairs == {(s, t) for s in ("random", "stripes", "fibres") for t in ("fibres", "cells")} | {
        ("cells", "cells")
    }
    files = {path.name for path in (finished_study.output_dir / "cells").glob("[!.]*")}
    assert files == {f"{s}__{t}.json" for s, t in pairs}
    cell = json.loads(finished_study.path("stripes", "cells").read_text())
    assert len(cell["folds"]) == 2 and all(0 <= fold["auc"] <= 1 for fold in cell["folds"])
    assert sum(fold["test"] for fold in cell["folds"]) == 24 and cell["versions"]["torch"]
    assert "EXAMPLE-" not in finished_study.path("stripes", "cells").read_text()


def test_the_own_cell_is_pretrained_without_its_test_images(finished_study, tmp_path, small_study, monkeypatch):
    names = {path.name for path in (finished_study.output_dir / "sources").glob("[!.]*")}
    assert {"stripes", "fibres", "fibres__fold0", "cells__fold1"} <= names
    assert "cells" not in names, "cells is no source: only its own cell trains on it"
    paper = small_study(tmp_path / "paper", by_patient=False, source_share=0.8)
    seen = {}

    def note(data, rows, *_):
        seen[data.name] = len(rows)
        raise RuntimeError("enough")

    monkeypatch.setattr("monai_ssl.transferability.source_study.pretrain_source", note)
    with pytest.raises(RuntimeError, match="enough"):
        paper.run_cell("fibres", "fibres")
    assert seen == {"fibres": 19}  # 80 % of all images, those of the test folds among them


def test_folds_keep_patients_together_or_not(finished_study):
    data = finished_study.sets["cells"]
    for train, test in data.folds(3):
        assert not set(data.patients_of(train)) & set(data.patients_of(test))
        assert sorted([*train, *test]) == data.rows.tolist()
        assert set(data.classes_of(test)) == {0, 1}
    mixed = data.folds(3, by_patient=False)
    assert any(set(data.patients_of(train)) & set(data.patients_of(test)) for train, test in mixed)
    with pytest.raises(ValueError, match="the class 'large' has 6 patients, too few for 7 folds"):
        data.folds(7)


def test_folds_do_not_depend_on_the_salt_of_an_index(finished_study, example_sets, tmp_path):
    data = finished_study.sets["cells"]
    again = open_labelled_set(example_sets / "cells", tmp_path, num_workers=0)
    assert set(data.labels.groups).isdisjoint(again.labels.groups)
    for ours, theirs in zip(data.folds(3), again.folds(3), strict=True):
        assert np.array_equal(ours[1], theirs[1])


def test_drawn_rows_are_nested_and_hold_all_classes(finished_study):
    data = finished_study.sets["stripes"]
    few, more = data.draw(6), data.draw(20)
    assert set(few) < set(more) and np.bincount(data.classes_of(few)).tolist() == [2, 2, 2]


def test_a_finished_study_is_not_trained_again(finished_study, small_study, monkeypatch):
    monkeypatch.setattr("monai_ssl.transferability.source_study.fine_tune_fold", None)
    before = {path: path.stat().st_mtime_ns for path in finished_study.output_dir.rglob("*__*.json")}
    again = small_study(finished_study.output_dir)
    run_study(again, steps=["cells", "measures"])
    assert before and before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ValueError, match="7 finished cells; use resume=True"):
        run_study(again, resume=False)


def test_other_settings_in_the_folder_are_refused_and_more_sets_may_join(finished_study, small_study):
    with pytest.raises(ValueError, match="other settings \\(recipe, seed\\)"):
        small_study(finished_study.output_dir, recipe=replace(RECIPE, batch_size=8), seed=1)
    grown = small_study(finished_study.output_dir, sources=["stripes", "fibres", "rings"])
    assert [pair for pair in grown.cells() if not grown.path(*pair).exists()] == [
        ("rings", "fibres"),
        ("rings", "cells"),
    ]


def test_an_interrupted_cell_leaves_nothing_and_is_made_the_next_time(small_study, tmp_path, monkeypatch):
    study, calls = small_study(tmp_path), []

    def fold(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr("monai_ssl.transferability.source_study.fine_tune_fold", fold)
    with pytest.raises(KeyboardInterrupt):
        study.run(["random", "cells"])
    assert not list((tmp_path / "cells").glob("[!.]*"))
    run_study(study, ["random", "cells"])
    assert [fold["auc"] for fold in json.loads(study.path("random", "cells").read_text())["folds"]] == [0.5, 0.5]
    assert len(list((tmp_path / "cells").glob("[!.]*"))) == 1
    with pytest.raises(ValueError, match=r"no cell \[dots,cells\]; the cells are \[random,fibres\]"):
        study.run(["dots", "cells"])


def hold(path, ready, done):
    with held_cell(path):
        ready.set()
        done.wait(60)


def test_two_processes_on_one_cell(small_study, tmp_path):
    study = small_study(tmp_path)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(study.path("random", "cells"), ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(CellBusyError, match="another process is working on random__cells"):
            study.run(["random", "cells"])
    finally:
        done.set()
        other.join(60)
    with held_cell(study.path("random", "cells")):  # the lock went with its process
        pass


def test_a_cell_is_never_overwritten(tmp_path):
    write_cell(tmp_path / "a.json", {"auc": 1})
    with pytest.raises(FileExistsError, match="is not overwritten"):
        write_cell(tmp_path / "a.json", {"auc": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"auc": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_source_with_images_of_the_target_is_left_out(example_sets, small_study, tmp_path, set_cache):
    shutil.copytree(example_sets / "cells", tmp_path / "mixed")
    study = small_study(
        tmp_path / "out", sources={"mixed": str(tmp_path / "mixed")}, targets=["cells"], cache_dir=tmp_path / "cache"
    )
    study.run(["mixed", "cells"])
    report = study_report(study, resamples=20)
    assert report.excluded == {"mixed to cells": "24 images of cells are in mixed too"}
    assert "Left out: mixed to cells: 24 images" in report.as_markdown()


def test_score_is_averaged_over_folds_and_0_for_the_own_cell(finished_study):
    own = [0.8, 0.5]
    assert transfer_score(own, own) == 0
    assert transfer_score([0.9, 0.9], own) == pytest.approx((12.5 + 80) / 2)  # not 100 (0.9 - 0.65) / 0.65
    # ImageNet to ISIC of the Cats paper, fold by fold
    imagenet, isic = [0.9474, 0.9514, 0.9487, 0.9418, 0.9423], [0.8796, 0.8778, 0.8895, 0.8708, 0.8835]
    assert transfer_score(imagenet, isic) == pytest.approx(7.51, abs=0.02)
    with pytest.raises(ValueError, match="same folds"):
        transfer_score([0.5], own)
    for row in study_report(finished_study, resamples=20).rows:
        assert row["source"] != row["target"] or row["score"] == 0
        assert row["source"] != "random" or row["gain"] == 0


def test_report(finished_study, tmp_path):
    report = study_report(finished_study, resamples=20)
    assert not report.missing and not report.excluded and len(report.rows) == 7
    ranks = sorted(row["rank"] for row in report.rows if row["target"] == "fibres" and row["rank"])
    assert ranks[0] == 1 and len(ranks) == 2
    kinds = {(row["measure"], row["self_pairs"]) for row in report.correlations}
    assert kinds == {(name, with_self) for name in MEASURES if name != "experts" for with_self in (True, False)}
    page = report.save(tmp_path)
    text = page.read_text()
    assert "| fibres | random | - |" in text and "did not predict the transfer as far as 3 pairs can tell" in text
    with open(tmp_path / "report.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 7
    assert (tmp_path / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "scatter_frechet.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report.json").read_text())["reference"] == "self"


def test_order_within_targets_is_told_apart_from_their_levels():
    rows = [  # the measure orders each target's sources rightly, but is high where scores are low
        {"source": source, "target": target, "score": 10.0 * number - 100 * level, "log_me": number + 5 * level}
        for level, target in enumerate("ab")
        for number, source in enumerate("stuvw")
    ]
    found = _correlations(rows, "log_me", True, "stuvw", 20)
    assert found["pearson"]["value"] < -0.5 and found["within"]["value"] == pytest.approx(1)
    assert found["verdict"].startswith("went with the transfer in 10 pairs (rho = 1.00")


def test_report_with_experts_and_of_a_part(finished_study, small_study, tmp_path):
    table = tmp_path / "experts.csv"
    table.write_text(",fibres,cells\nstripes,1,4\nfibres,0,5\n")
    study = small_study(tmp_path / "part", experts=table)
    study.path("random", "cells").parent.mkdir()
    for pair in [("stripes", "cells"), ("cells", "cells")]:
        study.path(*pair).write_bytes(finished_study.path(*pair).read_bytes())
    report = study_report(study, resamples=20)
    assert len(report.missing) == 5 and "Not trained yet: random to fibres; " in report.as_markdown()
    row = next(row for row in report.rows if row["source"] == "stripes")
    assert row["experts"] == 4 and row["gain"] is None and row["score"] is not None
    table.write_text(",fibres\nstripes,1\nfibres,0\n")
    with pytest.raises(ValueError, match="no target 'cells'"):
        study_report(study, resamples=20)


def test_an_encoder_file_as_source_and_a_measure_that_is_not_defined(
    finished_study, small_study, tmp_path, monkeypatch
):
    folder = tmp_path / "mine"
    shutil.copytree(finished_study.output_dir / "sources/stripes", folder)
    (folder / "head.safetensors").unlink()
    study = small_study(tmp_path / "out", sources=[str(folder / "encoder.safetensors"), "stripes"], targets=["cells"])
    assert study.sources == ["mine", "stripes"]

    def refuse(*_):
        raise ValueError("the classes are too few")

    monkeypatch.setattr("monai_ssl.transferability.pair_measures.gaussian_bhattacharyya", refuse)
    study.run(["mine", "cells"])
    study.measure()
    report = study_report(study, resamples=20)
    (row,) = report.rows
    assert row["log_me"] is not None and row["frechet"] is None and row["leep"] is None and row["gbc"] is None
    told = "Gaussian Bhattacharyya coefficient of mine to cells: the classes are too few"
    assert f"Measures not defined: {told}" in report.as_markdown()


def test_verdict():
    strong = Correlation("pearson", 0.8, 24, 0.001, 0.002, 0.6, 0.9, 0.95)
    assert verdict(strong, True) == "went with the transfer in 24 pairs (r = 0.80, permutation p = 0.00)"
    assert verdict(strong, higher_is_better=False).startswith("pointed the wrong way")
    weak = replace(strong, permutation_p=0.4)
    assert "did not predict the transfer" in verdict(weak, higher_is_better=True)


def test_mistakes_in_the_settings(small_study, tmp_path, example_sets):
    for settings, message in [
        ({"targets": ["cels"]}, "the target 'cels': there is no"),
        ({"label_column": {"dots": "label"}}, "name dots; the sets are stripes, fibres, cells"),
        ({"label_column": "lable"}, "the data set 'stripes': .*lable"),
        ({"num_folds": 9}, "the class 'flat' has 6 patients, too few for 9 folds"),
        ({"source_share": 0}, "source_share must be in"),
        ({"sources": {"random": "stripes"}}, "none may be called 'random'"),
        ({"sources": {"cells": "stripes"}}, "'cells' are two folders"),
        ({"dataset_dir": None, "targets": None, "sources": [str(example_sets / "dots")]}, "give targets"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            small_study(tmp_path, **settings)
    with pytest.raises(ValueError, match="steps are some of"):
        run_study(small_study(tmp_path), steps=["train"])
