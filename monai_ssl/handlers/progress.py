# SPDX-License-Identifier: Apache-2.0
"""One line on the terminal that says how far the training is and when it will be done."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from ignite.engine import Events
from tqdm import tqdm

from monai_ssl.engines import PretrainTrainer, is_main_process

__all__ = ["ProgressETA"]

logger = logging.getLogger(__name__)


class ProgressETA:
    """Show epoch, loss, learning rate and time left: a moving line on a terminal, else a line now and then.

    Args:
        log_every_s: seconds between lines where there is no terminal; one also ends each epoch.
        stream: where a terminal may be; default: standard error.
    """

    def __init__(self, log_every_s: float = 60.0, stream: TextIO | None = None) -> None:
        self.log_every_s = log_every_s
        self.stream = stream
        self._bar: tqdm | None = None
        self._running = False
        self._started = self._logged = time.monotonic()
        self._first_iteration = 0

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer; on the main process only."""
        if is_main_process():
            engine.add_event_handler(Events.EPOCH_STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
            engine.add_event_handler(Events.COMPLETED, self._close)
            engine.add_event_handler(Events.TERMINATE, self._close)

    def _start(self, engine: PretrainTrainer) -> None:
        if self._running:
            return
        self._running = True
        stream = self.stream or sys.stderr
        self._started = self._logged = time.monotonic()
        self._first_iteration = engine.state.iteration
        if stream.isatty():
            self._bar = tqdm(
                total=engine.total_iterations,
                initial=engine.state.iteration,
                file=stream,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
                bar_format="{desc} {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left]",
            )

    def _advance(self, engine: PretrainTrainer) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self._text(engine), refresh=False)
            self._bar.update()
        elif time.monotonic() - self._logged > self.log_every_s:
            self._log(engine)

    def _end_epoch(self, engine: PretrainTrainer) -> None:
        if self._bar is None:
            self._log(engine)

    def _log(self, engine: PretrainTrainer) -> None:
        self._logged = time.monotonic()
        done = engine.state.iteration - self._first_iteration
        left = (engine.total_iterations - engine.state.iteration) * (self._logged - self._started) / max(1, done)
        logger.info(
            "%s, iteration %d of %d, %s left",
            self._text(engine),
            engine.state.iteration,
            engine.total_iterations,
            _in_words(left),
        )

    def _text(self, engine: PretrainTrainer) -> str:
        output = engine.state.output
        return (
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {output['loss']:.4f}, "
            f"learning rate {output['learning_rate']:.3g}"
        )

    def _close(self) -> None:
        self._running = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _in_words(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
