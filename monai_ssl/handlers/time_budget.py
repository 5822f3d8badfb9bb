# SPDX-License-Identifier: Apache-2.0
"""A training that is given minutes instead of epochs."""

from __future__ import annotations

import logging
import math
import time

import torch
import torch.distributed as dist
from ignite.engine import Events

from monai_ssl.engines import PretrainTrainer, is_main_process

__all__ = ["TimeBudget"]

logger = logging.getLogger(__name__)

_FIRST_LOOK = 5  # iterations after which the speed is known well enough to begin with


class TimeBudget:
    """Set the number of epochs so that the training, its schedules with it, ends within some minutes.

    The speed is measured in the first iterations, without the very first, which measures precision and starts workers,
    and again in each epoch. The trainer's ``max_epochs`` becomes the number of whole epochs that fit.
    Schedules go by the share of the training that is done, so they follow. Should the machine slow down in the last
    epoch, the training ends in its middle when the time is up; handlers of the end (export, checkpoint) act in either
    case. In a distributed run the first process decides.

    The clock starts with the training; what it has run is kept with the trainer's state, so a resumed training has the
    rest of the time.

    Args:
        minutes: positive.

    Attributes:
        seconds: that the training has run so far.

    Raises:
        ValueError: ``minutes`` is not positive.
    """

    def __init__(self, minutes: float) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes must be positive, got {minutes}")
        self.limit_s = 60.0 * minutes
        self._before = 0.0  # seconds, in earlier runs
        self._started: float | None = None
        self._first_iteration = 0
        self._mark = (0, 0.0)  # iteration and seconds from which the speed is measured

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        engine.register_state("time_budget", self)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._stop)

    def state_dict(self) -> dict[str, float]:
        """Seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with what is left."""
        self._before = float(state["seconds"])

    def _start(self, engine: PretrainTrainer) -> None:
        self._started = time.perf_counter()
        self._first_iteration = engine.state.iteration + 1

    def _stop(self) -> None:
        self._before, self._started = self.seconds, None

    def _look(self, engine: PretrainTrainer) -> None:
        iteration, length = engine.state.iteration, engine.state.epoch_length
        if iteration == self._first_iteration:
            self._mark = iteration, self.seconds
            return
        ends_epoch = iteration % length == 0
        if ends_epoch or iteration == self._first_iteration + _FIRST_LOOK:
            self._set_epochs(engine, (self.seconds - self._mark[1]) / (iteration - self._mark[0]))
        if ends_epoch:
            self._mark = iteration, self.seconds
        over = ends_epoch and iteration >= engine.total_iterations
        if not over and self._agreed(engine, self.seconds >= self.limit_s):
            if is_main_process():
                logger.warning(
                    "the time is up after %.1f minutes, in epoch %d of %d: the schedules have not come to their end",
                    self.seconds / 60,
                    engine.state.epoch,
                    engine.state.max_epochs,
                )
            engine.terminate()

    def _set_epochs(self, engine: PretrainTrainer, seconds_each: float) -> None:
        iteration, length = engine.state.iteration, engine.state.epoch_length
        possible = iteration + (self.limit_s - self.seconds) / seconds_each
        # Of what is begun at least the rest.
        epochs = int(self._agreed(engine, max(math.ceil(iteration / length), math.floor(possible / length))))
        if epochs != engine.state.max_epochs:
            logger.info("%.3f s an iteration: %d epochs fit in the time", seconds_each, epochs)
            engine.state.max_epochs = epochs

    def _agreed(self, engine: PretrainTrainer, value: float) -> float:
        """The first process's value."""
        if not engine.distributed:
            return value
        shared = torch.tensor(float(value), dtype=torch.float64, device=engine.state.device)
        dist.broadcast(shared, src=0)
        return shared.item()
