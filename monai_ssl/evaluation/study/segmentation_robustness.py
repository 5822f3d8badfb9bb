# SPDX-License-Identifier: Apache-2.0
"""The Dice of a trained segmentation network on test volumes that are changed, their label maps with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader

from monai_ssl.data import PadCollate
from monai_ssl.evaluation.segmentation_card import load_segmenter, read_segmenter_card
from monai_ssl.evaluation.segmentation_data import LabelledVolumes
from monai_ssl.evaluation.study.perturbations import perturbed_view
from monai_ssl.evaluation.study.question import Question
from monai_ssl.metrics import mask_scores

__all__ = ["volume_dice"]


def volume_dice(question: Question) -> Callable[[str, float], np.ndarray]:
    """Return a function from a perturbation's name and level to the Dice ``(N, K)`` of each test volume and class.

    A volume is changed on its own grid, at its own size, before the sliding window; a turned or scaled volume is
    compared with its label map turned or scaled alike. NaN: neither the volume nor the prediction has the class. The
    name ``""`` leaves volumes as they are.
    """
    labels, store, device = question.labels, question.store, question.study.compute_device
    model = Path(question.settings["output_dir"]) / "model.pt"
    card = read_segmenter_card(model)
    network = card.build()
    load_segmenter(network, model)
    network.to(device).eval()
    prepared = question.preprocessing
    inferer = card.inferer()
    loader = DataLoader(LabelledVolumes(store, labels, "test"), batch_size=1, collate_fn=PadCollate())

    @torch.no_grad()
    def dice(name: str, level: float) -> np.ndarray:
        found = []
        for batch in loader:
            image, truth = batch["image"].to(device), batch["label_map"]
            if name:
                # the view of a volume at its own size, in the store's range: the sliding window standardises
                own = replace(
                    prepared,
                    image_size=tuple(image.shape[2:]),
                    fit="native",
                    standardize_mode="fixed",
                    mean=0.0,
                    std=1.0,
                )
                view = perturbed_view(name, level, own, store.policy)
                params = view.draw(image.shape, None, device)
                image = view.apply(image, params)
                truth = view.apply(truth.to(device), params, "nearest").cpu()
            predicted = inferer(image, network).argmax(dim=1)[0].cpu()
            scores = mask_scores(
                predicted, truth[0, 0], len(labels.class_names), (1.0,) * predicted.ndim, distances=False
            )
            found.append([score.dice for score in scores])
        return np.array(found)

    return dice
