# SPDX-License-Identifier: Apache-2.0
"""Results of a study on disk: one JSON file a cell, held by one process while it is made, written whole and once."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CellBusyError", "held_cell", "read_cell", "write_cell"]


class CellBusyError(RuntimeError):
    """Another process is working on this cell."""


@contextmanager
def held_cell(path: Path) -> Iterator[None]:
    """Hold a cell for this process. The lock goes with the process: a killed one leaves nothing to clear up.

    Args:
        path: of the cell's file; the lock lies beside it.

    Raises:
        CellBusyError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # as for stores: no locks there
        yield
        return
    import fcntl  # POSIX only

    with path.with_name(f".{path.name}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CellBusyError(f"another process is working on {path.stem}; wait for it, or choose another") from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def write_cell(path: Path, content: dict[str, Any]) -> None:
    """Write a result: whole or not at all, and never over another one.

    Raises:
        FileExistsError: there is one already; it stays as it is.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(json.dumps(content, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a renaming it fails where there is a file
        except FileExistsError as error:
            raise FileExistsError(
                f"{path} is there already and is not overwritten; move it away to make it anew"
            ) from (error)
    finally:
        temporary.unlink(missing_ok=True)


def read_cell(path: Path) -> dict[str, Any] | None:
    """Return a result, or None if there is none yet.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged; delete it to make it anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no result of a study")
    return content
