# SPDX-License-Identifier: Apache-2.0
"""Run a function in a few gloo processes on this machine, with a time limit and readable failures."""

from __future__ import annotations

import datetime
import os
import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import torch.distributed as dist


def run_processes(function: Callable, *args, world_size: int = 2, timeout: float = 120.0) -> list:
    """Call ``function(rank, world_size, *args)`` in ``world_size`` spawned processes and return their results.

    A process costs seconds to start, so give one function a whole table of cases. The function must be importable
    (top level of a test module), its arguments and result picklable. The process group (gloo, on a file: no port can
    be taken) is initialised before and destroyed after the call.

    Raises:
        AssertionError: with the traceback of the first process that failed, or when the time is up.
    """
    context = torch.multiprocessing.get_context("spawn")
    with TemporaryDirectory() as name, mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        folder = Path(name)
        processes = [
            context.Process(target=_worker, args=(function, args, rank, world_size, folder), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, folder, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(world_size)]


def _wait(processes: list, folder: Path, deadline: float) -> None:
    """Return when all ended well; one failed process is enough to stop (the others wait for it in a collective)."""
    while any(process.exitcode != 0 for process in processes):
        for rank, process in enumerate(processes):
            if process.exitcode:
                error = folder / f"error{rank}"
                text = error.read_text() if error.exists() else f"ended with exit code {process.exitcode}"
                raise AssertionError(f"process {rank}: {text}")
        if time.monotonic() > deadline:
            raise AssertionError("the processes did not end in time")
        time.sleep(0.05)


def _worker(function: Callable, args: tuple, rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=60),
        )
        result = function(rank, world_size, *args)
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
        raise
