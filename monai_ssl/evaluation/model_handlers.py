# SPDX-License-Identifier: Apache-2.0
"""What the handlers of every task share: keep the best weights, list what was refused."""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

from ignite.engine import Engine, Events
from torch import nn

from monai_ssl.data.store import ImageStore
from monai_ssl.engines import PretrainTrainer
from monai_ssl.engines.distributed import is_main_process
from monai_ssl.evaluation.model_card import ModelCard, save_model

__all__ = ["BestModel"]


class BestModel:
    """Saves the network after each validation, or only after the best one so far.

    Attach it to the validating evaluator, and to the trainer too, so that a resumed run knows its best.

    Args:
        network: what is validated.
        card: of the training.
        path: of the weights, see :func:`monai_ssl.evaluation.save_model`.
        metric: name of the metric to maximise.
        keep: ``"best"`` or ``"last"``.

    Attributes:
        best: the best value so far.

    Raises:
        ValueError: ``keep`` is unknown.
    """

    state_name: ClassVar[str] = "best_model"
    """Under which the trainer's checkpoints keep the best value."""

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        path: str | os.PathLike,
        metric: str,
        keep: str = "best",
    ) -> None:
        if keep not in ("best", "last"):
            raise ValueError(f"keep must be 'best' or 'last', got {keep!r}")
        self.network, self.card, self.path, self.metric, self.keep = network, card, path, metric, keep
        self.best = -math.inf
        self._trainer: PretrainTrainer | None = None

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator; or let a trainer's checkpoints know the best value."""
        if isinstance(engine, PretrainTrainer):
            self._trainer = engine
            engine.register_state(self.state_name, self)
        else:
            engine.add_event_handler(Events.COMPLETED, self._validated)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a best value."""
        self.best = state["best"]

    def _validated(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric])
        if self._trainer is not None:  # where TensorBoard and the curves find it
            self._trainer.state.metrics[self.metric] = value
        better = value > self.best
        if better:
            self.best = value
        if (better or self.keep == "last") and is_main_process():
            save_model(self.network, self.card, self.path, **{self.metric: value})


def refused_files(store: ImageStore) -> list[dict[str, str]]:
    """Return path and reason of every file that a store could not take."""
    columns = (store.refused[name].to_pylist() for name in ("path", "reason"))
    return [{"path": path, "reason": reason} for path, reason in zip(*columns, strict=True)]
