# SPDX-License-Identifier: Apache-2.0
"""An online probe: how well neighbours in the encoder's features share labels, and how well a line parts them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from monai_ssl.engines import PretrainTrainer, is_main_process, preserved_random_state
from monai_ssl.handlers.evaluation_mode import evaluation_mode
from monai_ssl.metrics import knn_auc, ridge_auc

__all__ = ["OnlineProbe"]

logger = logging.getLogger(__name__)


class OnlineProbe:
    """Score the encoder by a weighted kNN and a linear classifier every few epochs, and once before the training.

    Writes ``knn_auc`` and ``linear_auc`` (macro areas under the ROC curve; :func:`monai_ssl.metrics.knn_auc` and
    :func:`monai_ssl.metrics.ridge_auc`), ``knn_auc_untrained`` and ``linear_auc_untrained`` into
    ``engine.state.metrics``. The linear one is the fairer judge: neighbours also depend on how features are scaled. The
    training does not notice: no gradient, no statistics, no random number of it changes. In a distributed run the main
    process does the work.

    Args:
        bank_loader: labelled images whose neighbours are asked; yields ``"image"``, the labels, and ``"extent"`` where
            images are padded. Labels: (B,) int64 classes with -1 for unlabelled, or (B, C) findings.
        query_loader: labelled images to classify; None: each image of the bank by the others (of other groups).
        view: ``view(image, None, extent) -> (B, C, *size)``, for example :func:`monai_ssl.transforms.evaluation_view`;
            None takes the images as they are.
        label_key: entry of the batch with the labels.
        group_key: entry with int64 group numbers (patients); a neighbour of the query's own group does not count.
        every_epochs: epochs between measurements; the last epoch is always measured.
        k: number of neighbours.
        temperature: of the neighbours' weights.
        before_training: measure the untrained encoder too.

    Attributes:
        untrained: its scores by name, or None.

    Raises:
        ValueError: a number is below 1; (while probing) no labels, or a class that is missing among the queries.
    """

    def __init__(
        self,
        bank_loader: Iterable[dict[str, Any]],
        query_loader: Iterable[dict[str, Any]] | None = None,
        *,
        view: Callable[..., Tensor] | None = None,
        label_key: str = "label",
        group_key: str | None = None,
        every_epochs: int = 1,
        k: int = 20,
        temperature: float = 0.07,
        before_training: bool = True,
    ) -> None:
        if every_epochs < 1 or k < 1:
            raise ValueError(f"every_epochs and k must be at least 1, got {every_epochs} and {k}")
        self.bank_loader, self.query_loader, self.view = bank_loader, query_loader, view
        self.label_key, self.group_key = label_key, group_key
        self.every_epochs, self.k, self.temperature = every_epochs, k, temperature
        self.before_training = before_training
        self.untrained: dict[str, float] | None = None

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        engine.register_state("online_probe", self)
        engine.add_event_handler(Events.STARTED, self._before)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the untrained encoder's scores."""
        return {"untrained": self.untrained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.untrained = state["untrained"]

    def _before(self, engine: PretrainTrainer) -> None:
        if not is_main_process():
            return
        if self.before_training and engine.state.iteration == 0 and self.untrained is None:
            self.untrained = self.score(engine)
            logger.info("untrained encoder: %s", _shown(self.untrained))
        engine.state.metrics.update({f"{name}_untrained": value for name, value in (self.untrained or {}).items()})

    def _after_epoch(self, engine: PretrainTrainer) -> None:
        epoch = engine.state.epoch
        if not is_main_process() or (epoch % self.every_epochs and epoch != engine.state.max_epochs):
            return
        scores = self.score(engine)
        engine.state.metrics.update(scores)
        than = f" (untrained: {_shown(self.untrained)})" if self.untrained else ""
        logger.info("after epoch %d: %s%s", epoch, _shown(scores), than)

    def score(self, engine: PretrainTrainer) -> dict[str, float]:
        """Return the areas under the ROC curve, by name, of the encoder as it is now."""
        with preserved_random_state(engine.state.device):
            bank, bank_labels, bank_groups = self._features(engine, self.bank_loader)
            if self.query_loader is None:
                queries, labels = bank, bank_labels
                bank_groups = torch.arange(len(bank)) if bank_groups is None else bank_groups
                query_groups = bank_groups
            else:
                queries, labels, query_groups = self._features(engine, self.query_loader)
        neighbours = {"query_groups": query_groups, "bank_groups": bank_groups}
        scores = {
            "knn_auc": knn_auc(queries, labels, bank, bank_labels, k=self.k, temperature=self.temperature, **neighbours)
        }
        if self.query_loader is not None:  # a line through the bank has seen its own labels
            scores["linear_auc"] = ridge_auc(queries, labels, bank, bank_labels)
        return scores

    def _features(self, engine: PretrainTrainer, loader: Iterable[dict]) -> tuple[Tensor, Tensor, Tensor | None]:
        device = engine.state.device
        features, labels, groups = [], [], []
        with evaluation_mode(engine.method.encoder) as encoder:
            for batch in loader:
                if self.label_key not in batch:
                    raise ValueError(f"the probe's loader yields no {self.label_key!r}; it has {', '.join(batch)}")
                image = torch.as_tensor(batch["image"]).to(device, non_blocking=True)
                if self.view is not None:
                    extent = batch.get("extent")
                    image = self.view(image, None, None if extent is None else extent.to(device))
                with engine.autocast():
                    features.append(encoder(image).float().cpu())
                labels.append(torch.as_tensor(batch[self.label_key]))
                if self.group_key is not None:
                    groups.append(torch.as_tensor(batch[self.group_key]))
        if not features:
            raise ValueError("the probe's loader yields no batch")
        return torch.cat(features), torch.cat(labels), torch.cat(groups) if groups else None


def _shown(scores: dict[str, float]) -> str:
    names = {"knn_auc": "kNN AUC", "linear_auc": "linear AUC"}
    return ", ".join(f"{names[name]} {value:.3f}" for name, value in scores.items())
