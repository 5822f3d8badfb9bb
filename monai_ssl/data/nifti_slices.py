# SPDX-License-Identifier: Apache-2.0
"""NIfTI files as one slice: the third axis counts as frames, as in a multi-frame DICOM image."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from monai_ssl.data.dicom_pixels import MAX_FRAME_BYTES, choose_frame
from monai_ssl.data.errors import UnreadableImageError

BROKEN_NIFTI = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, KeyError, zlib.error)


def open_nifti(path: str | Path, keep_open: bool = False) -> tuple[nib.Nifti1Image, dict]:
    """Read the header of a NIfTI file.

    Args:
        path: the file.
        keep_open: hold the file open as long as the image lives, so that parts of a compressed file that are read in
            their order are decompressed once. Not for images that go to another process.

    Returns:
        The lazy nibabel image and its facts: bits_stored, rows, columns, frames, photometric, pixel_spacing_mm.

    Raises:
        UnreadableImageError: if the header is broken, has fewer than two axes, or is not made of plain numbers.
    """
    try:
        image = nib.load(path, keep_file_open=True if keep_open else None)
        shape, kind = image.shape, image.get_data_dtype()
        zooms = [abs(float(zoom)) for zoom in image.header.get_zooms()]
    except (FileNotFoundError, PermissionError):
        raise
    except BROKEN_NIFTI as error:
        raise UnreadableImageError("the NIfTI header is broken or cut off", path) from error
    if len(shape) < 2 or min(shape) < 1:
        raise UnreadableImageError("a NIfTI file with fewer than two axes or an empty one", path)
    if kind.kind not in "iuf":
        raise UnreadableImageError("NIfTI values that are not plain numbers (colour or complex)", path)
    if shape[0] * shape[1] * 8 > MAX_FRAME_BYTES:
        raise UnreadableImageError(f"a slice of {shape[0]} x {shape[1]} exceeds {MAX_FRAME_BYTES >> 20} MiB", path)
    across, down, through, _ = _display_axes(image)
    facts = {
        "bits_stored": 8 * kind.itemsize,
        "rows": int(shape[down]),
        "columns": int(shape[across]),
        "frames": int(shape[through]) if len(shape) > 2 else 1,
        "photometric": "MONOCHROME2",
        "pixel_spacing_mm": (zooms[down], zooms[across]) if min(zooms[down], zooms[across]) > 0 else None,
    }
    return image, facts


def decode_nifti(image: nib.Nifti1Image, frame_rule: str | int) -> tuple[np.ndarray, dict]:
    """Read one slice of an open NIfTI file, with the header's scale and offset applied.

    A file that states its orientation is turned to the closest patient axes and cut across the third (axial) axis;
    anterior is up and the patient's right is left. A file without orientation is shown as stored: second axis down,
    first axis across. Of further axes (time, channels) the first entry is taken.

    Returns:
        float32 (rows, columns), and the facts value_range, value_range_source, inverted, frame, padding_fraction.

    Raises:
        UnreadableImageError: if the data is cut off or has no finite value.
    """
    across, down, through, flips = _display_axes(image)
    volume = len(image.shape) > 2
    frame = choose_frame(frame_rule, image.shape[through] if volume else 1)
    index: list = [0] * len(image.shape)
    index[across] = index[down] = slice(None)
    if volume:
        index[through] = image.shape[through] - 1 - frame if flips[2] else frame
    try:
        plane = np.asarray(image.dataobj[tuple(index)], dtype=np.float64)
    except BROKEN_NIFTI as error:
        raise UnreadableImageError("the NIfTI data is broken or cut off") from error
    plane = plane.T if across < down else plane  # (rows, columns)
    plane = plane[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    values = np.ascontiguousarray(plane, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        raise UnreadableImageError("no finite pixel value")
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    source = "window"
    if not high > low:
        low, high, source = float(values[finite].min()), float(values[finite].max()), "pixels"
    if high <= low:
        high = low + 1.0
    values[~finite] = low
    facts = {
        "value_range": (low, high),
        "value_range_source": source,
        "inverted": False,
        "padding_fraction": float(1 - finite.mean()),
        "frame": frame,
    }
    return values, facts


def _display_axes(image: nib.Nifti1Image) -> tuple[int, int, int, tuple[bool, bool, bool]]:
    """Array axes that run across, down and through the display, and whether each is reversed."""
    oriented = int(image.header["qform_code"]) or int(image.header["sform_code"])
    if not oriented or len(image.shape) < 3 or not np.isfinite(image.affine).all():
        return 0, 1, 2, (False, False, False)
    orientation = nib.io_orientation(image.affine)  # per array axis: patient axis (right, anterior, superior), sign
    if not np.isfinite(orientation).all():
        return 0, 1, 2, (False, False, False)
    order = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    signs = [orientation[axis, 1] for axis in order]
    # Columns run from the patient's right to left and rows from front to back, against the patient axes.
    return order[0], order[1], order[2], (signs[0] > 0, signs[1] > 0, signs[2] < 0)


def stream_blocks(path: str | Path, block: int = 1 << 20):
    """Yield a NIfTI file's bytes, decompressed, block by block; a file cut off in the middle is an error.

    Raises:
        UnreadableImageError: if the compressed stream ends early or is damaged.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            while data := file.read(block):
                yield data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableImageError("the compressed file is broken or cut off", path) from error
