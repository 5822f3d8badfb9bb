# SPDX-License-Identifier: Apache-2.0
"""The task of a supervised stage is the one that the labels ask for."""

from __future__ import annotations

import numpy as np

from monai_ssl.evaluation import ClassificationLabels, SegmentationLabels, supervised_task
from monai_ssl.methods import ClassTask, FindingsTask, SegmentationTask


def classification(task: str, names: list[str]) -> ClassificationLabels:
    return ClassificationLabels(task, names, np.zeros(0), np.zeros(0), {}, 1.0, "", "", "label")


def test_classes_findings_and_label_maps_get_their_task():
    task = supervised_task(classification("multiclass", ["a", "b", "c"]))
    assert isinstance(task, ClassTask) and (task.label, task.num_classes) == ("label", 3)
    assert supervised_task(classification("binary", ["no", "yes"])).num_classes == 2
    task = supervised_task(classification("multilabel", ["effusion"]))
    assert isinstance(task, FindingsTask) and (task.labels, task.num_findings) == (("label",), 1)
    task = supervised_task(SegmentationLabels(["liver", "spleen"], [[1], [2]], np.zeros((0, 2)), np.zeros(0), {}))
    assert isinstance(task, SegmentationTask) and task.num_classes == 2
