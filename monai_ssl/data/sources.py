# SPDX-License-Identifier: Apache-2.0
"""From a table of sources to stores, rows, one dataset and views: radiographs, CT, MR and ultrasound in one run.

A source is a folder and what is in it, as a bundle's configuration writes it::

    sources:
      chest: {kind: images, dataset_dir: null}                    # the embedded example radiographs
      ct: {kind: volumes, dataset_dir: null, modality: CT}        # the CT of the embedded example volumes
      mr: {kind: volumes, dataset_dir: /data/brains, modality: MR, where: "site=A"}
      breast: {kind: images, dataset_dir: /data/breast_ultrasound, modality: US}

``open_mixture`` opens them, ``mixture_rows`` chooses what to train on, ``mixture_dataset`` and ``MixtureSampler`` give
the batches, ``mixture_views`` their views, ``mixture_policy`` and ``mixture_fingerprint`` what the manifest records.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from monai_ssl.data.curation import held_cache
from monai_ssl.data.datasets import StoreDataset
from monai_ssl.data.hashing import load_salt
from monai_ssl.data.intensity import IntensityPolicy, policy_from_dict
from monai_ssl.data.mixtures import SourceMixture
from monai_ssl.data.patches import VolumePatchDataset
from monai_ssl.data.pool import pool_fingerprint, pretraining_rows
from monai_ssl.data.radiographs import open_radiographs
from monai_ssl.data.source_intensity import SourceIntensity
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import nearest_name
from monai_ssl.data.vocabulary import MODALITIES
from monai_ssl.data.volume_intensity import CTIntensity
from monai_ssl.data.volume_slices import VolumeSliceDataset
from monai_ssl.data.volume_store import open_volume_store
from monai_ssl.transforms import IntensityStandardize, SourceViews, modality_views

__all__ = [
    "ImageSource",
    "mixture_dataset",
    "mixture_fingerprint",
    "mixture_geometry",
    "mixture_policy",
    "mixture_rows",
    "mixture_views",
    "open_mixture",
    "probed_images",
    "probed_source",
]

logger = logging.getLogger(__name__)

_OWN = ("kind", "dataset_dir", "modality", "where", "labels_file", "policy")
_BOTH = ("drop_duplicates", "split_fractions", "max_refused_fraction")
_OPTIONS = {
    "images": (*_OWN, *_BOTH, "max_side", "crop_borders"),
    "volumes": (*_OWN, *_BOTH, "orientation", "spacing_mm", "crop_foreground", "label_values"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class ImageSource:
    """One source, opened.

    Attributes:
        name: its name.
        kind: ``"images"`` or ``"volumes"``.
        modality: term of DICOM's Modality, None if it is not said.
        store: its images.
        where: which of them to train on, see :func:`select_rows`; None: all.
        dataset_dir: its folder, as it was given; None: embedded examples.
    """

    name: str
    kind: str
    modality: str | None
    store: ImageStore
    where: str | None = None
    dataset_dir: str | Path | None = None


def open_mixture(
    sources: Mapping[str, Mapping[str, Any]],
    cache_dir: str | Path,
    *,
    spatial_dims: int = 2,
    seed: int = 0,
    salt: str | bytes | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, ImageSource]:
    """Open every source, each into ``cache_dir/NAME``; the same call again does what is left to do.

    Args:
        sources: from the name of each source (letters, digits, _ and -) to

            * ``kind``: ``"images"``, opened by :func:`open_radiographs` (radiographs, ultrasound, photographs), or
              ``"volumes"``, opened by :func:`open_volume_store`;
            * ``dataset_dir``: its folder; None: the embedded examples of that kind;
            * ``modality``: term of DICOM's Modality (``CR``, ``DX``, ``US``, ``CT``, ``MR``, ...): chooses the views;
              of volumes also the intensity policy, and only volumes of it are prepared, among which those that do not
              say theirs. None: any; volumes by the policy of each;
            * ``where``: which images to train on, see :func:`select_rows`;
            * ``policy``: intensity policy: of volumes its name as in :func:`volume_policy`, of any kind what
              ``to_dict`` gave;
            * ``labels_file`` and further options of the function that opens it: ``drop_duplicates``,
              ``split_fractions``, ``max_refused_fraction``; of images ``max_side`` and ``crop_borders``; of volumes
              ``orientation``, ``spacing_mm``, ``crop_foreground`` and ``label_values``.
        cache_dir: folder for all of them; it is made.
        spatial_dims: of the network: 3 takes volumes only.
        seed: of the splits that are dealt, see :func:`open_radiographs`.
        salt: secret for the hashed identifiers of all sources: a patient number then means the same patient in all of
            them, so give every image one. None: a patient number holds within one folder only, and sources of the
            same folder know each other's patients.
        num_workers: processes. Default: all CPUs this process may use.
        progress: show progress bars and what was found.

    Returns:
        The sources, in the order given, which is that of their numbers.

    Raises:
        FileNotFoundError: a folder or labels' file is not there.
        ValueError: a source's name, an entry of it or its folder's content is wrong; the message names the source.
        RuntimeError: too much of a source cannot be used, or the disk is full.
    """
    wanted = {name: _checked(name, dict(source), spatial_dims) for name, source in sources.items()}
    if not wanted:
        raise ValueError("sources is empty; give at least one, with its kind and dataset_dir")
    cache_dir = Path(cache_dir)
    with held_cache(cache_dir):
        secret = load_salt(cache_dir / "_salt")
    opened = {}
    for name, source in wanted.items():
        folder = _folder(source, cache_dir, num_workers)
        own_salt = (
            hmac.new(secret, str(folder.resolve()).encode(), hashlib.sha256).hexdigest() if salt is None else salt
        )
        common = {"seed": seed, "salt": own_salt, "num_workers": num_workers, "progress": progress}
        with _naming(name):
            opened[name] = _opened(name, source, folder, cache_dir / name, common)
    return opened


def probed_source(sources: Mapping[str, ImageSource], name: str | None = None) -> ImageSource:
    """Choose the source by whose images an encoder of several sources is watched and judged.

    Args:
        sources: of :func:`open_mixture`.
        name: of the source; None: the first of flat images, or the first of all.

    Raises:
        ValueError: there is no such source; the nearest name is given.
    """
    if name is None:
        return next((s for s in sources.values() if s.kind == "images"), next(iter(sources.values())))
    if name not in sources:
        near = nearest_name(name, sources)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(sources)}"
        raise ValueError(f"there is no source {name!r}; {hint}")
    return sources[name]


def probed_images(source: ImageSource, spatial_dims: int = 2, axis: int = 0) -> Dataset:
    """What is looked at of each row of a source's store: the image, or of a volume (2D) one slice."""
    if source.kind == "volumes" and spatial_dims == 2:
        return VolumeSliceDataset(source.store, axis=axis)
    return StoreDataset(source.store)


