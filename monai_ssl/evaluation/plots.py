# SPDX-License-Identifier: Apache-2.0
"""The pictures of the reports, as PNG bytes; drawn without a screen and without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["confusion_png", "loss_curve_png"]


def confusion_png(confusion: Mapping[str, list], title: str) -> bytes:
    """Draw a confusion table: counts as text, shares of the row as shades.

    Args:
        confusion: ``{"columns": [corner, name, ...], "rows": [[name, count, ...], ...]}``.
        title: above the picture.
    """
    columns, names = confusion["columns"][1:], [row[0] for row in confusion["rows"]]
    counts = np.array([row[1:] for row in confusion["rows"]], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(2.5 + 0.9 * len(columns), 1.8 + 0.6 * len(names))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(counts):
        shade = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=shade)
    axes.set_title(title, fontsize=10)
    return _png(figure)


def loss_curve_png(
    steps: Sequence[float], losses: Sequence[float], title: str = "", floor: float | None = None
) -> bytes:
    """Draw a loss over steps, thin, and its running mean, thick.

    Args:
        steps: ``(N,)`` ascending.
        losses: ``(N,)``; values that are not finite leave a gap.
        title: above the picture.
        floor: a level to compare with, drawn as a dashed line (the loss of guessing, say).

    Raises:
        ValueError: the lengths differ or there is nothing to draw.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"a loss curve needs as many steps as losses, at least one; got {x.shape} and {y.shape}")
    figure, axes = _figure(6.0, 3.5)
    axes.plot(x, y, color="tab:blue", alpha=0.35, linewidth=0.8)
    width = max(1, len(y) // 20)
    filled = np.where(np.isfinite(y), y, 0.0)
    kernel = np.ones(width)
    count = np.convolve(np.isfinite(y), kernel, mode="valid")
    mean = np.convolve(filled, kernel, mode="valid") / np.maximum(count, 1)
    axes.plot(x[width - 1 :], mean, color="tab:blue", linewidth=1.8, label=f"mean of {width}")
    if floor is not None:
        axes.axhline(floor, color="grey", linestyle="--", linewidth=0.8)
    axes.set(xlabel="optimiser step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    return _png(figure)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
