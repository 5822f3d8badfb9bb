# SPDX-License-Identifier: Apache-2.0
"""Which images belong together, by columns of the index: one patient, one study, the other breast, another view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from monai_ssl.data.datasets import row_numbers
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import require_columns

__all__ = ["positive_groups"]


def positive_groups(
    source: ImageStore | pa.Table,
    rows: Sequence[int] | np.ndarray | None = None,
    same: Sequence[str] | str = ("group_id",),
    different: Sequence[str] | str = (),
) -> np.ndarray:
    """Number the sets of images that are positives of one another.

    The numbers serve ``EpochSampler(groups=...)``, which brings positives into one batch, and
    ``StoreDataset(positives=...)``, by which the batch says who they are (``"positive_id"``); the contrastive methods
    take them with ``patient_positives=True`` (see ``monai_ssl.methods.positives``).

    Images of one number agree in every column of ``same`` and no two of them agree in all columns of ``different``. So
    ``same=["study"]`` gives the studies, and ``different=["laterality"]`` sets of one left and one right image of each
    patient: of two left images and one right one, the first left one and the right one make a set, and the other left
    one stands alone. An image whose value in any of these columns is missing stands alone. The index itself has
    ``group_id`` (patient), ``study``, ``series``, ``modality``, ``body_part`` and, for radiographs, ``view``; any
    column of the labels' table will do (see :func:`monai_ssl.data.build_index`).

    Args:
        source: the store, or its table.
        rows: rows of the table, as the dataset has them, or a mask of booleans. None: all.
        same: columns in which positives agree, at least one. Keep ``group_id`` or something finer (``study``) among
            them: the methods take positives for images of one patient.
        different: columns in at least one of which they differ.

    Returns:
        int64, one number for each row, from 0 in the order of first appearance.

    Raises:
        ValueError: there is no such column or row, no column in ``same``, or one in both.

    Example:
        >>> table = pa.table({"group_id": ["a", "a", "a", "b", None], "laterality": ["L", "L", "R", "L", "R"]})
        >>> positive_groups(table).tolist()
        [0, 0, 0, 1, 2]
        >>> positive_groups(table, different="laterality").tolist()
        [0, 1, 0, 2, 3]
    """
    table = source if isinstance(source, pa.Table) else source.table
    same, different = ([names] if isinstance(names, str) else list(names) for names in (same, different))
    if not same or set(same) & set(different):
        raise ValueError(f"same needs a column, and none that different names too; got {same} and {different}")
    require_columns(table, [*same, *different], "the table of the images")
    chosen = table if rows is None else table.take(pa.array(row_numbers(rows, len(table)), pa.int64()))
    values = [chosen[name].to_pylist() for name in (*same, *different)]
    numbers: dict[tuple, int] = {}
    seen: Counter = Counter()
    codes = np.empty(len(chosen), dtype=np.int64)
    for place, key in enumerate(zip(*map(_plain, values), strict=True)):
        if None in key:
            group: tuple = (place,)  # alone; sets below have two entries
        elif different:
            group = (key[: len(same)], seen[key])  # the nth image of each kind goes to the nth set
            seen[key] += 1
        else:
            group = (key, 0)
        codes[place] = numbers.setdefault(group, len(numbers))
    return codes


def _plain(values: list) -> list:
    """Values that can be compared: lists as text, empty text and NaN as missing."""
    plain = [str(value) if isinstance(value, list) else value for value in values]
    return [None if value == "" or value != value else value for value in plain]
