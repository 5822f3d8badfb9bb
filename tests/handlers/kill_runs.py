# SPDX-License-Identifier: Apache-2.0
"""Run a toy training in a forked process (nothing is imported again) and kill it without warning."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch


def fork(function: Callable, *args, **options) -> int:
    """Start a function in a copy of this process and return its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            function(*args, **options)
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        finally:
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Exit status of a process of :func:`fork`, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def send_after(pid: int, log: Path, lines: int, delay: float, number: int = signal.SIGKILL) -> int:
    """Send a signal ``delay`` seconds after the process has written so many lines; return its exit status."""
    deadline = time.monotonic() + 60
    while (log.read_text().count("\n") if log.exists() else 0) < lines:
        assert time.monotonic() < deadline, "the training did not get that far"
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(pid, number)
    return wait(pid)


class WriteLosses:
    """Handler: one line a step, on the disk at once, with all digits."""

    def __init__(self, path: Path, pause: float = 0.0) -> None:
        self.path, self.pause = path, pause

    def attach(self, engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine) -> None:
        with open(self.path, "a") as file:
            file.write(f"{engine.state.iteration} {engine.state.output['loss']!r}\n")
        time.sleep(self.pause)


def read_losses(path: Path) -> dict[str, str]:
    """The last loss written for each iteration; all of one iteration must be the same number."""
    losses: dict[str, str] = {}
    for line in path.read_text().splitlines():
        iteration, loss = line.split()
        assert losses.setdefault(int(iteration), loss) == loss, (
            f"iteration {iteration}: {losses[int(iteration)]}, {loss}"
        )
    return losses
