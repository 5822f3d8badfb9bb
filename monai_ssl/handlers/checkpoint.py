# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a kill can't damage, and the exact resume from them."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events

from monai_ssl.engines import PretrainTrainer, is_main_process
from monai_ssl.weights import atomic_file

__all__ = ["TrainingCheckpoint"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"training_(\d+)\.pt")


class TrainingCheckpoint:
    """Save the whole state of a :class:`~monai_ssl.engines.PretrainTrainer` again and again, and resume from it.

    A file ``training_<step>.pt`` appears only when all of it is on the disk, and the one before stays until then. Also
    saved is what other handlers register (best metric, curves), so this handler saves last in an epoch and restores
    first, wherever it stands among the others. When the run is stopped (Ctrl-C, SIGTERM) the state is saved too. When
    the disk is full the training stops with a message; the older checkpoint is intact.

    The files are read with ``weights_only=True``: nothing is unpickled from them. A newest file that can't be read is
    passed over with a message in favour of the one before.

    Args:
        folder: where the files go.
        every_epochs: save after every so many epochs, and after the last.
        every_steps: also save after every so many optimiser steps; None does not.
        keep: number of files kept.
        resume: True: continue from the newest file in ``folder``, or start afresh if there is none. A path: continue
            from that file. False: start afresh; files of an earlier run in ``folder`` are moved to ``folder/earlier``
            (where those of one run are kept).

    Raises:
        ValueError: a number is below 1; (at the start) the checkpoint is of another training.
        FileNotFoundError: (at the start) ``resume`` names a file that does not exist.
        RuntimeError: (at the start) there are checkpoints but none can be read.
    """

    restores_state = True

    def __init__(
        self,
        folder: str | Path,
        *,
        every_epochs: int = 1,
        every_steps: int | None = None,
        keep: int = 2,
        resume: bool | str | Path = False,
    ) -> None:
        for name, value in (("every_epochs", every_epochs), ("every_steps", every_steps), ("keep", keep)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.folder = Path(folder)
        self.every_epochs, self.every_steps, self.keep, self.resume = every_epochs, every_steps, keep, resume
        self._saved_step: int | None = None
        self._failed = self._started = self._listening = False

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._listen)
        engine.add_event_handler(Events.TERMINATE, self._save_at_stop)

    def files(self) -> list[Path]:
        """Checkpoints in the folder, oldest first."""
        return sorted((p for p in self.folder.glob("training_*.pt") if _NAME.fullmatch(p.name)), key=_step_of)

    # ---- start -------------------------------------------------------------------------------------------------------

    def _start(self, engine: PretrainTrainer) -> None:
        if self._started:
            return
        self._started = True
        if is_main_process():
            for leftover in self.folder.glob(".training_*.part"):  # of a run that was killed while it wrote
                leftover.unlink(missing_ok=True)
        if isinstance(self.resume, (str, Path)):
            path = Path(self.resume)
            if not path.is_file():
                raise FileNotFoundError(f"there is no checkpoint {path} to resume from")
            self._restore(engine, [path])
        elif self.resume:
            self._restore(engine, self.files()[::-1])
        elif is_main_process():
            self._set_aside()

    def _restore(self, engine: PretrainTrainer, paths: list[Path]) -> None:
        if not paths:
            logger.info("no checkpoint in %s: the training starts afresh", self.folder)
            return
        for path in paths:
            state = _read(path)
            if state is None:
                continue
            try:
                engine.load_state_dict(state)
            except ValueError as error:
                raise ValueError(f"{path} does not fit this training: {error}") from error
            self._saved_step = engine.optimizer_steps
            logger.info("continuing from %s: epoch %d, step %d", path, engine.state.epoch, engine.optimizer_steps)
            return
        raise RuntimeError(
            f"no checkpoint can be read ({', '.join(map(str, paths))}); remove them, or start afresh with resume=False"
        )

    def _set_aside(self) -> None:
        old = self.files()
        if not old:
            return
        earlier = self.folder / "earlier"
        earlier.mkdir(exist_ok=True)
        for path in earlier.glob("training_*.pt"):
            path.unlink()
        for path in old:
            path.rename(earlier / path.name)
        logger.warning(
            "a new training starts: the checkpoints of an earlier run are now in %s (to continue that run: resume=%s)",
            earlier,
            earlier / old[-1].name,
        )

    # ---- saving ------------------------------------------------------------------------------------------------------

    def _listen(self, engine: PretrainTrainer) -> None:
        """Begin to save; registered this late so that all other handlers have done their part of an epoch before."""
        if not self._listening:
            self._listening = True
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_after_epoch)
            if self.every_steps is not None:
                engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_after_step)

    def _save_after_epoch(self, engine: PretrainTrainer) -> None:
        if self._epoch_is_due(engine):
            self._save(engine)

    def _save_after_step(self, engine: PretrainTrainer) -> None:
        # At the end of an epoch the other handlers come first.
        ends_epoch = engine.state.iteration % engine.state.epoch_length == 0 and self._epoch_is_due(engine)
        if engine.optimizer_steps % self.every_steps == 0 and not ends_epoch and engine.stop is None:
            self._save(engine)

    def _save_at_stop(self, engine: PretrainTrainer) -> None:
        path = None if self._failed else self._save(engine)
        if engine.stop is not None and path is not None:
            engine.stop.message += f"; saved to {path}, to continue: resume=True"

    def _epoch_is_due(self, engine: PretrainTrainer) -> bool:
        return engine.state.epoch % self.every_epochs == 0 or engine.state.epoch == engine.state.max_epochs

    def _save(self, engine: PretrainTrainer) -> Path | None:
        path = self.folder / f"training_{engine.optimizer_steps:08d}.pt"
        if not engine.at_step_boundary:
            return None
        if engine.optimizer_steps == self._saved_step and engine.stop is not None:
            return path
        state = engine.state_dict()
        state["random"] = _of_all_processes(state["random"])
        problem = self._write(path, state) if is_main_process() else None
        problem = _from_main_process(problem)
        if problem is not None:
            self._failed = True
            files = self.files()
            kept = f"{files[-1]} is intact" if files else "there is no earlier one"
            engine.request_stop(f"the checkpoint could not be written and training stops: {problem}; {kept}")
            return None
        self._saved_step = engine.optimizer_steps
        return path

    def _write(self, path: Path, state: dict[str, Any]) -> str | None:
        try:
            with atomic_file(path) as file:
                torch.save(state, file)
        except OSError as error:
            return error.strerror or str(error)
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return None


def _step_of(path: Path) -> int:
    return int(_NAME.fullmatch(path.name).group(1))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise RuntimeError(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("%s can't be read, it is truncated, damaged or no checkpoint (%s)", path, reason)
        return None


def _of_all_processes(random: dict[str, Any]) -> dict[str, Any]:
    """Merge the entries of all processes: each has its own random numbers."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return random
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, random)
    return {rank: state for part in parts for rank, state in part.items()}


def _from_main_process(value: str | None) -> str | None:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
