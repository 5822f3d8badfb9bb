# SPDX-License-Identifier: Apache-2.0
"""Several datasets as one, whose items say where they come from: radiographs, slices, patches and more in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from monai_ssl.data.datasets import PaddedItems

__all__ = ["SourceMixture"]


_OWN_NUMBERS = 1 << 32  # of groups that are numbers already: each source gets a block of its own


class SourceMixture(Dataset):
    """Items of several sources with ``"source"`` (int), the number of the source each comes from.

    An index is a code, ``draw * len(mixture) + i``. Sources follow one another: item ``i`` belongs to the source within
    whose part of ``0 ... len(mixture) - 1`` it lies. A dataset with a true ``draws_anew`` (``VolumePatchDataset``,
    ``VolumeSliceDataset``) gets the draw passed on in its own code, any other just its own index.
    ``MixtureSampler`` yields such codes.

    What means something within one source only is made to hold for all:

    * ``"index"`` is counted on: rows of the first source's store, then those of the second. ``locate_index`` goes back.
    * ``"group_id"`` (patients) is numbered anew over all sources: two of them share a number only where their
      identifiers are the same salted hash. ``"positive_id"`` numbers positives within a source, and each source gets
      numbers of its own. Unknown, -1, stays -1.

    Items fetched together for one batch keep the entries of their source if all come from one; of several sources only
    those entries are kept that all of them have, after ``missing`` was filled in.

    Args:
        datasets: from the source's name to its dataset; their order numbers the sources.
        missing: entries for items whose source has none, such as ``{"label": -1}`` for images without a label; numbers,
            or tensors where the others have such.

    Attributes:
        names: of the sources, in the order of their numbers.
        datasets: in that order.
        sizes: items of each.

    Raises:
        ValueError: there is no dataset, one is empty, or some give 2D and others 3D images.
    """

    def __init__(self, datasets: Mapping[str, Dataset], *, missing: Mapping[str, Any] | None = None):
        if not datasets:
            raise ValueError("a mixture needs the dataset of at least one source")
        self.names = list(datasets)
        self.datasets = list(datasets.values())
        self.sizes = [len(dataset) for dataset in self.datasets]
        self.missing = dict(missing or {})
        empty = [name for name, size in zip(self.names, self.sizes, strict=True) if not size]
        if empty:
            raise ValueError(
                f"the source {empty[0]!r} has no items; leave it out, or look why nothing of it was chosen"
            )
        dims = {name: _spatial_dims(dataset) for name, dataset in zip(self.names, self.datasets, strict=True)}
        if len({n for n in dims.values() if n is not None}) > 1:
            raise ValueError(
                f"the sources give images of different dimensions ({dims}); one network takes one kind: "
                "VolumeSliceDataset gives 2D slices of volumes"
            )
        self.draws_anew = [bool(getattr(dataset, "draws_anew", False)) for dataset in self.datasets]
        self.starts = np.cumsum([0, *self.sizes])
        self._index_starts = np.cumsum([0, *(_rows(dataset) for dataset in self.datasets)])
        self._groups = _common_groups(self.datasets)

    def __len__(self) -> int:
        """Items of all sources."""
        return int(self.starts[-1])

    def locate(self, code: int) -> tuple[int, int]:
        """Number of the source that ``mixture[code]`` comes from, and the index in its dataset.

        Raises:
            IndexError: if the code is negative.
        """
        if code < 0:
            raise IndexError(f"{code}: a code is draw * {len(self)} + item, 0 or more")
        draw, i = divmod(int(code), len(self))
        source = int(np.searchsorted(self.starts, i, side="right")) - 1
        own = i - int(self.starts[source])
        return source, own + draw * self.sizes[source] if self.draws_anew[source] else own

    def locate_index(self, index: int) -> tuple[int, int]:
        """Number of the source, and the row of its store, of an item's ``"index"``."""
        source = int(np.searchsorted(self._index_starts, index, side="right")) - 1
        return source, int(index) - int(self._index_starts[source])

    def __getitem__(self, code: int) -> dict[str, Any]:
        return self.__getitems__([code])[0]

    def __getitems__(self, codes: Sequence[int]) -> list[dict[str, Any]]:
        """Fetch a batch at once; one from a single source stays in its own canvas."""
        located = [self.locate(code) for code in codes]
        sources = sorted({source for source, _ in located})
        if len(sources) == 1:
            return self._fetch(sources[0], [own for _, own in located])
        items: list[dict[str, Any]] = [{}] * len(codes)
        for source in sources:
            places = [place for place, (number, _) in enumerate(located) if number == source]
            for place, item in zip(places, self._fetch(source, [located[p][1] for p in places]), strict=True):
                items[place] = item
        common = [key for key in items[0] if all(key in item for item in items)]
        return [{key: item[key] for key in common} for item in items]

    def _fetch(self, source: int, indices: list[int]) -> list[dict[str, Any]]:
        """Items of one source, as they are in the mixture."""
        dataset = self.datasets[source]
        items = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]
        changed = [self._changed(source, dict(item)) for item in items]
        return PaddedItems(changed, items.canvases, items.extent) if isinstance(items, PaddedItems) else changed

    def _changed(self, source: int, item: dict[str, Any]) -> dict[str, Any]:
        item["source"] = source
        if "index" in item:
            item["index"] = int(item["index"]) + int(self._index_starts[source])
        for key, known in (("group_id", self._groups[source]), ("positive_id", None)):
            if item.get(key, -1) >= 0:
                own = int(item[key])
                item[key] = (source + 1) * _OWN_NUMBERS + own if known is None else known[own]
        return self.missing | item


def _common_groups(datasets: Sequence[Dataset]) -> list[list[int] | None]:
    """For each dataset whose groups have names: the number of each in the mixture."""
    known: dict[str, int] = {}
    numbers: list[list[int] | None] = []
    for dataset in datasets:
        names = getattr(dataset, "classes", {}).get("group_id")
        numbers.append(None if names is None else [known.setdefault(name, len(known)) for name in names])
    return numbers


def _spatial_dims(dataset: Dataset) -> int | None:
    """Dimensions of a dataset's images; None if it does not say."""
    store = getattr(dataset, "store", None)
    return getattr(dataset, "spatial_dims", None if store is None else store.spatial_dims)


def _rows(dataset: Dataset) -> int:
    """How many numbers an item's "index" may have."""
    return len(getattr(dataset, "store", dataset))
