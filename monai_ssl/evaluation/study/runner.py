# SPDX-License-Identifier: Apache-2.0
"""Compute cells: each once, by one process, whole or not at all, and never over another recipe's."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

from monai_ssl.data.files import folder_lock
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.run_facts import RunFacts, describe_lineage, device_name
from monai_ssl.evaluation.study.cells import StudyCell, study_cells
from monai_ssl.evaluation.study.config import Study
from monai_ssl.evaluation.study.probe_cells import probe_predictions
from monai_ssl.evaluation.study.question import Question, cell_settings, encoder_sha256
from monai_ssl.evaluation.study.results import classification_result, read_json, write_json
from monai_ssl.evaluation.study.robustness import measure_robustness, wants_robustness
from monai_ssl.evaluation.study.training_cells import run_bundle, run_predictions

__all__ = ["CELL_FILE", "cell_recipe", "collect_cells", "run_cell", "run_study"]

logger = logging.getLogger(__name__)

CELL_FILE, RECIPE_FILE = "cell.json", "recipe.json"
ROBUSTNESS_FILE, FAILURE_FILE = "robustness.json", "failure.json"
# Where things are decides nothing: what they hold is hashed.
_PLACES = ("output_dir", "cache_dir", "encoder_weights", "bundle_root", "dataset_dir", "labels_file", "num_workers")
_FACTS = ("lineage", "num_labels", "split_hash", "device", "versions")


def cell_recipe(study: Study, cell: StudyCell) -> dict[str, Any]:
    """Return everything that decides a cell's figures but the code: settings, weights' hash, the bundle's hash."""
    settings = {key: value for key, value in cell_settings(study, cell).items() if key not in _PLACES}
    config = study.tasks[cell.task].config
    return {
        "cell": cell.to_dict(),
        "settings": settings,
        "encoder_sha256": encoder_sha256(study.encoders.get(cell.encoder)),
        "bundle": study.tasks[cell.task].bundle.name,
        "bundle_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "resamples": study.resamples,
        "confidence": study.confidence,
    }


def run_cell(study: Study, cell: StudyCell, stores: dict[str, ImageStore] | None = None) -> str:
    """Compute a cell unless it is done.

    Args:
        study: the study.
        cell: one of its cells.
        stores: stores that are open already, by the folder of their cache; the cell's is added.

    Returns:
        ``"done"``; ``"kept"`` if it was done before; ``"busy"`` if another process is at it.

    Raises:
        ValueError, RuntimeError, OSError: what is wrong with the images, labels, weights or the run; the cell's
            ``failure.json`` says it too.
        ValueError: the folder holds the same cell of another recipe; nothing is changed.
    """
    folder = cell.folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, wait=False) as held:
        if not held:
            return "busy"
        recipe = json.loads(json.dumps(cell_recipe(study, cell), default=str))
        _refuse_other_recipe(folder, recipe)
        done = (folder / CELL_FILE).is_file()
        measured = _measured_perturbations(folder)
        extra = wants_robustness(study, cell) and not set(study.robustness) <= measured.keys()
        if done and not extra:
            return "kept"
        (folder / FAILURE_FILE).unlink(missing_ok=True)
        write_json(folder / RECIPE_FILE, recipe)
        question = Question(study, cell, {} if stores is None else stores)
        try:
            if not done:
                _compute(question, folder, recipe)
            if extra:
                write_json(folder / ROBUSTNESS_FILE, measure_robustness(question, measured))
        except (ValueError, RuntimeError, OSError) as error:
            write_json(folder / FAILURE_FILE, {"cell": cell.to_dict(), "error": str(error)})
            raise
        return "done"


