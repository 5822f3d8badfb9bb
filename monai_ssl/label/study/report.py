# SPDX-License-Identifier: Apache-2.0
"""The report of a study of labelling: one page of HTML, its figures as JSON and CSV."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai_ssl.evaluation.run_facts import csv_bytes, package_versions
from monai_ssl.evaluation.study.html import HtmlPage
from monai_ssl.evaluation.study.results import write_json
from monai_ssl.label.strategies import STRATEGIES
from monai_ssl.label.study.config import LabelStudy
from monai_ssl.label.study.tables import StudyTables, study_tables
from monai_ssl.weights import atomic_file

__all__ = ["learning_curves_png", "write_label_report"]

Row = dict[str, Any]
_MEASURES = {"auc": "area under the ROC curve", "dice": "Dice"}


def write_label_report(study: LabelStudy) -> Path:
    """Write ``report.html``, ``report.json`` and ``tables/*.csv`` into the study's folder.

    The report names no image and no patient.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError, ValueError: see :func:`study_tables`.
    """
    found = study_tables(study)
    with atomic_file(study.output_dir / "report.html") as file:
        file.write(str(label_page(study, found)).encode())
    write_json(study.output_dir / "report.json", {**asdict(found), "versions": package_versions()})
    for name in ("rounds", "curves", "strategies"):
        with atomic_file(study.output_dir / "tables" / f"{name}.csv") as file:
            file.write(csv_bytes(getattr(found, name)))
    return study.output_dir / "report.html"


def verdict(study: LabelStudy, found: StudyTables) -> str:
    """Say in a sentence or two which strategy to label with, and how surely."""
    others = [row for row in found.strategies if row["strategy"] != "random"]
    if not others:
        return "Only the random choice was tried."
    best = others[0]
    difference, sure = best["difference"], best["p_holm"]
    if difference is None:
        return f"Best is {best['strategy']}; it was not compared with a random choice."
    said = (
        f"{best['strategy']} has a mean {_MEASURES[found.measure]} of {best['area']:.3f} over "
        f"{study.budgets[0]} to {study.budgets[-1]} labels, "
        f"{abs(difference):.3f} {'above' if difference >= 0 else 'below'} a random choice"
    )
    if sure is None or sure > 1 - study.confidence:
        return f"No strategy is surely better than a random choice. The best, {said} ({best['better_seeds']} of " + (
            f"{best['seeds']} seeds better)."
        )
    worth = "" if difference > 0 else " No strategy is better than a random choice."
    return f"{said} (p = {sure:.3f} after Holm's correction, {best['better_seeds']} of {best['seeds']} seeds).{worth}"


def label_page(study: LabelStudy, found: StudyTables) -> HtmlPage:
    """Write the page."""
    page = HtmlPage("Which images to label first?")
    page.paragraph(verdict(study, found), "verdict")
    if found.missing:
        page.paragraph(f"{found.missing} chains of rounds are not whole and left out: run the study again.", "warning")
    page.heading("Learning curves")
    page.picture(
        learning_curves_png(found),
        f"Mean over the seeds; bands: {study.confidence:.0%} bootstrap interval over the patients of the test split",
    )
    page.heading("Strategies")
    share = f"labels for {study.target_share:.0%} of all labels' figure"
    page.table(
        {
            "strategy": "strategy",
            "area under the curve": "area",
            "interval": lambda row: _span(row, "area"),
            "sd of seeds": "seed_sd",
            "minus random": "difference",
            " interval": lambda row: _span(row, "difference"),
            "p (Holm)": "p_holm",
            "better seeds": lambda row: (
                None if row["better_seeds"] is None else f"{row['better_seeds']}/{row['seeds']}"
            ),
            share: "needed",
        },
        found.strategies,
        "The area is over the logarithm of the labels, divided by its width: a mean figure.",
    )
    names = [row["strategy"] for row in found.strategies]
    page.table({"strategy": lambda name: name, "chooses": lambda name: STRATEGIES[name].says}, names)
    page.heading("Every number of labels")
    page.table(
        {"strategy": "strategy", "labels": "labels", found.measure: "mean", "interval": lambda row: _span(row, "")}
        | {"sd of seeds": "seed_sd", "seeds": "seeds"},
        found.curves,
    )
    page.heading("How it was measured")
    for text in _method_words(study, found):
        page.paragraph(text)
    page.table({"": lambda item: item[0], " ": lambda item: item[1]}, list(package_versions().items()))
    return page


def learning_curves_png(found: StudyTables) -> bytes:
    """Draw the figure against the number of labels, a line and a band for each strategy, random in grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in found.curves:
        by_name[row["strategy"]].append(row)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, rows) in enumerate(by_name.items()):
        color = "#777777" if name == "random" else f"C{(number % 9) + (number % 9 > 6)}"  # C7 is grey
        x, y = [row["labels"] for row in rows], [row["mean"] for row in rows]
        axes.plot(x, y, color=color, marker="o", ms=4, linestyle="--" if name == "random" else "-", label=name)
        if all(row["low"] is not None for row in rows):
            axes.fill_between(x, [row["low"] for row in rows], [row["high"] for row in rows], color=color, alpha=0.08)
    if found.full_score is not None:
        axes.axhline(found.full_score, color="black", linewidth=1, label=f"all {found.full_labels} labels")
        axes.axhline(found.target, color="black", linewidth=1, linestyle=":", label="target")
    axes.set(xscale="log", xlabel="labelled images", ylabel=f"{_MEASURES[found.measure]} of the test split")
    ticks = sorted({row["labels"] for row in found.curves})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def _method_words(study: LabelStudy, found: StudyTables) -> list[str]:
    model = (
        "a linear probe on the frozen encoder's features"
        if found.measure == "auc"
        else f"a training of the bundle {study.task.bundle.name} (mode {study.mode})"
    )
    full = (
        "" if found.full_score is None else f" With all {found.full_labels} labels it reaches {found.full_score:.3f}."
    )
    return [
        f"The labels of the training images stand in for the annotator. In each round a strategy chose images until "
        f"there were {', '.join(map(str, study.budgets))} labels, and {model} learned from these alone and was tested "
        f"on the test split.{full}",
        f"Strategies that need predictions choose their first round by '{study.cold_start}'. Seeds: "
        f"{', '.join(map(str, study.seeds))}.",
        "The intervals and p-values resample the patients of the test split, all seeds together. How much another "
        "seed would differ is the deviation of the seeds.",
    ]


def _span(row: Row, name: str) -> str | None:
    low, high = (row[f"{name}_{end}".lstrip("_")] for end in ("low", "high"))
    return None if low is None else f"{low:.3f} to {high:.3f}"
