# SPDX-License-Identifier: Apache-2.0
"""From a question on a store to the task that a supervised or hybrid pretraining learns."""

from __future__ import annotations

from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.segmentation_labels import SegmentationLabels
from monai_ssl.methods import ClassTask, FindingsTask, SegmentationTask, SupervisedTask

__all__ = ["supervised_task"]


def supervised_task(
    labels: ClassificationLabels | SegmentationLabels, *, class_weight_power: float = 0.0
) -> SupervisedTask:
    """Build the task that fits the labels, for :class:`monai_ssl.methods.Supervised` or ``Hybrid``.

    Args:
        labels: of :func:`classification_labels`; batches come from a :class:`LabelledStoreDataset`. Or of
            :func:`segmentation_labels`; batches come from :class:`LabelledVolumes`.
        class_weight_power: of a question on images: rare classes (positive findings) count more, see
            :meth:`ClassificationLabels.class_weights`; 0: all alike.

    Returns:
        A :class:`monai_ssl.methods.ClassTask` for classes that exclude each other, a
        :class:`monai_ssl.methods.FindingsTask` for findings, a :class:`monai_ssl.methods.SegmentationTask` for label
        maps (by the network's own decoder, if it gives a channel for the background and one for each class).
    """
    if isinstance(labels, SegmentationLabels):
        return SegmentationTask(len(labels.class_names))
    count, weights = len(labels.class_names), labels.class_weights(class_weight_power)
    if labels.multilabel:
        return FindingsTask("label", count, positive_weights=weights)
    return ClassTask("label", count, class_weights=weights)