def _compute(question: Question, folder: Path, recipe: dict[str, Any]) -> None:
    """Measure a cell and write its file, last of all."""
    started, study, cell = time.time(), question.study, question.cell
    question.preprocessing  # noqa: B018 (weights that do not suit the images are refused before anything is trained)
    if cell.mode in ("linear", "knn"):
        predictions, features = probe_predictions(question)
        facts = RunFacts(
            cell.mode,
            describe_lineage(features.lineage),
            cell.fraction,
            len(question.labels.rows["train"]),
            cell.seed,
            question.labels.split_hash,
            0.0,
            device_name(study.compute_device),
        )
        row = vars(facts)
    else:
        row = run_bundle(question)
        predictions = run_predictions(question) if question.task.kind == "classification" else None
    if predictions is None:
        result = _segmentation_result(row)
    else:
        predictions.save(folder)
        result = classification_result(
            predictions, question.labels.class_names, resamples=study.resamples, confidence=study.confidence
        )
    content = {
        **cell.to_dict(),
        "name": cell.name,
        "result": result,
        **{name: row[name] for name in _FACTS},
        "subset_hash": question.labels.subset_hash,
        "wall_time_s": round(time.time() - started, 2),
        "recipe": recipe,
    }
    write_json(folder / CELL_FILE, content)


def _segmentation_result(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if isinstance(value, (int, float)) and key not in ("seed",)}
    return {
        "measure": "dice",
        "score": row["dice"],
        "score_low": row["dice_low"],
        "score_high": row["dice_high"],
        **kept,
    }


def _refuse_other_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Neither a cell that is done nor the checkpoints of a training may be of other settings, weights or bundle."""
    if (folder / CELL_FILE).is_file():
        before = read_json(folder / CELL_FILE)["recipe"]
    elif (folder / "run/checkpoints").is_dir() and (folder / RECIPE_FILE).is_file():
        before = read_json(folder / RECIPE_FILE)
    else:
        return
    differing = _different(before, recipe) + _different(before["settings"], recipe["settings"])
    if differing:
        raise ValueError(
            f"{folder} holds this cell of another recipe (different: {', '.join(differing)}); choose another "
            "output_dir, or delete the folder"
        )


def _different(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _measured_perturbations(folder: Path) -> dict[str, Any]:
    path = folder / ROBUSTNESS_FILE
    return read_json(path)["perturbations"] if path.is_file() else {}


def run_study(study: Study) -> Counter:
    """Compute all cells that are not done; several processes may do so at once and share the work.

    A cell that fails is told and counted, and the others go on.

    Returns:
        How many cells were ``"done"``, ``"kept"``, ``"busy"`` or ``"failed"``.
    """
    counts: Counter = Counter()
    stores: dict[str, ImageStore] = {}
    cells = study_cells(study)
    for number, cell in enumerate(cells, 1):
        started = time.monotonic()
        try:
            status = run_cell(study, cell, stores)
        except (ValueError, RuntimeError, OSError) as error:
            status = "failed"
            print(f"[{number}/{len(cells)}] {cell.name}: FAILED: {error}", flush=True)
        counts[status] += 1
        if status in ("done", "busy"):
            took = f" in {time.monotonic() - started:.1f} s" if status == "done" else " with another process"
            print(f"[{number}/{len(cells)}] {cell.name}: {status}{took}", flush=True)
    return counts


def collect_cells(study: Study) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Read the cells of a study.

    Returns:
        The finished cells, the failures, and how many cells are missing altogether (failed or not computed).

    Raises:
        ValueError: a file is damaged, or cells of one task are of different splits.
    """
    found, failures, missing = [], [], 0
    for cell in study_cells(study):
        folder = cell.folder(study)
        if (folder / CELL_FILE).is_file():
            content = read_json(folder / CELL_FILE)
            robustness = folder / ROBUSTNESS_FILE
            content["robustness"] = read_json(robustness) if robustness.is_file() else None
            found.append(content)
        else:
            missing += 1
        if (folder / FAILURE_FILE).is_file():  # of a cell that is done, its robustness
            failures.append(read_json(folder / FAILURE_FILE))
    for task in study.tasks:
        hashes = {content["split_hash"] for content in found if content["task"] == task}
        if len(hashes) > 1:
            raise ValueError(
                f"the cells of the task {task!r} are of {len(hashes)} different splits ({', '.join(sorted(hashes))}): "
                "the images or their labels have changed; choose another output_dir"
            )
    return found, failures, missing
