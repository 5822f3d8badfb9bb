# SPDX-License-Identifier: Apache-2.0
"""Single slices of the volumes of a store as 2D images, so that CT and MR feed the network of radiographs too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from monai_ssl.data.datasets import PaddedItems
from monai_ssl.data.patches import VolumePatchDataset
from monai_ssl.data.store import ImageStore

__all__ = ["VolumeSliceDataset"]


class VolumeSliceDataset(VolumePatchDataset):
    """Slices as items ``{"image": (1, H, W) float32 in [0, 1], "index": row of store.table, ...}``.

    An index is a code, as for ``VolumePatchDataset``: ``dataset[draw * len(dataset) + i]`` is a slice of volume ``i``
    drawn from (seed, draw, i) and nothing else, all slices equally likely. Only the blocks a slice touches are read and
    decompressed: 16 slices' worth along the first axis, 32 along the others.

    Args:
        store: a store of volumes.
        rows: rows of ``store.table`` to use, or a mask of booleans. None: all.
        axis: across which array axis to slice. In a store of orientation ``"SPL"``: 0 axial, 1 coronal, 2 sagittal. The
            two others stay in their order.
        seed: seed of the slices.
        within_body: only slices within the box of the body (``store.foreground``), and not the air beyond it.
        label_columns: see ``StoreDataset``.
        label_maps: give ``"label_map"`` (1, H, W) uint8 too; every row must have one.
        valid_above: give ``"valid"`` (1, H, W) bool too, see ``VolumePatchDataset``.
        blanked_labels: see ``VolumePatchDataset``.
        cache: see ``VolumePatchDataset``; ``"memory"`` keeps whole volumes.
        positives: see ``StoreDataset``.

    Raises:
        ValueError: if the store holds no volumes, rows lack a label map, an argument is out of range, or the cache
            does not fit into memory.
    """

    spatial_dims: ClassVar[int] = 2

    def __init__(
        self,
        store: ImageStore,
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        axis: int = 0,
        seed: int = 0,
        within_body: bool = True,
        label_columns: Sequence[str] | Mapping[str, Sequence[str] | None] | None = None,
        label_maps: bool = False,
        valid_above: float | None = None,
        blanked_labels: Sequence[int] = (),
        cache: str = "none",
        positives: Sequence[int] | np.ndarray | None = None,
    ):
        if axis not in (0, 1, 2):
            raise ValueError(f"axis is {axis}; use 0, 1 or 2 of the stored axes (D, H, W)")
        super().__init__(
            store,
            rows,
            seed=seed,
            label_columns=label_columns,
            label_maps=label_maps,
            valid_above=valid_above,
            blanked_labels=blanked_labels,
            cache=cache,
            positives=positives,
        )
        self.axis = axis
        self.within_body = within_body

    def place(self, code: int) -> tuple[slice, slice, slice]:
        """Box of the stored volume that ``dataset[code]`` reads: one slice of it.

        Raises:
            IndexError: if the code is negative.
        """
        if code < 0:
            raise IndexError(f"{code}: a code is draw * {len(self)} + item, 0 or more")
        draw, i = divmod(int(code), len(self))
        row = int(self.rows[i])
        box = [slice(0, side) for side in self.store.shape(row)]
        among = self.store.foreground(row)[self.axis] if self.within_body else box[self.axis]
        chosen = int(np.random.default_rng([self.seed, draw, i]).integers(among.start, among.stop))
        box[self.axis] = slice(chosen, chosen + 1)
        return tuple(box)

    def __getitems__(self, indices: Sequence[int]) -> PaddedItems:
        """Fetch a batch at once: the slices are written into one canvas, which ``PadCollate`` needs not copy."""
        thick = super().__getitems__(indices)  # one voxel along the axis
        items = [
            {key: value.squeeze(self.axis + 1) if key in self._keys else value for key, value in item.items()}
            for item in thick
        ]
        canvases = {key: canvas.squeeze(self.axis + 2) for key, canvas in thick.canvases.items()}
        kept = [axis for axis in range(3) if axis != self.axis]
        return PaddedItems(items, canvases, thick.extent[:, kept])
