# SPDX-License-Identifier: Apache-2.0
"""A probe for volumes: can the encoder tell which organ a small patch is about?

Labels of whole volumes are few; label maps give a thousand labelled places in a few dozen volumes. They watch and judge
a pretraining, and never train it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from monai_ssl.data.datasets import PadCollate
from monai_ssl.data.places import LabelledPlaces
from monai_ssl.data.sources import ImageSource, probed_source
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.labelled_rows import patients_of, rows_by_split
from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.handlers import OnlineProbe
from monai_ssl.transforms import IntensityStandardize

__all__ = ["PlaceProbe", "mixture_place_probe", "online_place_probe", "place_probe"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlaceProbe:
    """Labelled places of a store, and how their patches reach the encoder.

    Attributes:
        places: the patches, of all splits together.
        labels: the question; its rows, targets and groups count places, not volumes.
        view: the standardisation.
    """

    places: Dataset
    labels: ClassificationLabels
    view: IntensityStandardize


def place_probe(
    store: ImageStore,
    preprocessing: Preprocessing,
    size: Sequence[int],
    classes: Sequence[str] | Mapping[str, int] | None = None,
    *,
    split: str = "val",
    per_class: int = 2,
    seed: int = 0,
) -> PlaceProbe | None:
    """Draw the places of the splits ``"train"`` and ``split``.

    Args:
        store: of the volumes.
        preprocessing: how images reach the encoder; of it only the standardisation counts.
        size: voxels (D, H, W) of a patch.
        classes: names of the label maps' values 1, 2, ..., or names with their values. None: all values that occur.
        split: whose places are scored.
        per_class: places of each class in a volume; scored are four times as many.
        seed: of the draws.

    Returns:
        The probe, or None where there are no label maps in both splits, which is logged.

    Raises:
        ValueError: a class is in no label map of a split, or a number is out of range.
    """
    mapped = _mapped(store)
    try:
        rows, _ = rows_by_split(store.table, mapped, ("train", split))
    except ValueError as error:
        logger.info("no probe of organs, training goes on without: %s", error)
        return None
    if classes is None:
        classes = _all_values([store])
    elif not isinstance(classes, Mapping):
        classes = {name: value for value, name in enumerate(classes, 1)}
    drawn = [
        LabelledPlaces(store, rows[name], size, classes, per_class=count, seed=seed)
        for name, count in (("train", per_class), (split, 4 * per_class))
    ]
    for name, part in zip(("train", split), drawn, strict=True):
        lacking = sorted(set(range(len(part.class_names))) - set(part.labels.tolist()))
        if lacking:
            raise ValueError(f"no label map of the split {name!r} holds {part.class_names[lacking[0]]!r}")
    places = drawn[0].joined(drawn[1])
    labels = ClassificationLabels(
        task="multiclass",
        class_names=places.class_names,
        targets=places.labels,
        groups=patients_of(store.table)[places.rows],
        rows={"train": np.arange(len(drawn[0])), split: np.arange(len(drawn[0]), len(places))},
        label_fraction=1.0,
        split_hash="",
        subset_hash="",
        label_column="label_map",
    )
    logger.info("places for the probe of organs\n%s", labels.describe())
    return PlaceProbe(places, labels, preprocessing.standardize())


def mixture_place_probe(
    sources: Mapping[str, ImageSource],
    preprocessing: Preprocessing,
    size: Sequence[int],
    classes: Sequence[str] | Mapping[str, int] | None = None,
    *,
    names: Sequence[str] | None = None,
    split: str = "val",
    per_class: int = 2,
    seed: int = 0,
) -> PlaceProbe | None:
    """Draw the places of several sources and ask one question about all of them.

    Args:
        sources: of :func:`monai_ssl.data.open_mixture`; those without label maps in both splits are passed over.
        preprocessing: see :func:`place_probe`, as all others.
        size: likewise.
        classes: of all chosen sources alike.
        names: of the sources to take, where the label maps of others mean something else; None: all.
        split: likewise.
        per_class: likewise.
        seed: likewise.

    Returns:
        The probe, or None where no source has label maps in both splits.

    Raises:
        ValueError: a class is in no label map of a split of a source (the message names it), or a number is out of
            range.
    """
    chosen = [probed_source(sources, name) for name in (sources if names is None else names)]
    volumes = {source.name: source.store for source in chosen if source.kind == "volumes"}
    if classes is None:
        classes = _all_values(volumes.values())
    probes = []
    for name, store in volumes.items():
        try:
            probe = place_probe(store, preprocessing, size, classes, split=split, per_class=per_class, seed=seed)
        except ValueError as error:
            raise ValueError(f"source {name!r}: {error}") from error
        if probe is None:
            logger.info("source %s: not probed", name)
        else:
            probes.append(probe)
    if not probes:
        return None
    starts = np.cumsum([0, *(len(probe.places) for probe in probes[:-1])])
    rows = {
        name: np.concatenate([probe.labels.rows[name] + start for probe, start in zip(probes, starts, strict=True)])
        for name in ("train", split)
    }
    labels = replace(
        probes[0].labels,
        targets=np.concatenate([probe.labels.targets for probe in probes]),
        groups=np.concatenate([probe.labels.groups for probe in probes]),
        rows=rows,
    )
    return PlaceProbe(ConcatDataset([probe.places for probe in probes]), labels, probes[0].view)


def _mapped(store: ImageStore) -> np.ndarray:
    return np.array([store.has_label_map(row) for row in range(len(store))])


def _all_values(stores: Iterable[ImageStore]) -> dict[str, int]:
    """A class for every value of the label maps."""
    found = {
        int(value)
        for store in stores
        for row in np.flatnonzero(_mapped(store))
        for value in store.label_values(int(row))
    }
    return {f"label {value}": value for value in sorted(found - {0})}


def online_place_probe(
    probe: PlaceProbe | None, *, split: str = "val", every_epochs: int = 1, batch_size: int = 32
) -> OnlineProbe | None:
    """Build the handler that scores the places of ``split`` by their nearest neighbours while training goes on.

    Args:
        probe: of :func:`place_probe`; None: there is no handler.
        split: whose places are scored.
        every_epochs: epochs between measurements.
        batch_size: of the feature extraction.
    """
    if probe is None:
        return None
    bank, query = (
        DataLoader(Subset(probe.places, probe.labels.rows[name].tolist()), batch_size, collate_fn=PadCollate())
        for name in ("train", split)
    )
    return OnlineProbe(bank, query, view=probe.view, every_epochs=every_epochs)
