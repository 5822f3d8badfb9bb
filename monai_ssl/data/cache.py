# SPDX-License-Identifier: Apache-2.0
"""Decoded images in memory that all loader workers share."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence

import numpy as np


class SharedImageCache:
    """Room for images of known shapes and types, in memory that forked and spawned workers share.

    Whichever worker reads an image first fills its place, all others find it; there is one copy a training process.
    It lies in shared memory, or in a temporary file where ``/dev/shm`` is too small (containers).

    Args:
        shapes: shape of each image.
        dtypes: type of each image; the narrow stored type, so that uint8 takes a quarter of float32.

    Raises:
        ValueError: if it would not fit into the memory that is free.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype]):
        self.shapes = list(shapes)
        self.dtypes = list(dtypes)
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        self._starts = np.concatenate([[0], np.cumsum([-(-size // 8) * 8 for size in sizes])]).astype(np.int64)
        total = int(self._starts[-1])
        free = free_memory()
        if free is not None and total > 0.9 * free:
            raise ValueError(
                f"a memory cache of these images takes {total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                'use cache="none" (images are then decompressed each time) or a store of smaller images'
            )
        self._bytes = multiprocessing.RawArray("B", max(total, 1))
        self._filled = multiprocessing.RawArray("B", max(len(sizes), 1))

    @property
    def num_filled(self) -> int:
        """Number of images that are in the cache."""
        return int(np.frombuffer(self._filled, dtype=np.uint8).sum())

    def get(self, position: int) -> np.ndarray | None:
        """Image at a position, as a read-only view, or None if nobody has put it."""
        return self._view(position) if self._filled[position] else None

    def put(self, position: int, image: np.ndarray) -> None:
        """Put an image. Two workers may put the same one at the same time."""
        view = self._view(position)
        view.flags.writeable = True
        view[...] = image
        self._filled[position] = 1

    def _view(self, position: int) -> np.ndarray:
        shape, dtype = self.shapes[position], self.dtypes[position]
        start = int(self._starts[position])
        view = np.frombuffer(self._bytes, dtype, int(np.prod(shape)), start).reshape(shape)
        view.flags.writeable = False
        return view


def free_memory() -> int | None:
    """Bytes of memory that could be used now, or None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
