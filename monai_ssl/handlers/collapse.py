# SPDX-License-Identifier: Apache-2.0
"""Watch whether the embeddings still tell images apart, and say in plain words what to change when they don't."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events
from torch import Tensor

from monai_ssl.engines import PretrainTrainer, is_main_process
from monai_ssl.handlers.evaluation_mode import evaluation_mode
from monai_ssl.metrics import alignment, effective_rank, feature_std, uniformity

__all__ = ["CollapseMonitor", "EmbeddingHealth", "judge_embeddings"]

logger = logging.getLogger(__name__)

# Thresholds on the spread (1 = over the whole sphere, 0 = one point) and on the share of usable directions. Chosen
# well outside what healthy trainings show after the start (spread 0.7 to 1, directions 0.3 to 0.9).
_NO_SPREAD, _LOW_SPREAD, _NO_DIRECTIONS, _FEW_DIRECTIONS, _SHRUNK = 0.05, 0.2, 0.02, 0.1, 0.5
# Embeddings of thousands of dimensions need not use more directions than others to be off a line.
_ENOUGH_DIRECTIONS = 128
# No alarm before this step: with very short epochs the first measurements are only a few steps apart.
_FIRST_STEPS = 20


@dataclass(frozen=True)
class EmbeddingHealth:
    """A verdict: ``level`` is ``"starting"``, ``"healthy"``, ``"shrinking"`` or ``"collapsed"``."""

    level: str
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.level}: {self.reason}" + (f"; {self.advice}" if self.advice else "")


def judge_embeddings(
    spread: float, rank: float, max_rank: int, best_spread: float, best_rank: float, starting: bool = False
) -> EmbeddingHealth:
    """Turn measurements into words.

    Args:
        spread: :func:`monai_ssl.metrics.feature_std`, in [0, 1].
        rank: centred :func:`monai_ssl.metrics.effective_rank`, in [0, ``max_rank``].
        max_rank: the smaller of the number of embeddings and their length.
        best_spread: the highest spread so far.
        best_rank: the highest rank so far.
        starting: the training has only begun; low values are no alarm yet.
    """
    enough = min(max_rank, _ENOUGH_DIRECTIONS)
    figures = f"spread {spread:.2f} of 1, {rank:.1f} of {max_rank} directions used"
    level, advice = "healthy", ""
    if spread < _NO_SPREAD:
        level = "collapsed"
        advice = (
            "all images get nearly the same embedding. Lower the learning rate or lengthen its warm-up, check that the "
            "views differ and the images are not constant, and keep the teacher slow (momentum 0.99 or more)"
        )
    elif rank < max(1.5, _NO_DIRECTIONS * enough):
        level = "collapsed"
        advice = (
            "the embeddings lie on a line. Use a lower learning rate or larger batches, and, where the method has "
            "them, more negatives (batch or queue) and a lower temperature"
        )
    elif rank < _SHRUNK * best_rank:
        level = "shrinking"
        advice = (
            f"{best_rank:.1f} directions were used before. If it goes on, lower the learning rate, strengthen the "
            "views or use more negatives"
        )
    elif rank < _FEW_DIRECTIONS * enough:
        level = "shrinking"
        advice = (
            "these are few. If it goes on, lower the learning rate or use larger batches, a longer warm-up or more "
            "negatives"
        )
    elif spread < _SHRUNK * best_spread or spread < _LOW_SPREAD:
        level = "shrinking"
        before = f" (the spread was up to {best_spread:.2f})" if best_spread > 1.1 * spread else ""
        advice = (
            f"different images have close embeddings{before}. If it goes on, lower the temperature or the learning "
            "rate, or use more negatives"
        )
    if starting and level != "healthy":
        return EmbeddingHealth("starting", figures, "low values are usual for an untrained network")
    return EmbeddingHealth(level, figures, advice)


class CollapseMonitor:
    """Measure the embeddings of the last steps, log a verdict when it changes, and stop a collapsed training if asked.

    It measures every ``every_steps`` steps and, until there are ``grace + 2`` measurements, at the end of each epoch in
    which it has not measured yet: short trainings get a verdict too, and long ones within their first epochs. The
    additional measurements do not count as the best so far, with which later ones are compared: untrained networks use
    many directions. A verdict of the first ``grace`` measurements or the first 20 steps is at worst ``"starting"``.

    Writes ``embedding_std``, ``embedding_rank``, ``uniformity`` and ``alignment`` into ``engine.state.metrics``
    (definitions: :mod:`monai_ssl.metrics`), and the verdict as text into ``engine.state.embedding_health``. Alignment
    needs two views: the method's ``"embedding"`` and ``"embedding_pair"`` if it returns both, else the encoder's
    features of the last batch's first two views if they have one size (a pass in evaluation mode a measurement).

    Args:
        every_steps: optimiser steps between measurements.
        samples: embeddings kept for a measurement, of the last steps of this process.
        grace: measurements at the start that raise no alarm.
        stop: end the training, with the advice, at the second ``"collapsed"`` verdict in a row (every process of a
            distributed run ends after the same step). The trainer then raises
            :class:`monai_ssl.engines.TrainingStopped`. Its weights are of no use: start anew, do not resume.

    Raises:
        ValueError: a number is below its least value.
    """

    def __init__(self, every_steps: int = 100, samples: int = 512, grace: int = 2, stop: bool = False) -> None:
        if every_steps < 1 or samples < 2 or grace < 0:
            raise ValueError(
                f"every_steps must be at least 1, samples 2 and grace 0, got {every_steps}, {samples} and {grace}"
            )
        self.every_steps, self.samples, self.grace, self.stop = every_steps, samples, grace, stop
        self.best_spread = self.best_rank = 0.0
        self.measurements = 0
        self.collapsed_in_a_row = 0
        self.last_step = 0
        self.level = ""
        self._recent: deque[Tensor] = deque()

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        engine.register_state("collapse_monitor", self)
        engine.state.embedding_health = ""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)

    def state_dict(self) -> dict[str, Any]:
        """Return what later verdicts compare with."""
        return {
            "best_spread": self.best_spread,
            "best_rank": self.best_rank,
            "measurements": self.measurements,
            "level": self.level,
            "collapsed_in_a_row": self.collapsed_in_a_row,
            "last_step": self.last_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for name in self.state_dict():
            setattr(self, name, state.get(name, getattr(self, name)))  # the last two are younger than the others

    def _note(self, engine: PretrainTrainer) -> None:
        embedding = engine.state.output.get("embedding")
        if embedding is None:
            return
        if is_main_process():
            self._recent.append(embedding)
            while sum(map(len, self._recent)) - len(self._recent[0]) >= self.samples:
                self._recent.popleft()
        if not self._is_due(engine):
            return
        self.last_step = engine.optimizer_steps
        self.measurements += 1
        if is_main_process():
            self._measure(engine)
        if self.stop and _from_main_process(self.collapsed_in_a_row >= 2, engine.state.device):
            engine.request_stop(
                f"training stopped in epoch {engine.state.epoch}, step {engine.optimizer_steps}, as its embeddings are "
                f"{engine.state.embedding_health or 'collapsed'}. Start anew, without resume"
            )

    def _is_due(self, engine: PretrainTrainer) -> bool:
        """Whether to measure after this step; the same in all processes."""
        step = engine.optimizer_steps
        if not engine.at_step_boundary:
            return False
        if step % self.every_steps == 0:
            return True
        ends_epoch = engine.state.iteration % engine.state.epoch_length == 0
        steps_an_epoch = -(-engine.state.epoch_length // engine.accumulate)
        return ends_epoch and self.measurements < self.grace + 2 and self.last_step <= step - steps_an_epoch

    def _measure(self, engine: PretrainTrainer) -> None:
        x = torch.cat(list(self._recent))
        if len(x) < 2 or not x.isfinite().all():
            return
        spread, rank = feature_std(x).item(), effective_rank(x, center=True).item()
        starting = self.measurements <= self.grace or engine.optimizer_steps < _FIRST_STEPS
        if engine.optimizer_steps % self.every_steps == 0 and self.measurements > self.grace:
            self.best_spread, self.best_rank = max(self.best_spread, spread), max(self.best_rank, rank)
        engine.state.metrics.update(
            embedding_std=spread, embedding_rank=rank, uniformity=uniformity(x).item(), **_alignment(engine)
        )
        best = max(self.best_spread, spread), max(self.best_rank, rank)
        health = judge_embeddings(spread, rank, min(x.shape), *best, starting)
        engine.state.embedding_health = str(health)
        self.collapsed_in_a_row = self.collapsed_in_a_row + 1 if health.level == "collapsed" else 0
        if health.level != self.level:
            self.level = health.level
            calm = health.level in ("healthy", "starting")
            logger.log(
                logging.INFO if calm else logging.WARNING,
                "embeddings after step %d are %s",
                engine.optimizer_steps,
                health,
            )


def _from_main_process(flag: bool, device: torch.device) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    value = torch.tensor(flag, device=device)
    dist.broadcast(value, src=0)
    return bool(value)


def _alignment(engine: PretrainTrainer) -> dict[str, float]:
    output, views = engine.state.output, engine.state.batch["views"]
    if "embedding_pair" in output:
        return {"alignment": alignment(output["embedding"], output["embedding_pair"]).item()}
    if len(views) < 2 or views[0].shape != views[1].shape:
        return {}
    with evaluation_mode(engine.method.encoder) as encoder, engine.autocast():
        a, b = (encoder(view).float() for view in views[:2])
    return {"alignment": alignment(a, b).item()}
