# SPDX-License-Identifier: Apache-2.0
"""The complete state of a training, as plain tensors, numbers and text, so that it can be read without unpickling.

Entries: ``format``, ``iteration``, ``epoch_length``, ``accumulate``, ``optimizer_steps``, ``method``, ``optimizer``,
``scaler``, ``precision``, ``channels_last``, ``random`` (rank -> generators of that process), ``handlers`` (name ->
state), ``best_metric``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from monai_ssl.engines.pretrain import PretrainTrainer

__all__ = ["load_training_state", "training_state"]

FORMAT = 1

logger = logging.getLogger(__name__)


def training_state(trainer: PretrainTrainer) -> dict[str, Any]:
    """Collect the state of a trainer between two optimiser steps.

    ``random`` holds this process's generators only; a checkpoint of several processes merges them.

    Raises:
        RuntimeError: in the middle of an accumulation: the gradients so far are in no state.
    """
    if not trainer.at_step_boundary:
        raise RuntimeError("a training's state can be taken between two optimiser steps only, not while accumulating")
    state = trainer.state
    return {
        "format": FORMAT,
        "iteration": state.iteration,
        "epoch_length": state.epoch_length,
        # MONAI and ignite look for these two in an engine's state
        "max_epochs": state.max_epochs,
        "rank": state.rank,
        "accumulate": trainer.accumulate,
        "optimizer_steps": trainer.optimizer_steps,
        "method": trainer.method.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "precision": trainer.precision,
        "channels_last": trainer.channels_last,
        "random": {str(state.rank): {"views": trainer.generator.get_state(), "batches": trainer.batches.state_dict()}},
        "handlers": {name: part.state_dict() for name, part in trainer.stateful.items()},
        "best_metric": [float(state.best_metric), int(state.best_metric_epoch)],
    }


def load_training_state(trainer: PretrainTrainer, state: dict[str, Any]) -> None:
    """Put a trainer back to a state; the trainer's own ``max_epochs`` stays, so that a training can be prolonged.

    Raises:
        ValueError: the state does not fit the trainer's method, optimiser or loader, or was written by a newer version.
    """
    if not isinstance(state, dict) or not {"format", "method", "optimizer", "random"} <= state.keys():
        raise ValueError("this is not the state of a training of monai_ssl")
    if state["format"] > FORMAT:
        raise ValueError(f"the state has format {state['format']}, this version of monai_ssl knows up to {FORMAT}")
    for name, now in (("epoch_length", trainer.state.epoch_length), ("accumulate", trainer.accumulate)):
        if state[name] != now:
            raise ValueError(
                f"the training was saved with {name} {state[name]}, and now it is {now}: continue with the same "
                "images, batch_size, accumulate and number of processes"
            )
    _load_method(trainer, state["method"])
    _load_optimizer(trainer.optimizer, state["optimizer"])
    if trainer.scaler is not None and state["scaler"] is not None:
        trainer.scaler.load_state_dict(state["scaler"])
    for name in ("precision", "channels_last"):  # an automatic choice is not made again: the numbers must go on alike
        if getattr(trainer, name) == "auto":
            setattr(trainer, name, state[name])
    trainer.optimizer_steps = state["optimizer_steps"]
    trainer.state.iteration = state["iteration"]
    trainer.state.epoch, in_epoch = divmod(state["iteration"], state["epoch_length"])
    trainer.state.best_metric, trainer.state.best_metric_epoch = state["best_metric"]
    _load_random(trainer, state["random"].get(str(trainer.state.rank)), in_epoch)
    for name, part in trainer.stateful.items():
        if name in state["handlers"]:
            part.load_state_dict(state["handlers"][name])


def _load_method(trainer: PretrainTrainer, saved: dict[str, Any]) -> None:
    own = trainer.method.state_dict()
    try:
        trainer.method.load_state_dict(saved)  # a part may fill in what an older version of it did not save
    except RuntimeError as error:
        differing = sorted(own.keys() ^ saved.keys()) or [key for key in own if own[key].shape != saved[key].shape]
        if not differing:
            raise
        raise ValueError(
            f"the saved state is of another method or network than {type(trainer.method).__name__}: {differing[0]} and "
            f"{len(differing) - 1} more of {len(own)} entries are missing or of another shape"
        ) from error


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    asked = [group["initial_lr"] for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
    except (ValueError, KeyError) as error:
        raise ValueError(f"the saved state is of another optimiser or of other parameters: {error}") from error
    kept = [group["initial_lr"] for group in optimizer.param_groups]
    if asked != kept:
        logger.warning("the training goes on with its own learning rate %g; %g is not used", kept[0], asked[0])


def _load_random(trainer: PretrainTrainer, saved: dict[str, Any] | None, batches_done: int) -> None:
    if saved is None:
        logger.warning("the training was saved with fewer processes: this one's random numbers start anew")
        trainer.batches.continue_at(batches_done, None)
        return
    try:
        trainer.generator.set_state(saved["views"])
    except (RuntimeError, TypeError):
        logger.warning(
            "the training was saved on another kind of device than %s: the views' random numbers start anew",
            trainer.state.device.type,
        )
    trainer.batches.continue_at(batches_done, saved["batches"])
