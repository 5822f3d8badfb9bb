# SPDX-License-Identifier: Apache-2.0
"""Small parts of the labels for label-efficiency studies: nested, stratified, whole patients."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from monai_ssl.data.tables import require_columns

_NONE = "none of them"


def label_subsets(
    table: pa.Table,
    label: str | Sequence[str] | None,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    counts: Sequence[int] = (),
    seed: int = 0,
    group: str = "group_id",
    rows: Sequence[int] | np.ndarray | None = None,
) -> dict[float | int, np.ndarray]:
    """Choose subsets of the labelled images: each holds the smaller ones, whole groups and every class.

    All subsets are beginnings of one order of the groups. First comes one group of each class, rarest class first;
    the others are shuffled within their class and interleaved so that any beginning has the classes in the shares of
    the whole. A subset ends with the group that reaches its size, so it may be larger by part of a group. A group
    with several classes counts for the rarest.

    Args:
        table: an index or a store's table.
        label: a column of classes, or several columns of 0 and 1 for labels that do not exclude each other. None:
            there are no classes, and every row counts as labelled.
        fractions: shares of the labelled images, above 0 to 1.
        counts: numbers of images.
        seed: another seed gives other subsets.
        group: column of the groups (patients) that are not parted; an image without one stands alone.
        rows: choose among these rows only, for instance ``split_rows(table, "train")``. Default: all usable.

    Returns:
        Sorted row numbers of ``table``, under each fraction and count as it was given.

    Raises:
        ValueError: if a column is missing or has fewer than two classes, a size is out of range, or a subset is too
            small for one group of each class.
    """
    columns = [label] if isinstance(label, str) else list(label or ())
    require_columns(table, [*columns, group])
    chosen = np.arange(len(table)) if rows is None else np.asarray(rows)
    if "status" in table.column_names:
        status = table["status"].to_pylist()
        chosen = np.array([row for row in chosen if status[row] == "ok"], dtype=np.int64)
    values = [table[name].to_pylist() for name in columns]
    classes_of: dict[int, set] = {}
    for row in chosen.tolist():
        found = _classes([column[row] for column in values], columns) if columns else {_NONE}
        if found:
            classes_of[row] = found
    tally = collections.Counter(name for found in classes_of.values() for name in found)
    if columns and len(tally) < 2:
        raise ValueError(f"{label} has {len(tally)} classes among {len(chosen)} images; a subset needs two or more")
    total = len(classes_of)
    sizes = {**{share: share * total for share in fractions}, **{count: float(count) for count in counts}}
    wrong = [share for share in fractions if not 0 < share <= 1] + [n for n in counts if not 1 <= n <= total]
    if wrong or not sizes:
        raise ValueError(f"fractions {list(fractions)} must be above 0 to 1, counts {list(counts)} from 1 to {total}")

    names = table[group].to_pylist()
    members: dict[Any, list[int]] = collections.defaultdict(list)
    for row in classes_of:
        members[("row", row) if names[row] is None else names[row]].append(row)
    order, needed = _order(list(members.values()), classes_of, tally, np.random.default_rng(seed))
    subsets: dict[float | int, np.ndarray] = {}
    ends = np.cumsum([len(group_rows) for group_rows in order])
    for key, size in sizes.items():
        used = int(np.searchsorted(ends, round(size) if key not in fractions else max(1, round(size)))) + 1
        if used < needed:
            raise ValueError(
                f"a subset of {key:g} ({round(size)} of {total} images) is too small: one patient of each of the "
                f"{len(tally)} classes of {label} takes {ends[needed - 1]} images; ask for more"
            )
        subsets[key] = np.sort(np.concatenate(order[:used]))
    return subsets


def _classes(values: list[Any], columns: list[str]) -> set:
    """Classes of one image; empty if it has no label."""
    if len(columns) == 1:
        return set() if values[0] is None else {values[0]}
    if all(value is None for value in values):
        return set()
    for name, value in zip(columns, values, strict=True):
        if value not in (0, 1, None):
            raise ValueError(f"the column {name!r} holds {value!r}; several label columns must hold 0 and 1")
    return {name for name, value in zip(columns, values, strict=True) if value} or {_NONE}


def _order(
    groups: list[list[int]], classes_of: dict[int, set], tally: collections.Counter, rng: np.random.Generator
) -> tuple[list[np.ndarray], int]:
    """Order the groups; returns them as arrays of rows, and how many are needed to have seen every class."""
    groups = [groups[place] for place in rng.permutation(len(groups))]
    found = [set().union(*(classes_of[row] for row in group)) for group in groups]
    stratum = [min(names, key=lambda name: (tally[name], str(name))) for names in found]
    first: list[int] = []
    seen: set = set()
    for name in sorted(tally, key=lambda name: (tally[name], str(name))):
        if name not in seen:
            place = next(place for place, names in enumerate(found) if name in names)
            first.append(place)
            seen |= found[place]
    images = collections.Counter()
    for place, name in enumerate(stratum):
        images[name] += len(groups[place])
    done = collections.Counter()
    for place in first:
        done[stratum[place]] += len(groups[place])
    keys = {}
    for place, name in enumerate(stratum):
        if place not in first:
            keys[place] = (done[name] + len(groups[place]) / 2) / images[name]  # share of the class that is through
            done[name] += len(groups[place])
    order = first + sorted(keys, key=keys.get)
    return [np.array(groups[place], dtype=np.int64) for place in order], len(first)
