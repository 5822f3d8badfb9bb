# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and a lock for a folder that one process at a time may change."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


def write_whole(path: str | Path, data: bytes, sync: bool = True) -> None:
    """Write a file such that a reader sees the old one or the new one, never half of it.

    Args:
        path: the file; its folder must exist.
        data: the content.
        sync: wait until it is on the disk. Without it a power cut (not a killed process) may leave a short file.

    Raises:
        OSError: if it cannot be written; an older file is left as it was and no part of the new one stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Tell whether an error, or the one it came from, means that the disk or the user's quota is full."""
    codes = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    return error.errno in codes or (isinstance(error.__cause__, OSError) and is_disk_full(error.__cause__))


@contextmanager
def folder_lock(folder: str | Path, on_wait: Callable[[], None] | None = None, wait: bool = True) -> Iterator[bool]:
    """Hold a folder for this process; other processes that ask wait until it is free or the holder is gone.

    Where the system or the file system has no such locks, nothing is held.

    Args:
        folder: an existing folder; the lock is the file ``.lock`` in it.
        on_wait: called once before waiting.
        wait: False: do not wait; the context is then False where another process holds the folder, and True else.
    """
    if sys.platform == "win32":
        yield True
        return
    import fcntl  # POSIX only

    with (Path(folder) / ".lock").open("ab") as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            if on_wait is not None:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            held = False
        try:
            yield True
        finally:
            if held:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while forked workers have the file open
