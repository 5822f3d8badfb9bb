# SPDX-License-Identifier: Apache-2.0
"""The tables of a study: scores, comparisons with random weights, labels saved, convergence, robustness."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.evaluation.study.config import RANDOM, Study
from monai_ssl.evaluation.study.results import Predictions
from monai_ssl.evaluation.study.training_cells import validation_curve
from monai_ssl.metrics import (
    acceleration,
    area_under_roc,
    benjamini_hochberg,
    bootstrap_difference,
    delong_test,
    holm,
    labels_to_reach,
)

__all__ = [
    "calibration_table",
    "comparison_table",
    "convergence_table",
    "labels_saved_table",
    "robustness_table",
    "score_table",
]

Row = dict[str, Any]


def grouped(cells: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """Return cells by the values of some of their keys, in the order in which they come."""
    found: dict[tuple, list[Row]] = defaultdict(list)
    for cell in cells:
        found[tuple(cell[name] for name in names)].append(cell)
    return found


def score_table(cells: Sequence[Row]) -> list[Row]:
    """Return one row for each task, encoder, mode and fraction: mean and standard deviation over the seeds."""
    rows = []
    for (task, encoder, mode, fraction), found in grouped(cells, "task", "encoder", "mode", "fraction").items():
        scores = [cell["result"]["score"] for cell in found]
        rows.append(
            {
                "task": task,
                "encoder": encoder,
                "mode": mode,
                "fraction": fraction,
                "labels": round(statistics.mean(cell["num_labels"] for cell in found)),
                "measure": found[0]["result"]["measure"],
                "mean": statistics.mean(scores),
                "sd": statistics.stdev(scores) if len(scores) > 1 else None,
                "seeds": len(scores),
                "scores": scores,
                "seconds": statistics.median(cell["wall_time_s"] for cell in found),
                "lineage": found[0]["lineage"],
            }
        )
    return rows


def comparison_table(study: Study, cells: Sequence[Row], correction: Callable = holm) -> list[Row]:
    """Compare every encoder with random weights, in the same mode and with the same labels.

    The difference is the mean over the seeds that both have. Its interval and p-value resample the patients of the
    test split, all seeds together; they do not tell how much other seeds would differ, which the standard deviation
    over the seeds does. DeLong's p-value of a binary question is that of the seeds' mean probabilities. P-values are
    corrected over all comparisons of a task.

    Args:
        study: the study.
        cells: its finished cells.
        correction: for several comparisons; the other one (Benjamini-Hochberg) is given beside it.
    """
    rows = []
    by_key = {(c["task"], c["encoder"], c["mode"], c["fraction"], c["seed"]): c for c in cells}
    for (task, encoder, mode, fraction), found in grouped(cells, "task", "encoder", "mode", "fraction").items():
        if encoder == RANDOM:
            continue
        pairs = [(c, by_key.get((task, RANDOM, mode, fraction, c["seed"]))) for c in found]
        pairs = [pair for pair in pairs if pair[1] is not None]
        if not pairs:
            continue
        differences = [a["result"]["score"] - b["result"]["score"] for a, b in pairs]
        row = {
            "task": task,
            "encoder": encoder,
            "mode": mode,
            "fraction": fraction,
            "difference": statistics.mean(differences),
            "seed_sd": statistics.stdev(differences) if len(pairs) > 1 else None,
            "seeds": len(pairs),
            "better_seeds": sum(value > 0 for value in differences),
        }
        rows.append(row | _paired(study, pairs))
    for task_rows in grouped(rows, "task").values():
        p = [np.nan if row["p"] is None else row["p"] for row in task_rows]
        for name, method in (("p_holm", correction), ("p_bh", benjamini_hochberg)):
            for row, value in zip(task_rows, method(p), strict=True):
                row[name] = None if np.isnan(value) else float(value)
    return rows


def _paired(study: Study, pairs: list[tuple[Row, Row]]) -> Row:
    nothing = {"low": None, "high": None, "p": None, "p_delong": None}
    try:
        ours, theirs = (
            [Predictions.load(study.output_dir / "cells" / cell["name"]) for cell in side]
            for side in zip(*pairs, strict=True)
        )
    except FileNotFoundError:  # segmentations keep no probabilities
        return nothing
    truth, patients = ours[0].truth, ours[0].patients
    a, b = (np.stack([one.probabilities for one in side], axis=1) for side in (ours, theirs))  # (N, seeds, K)

    def mean_area(y: np.ndarray, p: np.ndarray) -> float:
        return float(np.mean([area_under_roc(y, p[:, i]) for i in range(p.shape[1])]))

    try:
        found = bootstrap_difference(
            mean_area, truth, a, b, groups=patients, n=study.resamples, confidence=study.confidence
        )
    except ValueError:  # too few patients with some class
        return nothing
    delong = None
    if truth.ndim == 1 and a.shape[2] == 2:
        delong = delong_test(truth, a.mean(1)[:, 1], b.mean(1)[:, 1], groups=patients).p_value
    return {"low": found.low, "high": found.high, "p": found.p_value, "p_delong": delong}


def labels_saved_table(scores: Sequence[Row]) -> list[Row]:
    """Return how many labels the baselines need to be as good as an encoder with some of the labels.

    Args:
        scores: of :func:`score_table`. The baselines are random weights in the same mode, and the training from
            scratch.
    """
    curves = grouped([row for row in scores if row["encoder"] == RANDOM], "task", "mode")
    rows = []
    for row in scores:
        if row["encoder"] == RANDOM:
            continue
        for mode in dict.fromkeys((row["mode"], "finetune")):
            baseline = curves.get((row["task"], mode))
            if not baseline:
                continue
            by_labels = {point["labels"]: point["mean"] for point in baseline}
            needed = labels_to_reach(list(by_labels), list(by_labels.values()), row["mean"])
            rows.append(
                {
                    **{name: row[name] for name in ("task", "encoder", "mode", "fraction", "labels", "mean")},
                    "baseline": "from scratch" if mode == "finetune" else f"random, {mode}",
                    "labels_needed": needed.labels,
                    "needed": str(needed),
                    "saved": None
                    if needed.labels is None or needed.bound != "="
                    else 1 - row["labels"] / needed.labels,
                }
            )
    return rows


def convergence_table(study: Study, cells: Sequence[Row]) -> list[Row]:
    """Return how much sooner fine-tuning reaches what training from scratch reaches, see ``metrics.convergence``."""
    rows = []
    curves = {(c["task"], c["encoder"], c["fraction"], c["seed"]): curve_of(study, c) for c in cells}
    for (task, encoder, fraction), found in grouped(
        [c for c in cells if c["mode"] == "finetune" and c["encoder"] != RANDOM], "task", "encoder", "fraction"
    ).items():
        pairs = [
            (curves[task, encoder, fraction, c["seed"]], curves.get((task, RANDOM, fraction, c["seed"]))) for c in found
        ]
        pairs = [pair for pair in pairs if pair[0] and pair[1]]
        if not pairs:
            continue
        result = acceleration(
            *map(list, zip(*pairs, strict=True)), share=study.convergence_share, confidence=study.confidence
        )
        rows.append(
            {
                "task": task,
                "encoder": encoder,
                "fraction": fraction,
                "acceleration": result.mean,
                "low": result.low,
                "high": result.high,
                "steps": result.steps,
                "steps_from_scratch": result.baseline_steps,
                "seeds": len(pairs),
                "not_reached": result.not_reached,
                "shown": str(result),
            }
        )
    return rows


def curve_of(study: Study, cell: Row) -> tuple[list[float], list[float]] | None:
    """Return the steps and validation values of a cell's training, None where nothing was trained."""
    if cell["mode"] != "finetune":
        return None
    task = study.tasks[cell["task"]]
    interval = task.settings.get("val_interval", task.config.get("val_interval", 1))
    folder = study.output_dir / "cells" / Path(cell["name"]) / "run"
    return validation_curve(folder, f"val_{cell['result']['measure']}", int(interval))


