# SPDX-License-Identifier: Apache-2.0
"""Pictures of a study as PNG bytes: the heat-map of the AUC, and a measure against the scores."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["heat_map_png", "scatter_png"]


def heat_map_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw sources down and targets across: the AUC as text, the rank within the target as the shade.

    Args:
        rows: of :class:`monai_ssl.transferability.StudyReport`.
    """
    sources, targets = (list(dict.fromkeys(row[key] for row in rows)) for key in ("source", "target"))
    ranks = np.full((len(sources), len(targets)), np.nan)
    figure, axes = _canvas(2.2 + 1.3 * len(targets), 1.2 + 0.5 * len(sources))
    for row in rows:
        place = sources.index(row["source"]), targets.index(row["target"])
        ranks[place] = np.nan if row["rank"] is None else row["rank"]
    most = np.nanmax(ranks) if np.isfinite(ranks).any() else 1
    axes.imshow(ranks, cmap="Greens_r", vmin=1, vmax=1.5 * most + 1, aspect="auto")
    for row in rows:
        text = f"{row['auc']:.3f}" + (f"\n#{row['rank']}" if row["rank"] else "")
        shade = "white" if row["rank"] and row["rank"] <= 0.5 * most else "black"
        place = targets.index(row["target"]), sources.index(row["source"])
        axes.text(*place, text, ha="center", va="center", fontsize=8, color=shade)
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(sources)), sources)
    axes.set_xlabel("target")
    axes.set_ylabel("source")
    axes.set_title("AUC; darker: better source", fontsize=10)
    return _png(figure)


def scatter_png(rows: Sequence[Mapping[str, Any]], measure: str, label: str, title: str) -> bytes:
    """Draw a measure across and the transfer score up, one point for each pair, one colour for each target.

    Args:
        rows: of :class:`monai_ssl.transferability.StudyReport`.
        measure: name of the column.
        label: of the axis.
        title: above the picture.
    """
    figure, axes = _canvas(5.5, 4)
    used = [row for row in rows if row.get(measure) is not None and row["score"] is not None]
    for target in dict.fromkeys(row["target"] for row in used):
        mine = [row for row in used if row["target"] == target]
        axes.scatter([row[measure] for row in mine], [row["score"] for row in mine], label=target)
        for row in mine:
            axes.annotate(
                row["source"], (row[measure], row["score"]), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xlabel(label)
    axes.set_ylabel("transfer score, %")
    axes.set_title(title, fontsize=10)
    axes.legend(title="target", fontsize=7)
    return _png(figure)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
