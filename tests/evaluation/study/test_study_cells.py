# SPDX-License-Identifier: Apache-2.0
"""Cells: computed once, by one process, whole or not at all, the same each time, and never over another recipe's."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from study_files import toy_study

from monai_ssl.data.files import folder_lock
from monai_ssl.evaluation.study import (
    collect_cells,
    find_cell,
    run_cell,
    run_study,
    study_cells,
    write_slurm_array,
    write_study_report,
)
from monai_ssl.evaluation.study.results import Predictions
from monai_ssl.evaluation.study.runner import cell_recipe
from monai_ssl.metrics import area_under_roc
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

LINEAR = {"modes": ["linear"], "fractions": [0.5, 1.0], "seeds": 1}


def read_cells(study):
    return {cell["name"]: cell for cell in collect_cells(study)[0]}


def test_every_cell_says_what_it_is_and_how_it_was_made(whole_study):
    cells = read_cells(whole_study)
    assert list(cells) == [cell.name for cell in study_cells(whole_study)]
    for cell in cells.values():
        result = cell["result"]
        assert 0 <= result["score"] <= 1 and result["num_patients"] == 6 and result["num_scored"] == 12
        assert set(result["classes"]) == {"left", "normal", "right"} and 0 <= result["ece_mass"] <= 1
        assert cell["num_labels"] == 18
        assert len(cell["split_hash"]) == 16 and cell["wall_time_s"] > 0 and cell["versions"]["torch"]
        assert cell["recipe"]["settings"]["label_column"] == "label" and "dataset_dir" not in cell["recipe"]["settings"]
    assert len({cell["split_hash"] for cell in cells.values()}) == 1
    assert cells["toy/c2l/linear/fraction-0.5/seed-0"]["lineage"] == "C2L (640 images seen)"
    assert cells["toy/random/finetune/fraction-0.5/seed-0"]["lineage"] == "random"


def test_all_encoders_of_a_seed_share_the_labels_and_other_seeds_do_not(whole_study):
    cells = read_cells(whole_study).values()
    by_seed = [{c["subset_hash"] for c in cells if c["fraction"] == 0.5 and c["seed"] == seed} for seed in (0, 1)]
    assert [len(found) for found in by_seed] == [1, 1] and by_seed[0] != by_seed[1]


def test_the_score_is_that_of_the_kept_predictions(whole_study):
    for name, cell in read_cells(whole_study).items():
        kept = Predictions.load(whole_study.output_dir / "cells" / name)
        assert area_under_roc(kept.truth, kept.probabilities) == pytest.approx(cell["result"]["score"])
        assert sorted(set(kept.patients.tolist())) == list(range(6))


def test_a_training_is_the_bundles(whole_study):
    folder = whole_study.output_dir / "cells/toy/c2l/finetune/fraction-0.5/seed-0"
    report = json.loads((folder / "run/test_report.json").read_text())["rows"][0]
    cell = json.loads((folder / "cell.json").read_text())
    assert report["auc"] == pytest.approx(cell["result"]["score"], abs=1e-6)
    assert (report["mode"], cell["recipe"]["settings"]["mode"]) == ("finetune", "finetune")
    scratch = json.loads((folder.parents[3] / "random/finetune/fraction-0.5/seed-0/cell.json").read_text())
    assert scratch["recipe"]["settings"]["mode"] == "scratch"
    assert scratch["recipe"]["settings"]["architecture"] == "densenet121"  # the encoder's, untrained
    assert scratch["recipe"]["settings"]["image_size"] == [32, 32]
    assert not (folder / "run/checkpoints").exists()


def test_what_is_done_is_kept_and_what_is_missing_comes_back_the_same(whole_study, tmp_path):
    copy = replace(whole_study, output_dir=tmp_path / "copy")
    shutil.copytree(whole_study.output_dir, copy.output_dir)
    before = read_cells(copy)
    name = "toy/c2l/linear/fraction-0.5/seed-1"
    (copy.output_dir / "cells" / name / "cell.json").unlink()  # as after a kill
    shutil.rmtree(copy.output_dir / "features")
    assert run_study(copy) == {"done": 1, "kept": 11}
    assert read_cells(copy)[name]["result"] == before[name]["result"]


def test_another_recipe_is_refused_and_nothing_is_overwritten(whole_study, toy_images, tmp_path, encoder_file):
    path = whole_study.output_dir / "cells/toy/c2l/linear/fraction-0.5/seed-0/cell.json"
    before = path.read_bytes()
    other = toy_study(tmp_path, toy_images, encoder_file, {"image_size": 40}, **LINEAR)
    other = replace(other, output_dir=whole_study.output_dir)
    with pytest.raises(ValueError, match=r"another recipe \(different: .*image_size"):
        run_cell(other, find_cell(other, "toy/c2l/linear/fraction-0.5/seed-0"))
    assert path.read_bytes() == before and not (path.parent / "failure.json").exists()


def test_checkpoints_of_another_recipe_are_not_gone_on_from(toy_images, encoder_file, tmp_path):
    content = {"modes": ["finetune"], "fractions": [1.0], "seeds": 1}
    study = toy_study(tmp_path, toy_images, encoder_file, **content)
    cell = study_cells(study)[1]
    (cell.folder(study) / "run/checkpoints").mkdir(parents=True)  # as after a kill
    (cell.folder(study) / "recipe.json").write_text(json.dumps(cell_recipe(study, cell)))
    other = toy_study(tmp_path, toy_images, encoder_file, {"learning_rate": 0.1}, **content)
    with pytest.raises(ValueError, match=r"another recipe \(different: settings, learning_rate\)"):
        run_cell(other, cell)
    assert run_cell(study, cell) == "done"


@pytest.mark.slow
def test_robustness_that_fails_is_told_and_the_cell_stays(toy_images, encoder_file, tmp_path):
    study = toy_study(tmp_path, toy_images, encoder_file, **{**LINEAR, "fractions": [1.0]}, robustness=["window"])
    assert run_study(study) == {"failed": 2}
    found, failures, missing = collect_cells(study)
    assert (len(found), len(failures), missing) == (2, 2, 0) and "is for CT" in failures[0]["error"]
    assert "2 cells failed" in write_study_report(study).read_text()


def test_one_process_a_cell(toy_images, encoder_file, tmp_path):
    study = toy_study(tmp_path, toy_images, encoder_file, **LINEAR)
    cell = study_cells(study)[0]
    cell.folder(study).mkdir(parents=True)
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1] + '/.lock', 'ab')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(cell.folder(study))], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert run_cell(study, cell) == "busy" and not (cell.folder(study) / "cell.json").exists()
        holder.kill()
    assert run_cell(study, cell) == "done"  # a killed process holds nothing
    assert run_cell(study, cell) == "kept"
    with folder_lock(tmp_path, wait=False) as held:
        assert held


def test_a_cell_that_fails_is_counted_and_the_others_go_on(toy_images, encoder_file, tmp_path, capsys):
    study = toy_study(tmp_path, toy_images, encoder_file, modes=["linear"], fractions=[2, 500, 1.0], seeds=1)
    assert run_study(study) == {"failed": 4, "done": 2}  # two images can't hold three classes, and there are not 500
    assert "FAILED: a subset of 2" in capsys.readouterr().out
    found, failures, missing = collect_cells(study)
    assert (len(found), len(failures), missing) == (2, 4, 4)
    assert "too small" in failures[0]["error"] and "from 1 to 36" in failures[2]["error"]


def test_encoder_for_other_dimensions_and_a_split_without_a_class(toy_images, tmp_path):
    deep = tmp_path / "deep.safetensors"
    save_encoder(build_encoder("resnet10", 3), deep, {"method": "MAE", "patch_size": [16, 16, 16]})
    study = toy_study(tmp_path, toy_images, deep, {"architecture": "resnet10", "image_size": 32}, **LINEAR)
    with pytest.raises(ValueError, match="dimensions"):
        run_cell(study, find_cell(study, "toy/c2l/linear/fraction-1/seed-0"))
    images = shutil.copytree(toy_images, tmp_path / "lacking")
    with open(images / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(images / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**r, "label": "normal" if r["split"] == "test" else r["label"]} for r in rows)
    lacking = toy_study(tmp_path, images, None, {"architecture": "resnet10", "image_size": 32}, **LINEAR)
    lacking = replace(lacking, output_dir=tmp_path / "lacking_study")
    with pytest.raises(ValueError, match=r"split 'test' has no image of left, right"):
        run_cell(lacking, study_cells(lacking)[0])


def test_one_patient_on_both_sides_is_refused(toy_images, tmp_path):
    images = shutil.copytree(toy_images, tmp_path / "shared")
    text = (images / "labels.csv").read_text().splitlines()
    moved = next(n for n, line in enumerate(text) if ",test," in line)
    text[moved] = text[moved].replace(",test,", ",train,")
    (images / "labels.csv").write_text("\n".join(text) + "\n")
    study = toy_study(tmp_path, images, None, {"architecture": "resnet10", "image_size": 32}, **LINEAR)
    with pytest.raises(ValueError, match="in more than one split"):
        run_cell(study, study_cells(study)[0])


def test_cells_by_number_and_a_job_array(toy_images, encoder_file, tmp_path):
    study = toy_study(tmp_path, toy_images, encoder_file, **LINEAR)
    cells = study_cells(study)
    assert [find_cell(study, str(n)) for n in range(4)] == cells and find_cell(study, cells[2].name) == cells[2]
    for wrong in ("4", "toy/none", "-1"):
        with pytest.raises(ValueError, match="there is no cell"):
            find_cell(study, wrong)
    script = write_slurm_array(study, "python -m monai_ssl evaluate study.yaml", tmp_path / "cells.sh").read_text()
    assert "#SBATCH --array=0-3\n" in script and '--cell "$SLURM_ARRAY_TASK_ID"' in script
    assert subprocess.run(["bash", "-n", str(tmp_path / "cells.sh")]).returncode == 0


def test_damaged_files_are_named(whole_study, tmp_path):
    copy = replace(whole_study, output_dir=tmp_path / "copy")
    folder = study_cells(copy)[0].folder(copy)
    shutil.copytree(study_cells(whole_study)[0].folder(whole_study), folder)
    (folder / "predictions.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"predictions\.npz is damaged"):
        Predictions.load(folder)
    (folder / "cell.json").write_text('{"half')
    with pytest.raises(ValueError, match=r"cell\.json is damaged"):
        collect_cells(copy)


def test_cells_of_different_splits_do_not_meet(whole_study, tmp_path):
    copy = replace(whole_study, output_dir=tmp_path / "copy")
    shutil.copytree(whole_study.output_dir / "cells", copy.output_dir / "cells")
    path = study_cells(copy)[0].folder(copy) / "cell.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "split_hash": "other"}))
    with pytest.raises(ValueError, match="2 different splits"):
        collect_cells(copy)


def test_features_are_computed_once_for_each_encoder(whole_study):
    folder = whole_study.output_dir / "features/toy"
    assert [path.name for path in sorted((folder / "c2l").glob("all*"))] == ["all.safetensors"]
    names = [path.name for path in sorted((folder / "random").glob("all*"))]
    assert names == ["all.seed-0.safetensors", "all.seed-1.safetensors"]
    assert np.unique([len(list((folder / name).glob("rotation*"))) for name in ("c2l",)]) == 6
