# SPDX-License-Identifier: Apache-2.0
"""A picture of what a pretraining hides and rebuilds."""

from __future__ import annotations

import io
from pathlib import Path

from ignite.engine import Events
from torch import Tensor

from monai_ssl.engines import PretrainTrainer, is_main_process
from monai_ssl.handlers.tensorboard import reconstruction_columns, view_grid
from monai_ssl.weights import atomic_file

__all__ = ["ReconstructionSheet"]

_CELL_INCHES = 1.6


class ReconstructionSheet:
    """Write ``reconstructions.png``: images of the last batch, what the network saw of them, and what it rebuilt.

    Of volumes the middle slice; each panel from its own darkest to its own brightest voxel. It shows patients' images,
    without a name. A method that rebuilds nothing gets no picture.

    Args:
        folder: where the picture goes.
        every_epochs: how often it is written; always after the last epoch.
        max_images: rows at most.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, folder: str | Path, *, every_epochs: int = 10, max_images: int = 4) -> None:
        if min(every_epochs, max_images) < 1:
            raise ValueError(f"every_epochs ({every_epochs}) and max_images ({max_images}) must be at least 1")
        self.path = Path(folder) / "reconstructions.png"
        self.every_epochs, self.max_images = every_epochs, max_images

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer; on the main process only."""
        if is_main_process():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _draw(self, engine: PretrainTrainer) -> None:
        if engine.state.epoch % self.every_epochs and engine.state.epoch < engine.state.max_epochs:
            return
        columns = reconstruction_columns(engine)
        if columns is not None:
            picture = _sheet(columns, self.max_images)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path) as file:
                file.write(picture)


def _sheet(columns: list[Tensor], max_images: int) -> bytes:
    """PNG of the columns side by side, with a title above each."""
    from matplotlib.figure import Figure

    titles = ["image", "prediction"] if len(columns) == 2 else ["image", "seen", "prediction"]
    rows = min(max_images, len(columns[0]))
    height, width = columns[0].shape[-2:]
    size = (_CELL_INCHES * len(columns) * width / max(height, width), _CELL_INCHES * rows * height / max(height, width))
    figure = Figure((size[0], size[1] + 0.3), dpi=120, layout="constrained")
    for axes, column, title in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, titles, strict=True):
        axes.imshow(view_grid([column], max_images), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
