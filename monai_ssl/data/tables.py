# SPDX-License-Identifier: Apache-2.0
"""Small helpers for Parquet tables: atomic writing, and messages that suggest the column that was meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_table(table: pa.Table, path: str | Path) -> None:
    """Write a Parquet file such that a reader sees the old file or the new one, never half of it.

    Raises:
        OSError: if the disk is full or the folder is not writable; an older file is left as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_table(path: str | Path) -> pa.Table:
    """Read a Parquet file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a Parquet file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: delete it and make it again") from error


def nearest_name(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Give the name most like ``name``, ignoring case, or None if none is alike.

    >>> nearest_name("lable", ["label", "split"]), nearest_name("x", ["label"])
    ('label', None)
    """
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def require_columns(table: pa.Table, names: Iterable[str], what: str = "the table") -> None:
    """Raise if a column is missing, naming the nearest one there is.

    Raises:
        ValueError: ``"the table has no column 'lable'; did you mean 'label'? Columns: ..."``.
    """
    for name in names:
        if name not in table.column_names:
            near = nearest_name(name, table.column_names)
            hint = f"; did you mean {near!r}?" if near else "."
            raise ValueError(f"{what} has no column {name!r}{hint} Columns: {', '.join(table.column_names)}")
