# SPDX-License-Identifier: Apache-2.0
"""Distances that experts gave: a table of sources and targets."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_expert_distances"]


def read_expert_distances(
    path: str | Path, sources: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> dict[tuple[str, str], float]:
    """Read a CSV whose first column names the sources and whose first row names the targets.

    ``,busi,isic`` / ``mednist,2,5`` / ``caltech101,6,6``: smaller is more alike. An empty cell is not known.

    Args:
        path: the file.
        sources: names that must be there. None: any.
        targets: likewise.

    Returns:
        The distance of each (source, target) with an entry.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name is missing (the nearest one is given) or twice, a row is too long or short, or a value is no
            number of at least 0.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of expert distances")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ValueError(f"{path} needs a first row with the targets and a row for each source")
    columns, names = rows[0][1:], [row[0] for row in rows[1:]]
    for kind, found, wanted in (("target", columns, targets), ("source", names, sources)):
        if len(set(found)) < len(found) or "" in found:
            raise ValueError(f"{path}: each {kind} needs a name of its own")
        for name in wanted or ():
            if name not in found:
                near = difflib.get_close_matches(name, found, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(found)}"
                raise ValueError(f"{path} has no {kind} {name!r}{hint}")
    distances: dict[tuple[str, str], float] = {}
    for row in rows[1:]:
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}: the row of {row[0]!r} has {len(row) - 1} values for {len(columns)} targets")
        for column, cell in zip(columns, row[1:], strict=True):
            if cell:
                distances[row[0], column] = _distance(path, row[0], column, cell)
    return distances


def _distance(path: Path, source: str, target: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{path}: the distance of {source!r} to {target!r} is {cell!r}, not a number of at least 0")
    return value