def mixture_rows(
    sources: Mapping[str, ImageSource], held_out: Sequence[str] = ("val", "test")
) -> dict[str, np.ndarray]:
    """Choose the images of each source to pretrain on: its ``where``, and nothing held out, of any source.

    An image whose patient, or whose very pixels, another source holds out is left out too, and counted in the log.

    Args:
        sources: of :func:`open_mixture`.
        held_out: splits that must not be seen.

    Returns:
        For each source row numbers of its store's table, ascending.

    Raises:
        ValueError: a source has no image left; the message names it. See also :func:`pretraining_rows`.
    """
    held: dict[str, set[str]] = {"group_id": set(), "content_hash": set()}
    for source in sources.values():
        splits = source.store.table["split"].to_pylist()
        for column, seen in held.items():
            values = source.store.table[column].to_pylist()
            seen.update(value for value, split in zip(values, splits, strict=True) if split in held_out)
    held["group_id"].discard(None)
    rows = {}
    for name, source in sources.items():
        with _naming(name):
            chosen = pretraining_rows(source.store, held_out, source.where)
        clear = np.ones(len(chosen), dtype=bool)
        for column, seen in held.items():
            values = source.store.table[column].to_pylist()
            clear &= np.array([values[row] not in seen for row in chosen])
        if not clear.all():
            logger.info("source %s: %d images left out, whose patients other sources hold out", name, (~clear).sum())
        if not clear.any():
            raise ValueError(
                f"source {name!r}: no image is left to pretrain on; other sources hold out all of its patients"
            )
        rows[name] = chosen[clear]
    return rows


