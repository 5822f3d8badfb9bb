# SPDX-License-Identifier: Apache-2.0
"""The report of an image-text model: retrieval and zero-shot classification against chance and no training."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from monai_ssl.evaluation.retrieval import FEWEST_UNITS
from monai_ssl.evaluation.run_facts import (
    RunFacts,
    run_lines,
    shown_interval,
    shown_number,
    table_line,
    write_report_files,
)

__all__ = ["RetrievalReport", "retrieval_report"]

_MEASURES = {"precision": "precision@{k}", "recall": "recall@{k}", "hit_rate": "hits@{k}", "auc": "AUC"}
_COLUMNS = ("task", "class", "queries", "items", "measure", "value", "interval", "chance", "p")
_SHOWN_CLASSES = 40  # rows by class in the Markdown; all are in the CSV


@dataclass(frozen=True)
class RetrievalReport:
    """A report as rows of plain values; ``str(report)`` is its Markdown.

    Attributes:
        rows: of :func:`score_retrieval` and :func:`score_zero_shot`, with the :class:`RunFacts`.
        title: what was evaluated.
        notes: sentences that a reader needs, above the table.
        other: what the second model is, in a word.
        pictures: PNG files and pages by the end of their name, ``{"_hits.png": bytes}``.
    """

    rows: list[dict[str, Any]]
    title: str
    notes: Sequence[str] = ()
    other: str = "untrained"
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.as_markdown()

    def summary(self) -> str:
        """Return the main figure of each task in one line."""
        first = {row["task"]: row for row in reversed(self.rows) if row["class"] == "all"}
        parts = [
            f"{task} {_measure(row)} {shown_number(row['value'])} (chance {shown_number(row['chance'])})"
            for task, row in reversed(first.items())
        ]
        return f"{self.title}: " + "; ".join(parts)

    def as_markdown(self) -> str:
        """Return the tables over all queries and by class, and the facts of the run."""
        first = self.rows[0]
        units = " or ".join(dict.fromkeys(row["unit"] for row in self.rows))
        compared = any(row["other"] is not None for row in self.rows)
        lines = [
            f"# Image-text report: {self.title}",
            "",
            f"Value with its {first['confidence']:.0%} bootstrap interval, and p of its difference from chance"
            + (f" and from the same network {self.other}, on the same queries" if compared else "")
            + f". {first['resamples']} resamples of {units}: of the images that ask, or where sentences ask, of the "
            f"images they search in. There are none of fewer than {FEWEST_UNITS}.",
            *(line for note in self.notes for line in ("", note)),
        ]
        overall = [row for row in self.rows if row["class"] == "all"]
        by_class = [row for row in self.rows if row["class"] != "all" and row["value"] is not None]
        by_class.sort(key=lambda row: row["groups"] < FEWEST_UNITS)  # those with intervals first, else as they come
        lines += ["", *self._table(overall, compared)]
        if by_class:
            lines += ["", "## By class", "", *self._table(by_class[:_SHOWN_CLASSES], compared)]
        if len(by_class) > _SHOWN_CLASSES:
            lines += ["", f"{len(by_class) - _SHOWN_CLASSES} more rows are in the CSV file."]
        left_out = {(row["task"], row["left_out"]) for row in overall if row["left_out"]}
        lines += [f"\n{count} queries of {task} have no right item and are left out." for task, count in left_out]
        return "\n".join([*lines, "", *run_lines(first)])

    def _table(self, rows: Sequence[Mapping[str, Any]], compared: bool) -> list[str]:
        header = [*_COLUMNS, *([self.other, "difference", "interval", "p"] if compared else [])]
        lines = [table_line(header), "|" + "---|" * len(header)]
        for row in rows:
            cells = [row["task"], row["class"], row["queries"], row["items"], _measure(row), shown_number(row["value"])]
            cells += [_interval(row, "value"), shown_number(row["chance"]), shown_number(row["over_chance_p"])]
            if compared:
                cells += [shown_number(row["other"]), shown_number(row["over_other"])]
                cells += [_interval(row, "over_other"), shown_number(row["over_other_p"])]
            lines.append(table_line(cells))
        return lines

    def save(self, folder: str | os.PathLike, name: str = "report") -> Path:
        """Write ``name.json``, ``name.csv``, ``name.md``, ``name_bars.png`` and the other pictures into a folder.

        Returns:
            The path of the Markdown file.
        """
        data = {"title": self.title, "notes": list(self.notes), "rows": self.rows}
        pictures = {"_bars.png": _bars_png(self.rows, self.title, self.other), **self.pictures}
        return write_report_files(folder, name, self.rows, data, self.as_markdown(), pictures)


def retrieval_report(
    rows: Sequence[Mapping[str, Any]],
    facts: RunFacts,
    *,
    title: str = "test",
    notes: Sequence[str] = (),
    other: str = "untrained",
    pictures: Mapping[str, bytes] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> RetrievalReport:
    """Make the report of scored tasks.

    Args:
        rows: of :func:`score_retrieval` and :func:`score_zero_shot`, one task after the other.
        facts: of the run.
        title: what was evaluated.
        notes: sentences that a reader needs.
        other: what the second model is, in a word.
        pictures: see :class:`RetrievalReport`.
        resamples: of the bootstrap that the rows were made with.
        confidence: of their intervals.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to report: no reports' text, no classes and no prompts were given")
    common = {"resamples": resamples, "confidence": confidence, **asdict(facts)}
    return RetrievalReport([{**row, **common} for row in rows], title, notes, other, pictures or {})


def _measure(row: Mapping[str, Any]) -> str:
    return _MEASURES[row["measure"]].format(k=row["k"])


def _interval(row: Mapping[str, Any], name: str) -> str:
    return "-" if row[f"{name}_low"] is None else shown_interval(row, name)


def _bars_png(rows: Sequence[Mapping[str, Any]], title: str, other: str) -> bytes:
    """Bars of the figures over all queries with their intervals, a line at chance, and the second model's beside."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["class"] == "all" and row["value"] is not None]
    compared = any(row["other"] is not None for row in shown)
    figure = Figure(figsize=(7.5, 1.1 + 0.5 * len(shown)), layout="constrained")
    axes = figure.subplots()
    height = 0.36 if compared else 0.6
    for number, row in enumerate(shown):
        for name, shift, color in (("value", -1, "#2e86ab"), ("other", 1, "#b8bec4")):
            if row[name] is not None:
                place = number + (shift * height / 2 if compared else 0)
                axes.barh(place, row[name], height, color=color)
                if row[f"{name}_low"] is not None:
                    axes.hlines(place, row[f"{name}_low"], row[f"{name}_high"], color="#444444", linewidth=1.5)
        axes.vlines(row["chance"], number - 0.45, number + 0.45, color="#d1495b", linewidth=1.5)
    axes.set_yticks(range(len(shown)), [f"{row['task']}, {_measure(row)}" for row in shown], fontsize=9)
    axes.set(xlim=(0, 1), title="blue: the model" + (f", grey: {other}" if compared else "") + ", red: chance")
    axes.title.set_fontsize(9)
    axes.invert_yaxis()
    figure.suptitle(title, fontsize=11)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
