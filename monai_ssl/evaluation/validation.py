# SPDX-License-Identifier: Apache-2.0
"""What MONAI's SupervisedEvaluator needs to validate a classifier on padded batches, and the score of its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys
from torch import Tensor, nn

from monai_ssl.metrics import area_under_roc
from monai_ssl.transforms import ViewChain

__all__ = ["ClassifierEvaluator", "PreparedView", "RocAreaScore"]


class PreparedView:
    """``prepare_batch`` of an evaluator: images to the device, whole, at the network's size.

    Args:
        view: from :meth:`monai_ssl.evaluation.Preprocessing.view`.
    """

    def __init__(self, view: ViewChain) -> None:
        self.view = view

    def __call__(
        self, batch: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the images (B, C, *size) and the labels, or None where there are none."""
        image = batch["image"].to(device, non_blocking=non_blocking)
        extent = batch.get("extent")
        image = self.view(image, None, None if extent is None else extent.to(device))
        label = batch.get("label")
        return image, None if label is None else label.to(device, non_blocking=non_blocking)


class ClassifierEvaluator(SupervisedEvaluator):
    """A SupervisedEvaluator whose batches are prepared by a view, whole batches, without decollation.

    Args:
        device: where to compute.
        val_data_loader: yields batches of :class:`monai_ssl.evaluation.LabelledStoreDataset`.
        network: the classifier.
        view: see :class:`PreparedView`.
        inferer: runs the network; None: ``SimpleInferer()``.
        key_val_metric: one ignite metric by name.
        val_handlers: handlers.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Any,
        network: nn.Module,
        view: ViewChain,
        inferer: Inferer | None = None,
        key_val_metric: dict[str, Metric] | None = None,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            network=network.to(device),
            prepare_batch=PreparedView(view),
            inferer=inferer or SimpleInferer(),
            key_val_metric=key_val_metric,
            val_handlers=val_handlers,
            decollate=False,
        )


class RocAreaScore(Metric):
    """Area under the ROC curve over an epoch, as an ignite metric; see :func:`monai_ssl.metrics.area_under_roc`.

    Every process scores what its own evaluator saw: give each the whole split.

    Args:
        multilabel: the classes do not exclude each other.
        class_names: for messages.
        average: ``"macro"`` or ``"weighted"``.
    """

    def __init__(
        self, multilabel: bool = False, class_names: Sequence[str] | None = None, average: str = "macro"
    ) -> None:
        self.multilabel, self.class_names, self.average = multilabel, class_names, average
        super().__init__(output_transform=_logits_and_labels)

    def reset(self) -> None:
        """Forget the epoch."""
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Take in a batch: logits (B, K) and labels (B,) or (B, K)."""
        logits, labels = output
        self._logits.append(logits.detach().float().cpu())
        self._labels.append(labels.detach().cpu())

    def compute(self) -> float:
        """Return the area."""
        logits = torch.cat(self._logits)
        scores = logits if self.multilabel else logits.softmax(dim=1)
        return area_under_roc(
            torch.cat(self._labels).numpy(),
            np.asarray(scores),
            average=self.average,
            undefined="warn",
            class_names=self.class_names,
        )


def _logits_and_labels(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return output[CommonKeys.PRED], output[CommonKeys.LABEL]