def robustness_table(cells: Sequence[Row]) -> list[Row]:
    """Return drops of the score under each perturbation, as means over the seeds."""
    rows = []
    tested = [cell for cell in cells if cell.get("robustness")]
    for (task, encoder, mode), found in grouped(tested, "task", "encoder", "mode").items():
        for name in found[0]["robustness"]["perturbations"]:
            parts = [c["robustness"]["perturbations"][name] for c in found if name in c["robustness"]["perturbations"]]
            scores = np.mean([part["scores"] for part in parts], axis=0)
            worst = max(parts, key=lambda part: part["worst_drop"])
            rows.append(
                {
                    "task": task,
                    "encoder": encoder,
                    "mode": mode,
                    "perturbation": name,
                    "unchanged": statistics.mean(cell["robustness"]["score"] for cell in found),
                    "mean_drop": statistics.mean(part["mean_drop"] for part in parts),
                    "worst_drop": worst["worst_drop"],
                    "worst_level": worst["worst_level"],
                    "spread": statistics.mean(part["spread"] for part in parts),
                    "seeds": len(parts),
                    **{name: parts[0][name] for name in ("levels", "identity", "unit", "source")},
                    "scores": scores.tolist(),
                }
            )
    return rows


def calibration_table(cells: Sequence[Row]) -> list[Row]:
    """Return calibration errors of classifications, as means over the seeds."""
    rows = []
    found = [cell for cell in cells if "ece_width" in cell["result"]]
    for (task, encoder, mode, fraction), same in grouped(found, "task", "encoder", "mode", "fraction").items():
        row = {"task": task, "encoder": encoder, "mode": mode, "fraction": fraction}
        row |= {name: statistics.mean(c["result"][name] for c in same) for name in ("ece_width", "ece_mass")}
        per_class = [statistics.mean(one["calibration_error"] for one in c["result"]["classes"].values()) for c in same]
        rows.append({**row, "per_class": statistics.mean(per_class), "seeds": len(same)})
    return rows