def mixture_dataset(
    sources: Mapping[str, ImageSource],
    rows: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    *,
    spatial_dims: int = 2,
    read_size: int | Sequence[int] | None = None,
    axis: int = 0,
    within_body: bool = True,
    foreground_prob: float = 0.0,
    valid_above: float | None = None,
    label_columns: Sequence[str] = ("group_id",),
    missing: Mapping[str, int | float] | None = None,
    targets: Mapping[str, np.ndarray] | None = None,
    label_map_rows: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    label_lookup: np.ndarray | None = None,
    seed: int = 0,
    cache: str = "none",
) -> SourceMixture:
    """Make one dataset of all sources: images as they are, of volumes slices (2D) or patches (3D).

    Args:
        sources: of :func:`open_mixture`.
        rows: rows of each source; None: :func:`mixture_rows`.
        spatial_dims: 2 or 3.
        read_size: of patches (3D), see :class:`VolumePatchDataset`.
        axis: of slices (2D), see :class:`VolumeSliceDataset`.
        within_body: likewise.
        foreground_prob: of patches (3D), see :class:`VolumePatchDataset`.
        valid_above: give ``"valid"`` of volumes, see :class:`VolumePatchDataset`.
        label_columns: columns to give with each item, of each source those it has.
        missing: what stands for a label that a source does not have, see :class:`SourceMixture`.
        targets: for hybrid pretraining, of some sources: the class (M,) or the findings (M, K) of each row of the
            source's store, -1 where not known. Every item then has ``"label"``, which is -1 in the other sources.
        label_map_rows: likewise, of volumes (3D): of some sources the rows whose label maps are shown. Every item then
            has ``"label_map"`` and ``"labelled"``, see :class:`VolumePatchDataset`.
        label_lookup: see ``lookup`` there.
        seed: of the slices and patches.
        cache: ``"none"`` or ``"memory"``, see :class:`StoreDataset`.

    Raises:
        ValueError: no source has a column, or an argument is wrong; see also the datasets.
    """
    _check_labels(sources, targets or {}, label_map_rows or {}, spatial_dims)
    rows = mixture_rows(sources) if rows is None else rows
    for column in label_columns:
        if not any(column in source.store.table.column_names for source in sources.values()):
            raise ValueError(f"no source has a column {column!r}; give it in the labels_file of one")
    volumes = {"seed": seed, "valid_above": valid_above}
    datasets = {}
    for name, source in sources.items():
        columns = [column for column in label_columns if column in source.store.table.column_names]
        common = {"label_columns": columns, "cache": cache}
        with _naming(name):
            if source.kind == "images":
                datasets[name] = StoreDataset(source.store, rows[name], **common)
            elif spatial_dims == 2:
                volumes_2d = volumes | {"axis": axis, "within_body": within_body}
                datasets[name] = VolumeSliceDataset(source.store, rows[name], **volumes_2d, **common)
            else:
                volumes_3d = volumes | {"read_size": read_size, "foreground_prob": foreground_prob}
                if label_map_rows is not None:
                    shown = label_map_rows.get(name, ())
                    volumes_3d |= {"label_maps": True, "labelled_rows": shown, "lookup": label_lookup}
                datasets[name] = VolumePatchDataset(source.store, rows[name], **volumes_3d, **common)
    for name, known in (targets or {}).items():
        datasets[name].labels["label"] = torch.from_numpy(np.asarray(known, dtype=np.int64)[datasets[name].rows])
    if targets:
        width = {np.shape(known)[1:] for known in targets.values()}.pop()
        missing = {"label": torch.full(width, -1) if width else -1} | dict(missing or {})
    return SourceMixture(datasets, missing=missing)


def _check_labels(
    sources: Mapping[str, ImageSource], targets: Mapping[str, Any], maps: Mapping[str, Any], spatial_dims: int
) -> None:
    unknown = sorted({*targets, *maps} - set(sources))
    if unknown:
        raise ValueError(f"labels are given for the sources {unknown}, but the sources are {list(sources)}")
    if maps and spatial_dims != 3:
        raise ValueError("label maps are shown of patches of volumes only: spatial_dims=3")
    if len({np.shape(known)[1:] for known in targets.values()}) > 1:
        raise ValueError("the targets of all sources must answer one question: as many findings, or classes")
    for name, known in targets.items():
        if len(known) != len(sources[name].store):
            raise ValueError(f"source {name!r}: {len(known)} targets for {len(sources[name].store)} images")


def mixture_views(
    sources: Mapping[str, ImageSource],
    size: int | tuple[int, ...],
    *,
    spatial_dims: int = 2,
    standardize: IntensityStandardize | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **common: Any,
) -> SourceViews:
    """Give each source the views of its modality, see :func:`monai_ssl.transforms.modality_views`.

    Args:
        sources: of :func:`open_mixture`.
        size: side(s) of the views in pixels.
        spatial_dims: 2 or 3.
        standardize: replaces the common standardisation, for all.
        options: further arguments of a source's policy of views.
        common: those of all sources' policies, such as ``num_views`` or ``band_energy_prob``.

    Raises:
        ValueError: ``options`` are for a source that does not exist, or an argument is wrong.
        TypeError: a policy of views does not know an option.
    """
    options = dict(options or {})
    unknown = sorted(set(options) - set(sources))
    if unknown:
        raise ValueError(f"options are given for the sources {unknown}, but the sources are {list(sources)}")
    views = {}
    for name, source in sources.items():
        policy = source.store.policy
        given = {"limits_hu": policy.window_hu} if isinstance(policy, CTIntensity) and source.kind == "volumes" else {}
        given |= (
            {"standardize": standardize, "volumes": source.kind == "volumes"} | common | dict(options.get(name, {}))
        )
        views[name] = modality_views(source.modality, size, spatial_dims, **given)
    return SourceViews(views, list(sources))


