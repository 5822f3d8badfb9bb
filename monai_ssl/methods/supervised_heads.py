# SPDX-License-Identifier: Apache-2.0
"""What supervised and hybrid pretraining share: several tasks on one pass of the encoder, their losses summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from monai_ssl.networks import ImageEncoder

from .supervised_tasks import SupervisedTask

__all__ = ["SupervisedHeads"]


class SupervisedHeads(nn.Module):
    """Several tasks on one pass of the encoder.

    Args:
        encoder: whose features are looked at; it is not kept.
        tasks: one or more, with different names.

    Raises:
        ValueError: no task, or two of one name.
    """

    def __init__(self, encoder: ImageEncoder, tasks: SupervisedTask | Sequence[SupervisedTask]) -> None:
        super().__init__()
        tasks = [tasks] if isinstance(tasks, SupervisedTask) else list(tasks)
        if not tasks or not all(isinstance(task, SupervisedTask) for task in tasks):
            raise ValueError(f"tasks must be one or more of ClassTask, FindingsTask and SegmentationTask, got {tasks}")
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError(f"two tasks have one name: {', '.join(task.name for task in tasks)}")
        for task in tasks:
            task.build(encoder)
        self.tasks = nn.ModuleDict({task.name: task for task in tasks})

    def forward(self, encoder: ImageEncoder, batch: dict[str, Any], view: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the tasks' losses from one view.

        Args:
            encoder: makes one pass, of all images: those without a label count in BatchNorm's statistics only.
            batch: see :meth:`monai_ssl.methods.SSLMethod.forward`, with the labels.
            view: its number.

        Returns:
            The weighted sum of the losses, and without gradient: ``"embedding"`` (B, F) unit vectors; ``"accuracy"`` or
            ``"dice"`` (``"<name>_accuracy"``, ``"<name>_loss"`` of several tasks), NaN without a label; ``"labelled"``:
            share of the images that have a label of some task.
        """
        image = batch["views"][view]
        for task in self.tasks.values():
            self._check_on_cpu(task, batch)
        pooled, maps = self._encode(encoder, image)
        total: Tensor | float = 0.0
        out: dict[str, Tensor] = {"embedding": normalize(pooled.detach().float())}
        for name, task in self.tasks.items():
            loss, score = task(encoder, pooled, maps, batch, view)
            total = total + (loss if task.weight == 1 else task.weight * loss)
            prefix = f"{name}_" if len(self.tasks) > 1 else ""
            out[f"{prefix}{task.score_name}"] = score
            if prefix:
                out[f"{prefix}loss"] = loss.detach()
        out["labelled"] = self.known(batch, view).float().mean()
        return total, out

    def known(self, batch: Mapping[str, Any], view: int) -> Tensor:
        """Return (B,) bool: which images have a label of some task."""
        return torch.stack([task.known(batch, view) for task in self.tasks.values()]).any(0)

    def check(self, labels: Mapping[str, Any]) -> None:
        """Check labels on the CPU; see :meth:`SupervisedTask.check`."""
        for task in self.tasks.values():
            task.check(labels)

    def _encode(self, encoder: ImageEncoder, image: Tensor) -> tuple[Tensor, list[Tensor] | None]:
        if not any(task.needs_maps for task in self.tasks.values()):
            return encoder(image), None
        maps = encoder.feature_maps(image)
        pooled = maps[-1].flatten(2).mean(2)
        if pooled.shape[1] != encoder.num_features and not all(task.needs_maps for task in self.tasks.values()):
            pooled = encoder(image)  # an EfficientNet has another layer between its last map and its pooled features
        return pooled, maps

    @staticmethod
    def _check_on_cpu(task: SupervisedTask, batch: Mapping[str, Any]) -> None:
        """Check where it costs no waiting for a device; elsewhere the trainer has done it before the transfer."""
        if batch["views"][0].device.type == "cpu":
            task.check(batch)
