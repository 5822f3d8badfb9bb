# SPDX-License-Identifier: Apache-2.0
"""What MONAI's SupervisedEvaluator needs to validate a segmentation network on whole volumes, and its epoch's score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.utils.enums import CommonKeys
from torch import Tensor, nn

from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.segmentation_card import sliding_window
from monai_ssl.evaluation.segmentation_report import class_mean
from monai_ssl.metrics import mask_scores

__all__ = ["MeanDiceScore", "SegmentationEvaluator", "WholeVolume"]


class WholeVolume:
    """``prepare_batch`` of an evaluator: one volume to the device, in the store's range, at its own size."""

    def __call__(
        self, batch: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the image (1, C, *spatial) and its label map (1, 1, *spatial), or None where there is none.

        Raises:
            ValueError: the batch holds more than one volume: they differ in size.
        """
        if len(batch["image"]) != 1:
            raise ValueError(f"volumes are evaluated one at a time: use batch_size=1, got {len(batch['image'])}")
        image = batch["image"].to(device, non_blocking=non_blocking)
        label = batch.get("label_map")
        return image, None if label is None else label.to(device, non_blocking=non_blocking)


class SegmentationEvaluator(SupervisedEvaluator):
    """A SupervisedEvaluator that looks at whole volumes, one at a time, through a sliding window.

    Args:
        device: where to compute.
        val_data_loader: yields batches of one volume, for example of :class:`monai_ssl.evaluation.LabelledVolumes`.
        network: the segmentation network.
        preprocessing: how volumes reach the network.
        inferer: standardises and runs the network; None: :func:`monai_ssl.evaluation.sliding_window`.
        key_val_metric: one ignite metric by name.
        val_handlers: handlers.
        postprocessing: see ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Any,
        network: nn.Module,
        preprocessing: Preprocessing,
        inferer: Inferer | None = None,
        key_val_metric: dict[str, Metric] | None = None,
        val_handlers: Sequence[Any] | None = None,
        postprocessing: Callable | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            network=network.to(device),
            prepare_batch=WholeVolume(),
            inferer=inferer or sliding_window(preprocessing),
            key_val_metric=key_val_metric,
            val_handlers=val_handlers,
            postprocessing=postprocessing,
            decollate=False,
        )


class MeanDiceScore(Metric):
    """Mean Dice over an epoch, as an ignite metric: over the volumes for each class, then over the classes.

    Empty masks count as :class:`monai_ssl.metrics.MaskScore` says. Every process scores what its own evaluator saw:
    give each the whole split.

    Args:
        num_classes: K, without the background.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        super().__init__(output_transform=_numbers_and_labels)

    def reset(self) -> None:
        """Forget the epoch."""
        self._dice: list[list[float]] = []

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Take in a batch: class numbers (B, *spatial) and label maps (B, *spatial)."""
        for predicted, true in zip(*output, strict=True):
            scores = mask_scores(predicted, true, self.num_classes, (1.0,) * true.ndim, distances=False)
            self._dice.append([score.dice for score in scores])

    def compute(self) -> float:
        """Return the mean; 0 if no volume has or was given any class."""
        dice = np.array(self._dice)
        return 0.0 if np.isnan(dice).all() else class_mean(dice)


def _numbers_and_labels(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return output[CommonKeys.PRED].argmax(1).cpu(), output[CommonKeys.LABEL][:, 0].cpu()
