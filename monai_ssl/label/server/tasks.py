# SPDX-License-Identifier: Apache-2.0
"""The tasks of the app as MONAI Label calls them: infer, train, score, choose; the work is done in ``annotation``."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from monai_ssl.evaluation import read_classifier_card, read_segmenter_card
from monai_ssl.label.annotation.embedding import EmbeddedImages, features_path, read_embedded, similar_images
from monai_ssl.label.annotation.folder import StudiesFolder
from monai_ssl.label.annotation.plans import SavedPlans, plans_path, read_plans
from monai_ssl.label.annotation.predicting import classify_image, segment_volume
from monai_ssl.label.annotation.scoring import score_images
from monai_ssl.label.annotation.training import learn_classes, learn_masks, pretrain_encoder
from monai_ssl.label.server.datastore import invalid
from monai_ssl.label.strategies import STRATEGIES

__all__ = ["EmbeddingInfer", "ModelInfer", "PlannedStrategy", "StateReader", "StudiesScoring", "StudiesTraining"]

_HOLD_SECONDS = 900  # an image that another annotator was given stays theirs so long
_CARDS = {"classification": read_classifier_card, "segmentation": read_segmenter_card}


def device_of(request: dict[str, Any]) -> str:
    """Return the device of a request if it is there, else the CPU."""
    wanted = str(request.get("device") or "cuda")
    return "cuda" if wanted.startswith("cuda") and torch.cuda.is_available() else "cpu"


class ModelInfer(InferTask):
    """A classifier or a segmentation network: the one trained here, else the one that came with a bundle.

    Args:
        folder: of the studies.
        task: ``"classification"`` or ``"segmentation"``.
        shipped: weights to serve until one is trained here, or None.
    """

    def __init__(self, folder: StudiesFolder, task: str, shipped: Path | None) -> None:
        self._folder, self._task, self._shipped = folder, task, shipped
        card = self._card()
        super().__init__(
            type=InferType.CLASSIFICATION if task == "classification" else InferType.SEGMENTATION,
            labels=card.class_names if card else [],
            dimension=card.spatial_dims if card else 2,
            description=f"{task} by a network that began with a self-supervised encoder",
        )

    def get_path(self, validate: bool = True) -> str | None:
        """Return the weights, None if there are none."""
        places = [self._folder.model(self._task), self._shipped]
        return next((str(path) for path in places if path is not None and path.is_file()), None)

    def is_valid(self) -> bool:
        """Whether there is a model."""
        return self.get_path() is not None

    def info(self) -> dict[str, Any]:
        """Describe the model that is there now."""
        if card := self._card():
            self.labels, self.dimension = card.class_names, card.spatial_dims
        return super().info()

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the label map's file, or None, and a dictionary."""
        path = self.get_path()
        if path is None:
            raise invalid(f"there is no {self._task} model yet: label some images and run the training {self._task!r}")
        device = device_of(request)
        if self._task == "classification":
            p = classify_image(Path(path), request["image"], device)
            return None, {"prediction": p, "label_names": {name: k for k, name in enumerate(p)}}
        with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as file:
            output = file.name
        found = segment_volume(Path(path), request["image"], output, device)
        return output, {"label_names": found["classes"]}

    def _card(self) -> Any:
        path = self.get_path()
        try:
            return None if path is None else _CARDS[self._task](path)
        except (ValueError, OSError):
            return None


class EmbeddingInfer(InferTask):
    """The feature vector of an image and the images most like it; no label is made."""

    def __init__(self, state: StateReader) -> None:
        self._state = state
        super().__init__(InferType.OTHERS, [], 2, "features of an image and similar cases")

    def is_valid(self) -> bool:
        """Whether images have been embedded."""
        return self._state.embedded() is not None

    def __call__(self, request: dict[str, Any]) -> tuple[None, dict[str, Any]]:
        """Return features and similar images."""
        embedded = self._state.embedded()
        if embedded is None:
            raise invalid("the images have not been embedded yet: wait for the scoring, or start it")
        image = request["image_id"]
        near = similar_images(embedded, image, int(request.get("num", 5)))
        vector = embedded.features[embedded.ids.index(image)]
        return None, {"embedding": [round(float(value), 6) for value in vector], "similar": _named(near)}


