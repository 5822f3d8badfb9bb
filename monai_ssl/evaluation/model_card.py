# SPDX-License-Identifier: Apache-2.0
"""A trained network on disk: ``model.pt``, a plain state dictionary, and ``model.json``, which says what it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from monai_ssl.data.intensity import IntensityPolicy
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.run_facts import RunFacts, describe_lineage, package_versions
from monai_ssl.weights import WeightsFileError, atomic_file, read_checkpoint

__all__ = ["ModelCard", "find_model", "load_model", "read_model_card", "save_model"]

SCHEMA = 1
Card = TypeVar("Card", bound="ModelCard")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What ``model.json`` says about ``model.pt``, whatever the task. A subclass adds what its task needs.

    Attributes:
        architecture: see :func:`monai_ssl.networks.build_encoder`.
        network_args: likewise.
        spatial_dims: likewise.
        in_channels: likewise.
        class_names: names of the classes, in order.
        preprocessing: see :class:`monai_ssl.evaluation.Preprocessing`.
        modality: of the volumes whose files do not say theirs, or None.
        crop_foreground: whether volumes are cropped to the body before they reach the network.
        mode: how it was trained.
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
    class_names: list[str]
    preprocessing: dict[str, Any]
    modality: str | None = None
    crop_foreground: bool = False
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

    kind: ClassVar[str] = "model"
    """What the network is, in a word, as messages and ``model.json`` call it."""

    @property
    def noun(self) -> str:
        """What is looked at, in a word: "images" or "volumes"."""
        return "volumes" if self.spatial_dims == 3 else "images"

    @property
    def lineage_in_words(self) -> str:
        """The earlier stages as one line."""
        return describe_lineage(self.lineage)

    def build(self) -> nn.Module:
        """Build the network, with random weights."""
        raise NotImplementedError

    def prepared(self) -> Preprocessing:
        """Return how images must reach the network."""
        return Preprocessing.from_dict(self.preprocessing)

    def intensity_policy(self) -> IntensityPolicy | None:
        """Return the policy that images are to be prepared by, or None if it is not recorded."""
        return self.prepared().intensity_policy()

    def run_facts(self, wall_time_s: float, device: str) -> RunFacts:
        """Return what a report says about the run that this is of."""
        return RunFacts(
            mode=self.mode,
            lineage=self.lineage_in_words,
            label_fraction=self.label_fraction,
            num_labels=self.num_labels,
            seed=self.seed,
            split_hash=self.split_hash,
            wall_time_s=round(wall_time_s, 1),
            device=device,
        )


def save_model(network: nn.Module, card: ModelCard, path: str | os.PathLike, **metrics: float) -> None:
    """Write the weights and, beside them, the card; each file appears whole or not at all.

    Args:
        network: what the card describes.
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
        file.write(json.dumps({"schema": SCHEMA, "kind": card.kind, **asdict(complete)}, indent=2).encode())


def read_model_card(path: str | os.PathLike, card_class: type[Card]) -> Card:
    """Read the card beside the weights.

    Args:
        path: of the weights (which need not exist) or of the card.
        card_class: what it should be.

    Raises:
        FileNotFoundError: there is no card.
        WeightsFileError: it is damaged, of a newer version, or describes a network of another kind.
    """
    card = _card_path(path)
    try:
        values = json.loads(card.read_text(encoding="utf-8"))
        if values.pop("schema") > SCHEMA:
            raise WeightsFileError(f"{card} was written by a newer monai_ssl")
        kind = values.pop("kind", "classifier")  # the first cards were classifiers' and did not say so
        if kind != card_class.kind:
            raise WeightsFileError(f"{card} describes a {kind}, not a {card_class.kind}: use the bundle it was made by")
        known = {entry.name for entry in fields(card_class)}  # older cards lack some that have a default
        return card_class(**{name: value for name, value in values.items() if name in known})
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no {card.name} beside {path}: a {card_class.kind} is {Path(path).name} and {card.name} "
            "together; train one with the bundle's train config"
        ) from error
    except WeightsFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsFileError(f"{card} is damaged: {error}") from error


def load_model(network: nn.Module, path: str | os.PathLike, card_class: type[Card]) -> Card:
    """Load trained weights into the network their card describes.

    Args:
        network: made by ``card.build()``; changed in place.
        path: of the weights.
        card_class: see :func:`read_model_card`.

    Returns:
        The card.

    Raises:
        FileNotFoundError: the weights or the card are not there.
        WeightsFileError: a file is damaged, the two do not belong together, or the weights are of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no trained {card_class.kind} at {path}: train one with the bundle's train config, or say where "
            "it is by output_dir or model_path"
        )
    card = read_model_card(path, card_class)
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


def find_model(folders: Sequence[str | os.PathLike], name: str = "model.pt") -> str:
    """Return the path of the first trained network in the folders; the last folder's path if there is none."""
    paths = [Path(folder) / name for folder in folders]
    return str(next((path for path in paths if path.is_file()), paths[-1]))


def _card_path(path: str | os.PathLike) -> Path:
    return Path(path).with_suffix(".json")
