# SPDX-License-Identifier: Apache-2.0
"""The report of a study: one page of HTML, its figures as JSON and CSV, and the cells as TensorBoard's HParams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.run_facts import csv_bytes, package_versions
from monai_ssl.evaluation.study import figures, tables
from monai_ssl.evaluation.study.cells import StudyCell, study_cells
from monai_ssl.evaluation.study.config import Study
from monai_ssl.evaluation.study.hparams import write_hparams
from monai_ssl.evaluation.study.page import Picture, study_page
from monai_ssl.evaluation.study.probe_cells import probe_features
from monai_ssl.evaluation.study.question import Question
from monai_ssl.evaluation.study.representation import embedding_map, nearest_rows, representation_row
from monai_ssl.evaluation.study.results import Predictions, write_json
from monai_ssl.evaluation.study.runner import collect_cells
from monai_ssl.evaluation.study.subgroups import subgroup_rows
from monai_ssl.evaluation.study.verdict import verdicts
from monai_ssl.weights import atomic_file

__all__ = ["study_tables", "write_study_report"]

_SHEET_QUERIES = 6
Rows = list[dict[str, Any]]


def study_tables(study: Study, cells: Rows) -> dict[str, Rows]:
    """Return all tables that are made from the finished cells alone."""
    scores = tables.score_table(cells)
    return {
        "scores": scores,
        "comparisons": tables.comparison_table(study, cells),
        "labels_saved": tables.labels_saved_table(scores),
        "convergence": tables.convergence_table(study, cells),
        "calibration": tables.calibration_table(cells),
        "robustness": tables.robustness_table(cells),
    }


def write_study_report(study: Study) -> Path:
    """Write ``report.html``, ``report.json``, a CSV for each table and ``tensorboard`` into the study's folder.

    The report names no image and no patient. What is missing (cells that failed or were not computed) is counted and
    told.

    Returns:
        The path of the page.

    Raises:
        ValueError: no cell is finished, or cells of one task are of different splits.
    """
    cells, failures, missing = collect_cells(study)
    if not cells:
        raise ValueError(f"no cell in {study.output_dir} is finished; {len(failures)} failed")
    found = study_tables(study, cells)
    found["representation"], found["subgroups"], pictures = _looked_at(study, cells)
    words = verdicts(study, found)
    page = study_page(study, cells, failures, missing, found, pictures, words)
    with atomic_file(study.output_dir / "report.html") as file:
        file.write(str(page).encode())
    content = {"verdicts": words, "tables": found, "failures": failures, "missing": missing, "cells": cells}
    write_json(study.output_dir / "report.json", {**content, "versions": package_versions()})
    for name, rows in found.items():
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            with atomic_file(study.output_dir / "tables" / f"{name}.csv") as file:
                file.write(csv_bytes([{key: row.get(key) for key in columns} for row in rows]))
    write_hparams(cells, study.output_dir / "tensorboard")
    return study.output_dir / "report.html"


def _looked_at(study: Study, cells: Rows) -> tuple[Rows, Rows, dict[str, list[Picture]]]:
    """Representation, subgroups and pictures: what needs the images' table and features, of the first seed."""
    representation: Rows = []
    subgroups: Rows = []
    pictures: dict[str, list[Picture]] = {}
    stores: dict[str, ImageStore] = {}
    for cell, same in _last_cells(study, cells):
        question = Question(study, cell, stores)
        if cell.mode == "linear":
            features = probe_features(question)
            test = features.of(question.labels.rows["test"])
            representation.append({"task": cell.task, "encoder": cell.encoder, **representation_row(test)})
            pictures.setdefault(cell.task, []).extend(_feature_pictures(study, question, features))
        if study.subgroups:
            predictions = [Predictions.load(study.output_dir / "cells" / one["name"]) for one in same]
            options = {
                "min_patients": study.min_patients, "resamples": study.resamples, "confidence": study.confidence
            }  # fmt: skip
            rows = subgroup_rows(question.store.table, predictions, study.subgroups, **options)
            head = {"task": cell.task, "encoder": cell.encoder, "mode": cell.mode}
            subgroups += [{**head, **row} for row in rows]
    return representation, subgroups, pictures


def _last_cells(study: Study, cells: Rows) -> list[tuple[StudyCell, Rows]]:
    """For each task, encoder and mode of a classification: a cell with the most labels, and its finished seeds."""
    found = []
    finished = {cell["name"]: cell for cell in cells}
    by_use = tables.grouped([c for c in cells if c["result"]["measure"] == "auc"], "task", "encoder", "mode")
    order = {cell.name: cell for cell in study_cells(study)}
    for same in by_use.values():
        most = max(cell["num_labels"] for cell in same)
        best = [cell for cell in same if cell["num_labels"] == most]
        best = [cell for cell in best if cell["fraction"] == best[0]["fraction"]]
        found.append((order[best[0]["name"]], [finished[cell["name"]] for cell in best]))
    return found


def _feature_pictures(study: Study, question: Question, features: Any) -> list[Picture]:
    labels, name = question.labels, question.cell.encoder
    test, made = labels.rows["test"], []
    x = features.of(test)
    if study.embedding != "none" and len(test) > 2:
        points, chosen = embedding_map(x, study.embedding)
        classes = [_class_of(labels, row) for row in test[chosen]]
        made.append(
            (figures.embedding_plot(points, classes, name), f"{name}: features of test images ({study.embedding})")
        )
    if study.pictures and question.store.spatial_dims == 2:
        train = np.setdiff1d(labels.rows["train"], test)
        queries = np.linspace(0, len(test) - 1, min(_SHEET_QUERIES, len(test))).astype(int)
        nearest = nearest_rows(x[queries], features.of(train))
        rows = [[test[q], *train[near]] for q, near in zip(queries, nearest, strict=True)]
        images = [[_thumbnail(question.store, row) for row in line] for line in rows]
        captions = [[_class_of(labels, row) for row in line] for line in rows]
        made.append(
            (figures.contact_sheet(images, captions), f"{name}: test images (left) and their nearest neighbours")
        )
    return made


def _class_of(labels: Any, row: int) -> str:
    target = labels.targets[row]
    if np.ndim(target) == 0:
        return str(labels.class_names[int(target)]) if target >= 0 else "unknown"
    present = [str(name) for name, value in zip(labels.class_names, target, strict=True) if value == 1]
    return present[0] if len(present) == 1 else "several" if present else "none"


def _thumbnail(store: ImageStore, row: int) -> np.ndarray:
    image = store.read(int(row))
    step = max(1, max(image.shape) // 128)
    return image[::step, ::step]
