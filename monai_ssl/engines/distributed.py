# SPDX-License-Identifier: Apache-2.0
"""Start and end a run of several processes (``torchrun``), on GPUs or on the CPU."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

__all__ = ["end_distributed", "is_main_process", "local_device", "named_device", "start_distributed"]


def start_distributed(backend: str | None = None) -> torch.device:
    """Join the process group that ``torchrun`` prepared, and return this process's device.

    Call it once on every process before anything else (first in a bundle's ``initialize``). Without ``torchrun`` it
    only returns the device; a second call does too. It also lets ignite see the group at once: ignite's first use
    makes a group of its own, and a process that got there alone (a handler disabled elsewhere) would wait for ever.

    Args:
        backend: default: ``"nccl"`` with CUDA, else ``"gloo"``.

    Raises:
        RuntimeError: the processes do not find each other, or there are fewer GPUs than processes on this machine.
    """
    device = local_device()
    if "RANK" not in os.environ or not dist.is_available() or dist.is_initialized():
        return device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend or ("nccl" if device.type == "cuda" else "gloo"))
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            "the processes of this run did not find each other; start it by torchrun, which sets RANK, WORLD_SIZE, "
            f"MASTER_ADDR and MASTER_PORT ({error})"
        ) from error
    import ignite.distributed as idist

    idist.sync()
    return device


def local_device() -> torch.device:
    """Return this process's GPU by its LOCAL_RANK, or the CPU where there is no CUDA.

    Raises:
        RuntimeError: there are fewer GPUs than processes on this machine.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if rank >= count:
        raise RuntimeError(f"process {rank} of this machine has no GPU of its own: there are {count}; start fewer")
    return torch.device("cuda", rank)


def named_device(name: str) -> torch.device:
    """Return the device of a name that a user typed.

    Args:
        name: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no kind of device {name!r}; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the device {name} cannot be used: torch {torch.__version__} finds no CUDA device")
    return device


def end_distributed() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process writes the files and the log: rank 0, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
