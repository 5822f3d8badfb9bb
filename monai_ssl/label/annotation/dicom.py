# SPDX-License-Identifier: Apache-2.0
"""From a folder of DICOM to files that MONAI Label's local datastore takes, with a private table that leads back.

The local datastore lists NIfTI, NRRD, PNG, JPEG and TIFF, but no DICOM. A radiograph becomes a 16-bit grey PNG as a
viewer shows it (the header's window, MONOCHROME1 mirrored), a series a NIfTI in its physical values (CT in HU). Names
are made from the contents and say nothing about the patient. Which file a name stands for is in ``dicom_links.csv`` in
the app's hidden folder, readable by its owner only: it is the way back to the patient, so keep it as private as the
DICOM files.
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from monai_ssl.data import UnreadableImageError, Volume, open_radiograph, open_volumes
from monai_ssl.data.hashing import content_hash
from monai_ssl.label.annotation.folder import STATE
from monai_ssl.weights import atomic_file

__all__ = ["convert_dicom"]

logger = logging.getLogger(__name__)

LINKS = "dicom_links.csv"


def convert_dicom(source: str | os.PathLike, studies: str | os.PathLike, spatial_dims: int = 2) -> dict[str, int]:
    """Convert DICOM radiographs or series; what was converted before is kept.

    Args:
        source: folder with all its subfolders.
        studies: folder of the datastore; it is made.
        spatial_dims: 2: every file is a radiograph; 3: series are volumes.

    Returns:
        How many images were ``"written"``, ``"kept"`` and ``"refused"``; the reasons are logged.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: ``spatial_dims`` is neither 2 nor 3, or the folder holds no DICOM image.
    """
    source, studies = Path(source), Path(studies)
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}; use 2 for radiographs, 3 for series")
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    counts = {"written": 0, "kept": 0, "refused": 0}
    links: dict[str, str] = {}
    for files, image in (_radiographs if spatial_dims == 2 else _series)(source):
        if isinstance(image, str):
            logger.warning("%s: %s", files[0], image)
            counts["refused"] += 1
            continue
        array = image.array if isinstance(image, Volume) else image
        name = f"image_{content_hash(array)[:16]}" + (".nii.gz" if isinstance(image, Volume) else ".png")
        links[name] = ";".join(str(Path(file).resolve()) for file in files)
        if (studies / name).is_file():
            counts["kept"] += 1
            continue
        with atomic_file(studies / name) as file:
            file.write(_nifti(image) if isinstance(image, Volume) else _png(image))
        counts["written"] += 1
    if not links:
        raise ValueError(f"{source} holds no DICOM image that can be used ({counts['refused']} refused)")
    _write_links(studies, links)
    return counts


def _radiographs(source: Path) -> Iterator[tuple[list[Path], np.ndarray | str]]:
    """Files with their grey values (H, W) uint16, or why they can't be used."""
    for path in sorted(source.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(source).parts):
            continue
        try:
            opened = open_radiograph(path)
            if opened.kind != "dicom":
                continue
            values, meta = opened.decode()
        except UnreadableImageError as error:
            if "not an image file" not in error.reason:
                yield [path], error.reason
            continue
        low, high = meta["value_range"]
        unit = np.clip((values - low) / (high - low), 0, 1)
        yield [path], np.rint(unit * 65535).astype(np.uint16)


def _series(source: Path) -> Iterator[tuple[list[Path], Volume | str]]:
    found = open_volumes(source)
    for refusal in found.refused:
        yield list(refusal.paths), refusal.reason
    for opened in found.volumes:
        try:
            yield list(opened.paths), opened.read()
        except UnreadableImageError as error:
            yield list(opened.paths), error.reason


def _png(grey: np.ndarray) -> bytes:
    picture = io.BytesIO()
    Image.fromarray(grey).save(picture, format="png")
    return picture.getvalue()


def _nifti(volume: Volume) -> bytes:
    affine = volume.affine[:, [2, 1, 0, 3]]  # NIfTI counts the axes from the other end
    image = nib.Nifti1Image(np.ascontiguousarray(volume.array.T), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def _write_links(studies: Path, links: dict[str, str]) -> None:
    """Add to the table that leads back; nobody but its owner may read it."""
    path = studies / STATE / LINKS
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            links = {row["image"]: row["dicom_files"] for row in csv.DictReader(file)} | links
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "dicom_files"])
    writer.writerows(sorted(links.items()))
    before = os.umask(0o077)
    try:
        with atomic_file(path) as file:
            file.write(text.getvalue().encode())
    finally:
        os.umask(before)
