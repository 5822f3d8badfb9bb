# SPDX-License-Identifier: Apache-2.0
"""The labelling app: which image next, from a self-supervised encoder, and a better model after each round."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks as background_tasks

import monai_ssl
from monai_ssl.evaluation import find_model
from monai_ssl.label.annotation.bundles import sorted_bundles
from monai_ssl.label.annotation.embedding import similar_images
from monai_ssl.label.annotation.folder import StudiesFolder
from monai_ssl.label.server.datastore import GuardedDatastore, invalid
from monai_ssl.label.server.tasks import (
    EmbeddingInfer,
    ModelInfer,
    PlannedStrategy,
    StateReader,
    StudiesScoring,
    StudiesTraining,
)
from monai_ssl.label.strategies import STRATEGIES

__all__ = ["AnnotationApp"]

logger = logging.getLogger(__name__)

_LEAST_AHEAD = 10  # images of a plan that are left when the next one is made
_NEW_LABELS = 5  # after so many the strategies that ask a model plan anew


class AnnotationApp(MONAILabelApp):
    """See MONAI Label's class.

    Args:
        app_dir: where MONAI Label keeps its own files.
        studies: folder of images.
        conf: ``encoder``, ``bundles`` (by commas), ``modality`` and ``num_classes``; empty text for none.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        conf = conf or {}
        self.folder = StudiesFolder(studies, conf.get("encoder") or None, conf.get("modality") or None)
        self.bundles = sorted_bundles([name for name in (conf.get("bundles") or "").split(",") if name])
        self.num_classes = int(conf.get("num_classes") or 2)
        self.state = StateReader(self.folder)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="monai_ssl",
            description="Label the most useful images first, by a self-supervised encoder",
            version=monai_ssl.__version__,
        )

    def init_datastore(self) -> GuardedDatastore:
        """Open the folder of studies."""
        from monailabel.config import settings

        return GuardedDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Models of both tasks and the embedding; those without a model yet are not listed."""
        found: dict[str, InferTask] = {"embedding": EmbeddingInfer(self.state)}
        for task in ("classification", "segmentation"):
            bundle = self.bundles.get(task)
            places = [] if bundle is None else [bundle / "output", bundle / "models"]
            shipped = Path(find_model(places)) if places else None
            found[task] = ModelInfer(self.folder, task, shipped)
        return found

    def init_trainers(self) -> dict[str, TrainTask]:
        """Classification always (a linear probe needs no bundle), the others with their bundle."""
        tasks = ["classification", *(task for task in ("pretraining", "segmentation") if task in self.bundles)]
        return {task: StudiesTraining(self.folder, task, self.bundles.get(task)) for task in tasks}

    def init_strategies(self) -> dict[str, Strategy]:
        """All strategies of this package."""
        return {name: PlannedStrategy(name, self.state) for name in STRATEGIES}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """The one that embeds and plans."""
        return {"embedding": StudiesScoring(self.folder, self.num_classes)}

    def info(self) -> dict[str, Any]:
        """Describe the app, with what could not be read."""
        embedded = self.state.embedded()
        counts = {"embedded": 0, "refused": 0, "refused_images": []}
        if embedded is not None:
            counts = {
                "embedded": len(embedded.ids),
                "refused": len(embedded.refused),
                "refused_images": [{"id": name, "reason": reason} for name, reason in embedded.refused.items()],
            }
        return {**super().info(), "images": counts}

    def infer(self, request: dict[str, Any], datastore: LocalDatastore | None = None) -> dict[str, Any]:
        """Predict for an image of the studies; a path is never taken from a request."""
        image = request.get("image")
        store = datastore or self.datastore()
        if not isinstance(image, str) or not store.get_image_uri(image):
            raise invalid(f"there is no image {str(image)[:80]!r} in the studies")
        return super().infer({**request, "image_id": image, "save_label": False}, store)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer from a plan, and have the next one made in the background when it is needed."""
        name = request.get("strategy") or "random"
        task = self._strategies.get(name)
        if task is None:
            raise invalid(f"there is no strategy {str(name)[:80]!r}; there are {', '.join(self._strategies)}")
        found = task(request, self.datastore()) or {}
        if self._needs_plans(name):
            self.async_scoring(None)
        last = background_tasks("scoring")[-1:]
        if found and last and last[0]["status"] == "ERROR":
            found["note"] = "the last scoring failed: " + (
                last[0]["details"][-1] if last[0]["details"] else "see the log"
            )
        if found:
            found["path"] = self._datastore.get_image_uri(found["id"])
        return found

    def similar(self, image: str, num: int) -> list[dict[str, Any]]:
        """Return the images most like one.

        Raises:
            ValueError: the image is not embedded, or ``num`` is below 1.
        """
        embedded = self.state.embedded()
        if embedded is None:
            raise ValueError("the images have not been embedded yet: wait for the scoring, or start it")
        labelled = set(self._datastore.get_labeled_images())
        return [
            {"id": name, "cosine": cosine, "labelled": name in labelled}
            for name, cosine in similar_images(embedded, image, num)
        ]

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Start a scoring unless one is waiting already."""
        waiting = [task for task in background_tasks("scoring") if task["status"] == "SUBMITTED"]
        return {} if waiting else super().async_scoring(method, params)

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Count labels, and plan anew after some."""
        super().on_save_label(image_id, label_id)
        if self._needs_plans(None):
            self.async_scoring(None)

    def _needs_plans(self, name: str | None) -> bool:
        running = any(task["status"] in ("SUBMITTED", "RUNNING") for task in background_tasks("scoring"))
        if running:
            return False
        plans = self.state.plans()
        labelled = set(self._datastore.get_labeled_images())
        if plans is None:
            return True
        images = set(self._datastore.list_images()) - self.state.refused().keys()
        if images - set(plans.ids) or len(labelled) >= plans.labelled + _NEW_LABELS:
            return True
        if name is None:
            return False
        left = len(plans.waiting(name, labelled))
        return left < _LEAST_AHEAD and len(images - labelled) > left
