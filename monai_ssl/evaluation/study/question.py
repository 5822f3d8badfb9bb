# SPDX-License-Identifier: Apache-2.0
"""A task of a study as its bundle opens it: the same store, labels and preparation that the bundle's training has."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_ssl.data.store import ImageStore
from monai_ssl.engines.plain_errors import own_error
from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.segmentation_labels import SegmentationLabels
from monai_ssl.evaluation.starting_point import StartingPoint
from monai_ssl.evaluation.study.cells import StudyCell
from monai_ssl.evaluation.study.config import RANDOM, Study, StudyTask
from monai_ssl.weights import WeightsFileError, read_manifest

__all__ = ["Question", "cell_settings", "encoder_sha256"]


def encoder_sha256(path: str | None) -> str | None:
    """Return the hash of a file of weights, None for random weights; computed once for each state of the file."""
    if path is None:
        return None
    state = Path(path).stat()
    return _sha256(str(Path(path).resolve()), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _sha256(path: str, mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def cell_settings(study: Study, cell: StudyCell) -> dict[str, Any]:
    """Return the settings of the bundle in a cell: the task's, and what the cell is.

    The start from random weights has the network and the input of the first encoder, unless the task sets them: an
    encoder is compared with the same network untrained.
    """
    task = study.tasks[cell.task]
    settings: dict[str, Any] = {
        **task.settings,
        "bundle_root": str(task.bundle),
        "output_dir": str(cell.folder(study) / "run"),
        "seed": cell.seed,
        "label_fraction": cell.fraction,
        "mode": cell.mode,
    }
    if cell.mode == "knn":
        settings["mode"] = "linear"
    if cell.encoder != RANDOM:
        settings["encoder_weights"] = study.encoders[cell.encoder]
    twin = study.encoders.get(cell.encoder) or next(iter(study.encoders.values()), None)
    manifest = _manifest_of(twin)
    if cell.encoder == RANDOM:
        settings = {**_network_of(task, manifest), **settings}
        settings["mode"] = "frozen" if cell.mode == "frozen" else "scratch"
    settings["cache_dir"] = str(study.output_dir / "data" / cell.task / _store_key(task, manifest))
    return settings


def _manifest_of(weights: str | None) -> dict[str, Any]:
    """The manifest, or nothing: a plain checkpoint tells nothing, and what is wrong with a file is said in loading."""
    try:
        return read_manifest(weights) if weights else {}
    except WeightsFileError:
        return {}


def _network_of(task: StudyTask, manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of a bundle that make its network and input those of some weights."""
    if not manifest:
        return {}
    network, intensity = manifest["network"], manifest.get("intensity") or {}
    found = {"architecture": network["architecture"], "network_args": network["arguments"]}
    if task.kind == "segmentation" and network["architecture"].startswith("resnet"):
        found = {"architecture": "flexibleunet", "network_args": {"backbone": network["architecture"]}}
    found |= {"patch_size": manifest.get("patch_size"), "image_size": manifest.get("patch_size")}
    found |= {"spacing_mm": manifest.get("spacing_mm"), "fit": intensity.get("fit")}
    if intensity.get("policy"):
        found["policy"] = f"$monai_ssl.data.policy_from_dict({intensity['policy']!r})"
    return {key: value for key, value in found.items() if value is not None and key in task.config}


def _store_key(task: StudyTask, manifest: dict[str, Any]) -> str:
    """Name of the folder for the prepared images: encoders that need them prepared differently do not share it."""
    if "spacing_mm" not in task.config:  # flat images are prepared alike for all
        return "store"
    wanted = {key: manifest.get(key) for key in ("spacing_mm", "orientation")}
    wanted["policy"] = (manifest.get("intensity") or {}).get("policy")
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Question:
    """The question of a cell, opened.

    Args:
        study: the study.
        cell: the cell.
        stores: stores that are open already, by the folder of their cache; the cell's is added.
    """

    study: Study
    cell: StudyCell
    stores: dict[str, ImageStore] = field(default_factory=dict)

    @cached_property
    def task(self) -> StudyTask:
        """The task."""
        return self.study.tasks[self.cell.task]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """See :func:`cell_settings`."""
        return cell_settings(self.study, self.cell)

    @cached_property
    def store(self) -> ImageStore:
        """The prepared images."""
        place = self.settings["cache_dir"]
        if place not in self.stores:
            self.stores[place] = self._part("store")
        self._parser["store"] = self.stores[place]
        return self.stores[place]

    @cached_property
    def labels(self) -> ClassificationLabels | SegmentationLabels:
        """The labels, with the cell's subset; ``split.json`` and ``labelled_subset.json`` are written."""
        self.store  # noqa: B018 (one that is open is used)
        return self._part("labels")

    @cached_property
    def start(self) -> StartingPoint:
        """Network and weights."""
        return self._part("start")

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How images reach the network.

        Raises:
            ValueError: the weights are of images of other dimensions, or were prepared otherwise.
        """
        if self.start.spatial_dims != self.store.spatial_dims:
            raise ValueError(
                f"the encoder {self.cell.encoder!r} is for images of {self.start.spatial_dims} dimensions, those of "
                f"the task {self.cell.task!r} have {self.store.spatial_dims}"
            )
        return self.start.preprocessing.with_store(self.store)

    @cached_property
    def _parser(self) -> ConfigParser:
        parser = ConfigParser(copy.deepcopy(self.task.config))
        parser.update(self.settings)
        return parser

    def _part(self, name: str) -> Any:
        """A component of the bundle's configuration, made by the bundle's own words."""
        try:
            return self._parser.get_parsed_content(name)
        except Exception as error:
            own = own_error(error)
            raise error if own is None else own from None
