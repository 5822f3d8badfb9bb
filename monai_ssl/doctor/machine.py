# SPDX-License-Identifier: Apache-2.0
"""What this process may use of the machine: cores, memory, disk and device, containers' limits respected."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from monai_ssl.data.cache import free_memory
from monai_ssl.data.parallel import default_workers
from monai_ssl.doctor.section import Section

__all__ = ["cpu_limit", "machine_section", "memory_limit", "usable_cores"]

_GB = 1e9
_LITTLE_DISK, _LITTLE_MEMORY, _LITTLE_SHARED = 5 * _GB, 3 * _GB, 0.5 * _GB


def machine_section(folder: Path, device: torch.device) -> Section:
    """Cores, threads, memory, disk and device, with advice where one of them will hurt.

    Args:
        folder: where images or outputs lie; its disk is looked at.
        device: where to train.
    """
    section = Section("machine")
    section.add("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    _cores(section, device)
    _memory(section)
    _disk(section, folder)
    _device(section, device)
    return section


def usable_cores() -> int:
    """Cores this process may use: those it is pinned to, and no more than its control group grants."""
    limit = cpu_limit()
    allowed = default_workers()
    return allowed if limit is None else max(1, min(allowed, round(limit)))


def cpu_limit(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the cores that the control groups of this process grant, or None without a limit.

    Args:
        process: the file that names the groups.
        root: where they are mounted (version 1 or 2).
    """
    limits = []
    for group in _groups(process, root, "cpu"):
        words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def memory_limit(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that the control groups of this process grant, or None without a limit; as ``cpu_limit``."""
    limits = []
    for group in _groups(process, root, "memory"):
        words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        if words and words[0].isdigit() and int(words[0]) < 2**60:  # version 1 writes a huge number for no limit
            limits.append(int(words[0]))
    return min(limits, default=None)


def _groups(process: Path, root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process' groups for a controller, from the innermost out."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, group = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        # In a container the path is that of the host, and the root is already the container's own.
        place = root / controller if names else root
        inner = place / group.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(place))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _cores(section: Section, device: torch.device) -> None:
    cores, threads, limit = usable_cores(), torch.get_num_threads(), cpu_limit()
    granted = "" if limit is None else f", the container is granted {limit:g}"
    section.add(
        "cores", f"{cores} usable of the machine's {os.cpu_count()}{granted}; torch computes with {threads} of them"
    )
    if threads > cores:
        section.advise(f"torch computes with more threads than cores are usable: set OMP_NUM_THREADS={cores}")
    elif threads < cores and device.type == "cpu":
        section.advise(
            f"torch leaves {cores - threads} of {cores} cores idle: set OMP_NUM_THREADS={cores} to train on the CPU"
        )
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        section.add("load", f"{load:.1f} in the last minute")
        if load > 1.5 * cores:
            section.advise(
                f"other work keeps the machine busy (load {load:.1f} on {cores} cores) and makes all speeds too "
                "low; measure again when it is quiet"
            )


def _memory(section: Section) -> None:
    free, limit = free_memory(), memory_limit()
    words = [] if free is None else [f"{free / _GB:.1f} GB free"]
    words += [] if limit is None else [f"the container is granted {limit / _GB:.1f} GB"]
    section.add("memory", ", ".join(words) or "unknown")
    least = min((size for size in (free, limit) if size is not None), default=_LITTLE_MEMORY)
    if least < _LITTLE_MEMORY:
        section.advise(
            f"{least / _GB:.1f} GB of memory is little: use a small batch_size, and cache none of the images"
        )
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).free
        section.add("shared memory", f"{size / _GB:.1f} GB free in {shared}")
        if size < _LITTLE_SHARED:
            section.advise(
                f"loader workers hand batches over in {shared}, which has {size / _GB:.2f} GB: start the container "
                "with more (docker run --shm-size=2g), or train with num_workers 0"
            )


def _disk(section: Section, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    section.add("disk", f"{free / _GB:.1f} GB free at {folder}")
    if free < _LITTLE_DISK:
        section.advise(f"only {free / _GB:.1f} GB are free at {folder}: stores and checkpoints may fill it")


def _device(section: Section, device: torch.device) -> None:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        section.add(
            "device", f"{device}: {name}, {free / _GB:.1f} of {total / _GB:.1f} GB free, CUDA {torch.version.cuda}"
        )
        return
    section.add("device", str(device))
    present = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
    if present and not torch.cuda.is_available():
        why = (
            f"torch {torch.__version__} is built without CUDA"
            if torch.version.cuda is None
            else "its driver does not answer"
        )
        section.advise(f"there is an NVIDIA GPU, but {why}: install a CUDA build of torch or mend the driver")
