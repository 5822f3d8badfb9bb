# SPDX-License-Identifier: Apache-2.0
"""From a folder of radiographs to a store ready for training, in one call that can be repeated."""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from monai_ssl.data.duplicates import find_duplicates
from monai_ssl.data.files import folder_lock, is_disk_full, write_whole
from monai_ssl.data.index import build_index, describe_index
from monai_ssl.data.intensity import IntensityPolicy
from monai_ssl.data.prepare import prepare_store
from monai_ssl.data.splits import assign_splits
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
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock(cache_dir, lambda: logger.info("%s: another process prepares it; waiting", cache_dir)):
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
            _check_refused(index, dataset_dir, max_refused_fraction)
            if drop_duplicates:
                index = refuse_duplicates(index)
            if "split" not in index.column_names or index["split"].null_count == len(index):
                index = _split_once(index, cache_dir / "splits.json", split_fractions, seed)
    except OSError as error:
        if is_disk_full(error):
            raise RuntimeError(f"{cache_dir}: the disk is full; free some space and run the same again") from error
        raise
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


def _split_once(index: pa.Table, file: Path, fractions: Mapping[str, float] | None, seed: int) -> pa.Table:
    """Assign splits, and keep those that were assigned before with the same seed and fractions."""
    rule = {"seed": seed, "fractions": None if fractions is None else dict(fractions)}
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        before = known["groups"] if known["rule"] == rule else {}
    except FileNotFoundError:
        before = {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged; restore it, or delete it to have new splits made") from error
    groups = index["group_id"].to_pylist()
    column = pa.array([before.get(group) for group in groups], pa.string())
    index = index.drop_columns(["split"]) if "split" in index.column_names else index
    index = assign_splits(index.append_column("split", column), fractions, seed, allow_empty=True)
    after = before | dict(zip(groups, index["split"].to_pylist(), strict=True))
    if after != before:
        write_whole(file, json.dumps({"rule": rule, "groups": after}, indent=1).encode())
    return index


def refuse_duplicates(table: pa.Table, max_distance: int = 6) -> pa.Table:
    """Turn images that repeat another one into refused rows that name it (see ``find_duplicates``)."""
    report = find_duplicates(table, max_distance)
    if report.kept.all():
        return table
    logger.info(report.summary(table))
    paths = table["path"].to_pylist()
    columns = {name: table[name].to_pylist() for name in ("status", "reason")}
    for row, (other, distance) in enumerate(zip(report.duplicate_of, report.distance, strict=True)):
        if other >= 0:
            likeness = "has the same pixels as" if distance < 0 else "looks like"
            columns["status"][row] = "refused"
            columns["reason"][row] = f"duplicate: {likeness} {paths[other]}"
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def _check_refused(index: pa.Table, folder: str | Path, limit: float) -> None:
    refused = index.filter(pc.equal(index["status"], "refused"))
    if len(refused) == len(index) or len(refused) > limit * len(index):
        reasons = collections.Counter(refused["reason"].to_pylist()).most_common(4)
        raise RuntimeError(
            f"{folder}: {len(refused)} of {len(index)} image files cannot be used (allowed: {limit:.0%}): "
            + "; ".join(f"{count} x {reason}" for reason, count in reasons)
            + f". For instance {', '.join(refused['path'].to_pylist()[:3])}. "
            "Check the folder, or raise max_refused_fraction"
        )
