# SPDX-License-Identifier: Apache-2.0
"""The card of a trained classifier, and the store of the images that it is to classify."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from monai_ssl.data.examples import make_example_radiographs
from monai_ssl.data.index import build_index
from monai_ssl.data.prepare import prepare_store
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.model_card import ModelCard, find_model, load_model, read_model_card, save_model
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.starting_point import StartingPoint
from monai_ssl.networks import build_classifier

__all__ = [
    "ClassifierCard",
    "find_classifier",
    "load_classifier",
    "open_unlabelled",
    "read_classifier_card",
    "save_classifier",
]


@dataclass(frozen=True, kw_only=True)
class ClassifierCard(ModelCard):
    """What ``model.json`` says about the ``model.pt`` of a classifier.

    Attributes:
        task: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        label_column: column or columns that the labels were read from.
        max_side: longest side of the prepared radiographs; None for volumes.
    """

    task: str
    label_column: str | list[str]
    max_side: int | None = None

    kind: ClassVar[str] = "classifier"

    @classmethod
    def describe(
        cls,
        start: StartingPoint,
        labels: ClassificationLabels,
        preprocessing: Preprocessing,
        max_side: int | None,
        seed: int,
        modality: str | None = None,
        crop_foreground: bool = False,
    ) -> ClassifierCard:
        """Make the card of a training; call it after ``start.build``, which knows the lineage."""
        return cls(
            architecture=start.architecture,
            network_args=start.complete_args(),
            spatial_dims=start.spatial_dims,
            in_channels=start.in_channels,
            task=labels.task,
            class_names=list(labels.class_names),
            label_column=labels.label_column,
            preprocessing=preprocessing.to_dict(),
            max_side=max_side,
            modality=modality,
            crop_foreground=crop_foreground,
            mode=start.mode,
            lineage=list(start.lineage),
            label_fraction=labels.label_fraction,
            num_labels=len(labels.rows["train"]),
            seed=seed,
            split_hash=labels.split_hash,
            subset_hash=labels.subset_hash,
        )

    @property
    def multilabel(self) -> bool:
        """Whether the classes do not exclude each other."""
        return self.task == "multilabel"

    def build(self) -> nn.Module:
        """Build the network, with random weights."""
        return build_classifier(
            self.architecture, len(self.class_names), self.spatial_dims, self.in_channels, **self.network_args
        )

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits (B, K) into probabilities."""
        logits = logits.float()
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)


def save_classifier(network: nn.Module, card: ClassifierCard, path: str | os.PathLike, **metrics: float) -> None:
    """Write a classifier, see :func:`monai_ssl.evaluation.save_model`."""
    save_model(network, card, path, **metrics)


def read_classifier_card(path: str | os.PathLike) -> ClassifierCard:
    """Read the card beside a classifier's weights, see :func:`monai_ssl.evaluation.read_model_card`."""
    return read_model_card(path, ClassifierCard)


def load_classifier(network: nn.Module, path: str | os.PathLike) -> ClassifierCard:
    """Load a trained classifier, see :func:`monai_ssl.evaluation.load_model`."""
    return load_model(network, path, ClassifierCard)


def find_classifier(folders: Sequence[str | os.PathLike], name: str = "model.pt") -> str:
    """Return the path of the first trained classifier in the folders; the last folder's path if there is none."""
    return find_model(folders, name)


def open_unlabelled(
    dataset_dir: str | os.PathLike | None,
    cache_dir: str | os.PathLike,
    card: ClassifierCard,
    num_workers: int | None = None,
) -> ImageStore:
    """Index and prepare images without labels as the classifier's own were; duplicates stay, nothing is split.

    Args:
        dataset_dir: folder of radiographs; None: the embedded example data, made in ``cache_dir``.
        cache_dir: for the index and the store.
        card: of the classifier.
        num_workers: processes; None: all CPUs.

    Returns:
        The store; files that can't be used are in its ``refused``, with reasons.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no image, or none that can be used.
    """
    cache_dir = Path(cache_dir)
    folder = make_example_radiographs(cache_dir / "example_radiographs") if dataset_dir is None else Path(dataset_dir)
    index = build_index(folder, cache_dir / "index.parquet", num_workers=num_workers)
    return prepare_store(
        index,
        folder,
        cache_dir / "store",
        max_side=card.max_side,
        policy=card.intensity_policy(),
        num_workers=num_workers,
        max_refused_fraction=1.0,
    )
