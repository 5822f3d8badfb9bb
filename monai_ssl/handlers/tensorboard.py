# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows of a pretraining: losses, rates, metrics, views and embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events
from torch import Tensor

from monai_ssl.engines import PretrainTrainer, is_main_process

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["PretrainTensorBoard", "reconstruction_columns", "view_grid"]


def view_grid(views: Sequence[Tensor], max_images: int = 8) -> Tensor:
    """Put views side by side: one row an image, one column a view; of volumes the middle slice.

    Each view is scaled from its own smallest to its own largest value, as normalised intensities have no fixed range.

    Args:
        views: tensors (B, C, H, W) or (B, C, D, H, W); the sizes of the views may differ.
        max_images: rows at most.

    Returns:
        (H', W') float32 in [0, 1], on the CPU.
    """
    columns = []
    height = max(view.shape[-2] for view in views)
    for view in views:
        x = view[:max_images, 0].detach().float().cpu()
        if x.ndim == 4:
            x = x[:, x.shape[1] // 2]  # (B, D, H, W) -> (B, H, W)
        low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        x = (x - low) / (high - low).clamp(min=1e-12)
        x = torch.nn.functional.pad(x, (1, 1, 1, 1 + height - x.shape[1]))
        columns.append(x.reshape(-1, x.shape[-1]))  # (B, H, W) -> (B H, W)
    return torch.cat(columns, dim=1)


def reconstruction_columns(engine: PretrainTrainer) -> list[Tensor] | None:
    """Of methods that rebuild an image: the image, what the network saw of it, its prediction; else None."""
    output = engine.state.output
    if not isinstance(output.get("prediction"), Tensor):
        return None
    target = output.get("target", engine.state.batch["views"][0])
    seen = target * ~output["mask"] if "mask" in output else output.get("corrupted")
    return [target, output["prediction"]] if seen is None else [target, seen, output["prediction"]]


class PretrainTensorBoard:
    """Log a training to TensorBoard: ``tensorboard --logdir <folder>``.

    Every few steps the numbers of ``engine.state.output`` (``train/...``), every few epochs a picture of the last
    batch's views, of methods that rebuild images also of what they saw and predicted
    (:meth:`monai_ssl.methods.SSLMethod.forward`), and a histogram of its embeddings, and after each epoch
    ``engine.state.metrics`` (``epoch/...``). No labels, paths or numbers of images are logged; the views do show
    patients' images: ``images=False`` leaves them out.

    Args:
        folder: where the event files go.
        every_steps: optimiser steps between points of the curves.
        every_epochs: epochs between pictures and histograms; the first epoch has them too.
        images: whether to log pictures of views.
        max_images: images in a picture.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_steps: int = 10,
        every_epochs: int = 5,
        images: bool = True,
        max_images: int = 8,
    ) -> None:
        if min(every_steps, every_epochs, max_images) < 1:
            raise ValueError("every_steps, every_epochs and max_images must be at least 1")
        self.folder = str(folder)
        self.every_steps, self.every_epochs = every_steps, every_epochs
        self.images, self.max_images = images, max_images
        self._writer: SummaryWriter | None = None
        self._listening = False

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer; on the main process only."""
        if is_main_process():
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._log_step)
            engine.add_event_handler(Events.COMPLETED, self._close)
            engine.add_event_handler(Events.TERMINATE, self._close)

    def _open(self, engine: PretrainTrainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # After a resume, TensorBoard drops what the killed run logged beyond the checkpoint.
        purge = engine.optimizer_steps + 1 if engine.optimizer_steps else None
        self._writer = SummaryWriter(self.folder, purge_step=purge)
        if not self._listening:  # at the start, so that whoever measures comes before
            self._listening = True
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)

    def _log_step(self, engine: PretrainTrainer) -> None:
        if engine.at_step_boundary and engine.optimizer_steps % self.every_steps == 0:
            for name, value in engine.state.output.items():
                if isinstance(value, float) and math.isfinite(value):
                    self._writer.add_scalar(f"train/{name}", value, engine.optimizer_steps)

    def _log_epoch(self, engine: PretrainTrainer) -> None:
        step, epoch = engine.optimizer_steps, engine.state.epoch
        for name, value in engine.state.metrics.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"epoch/{name}", value, step)
        if epoch == 1 or epoch % self.every_epochs == 0:
            if self.images:
                grid = view_grid(engine.state.batch["views"], self.max_images)
                self._writer.add_image("views", grid, step, dataformats="HW")
                self._log_reconstruction(engine, step)
            embedding = engine.state.output.get("embedding")
            if embedding is not None:
                self._writer.add_histogram("embedding", embedding.float().cpu(), step)
        self._writer.flush()

    def _log_reconstruction(self, engine: PretrainTrainer, step: int) -> None:
        columns = reconstruction_columns(engine)
        if columns is not None:
            self._writer.add_image("reconstruction", view_grid(columns, self.max_images), step, dataformats="HW")

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
