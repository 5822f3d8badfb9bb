# SPDX-License-Identifier: Apache-2.0
"""From a folder of radiographs to a store ready for training, in one call that can be repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from monai_ssl.data.curation import check_refused, held_cache, refuse_duplicates, split_once
from monai_ssl.data.index import build_index, describe_index
from monai_ssl.data.intensity import IntensityPolicy
from monai_ssl.data.prepare import prepare_store
from monai_ssl.data.store import ImageStore

logger = logging.getLogger(__name__)


def open_radiographs(
    dataset_dir: str | Path | None,
    cache_dir: str | Path,
    *,
    labels_file: str | Path | None = None,
    max_side: int = 512,
    salt: str | bytes | None = None,
    drop_duplicates: bool = True,
    num_workers: int | None = None,
    policy: IntensityPolicy | None = None,
    crop_borders: bool = False,
    split_fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    max_refused_fraction: float = 0.5,
    progress: bool = True,
) -> ImageStore:
    """Index a folder, join the user's table, set duplicates aside, split by patient and prepare the images.

    Every step keeps what it has done: after an interruption, or when files were added, the same call does the rest.
    Several processes may call it at once; the first does the work and the others wait.

    Args:
        dataset_dir: folder of radiographs. None: the embedded example data, made in ``cache_dir``.
        cache_dir: folder for the index (``index.parquet``, its salt), the store (``store/``) and ``splits.json``; it
            is made.
        labels_file: CSV or Parquet with a column ``file`` (see ``join_labels``). Default: the one at the top of
            ``dataset_dir``, if there is one.
        max_side: longest side of the stored images in pixels.
        salt: secret for the hashed identifiers. Default: made once and kept beside the index.
        drop_duplicates: refuse images that repeat another one, exactly or nearly (see ``find_duplicates``).
        num_workers: processes. Default: all CPUs this process may use.
        policy: what becomes 0 and 1. Default: ``RadiographIntensity()``.
        crop_borders: cut uniform borders off.
        split_fractions: shares for ``assign_splits``, used when the user's table has no column ``split``. Patients
            keep their split when images are added; it does not depend on the salt or the cache folder.
        seed: seed of those splits.
        max_refused_fraction: stop if more than this share of the files cannot be used.
        progress: show progress bars and what was found.

    Returns:
        The store; its table has the columns of the index, the user's and ``split``.

    Raises:
        FileNotFoundError: if the folder or the labels' file is not there.
        ValueError: if the folder has no images, or the table contradicts itself or the folder.
        RuntimeError: if too many files cannot be used, or the disk is full.
    """
    cache_dir = Path(cache_dir)
    with held_cache(cache_dir):
        if dataset_dir is None:
            from monai_ssl.data.examples import make_example_radiographs  # a phantom few runs need

            dataset_dir = make_example_radiographs(cache_dir / "example_radiographs")
        index = build_index(
            dataset_dir,
            cache_dir / "index.parquet",
            num_workers=num_workers,
            salt=salt,
            labels=labels_file,
            progress=progress,
        )
        logger.info("%s\n%s", dataset_dir, describe_index(index))
        check_refused(index, dataset_dir, max_refused_fraction)
        if drop_duplicates:
            index = refuse_duplicates(index)
        index = split_once(index, cache_dir / "splits.json", split_fractions, seed)
    return prepare_store(
        index,
        dataset_dir,
        cache_dir / "store",
        max_side=max_side,
        policy=policy,
        crop_borders=crop_borders,
        num_workers=num_workers,
        max_refused_fraction=max_refused_fraction,
        progress=progress,
    )
