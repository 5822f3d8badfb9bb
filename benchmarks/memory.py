# SPDX-License-Identifier: Apache-2.0
"""How much memory some work takes at most, all of it: the resident set of a process that does nothing else.

torch's profiler sees what torch allocates; this also sees what the kernels' libraries do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch


def peak_mib(module: str, warm_up: Callable[[], None], work: Callable[[], None]) -> float:
    """Peak of ``work`` in a fresh process, less what is resident after the imports and ``warm_up``.

    The figure is the kernel's VmHWM, which starts anew with a process; ``ru_maxrss`` begins at what the parent had.

    Args:
        module: imported once for all such processes; has the two functions' names.
        warm_up: small work of the same kind, which loads what libraries load late.
        work: what is measured.

    Returns:
        MiB; nan where the system is not Linux.
    """
    context = get_context("forkserver")  # a forked child would lack the threads that have computed here
    context.set_forkserver_preload([module])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, warm_up, work, torch.get_num_threads()).result()


def _measured(warm_up: Callable[[], None], work: Callable[[], None], threads: int) -> float:
    torch.set_num_threads(threads)
    warm_up()
    before = _resident_mib("VmRSS")
    work()
    return _resident_mib("VmHWM") - before


def _resident_mib(entry: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return math.nan
    return next(int(line.split()[1]) for line in lines if line.startswith(entry + ":")) / 1024
