# SPDX-License-Identifier: Apache-2.0
"""The plots of a study as PNG bytes, drawn without a screen and without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_ssl.evaluation.study.config import RANDOM
from monai_ssl.evaluation.study.tables import grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["contact_sheet", "convergence_plot", "embedding_plot", "label_efficiency_plot", "robustness_plot"]

_GREY = "#777777"
_STYLES = {"linear": "-", "knn": ":", "frozen": "-", "finetune": "--"}


def label_efficiency_plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw the score against the number of labels, a line for each encoder and mode, with the deviation of the seeds.

    Args:
        rows: of :func:`score_table`, of one task.
    """
    figure, axes = _figure(7.5, 4.5)
    colors = _colors(rows)
    for (encoder, mode), points in grouped(rows, "encoder", "mode").items():
        points = sorted(points, key=lambda row: row["labels"])
        x, y = [row["labels"] for row in points], [row["mean"] for row in points]
        sd = [row["sd"] or 0.0 for row in points]
        name = "from scratch" if (encoder, mode) == (RANDOM, "finetune") else f"{encoder}, {mode}"
        axes.errorbar(
            x, y, yerr=sd, color=colors[encoder], linestyle=_STYLES[mode], marker="o", ms=4, capsize=2, label=name
        )
    axes.set(xscale="log", xlabel="labelled training images", ylabel=f"{_measure(rows)} of the test split")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def convergence_plot(curves: dict[str, list[tuple[Sequence[float], Sequence[float]]]], measure: str) -> bytes:
    """Draw validation curves against the steps, thin lines for the seeds.

    Args:
        curves: (steps, values) of each seed, by the start's name.
        measure: on the y axis.
    """
    figure, axes = _figure(7.5, 4)
    for number, (name, runs) in enumerate(curves.items()):
        color = _GREY if name == "from scratch" else f"C{number}"
        for place, (steps, values) in enumerate(runs):
            axes.plot(steps, values, color=color, linewidth=1, marker=".", label=name if place == 0 else None)
    axes.set(xlabel="training steps", ylabel=f"{measure} of the validation split")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def robustness_plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw the score against the level of each perturbation.

    Args:
        rows: of :func:`robustness_table`, of one task.
    """
    by_name = grouped(rows, "perturbation")
    columns = min(3, len(by_name))
    lines = -(-len(by_name) // columns)
    figure, grid = _figure(4 * columns, 3 * lines, lines, columns)
    colors = _colors(rows)
    places = np.atleast_1d(grid).ravel()
    for axes, ((name,), found) in zip(places, by_name.items(), strict=False):
        for row in found:
            points = sorted(zip([*row["levels"], row["identity"]], [*row["scores"], row["unchanged"]], strict=True))
            x, y = zip(*points, strict=True)
            style = _STYLES[row["mode"]]
            label = f"{row['encoder']}, {row['mode']}"
            axes.plot(x, y, color=colors[row["encoder"]], linestyle=style, marker=".", label=label)
        axes.axvline(found[0]["identity"], color=_GREY, linewidth=0.8)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(found[0]["unit"].split(",")[0], fontsize=8)
        axes.grid(alpha=0.3)
    for axes in places[len(by_name) :]:
        axes.set_visible(False)
    places[0].legend(fontsize=7)
    return _png(figure)


def embedding_plot(points: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """Draw features in two dimensions, coloured by class.

    Args:
        points: ``(N, 2)``.
        classes: ``(N,)`` names.
        title: above.
    """
    figure, axes = _figure(4.6, 4)
    names = np.array(classes)
    for number, name in enumerate(sorted(set(classes))):
        chosen = names == name
        axes.scatter(*points[chosen].T, s=8, alpha=0.7, color=f"C{number % 10}", label=name)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, markerscale=2)
    return _png(figure)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[Sequence[str]]) -> bytes:
    """Draw images in rows: the first of each is asked for, the others are its nearest neighbours.

    Args:
        rows: images ``(H, W)`` in [0, 1].
        captions: below each.
    """
    columns = max(map(len, rows))
    figure, grid = _figure(1.5 * columns, 1.7 * len(rows), len(rows), columns)
    for places, images, texts in zip(np.atleast_2d(grid), rows, captions, strict=True):
        for number, (axes, image, text) in enumerate(zip(places, images, texts, strict=True)):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(text, fontsize=7)
            for spine in axes.spines.values():
                spine.set(color="C1" if number == 0 else "#bbbbbb", linewidth=2 if number == 0 else 0.8)
    return _png(figure)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    return picture.getvalue()


def _colors(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """A colour for each encoder; random weights are grey."""
    names = [name for name in dict.fromkeys(row["encoder"] for row in rows) if name != RANDOM]
    return {RANDOM: _GREY, **{name: f"C{(n % 9) + (n % 9 > 6)}" for n, name in enumerate(names)}}  # C7 is grey


def _measure(rows: Sequence[dict[str, Any]]) -> str:
    return {"auc": "area under the ROC curve", "dice": "Dice"}[rows[0]["measure"]]
