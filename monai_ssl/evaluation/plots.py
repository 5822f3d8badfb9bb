# SPDX-License-Identifier: Apache-2.0
"""The picture of a confusion matrix, as PNG bytes; drawn without a screen and without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

__all__ = ["confusion_png"]


def confusion_png(confusion: Mapping[str, list], title: str) -> bytes:
    """Draw a confusion table: counts as text, shares of the row as shades.

    Args:
        confusion: ``{"columns": [corner, name, ...], "rows": [[name, count, ...], ...]}``.
        title: above the picture.
    """
    columns, names = confusion["columns"][1:], [row[0] for row in confusion["rows"]]
    counts = np.array([row[1:] for row in confusion["rows"]], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 + 0.9 * len(columns), 1.8 + 0.6 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(counts):
        shade = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=shade)
    axes.set_ylabel(confusion["columns"][0])
    axes.set_title(title, fontsize=10)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
