# SPDX-License-Identifier: Apache-2.0
"""The page of a study: what each section shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai_ssl.evaluation.study import figures, tables
from monai_ssl.evaluation.study.cells import StudyCell
from monai_ssl.evaluation.study.config import RANDOM, Study
from monai_ssl.evaluation.study.html import HtmlPage

__all__ = ["study_page"]

Row = dict[str, Any]
Picture = tuple[bytes, str]
"""PNG bytes and a caption."""


def study_page(
    study: Study,
    cells: Sequence[Row],
    failures: Sequence[Row],
    missing: int,
    found: dict[str, list[Row]],
    pictures: dict[str, list[Picture]],
    words: Sequence[str],
) -> HtmlPage:
    """Write the page.

    Args:
        study: the study.
        cells: finished cells.
        failures: cells that failed, with ``error``.
        missing: cells that are not finished.
        found: tables by name.
        pictures: of the features, by task.
        words: the verdicts.
    """
    page = HtmlPage("Was it worth it?")
    for word in words:
        page.paragraph(word, "verdict")
    if missing:
        page.paragraph(f"{missing} of {missing + len(cells)} cells are missing.", "warning")
    if failures:
        page.paragraph(f"{len(failures)} cells failed.", "warning")
        page.table({"cell": lambda row: StudyCell(**row["cell"]).name, "what was wrong": "error"}, failures)
    for task in study.tasks:
        mine = {name: [row for row in rows if row["task"] == task] for name, rows in found.items()}
        for name, write in _SECTIONS.items():
            if mine.get(name):
                write(page, task, mine[name])
                if name == "convergence":
                    _draw_curves(page, study, [cell for cell in cells if cell["task"] == task])
        for png, caption in pictures.get(task, ()):
            page.picture(png, caption)
    page.heading("How it was measured")
    page.paragraph(_method_words(study))
    page.table({"": "name", " ": "value"}, _facts(study, cells))
    return page


def _share(row: Row) -> str:
    return f"{row['fraction']:g}"


def _scores(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: {rows[0]['measure']} by the number of labels")
    page.picture(figures.label_efficiency_plot(rows), "Mean and standard deviation over the seeds")
    names = ("encoder", "mode", "labels", "mean", "sd", "seeds")
    page.table({**{name: name for name in names}, "s a cell": lambda row: f"{row['seconds']:.1f}"}, rows)


def _comparisons(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: against random weights")
    page.table(
        {
            "encoder": "encoder",
            "mode": "mode",
            "label fraction": _share,
            "difference": "difference",
            "from": "low",
            "to": "high",
            "sd over seeds": "seed_sd",
            "p": "p",
            "p (Holm)": "p_holm",
            "p (Benjamini-Hochberg)": "p_bh",
            "p (DeLong)": "p_delong",
            "seeds better": lambda row: f"{row['better_seeds']} of {row['seeds']}",
        },
        rows,
        "The same mode and labels; intervals and p-values by patient, corrected over the rows of this table",
    )


def _labels_saved(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: labels saved")
    page.table(
        {
            **{name: name for name in ("encoder", "mode", "labels")},
            "score": "mean",
            "baseline": "baseline",
            "labels it needs for that": "needed",
            "saved": lambda row: None if row["saved"] is None else f"{row['saved']:.0%}",
        },
        rows,
        "Interpolated on the logarithm of the number of labels",
    )


def _convergence(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: convergence")
    page.table(
        {
            "encoder": "encoder",
            "label fraction": _share,
            "acceleration": "shown",
            "steps": "steps",
            "steps from scratch": "steps_from_scratch",
        },
        rows,
        "1 - steps / steps from scratch, to what training from scratch reaches at best (validation, smoothed)",
    )


def _draw_curves(page: HtmlPage, study: Study, cells: list[Row]) -> None:
    trained = [cell for cell in cells if cell["mode"] == "finetune"]
    most = max(cell["num_labels"] for cell in trained)
    curves: dict[str, list] = {}
    for cell in trained:
        curve = tables.curve_of(study, cell) if cell["num_labels"] == most else None
        if curve:
            name = "from scratch" if cell["encoder"] == RANDOM else cell["encoder"]
            curves.setdefault(name, []).append(curve)
    page.picture(figures.convergence_plot(curves, trained[0]["result"]["measure"]), f"With {most} labels")


def _robustness(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: robustness")
    page.picture(figures.robustness_plot(rows), "The score on changed test images; the vertical line is unchanged")
    names = ("encoder", "mode", "perturbation", "unchanged")
    page.table(
        {
            **{name: name for name in names},
            "mean drop": "mean_drop",
            "worst drop": "worst_drop",
            "at": lambda row: f"{row['worst_level']:g}",
            "spread": "spread",
        },
        rows,
        "Spread: the standard deviation of an image's probability over all levels",
    )
    page.table(
        {
            "perturbation": "perturbation",
            "levels": lambda row: ", ".join(f"{level:g}" for level in row["levels"]),
            "unit": "unit",
            "source": "source",
        },
        list({row["perturbation"]: row for row in rows}.values()),
    )


def _subgroups(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: groups of patients")
    names = ("encoder", "mode", "column", "group", "images", "patients", "auc")
    page.table({**{name: name for name in names}, "from": "auc_low", "to": "auc_high", "": "note"}, rows)


def _calibration(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: calibration")
    page.table(
        {
            "encoder": "encoder",
            "mode": "mode",
            "label fraction": _share,
            "ECE": "ece_width",
            "adaptive ECE": "ece_mass",
            "mean over classes": "per_class",
        },
        rows,
        "Expected calibration error, 15 bins of equal width or of equal mass; 0 is perfect",
    )


def _representation(page: HtmlPage, task: str, rows: list[Row]) -> None:
    page.heading(f"{task}: the features of the test images")
    page.table(
        {
            "encoder": "encoder",
            "features": "features",
            "effective rank": "effective_rank",
            "spread": "feature_std",
            "uniformity": "uniformity",
            "collapsed": lambda row: "yes" if row["collapsed"] else "no",
        },
        rows,
    )


_SECTIONS: dict[str, Callable[[HtmlPage, str, list[Row]], None]] = {
    "scores": _scores,
    "comparisons": _comparisons,
    "labels_saved": _labels_saved,
    "convergence": _convergence,
    "robustness": _robustness,
    "subgroups": _subgroups,
    "calibration": _calibration,
    "representation": _representation,
}


def _method_words(study: Study) -> str:
    return (
        "Every cell is one encoder used in one way, with one subset of the labels and one seed. Subsets are nested, "
        "stratified, hold whole patients and are the same for all encoders; random weights have the network of the "
        "first encoder. Scores are those of the test split; intervals resample its patients "
        f"({study.resamples} times, {study.confidence:.0%}). The deviation over seeds tells what subsets and random "
        "weights change, which the intervals do not."
    )


def _facts(study: Study, cells: Sequence[Row]) -> list[Row]:
    facts: dict[str, Any] = {"cells": len(cells), "seeds": ", ".join(map(str, study.seeds))}
    for cell in cells:
        facts[f"encoder {cell['encoder']}"] = cell["lineage"]
        if cell["recipe"]["encoder_sha256"]:
            facts[f"encoder {cell['encoder']}, SHA-256"] = cell["recipe"]["encoder_sha256"]
    for name in ("split_hash", "device"):
        facts[name.replace("_", " ")] = ", ".join(sorted({cell[name] for cell in cells}))
    versions = {", ".join(f"{name} {number}" for name, number in cell["versions"].items()) for cell in cells}
    facts["versions"] = " / ".join(sorted(versions))
    facts["wall time of all cells"] = f"{sum(cell['wall_time_s'] for cell in cells):.0f} s"
    return [{"name": name, "value": value} for name, value in facts.items()]
