# SPDX-License-Identifier: Apache-2.0
"""Radiographs from DICOM, PNG, JPEG, TIFF, BMP and NIfTI, read one way: as displayed, rows first, at full depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, TraceKeys

from monai_ssl.data.borders import find_border_box
from monai_ssl.data.dicom import (
    dicom_facts,
    dicom_identifiers,
    frame_count,
    looks_like_bare_dicom,
    pixel_spacing,
    quiet_pydicom,
    read_dicom,
    refuse_non_images,
)
from monai_ssl.data.dicom_pixels import check_geometry, choose_frame, decode_frame, palette_bits
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.grey_levels import grey_levels
from monai_ssl.data.nifti_slices import decode_nifti, open_nifti
from monai_ssl.data.plain_images import decode_plain_image, open_plain_image

PLAIN_KINDS = ("png", "jpeg", "tiff", "bmp")
_SUFFIXES = {
    **{".dcm": "dicom", ".dicom": "dicom", ".ima": "dicom", ".nii": "nifti", ".nii.gz": "nifti"},
    **{".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".bmp": "bmp"},
}


def sniff_kind(path: PathLike) -> str | None:
    """Tell what an image file is by its first bytes; its name only decides what it claims to be.

    Returns:
        ``"dicom"``, ``"png"``, ``"jpeg"``, ``"tiff"``, ``"bmp"`` or ``"nifti"``; None if neither the bytes nor the
        name say that this is an image.

    Raises:
        UnreadableImageError: if the name claims an image kind that the bytes do not bear out.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(352)
    claimed = claimed_kind(path)
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:2] == b"BM" and claimed == "bmp":
        return "bmp"
    if head[344:348] in (b"n+1\0", b"n+2\0") or (head[:2] == b"\x1f\x8b" and claimed == "nifti"):
        return "nifti"
    if head[4:8] == b"n+2\0":
        return "nifti"
    if claimed in (None, "dicom") and looks_like_bare_dicom(head):
        return "dicom"
    if claimed is None:
        return None
    if not head:
        raise UnreadableImageError("the file is empty", path)
    raise UnreadableImageError(f"named like a {claimed.upper()} file, but its content is something else", path)


def claimed_kind(path: PathLike) -> str | None:
    """Kind that a file's name claims, or None.

    >>> claimed_kind("a/b.NII.GZ"), claimed_kind("IM0001")
    ('nifti', None)
    """
    name = Path(path).name.lower()
    return _SUFFIXES[".nii.gz"] if name.endswith(".nii.gz") else _SUFFIXES.get(Path(name).suffix)


@dataclass
class OpenRadiograph:
    """A radiograph whose header is read and whose pixels are not decoded yet.

    Args:
        path: the file.
        kind: what ``sniff_kind`` said.
        facts: what may be stored about it (see ``dicom_facts``).
        identifiers: raw patient, study and series identifiers; for hashing only.
        source: the data set, Pillow image or nibabel image.
    """

    path: Path
    kind: str
    facts: dict
    identifiers: dict = field(repr=False)
    source: Any = field(repr=False)

    def decode(
        self, frame_rule: str | int = "middle", crop_borders: bool = False, apply_voi: bool = True
    ) -> tuple[np.ndarray, dict]:
        """Decode one frame; arguments and result are those of ``read_radiograph``."""
        meta = {"kind": self.kind, "transfer_syntax": None, "pixel_spacing_mm": None}
        meta |= {"modality": None, "body_part": None, "view": None} | self.facts
        try:
            if self.kind == "dicom":
                with quiet_pydicom():
                    values, facts = _decode_dicom(self.source, frame_rule, apply_voi)
            elif self.kind == "nifti":
                values, facts = decode_nifti(self.source, frame_rule)
            else:
                values, facts = decode_plain_image(self.source, frame_rule)
        except UnreadableImageError as error:
            raise UnreadableImageError(error.reason, self.path) from error.__cause__
        except MemoryError as error:
            raise UnreadableImageError("not enough memory to decode it", self.path) from error
        meta |= facts
        box = (0, values.shape[0], 0, values.shape[1])
        if crop_borders:
            box = find_border_box(values, meta["value_range"])
            values = np.ascontiguousarray(values[box[0] : box[1], box[2] : box[3]])
        meta["crop_box"] = box
        return values, meta


