# SPDX-License-Identifier: Apache-2.0
"""Random patches of the volumes of a store, with their label maps, read in part and the same for any worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from monai_ssl.data.cache import SharedImageCache
from monai_ssl.data.datasets import PADDED_KEYS, PaddedItems, StoreDataset, corner, new_canvas
from monai_ssl.data.store import ImageStore
from monai_ssl.losses import IGNORED_LABEL


class VolumePatchDataset(StoreDataset):
    """Patches as items ``{"image": (1, *patch) float32 in [0, 1], "index": row of store.table, ...}``.

    An index is a code: ``dataset[draw * len(dataset) + i]`` is item ``i`` at a place drawn from (seed, draw, i) and
    nothing else, so the patches depend neither on the workers nor on their order. ``dataset[i]`` is draw 0.
    ``PatchSampler`` yields such codes. Along an axis where the volume is smaller than ``read_size`` it is read whole;
    ``PadCollate`` pads the batch and says each patch's ``extent``.

    Args:
        store: a store of volumes.
        rows: rows of ``store.table`` to use, or a mask of booleans. None: all.
        read_size: voxels to read along each axis at most: one number, or one for each of (D, H, W). None: everything.
        seed: seed of the places.
        label_columns: see ``StoreDataset``.
        label_maps: give ``"label_map"`` (1, *patch) uint8 too; every row must have one, or with ``labelled_rows`` each
            of those: the others' are :data:`monai_ssl.losses.IGNORED_LABEL` (255) throughout.
        foreground_prob: chance that the patch is centred, as far as the edges allow, on a voxel of a label (each label
            of the volume but 0 is as likely as the others) or, without label map, in the box of the body. Else all
            places are equally likely.
        valid_above: give ``"valid"`` (1, *patch) bool too: where the patch is brighter than this, in [0, 1]. Masked
            modelling counts its error there only, so that air around the patient teaches nothing.
        blanked_labels: values of the label map that mark voxels an anonymisation has blanked (a face, say); they are
            not valid.
        cache: ``"none"``: decompress the blocks that a patch touches each time; ``"memory"``: keep whole volumes, in
            their stored type, in memory that all workers share, and cut patches from it.
        labelled_rows: see ``StoreDataset``; label maps of other rows are hidden too.
        positives: see ``StoreDataset``.
        lookup: (256,) uint8, the class that each value of a stored label map is given as; None: as they are.

    Raises:
        ValueError: if the store holds no volumes, rows lack a label map, an argument is out of range, or the cache
            does not fit into memory.

    Attributes:
        draws_anew: an index is such a code, so the same volume may come again and again.
    """

    draws_anew: ClassVar[bool] = True

    def __init__(
        self,
        store: ImageStore,
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        read_size: int | Sequence[int] | None = None,
        seed: int = 0,
        label_columns: Sequence[str] | Mapping[str, Sequence[str] | None] | None = None,
        label_maps: bool = False,
        foreground_prob: float = 0.0,
        valid_above: float | None = None,
        blanked_labels: Sequence[int] = (),
        cache: str = "none",
        positives: Sequence[int] | np.ndarray | None = None,
        labelled_rows: Sequence[int] | np.ndarray | None = None,
        lookup: np.ndarray | None = None,
    ):
        if not store.has_volumes:
            raise ValueError(f"{store.folder} is no store of volumes; prepare_volumes makes one")
        if seed < 0 or not 0 <= foreground_prob <= 1:
            raise ValueError(f"seed is {seed} (0 or more), foreground_prob {foreground_prob} (0 to 1)")
        super().__init__(store, rows, label_columns, cache, positives, labelled_rows)
        self.read_size = _three(read_size)
        self.lookup = lookup
        self.seed = seed
        self.label_maps = label_maps
        self.foreground_prob = foreground_prob
        self.valid_above = valid_above
        self.blanked_labels = tuple(blanked_labels)
        self._keys = [key for key in PADDED_KEYS if key == "image" or self._gives(key)]
        self._maps: SharedImageCache | None = None
        if label_maps or self.blanked_labels:
            needed = [i for i in range(len(self)) if self._shows_map(i) or self.blanked_labels]
            missing = [int(self.rows[i]) for i in needed if not store.has_label_map(int(self.rows[i]))]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(self.rows)} rows have no label map (row {missing[0]} first); choose rows "
                    "for which store.has_label_map(row) is true"
                )
            if cache == "memory":
                shapes = [store.shape(row) for row in self.rows]
                self._maps = SharedImageCache(shapes, [np.dtype(np.uint8)] * len(shapes))
        self._targets = [self._target(i) for i in range(len(self))] if foreground_prob > 0 else []

    def place(self, code: int) -> tuple[slice, slice, slice]:
        """Box of the stored volume that ``dataset[code]`` reads.

        Raises:
            IndexError: if the code is negative.
        """
        if code < 0:
            raise IndexError(f"{code}: a code is draw * {len(self)} + item, 0 or more")
        draw, i = divmod(int(code), len(self))
        row = int(self.rows[i])
        shape = np.array(self.store.shape(row))
        size = shape if self.read_size is None else np.minimum(shape, self.read_size)
        random = np.random.default_rng([self.seed, draw, i])
        start = random.integers(0, shape - size + 1)
        if self.foreground_prob > random.random():
            centre = self._centre(i, random)
            if centre is not None:
                start = np.clip(centre - size // 2, 0, shape - size)
        return tuple(slice(int(first), int(first + side)) for first, side in zip(start, size, strict=True))

    def _gives(self, key: str) -> bool:
        return self.label_maps if key == "label_map" else self.valid_above is not None or bool(self.blanked_labels)

    def _shows_map(self, i: int) -> bool:
        """Whether an item has a label map that is not hidden."""
        return self.label_maps and (self.shows_labels is None or bool(self.shows_labels[i]))

    def _target(self, i: int) -> list[np.ndarray]:
        """Where patches are centred: for each label an array (n, 3) of voxels, or first and last voxel of the body."""
        row = int(self.rows[i])
        if not self._shows_map(i):
            box = self.store.foreground(row)
            return [np.array([[part.start for part in box], [part.stop - 1 for part in box]])]
        points = self.store.label_points(row)
        numbers = self._numbers(points[:, 0])
        return [points[numbers == number, 1:] for number in np.unique(numbers[numbers > 0])]

    def _numbers(self, values: np.ndarray) -> np.ndarray:
        """Return what values of a stored label map are given as."""
        return values if self.lookup is None else self.lookup[values]

    def _centre(self, i: int, random: np.random.Generator) -> np.ndarray | None:
        """A voxel of a label or of the body; None if no voxel has a label."""
        target = self._targets[i]
        if not self._shows_map(i):
            return random.integers(*target[0], endpoint=True)
        if not target:
            return None
        voxels = target[random.integers(len(target))]
        return voxels[random.integers(len(voxels))]

    def __getitems__(self, indices: Sequence[int]) -> PaddedItems:
        """Fetch a batch at once: the patches are written into one canvas, which ``PadCollate`` needs not copy."""
        boxes = [self.place(code) for code in indices]
        sizes = np.array([[part.stop - part.start for part in box] for box in boxes], dtype=np.int64)
        shape = (len(boxes), 1, *sizes.max(axis=0).tolist())
        canvases = {key: new_canvas(shape, PADDED_KEYS[key]) for key in self._keys}
        items = []
        for place, (code, box) in enumerate(zip(indices, boxes, strict=True)):
            i = int(code) % len(self)
            row = int(self.rows[i])
            parts = {
                key: corner(canvas[place, 0].numpy(), sizes[place], clear=True) for key, canvas in canvases.items()
            }
            np.divide(self._part(i, row, box), self.store.levels(row), out=parts["image"], dtype=np.float32)
            if self.label_maps:
                shown = self._shows_map(i)
                parts["label_map"][...] = self._numbers(self._label_part(i, row, box)) if shown else IGNORED_LABEL
            if "valid" in parts:
                parts["valid"][...] = True if self.valid_above is None else parts["image"] > self.valid_above
            if self.blanked_labels:
                parts["valid"][np.isin(self._label_part(i, row, box), self.blanked_labels)] = False
            item: dict[str, Any] = {key: torch.from_numpy(part)[None] for key, part in parts.items()}
            items.append(item | {"index": row} | self._labels_of(i))
        return PaddedItems(items, canvases, torch.from_numpy(sizes))

    def _part(self, i: int, row: int, box: tuple[slice, ...]) -> np.ndarray:
        return self.store.read_stored(row, box) if self._cache is None else self._stored(i, row)[box]

    def _label_part(self, i: int, row: int, box: tuple[slice, ...]) -> np.ndarray:
        if self._maps is None:
            return self.store.read_label_map(row, box)
        labels = self._maps.get(i)
        if labels is None:
            labels = self.store.read_label_map(row)
            self._maps.put(i, labels)
        return labels[box]


def _three(read_size: int | Sequence[int] | None) -> np.ndarray | None:
    if read_size is None:
        return None
    size = np.array([read_size] * 3 if isinstance(read_size, (int, np.integer)) else read_size)
    if size.shape != (3,) or not np.issubdtype(size.dtype, np.integer) or size.min() < 1:
        raise ValueError(f"read_size is {read_size}; use a whole number above 0, or three along (D, H, W)")
    return size
