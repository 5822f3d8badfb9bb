# SPDX-License-Identifier: Apache-2.0
"""How fast the training is, and whether it waits for its images."""

from __future__ import annotations

import logging
import time

from ignite.engine import Events

from monai_ssl.engines import PretrainTrainer, is_main_process

__all__ = ["Throughput"]

logger = logging.getLogger(__name__)

_SLOW_LOADER = 0.2


class Throughput:
    """Measure images a second and the share of the time that is spent waiting for the loader, each epoch.

    Writes ``images_per_second`` (of all processes) and ``loader_fraction`` (of this process, in [0, 1]) into
    ``engine.state.metrics`` and logs them; if the loader is the limit, also what to change. The first iteration
    (starting workers, measuring precision) is left out where there are more, and so is the time between iterations
    (checkpoints, probes).
    """

    def __init__(self) -> None:
        self._reset()

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._wait_starts)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._wait_ends)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step_ends)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _reset(self) -> None:
        self._waits: list[float] = []
        self._steps: list[float] = []
        self._images: list[int] = []
        self._mark = time.perf_counter()

    def _wait_starts(self) -> None:
        self._mark = time.perf_counter()

    def _wait_ends(self) -> None:
        now = time.perf_counter()
        self._waits.append(now - self._mark)
        self._mark = now

    def _step_ends(self, engine: PretrainTrainer) -> None:
        self._steps.append(time.perf_counter() - self._mark)
        self._images.append(len(engine.state.batch["image"]))

    def _report(self, engine: PretrainTrainer) -> None:
        first = 1 if len(self._steps) > 1 else 0
        waiting, stepping = sum(self._waits[first:]), sum(self._steps[first:])
        total = waiting + stepping
        if total == 0:
            return
        rate = sum(self._images[first:]) * engine.world_size / total
        share = waiting / total
        engine.state.metrics["images_per_second"] = rate
        engine.state.metrics["loader_fraction"] = share
        if not is_main_process():
            return
        step = stepping / len(self._steps[first:])
        logger.info(
            "epoch %d: %.1f images/s, %.3f s a step, %.0f %% of the time waiting for the loader",
            engine.state.epoch,
            rate,
            step,
            100 * share,
        )
        if share > _SLOW_LOADER:
            workers = getattr(engine.data_loader, "num_workers", 0)
            logger.warning(
                "the loader is the limit: raise num_workers (now %d), store smaller images (prepare) or keep them in "
                "memory",
                workers,
            )
