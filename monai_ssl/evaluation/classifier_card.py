# SPDX-License-Identifier: Apache-2.0
"""A trained classifier on disk: ``model.pt``, a plain state dictionary, and ``model.json``, which says what it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_ssl.data.examples import make_example_radiographs
from monai_ssl.data.index import build_index
from monai_ssl.data.intensity import IntensityPolicy, policy_from_dict
from monai_ssl.data.prepare import prepare_store
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.run_facts import describe_lineage, package_versions
from monai_ssl.evaluation.starting_point import StartingPoint
from monai_ssl.networks import build_classifier
from monai_ssl.weights import WeightsFileError, atomic_file, read_checkpoint

__all__ = [
    "ClassifierCard",
    "find_classifier",
    "load_classifier",
    "open_unlabelled",
    "read_classifier_card",
    "save_classifier",
]

SCHEMA = 1


@dataclass(frozen=True)
class ClassifierCard:
    """What ``model.json`` says about ``model.pt``.

    Attributes:
        architecture: see :func:`monai_ssl.networks.build_classifier`.
        network_args: likewise.
        spatial_dims: likewise.
        in_channels: likewise.
        task: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        class_names: names of the outputs, in order.
        label_column: column or columns that the labels were read from.
        preprocessing: see :class:`monai_ssl.evaluation.Preprocessing`.
        max_side: longest side of the prepared images.
        mode: ``"linear"``, ``"finetune"`` or ``"scratch"``.
        lineage: earlier training stages, oldest first.
        label_fraction: share or number of the labelled training images.
        num_labels: labelled training images.
        seed: of the run.
        split_hash: of the split, first 16 digits.
        subset_hash: of the labelled subset, first 16 digits.
        metrics: measured when the weights were saved.
        versions: of the packages.
        weights_sha256: of ``model.pt``; empty if not recorded.
    """

    architecture: str
    network_args: dict[str, Any]
    spatial_dims: int
    in_channels: int
    task: str
    class_names: list[str]
    label_column: str | list[str]
    preprocessing: dict[str, Any]
    max_side: int
    mode: str = ""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    label_fraction: float = 1.0
    num_labels: int = 0
    seed: int = 0
    split_hash: str = ""
    subset_hash: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=package_versions)
    weights_sha256: str = ""

    @classmethod
    def describe(
        cls,
        start: StartingPoint,
        labels: ClassificationLabels,
        preprocessing: Preprocessing,
        max_side: int,
        seed: int,
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

    @property
    def lineage_in_words(self) -> str:
        """The earlier stages as one line."""
        return describe_lineage(self.lineage)

    def build(self) -> nn.Module:
        """Build the network, with random weights."""
        return build_classifier(
            self.architecture, len(self.class_names), self.spatial_dims, self.in_channels, **self.network_args
        )

    def prepared(self) -> Preprocessing:
        """Return how images must reach the network."""
        return Preprocessing.from_dict(self.preprocessing)

    def intensity_policy(self) -> IntensityPolicy | None:
        """Return the policy that images are to be prepared by, or None if it is not recorded."""
        policy = self.preprocessing.get("policy")
        return policy_from_dict(policy) if policy else None

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits (B, K) into probabilities."""
        logits = logits.float()
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)


def save_classifier(network: nn.Module, card: ClassifierCard, path: str | os.PathLike, **metrics: float) -> None:
    """Write the weights and, beside them, the card; each file appears whole or not at all.

    Args:
        network: the classifier.
        card: completed here with the metrics and the hash of the weights.
        path: of the weights, for example ``model.pt``; the card becomes ``model.json``.
        metrics: measured on these weights.

    Raises:
        OSError: the disk is full; the older files are intact.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}, buffer)
    content = buffer.getvalue()
    complete = replace(card, metrics=dict(metrics), weights_sha256=hashlib.sha256(content).hexdigest())
    with atomic_file(path) as file:
        file.write(content)
    with atomic_file(_card_path(path)) as file:
        file.write(json.dumps({"schema": SCHEMA, **asdict(complete)}, indent=2).encode())


def read_classifier_card(path: str | os.PathLike) -> ClassifierCard:
    """Read the card beside the weights.

    Args:
        path: of the weights (which need not exist) or of the card.

    Raises:
        FileNotFoundError: there is no card.
        WeightsFileError: it is damaged, or of a newer version.
    """
    card = _card_path(path)
    try:
        values = json.loads(card.read_text(encoding="utf-8"))
        if values.pop("schema") > SCHEMA:
            raise WeightsFileError(f"{card} was written by a newer monai_ssl")
        return ClassifierCard(**{name.name: values[name.name] for name in fields(ClassifierCard)})
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no {card.name} beside {path}: a classifier is {Path(path).name} and {card.name} together; "
            "train one with the bundle's train config"
        ) from error
    except WeightsFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsFileError(f"{card} is damaged: {error}") from error


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


def load_classifier(network: nn.Module, path: str | os.PathLike) -> ClassifierCard:
    """Load the weights of a trained classifier into the network its card describes.

    Args:
        network: made by ``card.build()``; changed in place.
        path: of the weights.

    Returns:
        The card.

    Raises:
        FileNotFoundError: the weights or the card are not there.
        WeightsFileError: a file is damaged, the two do not belong together, or the weights are of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no trained classifier at {path}: train one with the bundle's train config, or say where it is "
            "by output_dir or model_path"
        )
    card = read_classifier_card(path)
    if card.weights_sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != card.weights_sha256:
        raise WeightsFileError(f"{path} is damaged, or {_card_path(path).name} beside it describes other weights")
    state = read_checkpoint(path)
    own = network.state_dict()
    differing = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
    if differing:
        raise WeightsFileError(
            f"{path} holds another network than {type(network).__name__} with {len(card.class_names)} classes: "
            f"{differing[0]} and {len(differing) - 1} more tensors are missing or of another shape"
        )
    network.load_state_dict(state)
    return card


def find_classifier(folders: Sequence[str | os.PathLike], name: str = "model.pt") -> str:
    """Return the path of the first trained classifier in the folders; the last folder's path if there is none."""
    paths = [Path(folder) / name for folder in folders]
    return str(next((path for path in paths if path.is_file()), paths[-1]))


def _card_path(path: str | os.PathLike) -> Path:
    return Path(path).with_suffix(".json")
