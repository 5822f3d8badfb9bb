# SPDX-License-Identifier: Apache-2.0
"""Stop a training between two steps when somebody presses Ctrl-C or the machine is wanted back."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["StopSignals", "TrainingStopped"]


class TrainingStopped(SystemExit):
    """A training ended early and in order; uncaught it ends the program without a traceback.

    Attributes:
        message: what happened, for the user.
        code: exit status; 128 + n for signal n.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopSignals:
    """Catches SIGINT and SIGTERM inside a ``with`` block; a second Ctrl-C interrupts at once, as usual.

    In a distributed run the processes compare notes every few steps, so that all stop after the same one. Outside the
    main thread it catches nothing.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self, check_every: int = 10) -> None:
        self.received: int | None = None
        self.check_every = check_every
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self, step: int, device: torch.device) -> int | None:
        """Return a signal that any process received; with several processes only in every ``check_every``-th step."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self.received
        if step % self.check_every:
            return None
        flag = torch.tensor(self.received or 0, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag) or None
