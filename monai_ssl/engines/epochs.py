# SPDX-License-Identifier: Apache-2.0
"""The batches of one epoch after the other, from any position, with the random numbers an unbroken run would see."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from monai_ssl.engines.random_state import capture_random_state, restore_random_state

__all__ = ["EpochBatches"]


class EpochBatches:
    """What the trainer hands to ignite as its data: each ``iter()`` gives the (rest of the) batches of one epoch.

    A sampler with ``load_state_dict`` and the entries ``epoch`` and ``position`` (samples already given by this
    process), such as :class:`monai_ssl.data.EpochSampler`, starts at any position at no cost. With any other loader
    the batches before the position are read and thrown away, after the random generators were set to what they were
    at the epoch's start: slower, but the same batches for shuffling and transforms that draw from global generators.

    Args:
        loader: a ``DataLoader`` or any iterable of batches that can be iterated again.
        epoch_length: batches an epoch, at most ``len(loader)``; None: as many as the loader gives.
        device: its random generator is kept too.

    Attributes:
        epoch: number of the epoch that the next ``iter()`` is for, from 0.
    """

    def __init__(self, loader: Iterable[Any], epoch_length: int | None, device: torch.device) -> None:
        self.loader = loader
        self.epoch_length = epoch_length
        self.device = device
        self.epoch = 0
        self._random_at_start: dict[str, Any] | None = None
        self._continued: tuple[int, dict[str, Any] | None, dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        if self.epoch_length is None:
            raise TypeError("the loader has no length")  # what len() says of such a loader
        return self.epoch_length

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random generators now and at the start of this epoch.

        After :meth:`continue_at` and before the next ``iter()`` it is the state given there.
        """
        if self._continued is not None:
            _, at_start, now = self._continued
            return {"random": now, "random_at_epoch_start": at_start}
        return {"random": capture_random_state(self.device), "random_at_epoch_start": self._random_at_start}

    def continue_at(self, batches_done: int, state: dict[str, Any] | None) -> None:
        """Let the next ``iter()`` skip what was done, and draw on as the run that ended there would have.

        Args:
            batches_done: batches of the epoch that are done.
            state: what :meth:`state_dict` returned then; None: random numbers start anew.
        """
        state = state or self.state_dict()
        self._continued = (batches_done, state["random_at_epoch_start"], state["random"])

    def __iter__(self) -> Iterator[Any]:
        (done, at_start, now), self._continued = self._continued or (0, None, None), None
        # Between two epochs the generators go on where they were; within one, go back to the epoch's start first.
        state = now if done == 0 else at_start
        if state is not None:
            restore_random_state(state, self.device)
        self._random_at_start = capture_random_state(self.device)
        sought = self._seek(done)
        with _interrupts_ignored():
            iterator = iter(self.loader)
        rest = None if self.epoch_length is None else self.epoch_length - done
        if done:
            if not sought:
                for _ in islice(iterator, done):
                    pass
            if now is not None:
                restore_random_state(now, self.device)
        yield from islice(iterator, rest)

    def _seek(self, batches_done: int) -> bool:
        """Set the sampler to a position of the current epoch; False if it has none."""
        sampler = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "state_dict") and hasattr(sampler, "load_state_dict"):
            state = dict(sampler.state_dict())
            if {"epoch", "position"} <= state.keys():
                position = batches_done * (getattr(self.loader, "batch_size", None) or 1)
                sampler.load_state_dict(state | {"epoch": self.epoch, "position": position})
                return True
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch)
        return False


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start worker processes that ignore Ctrl-C: the terminal sends it to them too, and the run still needs them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
