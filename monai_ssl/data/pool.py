# SPDX-License-Identifier: Apache-2.0
"""The pool: the images that are pretrained on, none of them held out for validation or test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from monai_ssl.data.labels import select_rows
from monai_ssl.data.splits import assert_disjoint
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import require_columns

__all__ = ["pool_fingerprint", "pretraining_rows"]


def pretraining_rows(
    store: ImageStore,
    held_out: Sequence[str] = ("val", "test"),
    where: str | None = None,
    among: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Choose the images to pretrain on, and prove that they share no patient and no image with the held-out splits.

    Args:
        store: its table has a column ``split``.
        held_out: splits that must not be seen, also where ``where`` leaves their images out.
        where: row filter, see :func:`monai_ssl.data.select_rows`.
        among: rows to choose from, for instance those with a label for a supervised stage. None: all.

    Returns:
        Row numbers of ``store.table``, ascending; labels play no part.

    Raises:
        ValueError: no image is left, or one patient or image is on both sides.
    """
    require_columns(store.table, ["split", "group_id", "content_hash"], f"the table of {store.folder}")
    out = np.isin(np.array(store.table["split"].to_pylist(), dtype=object), list(held_out))
    numbered = store.table.append_column("row_number", pa.array(np.arange(len(store))))
    chosen = select_rows(numbered, where)["row_number"].to_numpy()
    if among is not None:
        chosen = np.intersect1d(chosen, among)
    rows = np.sort(chosen[~out[chosen]])
    if not len(rows):
        raise ValueError(
            f"no image of {store.folder} is left to pretrain on: {len(chosen)} of {len(store)} meet where={where!r}, "
            f"all of them in the held-out splits {list(held_out)}"
        )
    if out.any():
        assert_disjoint(store.table.take(rows), store.table.filter(out))
    return rows


def pool_fingerprint(store: ImageStore, rows: Sequence[int]) -> str:
    """Hash of the contents of the chosen images, in any order: 16 hexadecimal characters."""
    hashes = sorted(str(value) for value in store.table["content_hash"].take(pa.array(rows)).to_pylist())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]
