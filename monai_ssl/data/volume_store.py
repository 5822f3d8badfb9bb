# SPDX-License-Identifier: Apache-2.0
"""From a folder of CT and MR volumes to a store ready for training, in one call that can be repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from monai_ssl.data.curation import check_refused, held_cache, refuse_duplicates, split_once
from monai_ssl.data.index import describe_index
from monai_ssl.data.intensity import IntensityPolicy
from monai_ssl.data.store import ImageStore
from monai_ssl.data.vocabulary import MODALITIES
from monai_ssl.data.volume_index import build_volume_index
from monai_ssl.data.volume_intensity import volume_policy
from monai_ssl.data.volume_items import prepare_volumes

logger = logging.getLogger(__name__)


def open_volume_store(
    dataset_dir: str | Path | None,
    cache_dir: str | Path,
    *,
    labels_file: str | Path | None = None,
    modality: str | None = None,
    only_modality: bool = False,
    policy: str | IntensityPolicy = "auto",
    orientation: str | None = "SPL",
    spacing_mm: Sequence[float] | None = None,
    crop_foreground: bool = False,
    label_values: Sequence[int] | None = None,
    drop_duplicates: bool = True,
    split_fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    max_refused_fraction: float = 0.5,
    salt: str | bytes | None = None,
    progress: bool = True,
) -> ImageStore:
    """Index a folder of volumes, join the user's table, set copies aside, split by patient and prepare the volumes.

    Every step keeps what it has done: after an interruption, or when files were added, the same call does the rest.
    Several processes may call it at once; the first does the work and the others wait.

    Args:
        dataset_dir: folder with DICOM series, NIfTI, NRRD or MetaImage files. None: the embedded example volumes, made
            in ``cache_dir``.
        cache_dir: folder for the index (``index.parquet``, its salt), the store (``store/``) and ``splits.json``; it
            is made.
        labels_file: CSV or Parquet with the columns ``file`` and perhaps ``label_map``, or a Decathlon's
            ``dataset.json`` (see ``build_volume_index``). Default: the one at the top of ``dataset_dir``, if there is
            one.
        modality: of the volumes whose files and table do not say theirs, as NIfTI: a term of DICOM's Modality,
            ``"CT"`` or ``"MR"``. Default: that of a policy which is for one modality only.
        only_modality: leave the volumes of any other modality out of the store. The splits are dealt before, so that
            stores of one folder's CT and of its MR agree on the patients.
        policy: what becomes 0 and 1, or its name (see ``volume_policy``).
        orientation, spacing_mm, crop_foreground, label_values: see ``prepare_volumes``.
        drop_duplicates: refuse volumes with the voxels of another one, also where one is DICOM and the other NIfTI.
        split_fractions: shares for ``assign_splits``, used when the user's table gives no split to train on. Patients
            keep their split when volumes are added; it does not depend on the salt or the cache folder.
        seed: seed of those splits.
        num_workers: processes. Default: all CPUs this process may use.
        max_refused_fraction: stop if more than this share of the rows cannot be used.
        salt: secret for the hashed identifiers. Default: made once and kept beside the index.
        progress: show progress bars and what was found.

    Returns:
        The store; its table has the columns of the index, the user's and ``split``.

    Raises:
        FileNotFoundError: if the folder or the labels' file is not there.
        ValueError: if the folder has no volumes, the table contradicts itself or the folder, or an argument is wrong.
        RuntimeError: if too much cannot be used, or the disk is full.
    """
    policy = volume_policy(policy)
    modality = _checked_modality(modality, policy)
    cache_dir = Path(cache_dir)
    with held_cache(cache_dir):
        if dataset_dir is None:
            from monai_ssl.data.example_volumes import make_example_volumes  # a phantom few runs need

            dataset_dir = make_example_volumes(cache_dir / "example_volumes", num_workers=num_workers)
        index = build_volume_index(
            dataset_dir,
            cache_dir / "index.parquet",
            num_workers=num_workers,
            salt=salt,
            labels=labels_file,
            progress=progress,
        )
        if modality is not None:
            filled = pc.coalesce(index["modality"], pa.scalar(modality))
            index = index.set_column(index.schema.get_field_index("modality"), "modality", filled)
        logger.info("%s\n%s", dataset_dir, describe_index(index))
        check_refused(index, dataset_dir, max_refused_fraction, "volumes and sets of files")
        if drop_duplicates:
            index = refuse_duplicates(index, max_distance=-1, what="voxels")
        index = split_once(index, cache_dir / "splits.json", split_fractions, seed)
        if only_modality:
            index = _of_modality(index, modality, dataset_dir)
    return prepare_volumes(
        index,
        dataset_dir,
        cache_dir / "store",
        policy=policy,
        orientation=orientation,
        spacing_mm=spacing_mm,
        crop_foreground=crop_foreground,
        label_values=label_values,
        num_workers=num_workers,
        max_refused_fraction=max_refused_fraction,
        progress=progress,
    )


def _of_modality(index: pa.Table, modality: str | None, folder: str | Path) -> pa.Table:
    """Usable rows of one modality, and the refused rows."""
    if modality is None:
        raise ValueError("only_modality needs the modality, as 'CT' or 'MR'")
    refused = pc.equal(index["status"], "refused")
    wanted = pc.fill_null(pc.equal(index["modality"], modality), False)
    if not pc.any(pc.and_not(wanted, refused)).as_py():
        others = sorted({str(value) for value in index.filter(pc.invert(refused))["modality"].to_pylist()})
        raise ValueError(f"{folder}: no volume of modality {modality}; there are {', '.join(others)}")
    return index.filter(pc.or_(refused, wanted))


def _checked_modality(modality: str | None, policy: IntensityPolicy) -> str | None:
    """What volumes are that do not say so: the user's word, else what the policy is for, else nothing."""
    if modality is None:
        return {"ct": "CT", "mr": "MR"}.get(policy.kind)
    term = modality.strip().upper()
    if term not in MODALITIES:
        raise ValueError(f"modality is {modality!r}; use a term of DICOM's Modality, such as 'CT' or 'MR'")
    return term