class StudiesTraining(TrainTask):
    """One of the app's trainings.

    Args:
        folder: of the studies.
        task: ``"pretraining"``, ``"classification"`` or ``"segmentation"``.
        bundle: for the task; only the linear classification works without one.
    """

    def __init__(self, folder: StudiesFolder, task: str, bundle: Path | None) -> None:
        says = {
            "pretraining": "pretrain the encoder on all images, labelled or not",
            "classification": "learn classes from the labelled images, starting from the encoder",
            "segmentation": "learn label maps from the labelled volumes, starting from the encoder",
        }
        super().__init__(says[task])
        self._folder, self._task, self._bundle = folder, task, bundle

    def config(self) -> dict[str, Any]:
        """Return the settings that a client may change, with their defaults; empty ones are the bundle's."""
        common = {"device": ["cuda", "cpu"], "max_epochs": "", "batch_size": "", "learning_rate": ""}
        if self._task == "classification":
            return {"mode": ["linear", *(["finetune"] if self._bundle else [])], **common}
        return common if self._task == "pretraining" else {**common, "modality": ""}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and put the model in the place of the last one."""
        images, labels, request = datastore.image_paths(), datastore.label_paths(), _first_choices(request)
        started = time.time()
        if self._task == "pretraining":
            found = pretrain_encoder(self._folder, images, self._bundle, request)
        elif self._task == "classification":
            found = learn_classes(self._folder, images, labels, request, self._bundle, device_of(request))
        else:
            found = learn_masks(self._folder, images, labels, request, self._bundle)
        return {**found, "seconds": round(time.time() - started, 1)}


class StudiesScoring(ScoringMethod):
    """Embed what is new, predict, and let every strategy plan ahead."""

    def __init__(self, folder: StudiesFolder, num_classes: int) -> None:
        super().__init__("embed all images and let the strategies plan")
        self._folder, self._num_classes = folder, num_classes

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score; nothing is written to the datastore, so that no label saved meanwhile is lost."""
        images, labels = datastore.image_paths(), datastore.label_paths()
        options = {"device": device_of(request), "num_classes": self._num_classes}
        return score_images(self._folder, images, labels, **options)


class PlannedStrategy(Strategy):
    """A strategy of this package, answered from its plan.

    Args:
        name: of the strategy.
        state: of the studies.
    """

    def __init__(self, name: str, state: StateReader) -> None:
        super().__init__(f"next is {STRATEGIES[name].says}")
        self._name, self._state = name, state

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return ``id``, ``weight`` and who chose it; None if every image is labelled."""
        labelled = set(datastore.get_labeled_images())
        open_images = [image for image in datastore.list_images() if image not in labelled]
        plans, refused = self._state.plans(), self._state.refused()
        open_images = [image for image in open_images if image not in refused]
        if not open_images:
            return None
        note, chosen_by = "the images are not embedded yet", "random"
        order: list[str] = []
        if plans is not None:
            there = set(open_images)
            order = [image for image in plans.waiting(self._name, labelled) if image in there]
            note, chosen_by = plans.note, plans.chosen_by[self._name]
            if chosen_by == self._name:
                note = ""
        if not order:  # new images, or a plan that has come to its end before the next one is made
            closed = labelled | {image for image in open_images if plans and plans.copies.get(image) in labelled}
            order = sorted(set(open_images) - closed) or open_images
            random.Random(len(labelled)).shuffle(order)
            if plans is not None:
                note, chosen_by = "the plan of this strategy is at its end; a new one is being made", "random"
        client = request.get("client_id")
        free = [image for image in order if not _held(datastore.get_image_info(image), client)]
        image = (free or order)[0]
        return {"id": image, "weight": 1, "chosen_by": chosen_by, **({"note": note} if note else {})}


class StateReader:
    """The newest features and plans, read again when their file has changed."""

    def __init__(self, folder: StudiesFolder) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._kept: dict[str, tuple[int, Any]] = {}

    def plans(self) -> SavedPlans | None:
        """Return the plans, None if there are none."""
        return self._newest(plans_path(self._folder), read_plans)

    def embedded(self) -> EmbeddedImages | None:
        """Return the features, None if there are none."""
        return self._newest(features_path(self._folder), read_embedded)

    def refused(self) -> dict[str, str]:
        """Id to reason of the images that can't be read."""
        embedded = self.embedded()
        return {} if embedded is None else embedded.refused

    def _newest(self, path: Path, read: Callable[[StudiesFolder], Any]) -> Any:
        stamp = path.stat().st_mtime_ns if path.is_file() else -1
        with self._lock:
            if self._kept.get(path.name, (None,))[0] != stamp:
                self._kept[path.name] = (stamp, read(self._folder) if stamp != -1 else None)
            return self._kept[path.name][1]


def _held(info: dict[str, Any], client: Any) -> bool:
    """Whether another annotator was given the image a short while ago."""
    given = [entry for entry in info.get("strategy", {}).values() if isinstance(entry, dict)]
    recent = [entry for entry in given if time.time() - entry.get("ts", 0) < _HOLD_SECONDS]
    return client is not None and any(entry.get("client_id") not in (None, client) for entry in recent)


def _first_choices(request: dict[str, Any]) -> dict[str, Any]:
    """A client that sends a setting's list of choices back means the first."""
    return {key: value[0] if isinstance(value, list) and value else value for key, value in request.items()}


def _named(near: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"id": image, "cosine": cosine} for image, cosine in near]