def mixture_policy(sources: Mapping[str, ImageSource]) -> IntensityPolicy:
    """The policies of all sources in one, for :class:`monai_ssl.evaluation.Preprocessing` and so for the manifest."""
    policies = {name: source.store.policy for name, source in sources.items()}
    first = next(iter(policies.values()))
    return first if all(policy == first for policy in policies.values()) else SourceIntensity(policies=policies)


def mixture_geometry(sources: Mapping[str, ImageSource]) -> dict[str, Any]:
    """``spacing_mm`` and ``orientation`` that all sources were prepared at; None where they differ, or have none."""
    first, *others = (source.store.recipe for source in sources.values())
    return {
        key: first.get(key) if all(other.get(key) == first.get(key) for other in others) else None
        for key in ("spacing_mm", "orientation")
    }


def mixture_fingerprint(sources: Mapping[str, ImageSource], rows: Mapping[str, Sequence[int]]) -> str:
    """Hash of the contents of the chosen images of all sources, in any order: 16 hexadecimal characters."""
    parts = sorted(pool_fingerprint(source.store, rows[name]) for name, source in sources.items())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _naming:
    """Put the source's name before the message of an error about its data or options."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if kind in (ValueError, RuntimeError, FileNotFoundError):
            raise kind(f"source {self.name!r}: {error}") from error


def _checked(name: str, source: dict[str, Any], spatial_dims: int) -> dict[str, Any]:
    """A source's entries, or an error that says which of them is wrong."""
    if not _NAME.fullmatch(str(name)):
        raise ValueError(f"source {name!r}: a name is made of letters, digits, _ and -; a folder is called by it")
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}; use 2 or 3")
    kind = source.get("kind")
    if kind not in _OPTIONS:
        raise ValueError(f"source {name!r}: kind is {kind!r}; use 'images' or 'volumes'")
    if kind == "images" and spatial_dims == 3:
        raise ValueError(f"source {name!r}: images are flat, and spatial_dims is 3; a 3D network takes volumes only")
    for key in source:
        if key not in _OPTIONS[kind]:
            near = nearest_name(key, _OPTIONS[kind])
            hint = f"did you mean {near!r}?" if near else f"of {kind} there are {', '.join(_OPTIONS[kind])}"
            raise ValueError(f"source {name!r}: no entry is called {key!r}; {hint}")
    if source.get("modality") is not None:
        term = str(source["modality"]).strip().upper()
        if term not in MODALITIES:
            raise ValueError(f"source {name!r}: modality is {source['modality']!r}; use a term of DICOM, such as 'CT'")
        source["modality"] = term
    if isinstance(source.get("policy"), Mapping):
        with _naming(name):
            source["policy"] = policy_from_dict(source["policy"])
    elif kind == "images" and not isinstance(source.get("policy"), IntensityPolicy | None):
        raise ValueError(f"source {name!r}: policy is {source['policy']!r}; of images it is what to_dict gave, or null")
    return source


def _folder(source: Mapping[str, Any], cache_dir: Path, num_workers: int | None) -> Path:
    """The source's folder, or that of the embedded examples, which all sources share."""
    if source.get("dataset_dir") is not None:
        return Path(source["dataset_dir"])
    if source["kind"] == "images":
        from monai_ssl.data.examples import make_example_radiographs  # phantoms few runs need

        return make_example_radiographs(cache_dir / "_examples" / "radiographs")
    from monai_ssl.data.example_volumes import make_example_volumes

    return make_example_volumes(cache_dir / "_examples" / "volumes", num_workers=num_workers)


def _opened(name: str, source: Mapping[str, Any], folder: Path, cache_dir: Path, common: dict[str, Any]) -> ImageSource:
    """Open one source by the function for its kind."""
    kind, modality = source["kind"], source.get("modality")
    known = {key: value for key, value in source.items() if key not in ("kind", "dataset_dir", "modality", "where")}
    if kind == "images":
        store = open_radiographs(folder, cache_dir, **known, **common)
    else:
        if known.get("policy") is None:
            known["policy"] = modality.lower() if modality in ("CT", "MR") else "auto"
        only = {"modality": modality, "only_modality": modality is not None}
        store = open_volume_store(folder, cache_dir, **known, **only, **common)
    return ImageSource(name, kind, modality, store, source.get("where"), source.get("dataset_dir"))
