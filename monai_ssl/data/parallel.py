# SPDX-License-Identifier: Apache-2.0
"""Work on many files in several processes, such that a crash in one file costs only that file."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class WorkerCrash:
    """Stands for the result of an item on which a worker process died, twice."""


def default_workers() -> int:
    """Number of CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crash_safe_map(
    function: Callable[[Any], Any], items: Sequence[Any], num_workers: int | None = None, chunk_size: int = 8
) -> Iterator[tuple[int, Any]]:
    """Apply a function to items in worker processes; results come as they are ready, each with its item's position.

    If a worker dies (a native decoder crashes, the kernel runs out of memory), the items it may have been at are tried
    again one by one, each in a process of its own; an item that kills that process too yields a ``WorkerCrash``.

    Args:
        function: picklable; an exception it raises ends the whole map.
        items: picklable.
        num_workers: processes; 0 works in this process, without protection. Default: the CPUs this process may use.
        chunk_size: items sent at once.

    Yields:
        ``(position, result)``.
    """
    workers = default_workers() if num_workers is None else num_workers
    if workers < 0:
        raise ValueError(f"num_workers is {num_workers}; use 0 or more")
    if workers == 0:
        for position, item in enumerate(items):
            yield position, function(item)
        return
    chunks = deque(range(start, min(start + chunk_size, len(items))) for start in range(0, len(items), chunk_size))
    suspects: list[int] = []
    while chunks or suspects:
        for position in suspects:
            yield position, _run_alone(function, items[position])
        suspects = []
        running: dict[Future, range] = {}
        pool = _pool(min(workers, max(len(chunks), 1)))
        try:
            while chunks or running:
                while chunks and len(running) < 2 * workers:
                    future = pool.submit(_run_chunk, function, [items[i] for i in chunks[0]])
                    running[future] = chunks.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    results = future.result()
                    yield from zip(running.pop(future), results, strict=True)
        except BrokenProcessPool:
            for future, chunk in running.items():
                if future.done() and future.exception() is None:
                    yield from zip(chunk, future.result(), strict=True)
                else:
                    suspects.extend(chunk)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run_chunk(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [function(item) for item in items]


def _run_alone(function: Callable[[Any], Any], item: Any) -> Any:
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return WorkerCrash()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forked workers start at once and need no importable main module; the workers use neither torch nor CUDA.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent, initargs=(os.getpid(),))


def _die_with_parent(parent: int) -> None:
    """End this worker when its parent is gone: a killed parent cannot close the queue its workers wait on."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
