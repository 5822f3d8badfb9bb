# SPDX-License-Identifier: Apache-2.0
"""The method's loss on held-out data: what halves the learning rate, ends the training and tells the best weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, EventEnum, Events
from ignite.handlers import EarlyStopping
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from monai_ssl.engines import PretrainTrainer, is_main_process, preserved_random_state
from monai_ssl.handlers.evaluation_mode import evaluation_mode

__all__ = ["ValidationEvents", "ValidationLoss"]

logger = logging.getLogger(__name__)

_KEPT = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class ValidationEvents(EventEnum):
    """What :class:`ValidationLoss` adds to the trainer's events."""

    VALIDATION_COMPLETED = "validation_completed"  # ignite compares events by this name
    """After each evaluation, with the new values in ``engine.state.metrics``."""


class ValidationLoss:
    """Compute the method's loss on held-out data every few steps, and act on it where it no longer falls.

    Writes ``val_loss``, and every other number that the method gives as ``val_`` and its name, into
    ``engine.state.metrics``, then fires :attr:`ValidationEvents.VALIDATION_COMPLETED`. The training does not notice: no
    gradient, no statistics, no random number of it changes. Values are means over the images of all batches, so let all
    batches be of one size where the loss depends on it, as that of a contrast does. In a distributed run the main
    process measures and the others take its values.

    With ``patience`` the learning rate is multiplied by ``factor`` each time as many evaluations in a row have not
    improved on the lowest loss (torch's ``ReduceLROnPlateau``). ConVIRT (arXiv 2010.00747, section 4.1): every 5,000
    steps, 5 evaluations, factor 1/2, 200 evaluations in all. After a resume all of it goes on to the same numbers.

    To keep the best weights: ``EncoderExport(..., metric="val_loss", higher_is_better=False, prefer_best=True,
    metric_event=ValidationEvents.VALIDATION_COMPLETED)``.

    Args:
        loader: held-out data in the form that the trainer's loader has; iterated anew each time.
        view: ``view(image, None, extent) -> (B, C, *size)``, for example :func:`monai_ssl.transforms.evaluation_view`;
            None takes the images as they are.
        num_views: how often the method is given that view, for methods that take two.
        every_steps: optimiser steps between evaluations; None: once an epoch. The training's end is always evaluated.
        patience: evaluations without improvement after which the learning rate falls; None leaves it alone.
        factor: what it is multiplied by, in (0, 1).
        min_learning_rate: it does not fall below.
        stop_patience: evaluations without improvement after which the training ends (ignite's ``EarlyStopping``); None
            does not end it.
        max_evaluations: evaluations in all after which the training ends; None: as many as come.

    Attributes:
        evaluations: how many there were.
        best: the lowest loss, or None.
        ended: whether this handler has ended the training.

    Raises:
        ValueError: a number is out of its range; ``patience`` beside a schedule of the learning rate; (while measuring)
            no batch.
    """

    def __init__(
        self,
        loader: Iterable[dict[str, Any]],
        view: Callable[..., Tensor] | None = None,
        *,
        num_views: int = 1,
        every_steps: int | None = None,
        patience: int | None = None,
        factor: float = 0.5,
        min_learning_rate: float = 0.0,
        stop_patience: int | None = None,
        max_evaluations: int | None = None,
    ) -> None:
        counts = {"num_views": num_views, "every_steps": every_steps, "patience": patience}
        counts |= {"stop_patience": stop_patience, "max_evaluations": max_evaluations}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < factor < 1 or min_learning_rate < 0:
            raise ValueError(
                f"factor must be in (0, 1) and min_learning_rate at least 0, got {factor} and {min_learning_rate}"
            )
        self.loader, self.view, self.num_views, self.every_steps = loader, view, num_views, every_steps
        self.patience, self.factor, self.min_learning_rate = patience, factor, min_learning_rate
        self.stop_patience, self.max_evaluations = stop_patience, max_evaluations
        self.evaluations = 0
        self.best: float | None = None
        self.ended = False
        self._plateau: ReduceLROnPlateau | None = None
        self._stopping: EarlyStopping | None = None

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        if self.patience is not None:
            if engine.learning_rate_schedule is not None:
                raise ValueError(
                    "patience lets the validation loss decide on the learning rate: train with "
                    "learning_rate_schedule=None, or set patience to None"
                )
            groups = engine.optimizer.param_groups
            floors = [group["lr"] if group.get("constant_lr") else self.min_learning_rate for group in groups]
            # torch waits for one evaluation more than it is told. An improvement is any, as for the best weights.
            self._plateau = ReduceLROnPlateau(
                engine.optimizer, factor=self.factor, patience=self.patience - 1, threshold=0.0, min_lr=floors
            )
        if self.stop_patience is not None:
            # It ends an engine at once; the training shall end after the handlers of an epoch, where one is over.
            nothing = Engine(lambda *_: None)
            self._stopping = EarlyStopping(self.stop_patience, lambda e: -e.state.metrics["val_loss"], nothing)
        engine.register_events(*ValidationEvents)
        engine.register_state("validation_loss", self)
        engine.add_event_handler(Events.STARTED, self._end)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the lowest loss, and how the two watchers stand."""
        state: dict[str, Any] = {"evaluations": self.evaluations, "best": self.best, "ended": self.ended}
        if self._plateau is not None:
            state["plateau"] = {name: getattr(self._plateau, name) for name in _KEPT}
        if self._stopping is not None:
            state["stopping"] = dict(self._stopping.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; the settings stay this handler's own."""
        self.evaluations, self.best, self.ended = state["evaluations"], state["best"], state["ended"]
        if self._plateau is not None and "plateau" in state:
            for name in _KEPT:
                setattr(self._plateau, name, state["plateau"][name])
        if self._stopping is not None and "stopping" in state:
            self._stopping.load_state_dict(state["stopping"])

    def _end(self, engine: PretrainTrainer) -> None:
        """End the training if that is decided; one that is resumed after its end, too."""
        if self.ended:
            logger.info("the validation loss ends the training after %d evaluations", self.evaluations)
            engine.terminate()

    def _after_iteration(self, engine: PretrainTrainer) -> None:
        every = self.every_steps or math.ceil(engine.state.epoch_length / engine.accumulate)
        last = engine.state.iteration == engine.total_iterations
        if not engine.at_step_boundary or (engine.optimizer_steps % every and not last):
            return
        values = self.measure(engine)
        engine.state.metrics.update(values)
        loss, before = values["val_loss"], self.best
        self.evaluations += 1
        if math.isfinite(loss) and (before is None or loss < before):
            self.best = loss
        logger.info(
            "step %d: validation loss %.4f%s", engine.optimizer_steps, loss, "" if self.best == before else ", the best"
        )
        if self._plateau is not None:
            rate = engine.optimizer.param_groups[0]["lr"]
            self._plateau.step(loss)
            if engine.optimizer.param_groups[0]["lr"] < rate:
                logger.info("the learning rate falls to %g", engine.optimizer.param_groups[0]["lr"])
        engine.fire_event(ValidationEvents.VALIDATION_COMPLETED)
        if self._stopping is not None:
            self._stopping(engine)
            self.ended = self._stopping.counter >= self.stop_patience
        if self.max_evaluations is not None and self.evaluations >= self.max_evaluations:
            self.ended = True
        if engine.state.iteration % engine.state.epoch_length:
            self._end(engine)

    def measure(self, engine: PretrainTrainer) -> dict[str, float]:
        """Return ``val_loss`` and the other numbers of the method as it is now, the same on all processes."""
        values = [self._measure_here(engine) if is_main_process() else {}]
        if engine.distributed:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def _measure_here(self, engine: PretrainTrainer) -> dict[str, float]:
        device = engine.state.device
        sums: dict[str, float] = {}
        images = 0
        with preserved_random_state(device), evaluation_mode(engine.method) as method:
            for batch in self.loader:
                if hasattr(method, "check_batch"):
                    method.check_batch(batch)
                batch = {key: _moved(value, device) for key, value in batch.items()}
                image = batch["image"]
                view = image if self.view is None else self.view(image, None, batch.get("extent"))
                with engine.autocast():
                    output = method(batch | {"views": [view] * self.num_views, "generator": None})
                for name, value in output.items():
                    if isinstance(value, Tensor) and value.numel() == 1:
                        sums[name] = sums.get(name, 0.0) + value.item() * len(image)
                images += len(image)
        if not images:
            raise ValueError("the loader of the validation loss yields no batch: is there less than one batch_size?")
        return {f"val_{name}": total / images for name, total in sums.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (value.as_tensor() if hasattr(value, "as_tensor") else value).to(device, non_blocking=True)
