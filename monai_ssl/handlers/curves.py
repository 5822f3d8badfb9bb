# SPDX-License-Identifier: Apache-2.0
"""The training's curves as a picture and a table."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
import time
from pathlib import Path
from typing import Any

from ignite.engine import Events

from monai_ssl.engines import PretrainTrainer, is_main_process
from monai_ssl.weights import atomic_file

__all__ = ["LossTrace", "TrainingCurves"]

logger = logging.getLogger(__name__)


class LossTrace:
    """Means of the loss over equal stretches of the training, as many as a plot can show.

    Args:
        max_points: when there are as many, neighbours are merged and the stretches get twice as long.
    """

    def __init__(self, max_points: int = 1000) -> None:
        self.max_points = max_points
        self.stretch = 1
        self.means: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, loss: float) -> None:
        """Take in the loss of one iteration."""
        self._sum += loss
        self._count += 1
        if self._count == self.stretch:
            self.means.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self.means) == self.max_points:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=False)]
            self.stretch *= 2

    def state_dict(self) -> dict[str, Any]:
        """Return everything."""
        return {"stretch": self.stretch, "means": list(self.means), "sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.stretch, self.means = state["stretch"], list(state["means"])
        self._sum, self._count = state["sum"], state["count"]


class TrainingCurves:
    """Write ``metrics.csv`` after each epoch and ``loss_curve.png`` at the end (and now and then before).

    A row of the table has the epoch, the optimiser steps, the seconds trained, the epoch's mean of every number in
    ``engine.state.output`` and the values of ``engine.state.metrics``. The picture has the loss and the learning rate,
    and below them the metrics named in ``plot``. Both files are replaced whole; after a resume they go on.

    Args:
        folder: where the files go.
        plot: metrics to draw, where they exist.
        picture_every_s: least time between two pictures before the last.
    """

    def __init__(
        self,
        folder: str | Path,
        plot: tuple[str, ...] | list[str] = ("linear_auc", "knn_auc", "embedding_std"),
        picture_every_s: float = 60.0,
    ) -> None:
        self.folder, self.plot, self.picture_every_s = Path(folder), tuple(plot), picture_every_s
        self.rows: list[dict[str, float]] = []
        self.trace, self.rates = LossTrace(), LossTrace()
        self._sums: dict[str, list[float]] = {}
        self._seconds_before = 0.0
        self._started = self._drawn = time.monotonic()
        self._listening = False

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer; on the main process only."""
        if is_main_process():
            engine.register_state("training_curves", self)
            engine.add_event_handler(Events.STARTED, self._listen)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    def state_dict(self) -> dict[str, Any]:
        """Return rows and curves so far."""
        return {
            "rows": [dict(row) for row in self.rows],
            "trace": self.trace.state_dict(),
            "rates": self.rates.state_dict(),
            "sums": {name: list(pair) for name, pair in self._sums.items()},
            "seconds": self._seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.rows = [dict(row) for row in state["rows"]]
        self.trace.load_state_dict(state["trace"])
        self.rates.load_state_dict(state["rates"])
        self._sums = {name: list(pair) for name, pair in state["sums"].items()}
        self._seconds_before = state["seconds"]

    def _listen(self, engine: PretrainTrainer) -> None:
        """Registered at the start, so that whoever measures comes before."""
        self._started = self._drawn = time.monotonic()
        if not self._listening:
            self._listening = True
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
            engine.add_event_handler(Events.COMPLETED, self._draw)
            engine.add_event_handler(Events.TERMINATE, self._draw)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _add(self, engine: PretrainTrainer) -> None:
        output = engine.state.output
        self.trace.add(output["loss"])
        self.rates.add(output["learning_rate"])
        for name, value in output.items():
            if isinstance(value, float) and math.isfinite(value):
                pair = self._sums.setdefault(name, [0.0, 0.0])
                pair[0] += value
                pair[1] += 1

    def _after_epoch(self, engine: PretrainTrainer) -> None:
        row = {"epoch": engine.state.epoch, "step": engine.optimizer_steps, "seconds": round(self._seconds(), 1)}
        row |= {name: total / count for name, (total, count) in self._sums.items()}
        row |= {name: float(v) for name, v in engine.state.metrics.items() if isinstance(v, (int, float))}
        self._sums.clear()
        self.rows.append(row)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(self.rows)
        self._write("metrics.csv", text.getvalue().encode())
        if time.monotonic() - self._drawn > self.picture_every_s:
            self._draw(engine)

    def _draw(self, engine: PretrainTrainer) -> None:
        self._drawn = time.monotonic()
        if not self.trace.means:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        drawn = [name for name in self.plot if any(name in row for row in self.rows)]
        # A canvas of its own: no global figure, no display, no backend to choose.
        figure = Figure(figsize=(7, 3.5 + 2 * len(drawn)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1 + len(drawn), squeeze=False)[:, 0]
        per_epoch = engine.state.epoch_length
        epochs = [(i + 1) * self.trace.stretch / per_epoch for i in range(len(self.trace.means))]
        axes[0].plot(epochs, self.trace.means, color="tab:blue", linewidth=1)
        axes[0].set_ylabel("loss")
        rate = axes[0].twinx()
        rate.plot(epochs, self.rates.means, color="tab:gray", linewidth=1, linestyle="--")
        rate.set_ylabel("learning rate (dashed)")
        for axis, name in zip(axes[1:], drawn, strict=True):
            points = [(row["epoch"], row[name]) for row in self.rows if name in row]
            # A metric keeps its value until it is measured again: draw where it was measured.
            points = points[:1] + [b for a, b in itertools.pairwise(points) if a[1] != b[1]]
            axis.plot(*zip(*points, strict=True), marker=".")
            untrained = self.rows[-1].get(f"{name}_untrained")
            if untrained is not None:
                axis.axhline(untrained, color="tab:gray", linestyle=":", label="untrained")
                axis.legend()
            axis.set_ylabel(name)
        axes[-1].set_xlabel("epoch")
        picture = io.BytesIO()
        figure.savefig(picture, dpi=120)
        self._write("loss_curve.png", picture.getvalue())

    def _write(self, name: str, data: bytes) -> None:
        try:
            with atomic_file(self.folder / name) as file:
                file.write(data)
        except OSError as error:
            logger.error("%s", error)