def open_radiograph(path: PathLike) -> OpenRadiograph:
    """Read the header of a radiograph of any supported kind.

    Raises:
        UnreadableImageError: if the file is no usable image.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    kind = sniff_kind(path)
    if kind is None:
        raise UnreadableImageError("not an image file: neither its first bytes nor its name are known", path)
    if kind in PLAIN_KINDS:
        image, facts = open_plain_image(path, kind)
        return OpenRadiograph(path, kind, facts, {}, image)
    if kind == "nifti":
        image, facts = open_nifti(path)
        return OpenRadiograph(path, kind, facts, {}, image)
    with quiet_pydicom():
        data = read_dicom(path)
        radiograph = OpenRadiograph(path, kind, dicom_facts(data), dicom_identifiers(data), data)
    return radiograph


def _decode_dicom(data: Any, frame_rule: str | int, apply_voi: bool) -> tuple[np.ndarray, dict]:
    refuse_non_images(data)
    check_geometry(data)
    frame = choose_frame(frame_rule, frame_count(data))
    pixels, what = decode_frame(data, frame)
    if what == "grey":
        values, facts = grey_levels(pixels, data, frame, apply_voi)
    else:  # rescale and windows are not defined for colour (PS3.3 section C.11)
        palette = data.PhotometricInterpretation == "PALETTE COLOR"
        bits = palette_bits(data) if palette else int(data.BitsStored)
        values = np.ascontiguousarray(pixels, dtype=np.float32)
        facts = {"value_range": (0.0, float(2**bits - 1)), "value_range_source": "bits_stored"}
        facts |= {"inverted": False, "padding_fraction": 0.0}
    return values, facts | {"frame": frame, "pixel_spacing_mm": pixel_spacing(data, frame)}


def read_radiograph(
    path: PathLike, frame_rule: str | int = "middle", crop_borders: bool = False, apply_voi: bool = True
) -> tuple[np.ndarray, dict]:
    """Read a radiograph as a viewer shows it, without clipping or rounding.

    The values are physical: the output of the modality LUT or rescale (for colour: BT.601 luma). A linear window
    only sets ``value_range``; a VOI LUT or sigmoid window replaces the values by its output. MONOCHROME1 is mirrored
    within ``value_range``. To get what a screen shows, map ``value_range`` to [0, 1] and clip.

    Args:
        path: DICOM (with or without extension), PNG, JPEG, TIFF, BMP or NIfTI file.
        frame_rule: for multi-frame images, TIFF pages and NIfTI volumes: ``"first"``, ``"middle"``, ``"last"`` or an
            index.
        crop_borders: cut uniform borders off (see ``find_border_box``).
        apply_voi: use the header's VOI LUT or window; if False, the range is that of the pixels.

    Returns:
        float32 (rows, columns), and a dict without identifiers: kind, value_range, value_range_source, inverted,
        padding_fraction, bits_stored, photometric, transfer_syntax, modality, body_part, view, pixel_spacing_mm
        (row, column) or None, rows, columns, frames, frame, crop_box (first row, end row, first column, end column).

    Raises:
        UnreadableImageError: if the file is no usable image; ``reason`` says why.
        FileNotFoundError: if there is no such file.
    """
    return open_radiograph(path).decode(frame_rule, crop_borders, apply_voi)


class RadiographReader(ImageReader):
    """MONAI image reader for radiographs: ``LoadImage(reader=RadiographReader())``.

    The array is (rows, columns), float32; MONAI's other readers give (columns, rows). Several files are stacked as
    channels. The header is read in ``read`` and the pixels in ``get_data``; both errors come out of ``get_data``,
    because ``LoadImage`` would answer an error of ``read`` by silently trying readers that ignore MONOCHROME1.

    Args:
        frame_rule: which frame of a multi-frame image (see ``read_radiograph``).
        crop_borders: cut uniform borders off.
        apply_voi: use the header's VOI LUT or window.
        unit_range: map ``value_range`` to [0, 1] and clip. Default False: physical values.
    """

    def __init__(
        self,
        frame_rule: str | int = "middle",
        crop_borders: bool = False,
        apply_voi: bool = True,
        unit_range: bool = False,
    ):
        super().__init__()
        self.frame_rule = frame_rule
        self.crop_borders = crop_borders
        self.apply_voi = apply_voi
        self.unit_range = unit_range

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Accept DICOM, PNG, JPEG, TIFF and BMP by content. NIfTI is left to MONAI's reader unless asked for."""
        names = [filename] if isinstance(filename, (str, Path)) else list(filename)
        try:
            return all(sniff_kind(name) in ("dicom", *PLAIN_KINDS) for name in names)
        except (OSError, UnreadableImageError):
            return False

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[OpenRadiograph | Exception]:
        """Open one or several files.

        Returns:
            One entry a file; a file that cannot be read is its error, which ``get_data`` raises.
        """
        names = [data] if isinstance(data, (str, Path)) else list(data)
        opened: list[OpenRadiograph | Exception] = []
        for name in names:
            try:
                opened.append(open_radiograph(name))
            except (UnreadableImageError, OSError) as error:
                opened.append(error)
        return opened

    def get_data(self, img: Sequence[OpenRadiograph | Exception]) -> tuple[np.ndarray, dict]:
        """Decode what ``read`` opened.

        Returns:
            float32 (rows, columns), or (files, rows, columns) for several, and the metadata of the first file with
            MONAI's ``spatial_shape``, ``original_channel_dim`` and ``affine`` (spacing only).

        Raises:
            UnreadableImageError: if a file is no usable image.
            ValueError: if several files differ in size.
        """
        arrays, metas = [], []
        for item in img:
            if isinstance(item, Exception):
                raise item
            values, meta = item.decode(self.frame_rule, self.crop_borders, self.apply_voi)
            if self.unit_range:
                low, high = meta["value_range"]
                values = np.clip((values - low) / (high - low), 0.0, 1.0, dtype=np.float32)
            arrays.append(values)
            metas.append(meta)
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"files of different sizes cannot be stacked as channels: {[a.shape for a in arrays]}")
        meta = {key: str(TraceKeys.NONE) if value is None else value for key, value in metas[0].items()}
        spacing = metas[0]["pixel_spacing_mm"] or (1.0, 1.0)
        meta[MetaKeys.AFFINE] = np.diag([spacing[0], spacing[1], 1.0, 1.0])
        meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(arrays[0].shape)
        meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan") if len(arrays) == 1 else 0
        return (arrays[0] if len(arrays) == 1 else np.stack(arrays)), meta
