# SPDX-License-Identifier: Apache-2.0
"""DICOM headers to slices: where each frame lies in the patient, and what parts it from others at the same place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from monai_ssl.data.dicom import (
    PIXEL_KEYWORDS,
    dicom_facts,
    dicom_identifiers,
    frame_count,
    frame_values,
    functional_group,
    header_text,
    integer,
    quiet_pydicom,
    read_dicom,
    refuse_non_images,
)
from monai_ssl.data.dicom_pixels import check_geometry
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.vocabulary import UNITS, known_term

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture Image Storage and its multi-frame kin
# Computed and digital radiographs, mammograms and dental images: all SOP classes of this root (PS3.4 section B.5).
_RADIOGRAPHS = "1.2.840.10008.5.1.4.1.1.1."

_FINE_MM, _FAR_MM = 1e-5, 1e5  # what no scanner resolves, and farther than any table travels: broken headers

# ImageType (0008,0008), PS3.3 sections C.7.6.1.1.2, C.8.2.1.1.1 and C.8.3.1.1.1, and two words of the vendors.
_OTHER_IMAGE_TYPES = {
    "LOCALIZER": "a localizer (scout) image",
    "SCREEN SAVE": "a screenshot",
    "MOSAIC": "a mosaic: all slices tiled in one image, which is not supported",
}

# The elements that tell apart volumes at the same positions, in the order they are tried: name, then the places it is
# looked up in, functional groups of enhanced objects (PS3.3 section C.7.6.16.2 and C.8.13.5) first.
SPLIT_BY = {
    "ImageType": (
        *("MRImageFrameTypeSequence.FrameType", "CTImageFrameTypeSequence.FrameType"),
        *("PETFrameTypeSequence.FrameType", "ImageType"),
    ),
    "ComplexImageComponent": ("MRImageFrameTypeSequence.ComplexImageComponent", "ComplexImageComponent"),
    "DiffusionBValue": ("MRDiffusionSequence.DiffusionBValue", "DiffusionBValue"),
    "DiffusionGradientOrientation": (
        "MRDiffusionSequence.DiffusionGradientDirectionSequence.DiffusionGradientOrientation",
        "DiffusionGradientOrientation",
    ),
    "EchoTime": ("MREchoSequence.EffectiveEchoTime", "EchoTime"),
    "TemporalPosition": ("FrameContentSequence.TemporalPositionIndex", "TemporalPositionIdentifier"),
    "CardiacPhase": (
        "CardiacSynchronizationSequence.NominalPercentageOfCardiacPhase",
        "NominalPercentageOfCardiacPhase",
    ),
    "TriggerTime": ("CardiacSynchronizationSequence.NominalCardiacTriggerDelayTime", "TriggerTime"),
    "AcquisitionNumber": ("FrameContentSequence.FrameAcquisitionNumber", "AcquisitionNumber"),
}


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame of a DICOM file: its place and the values that part volumes. It lives while a series is sorted.

    Args:
        path, frame: where its pixels are.
        shape: rows, columns.
        position: centre of the first pixel, mm, DICOM's patient axes (LPS): ImagePositionPatient (0020,0032).
        orientation: (2, 3) unit vectors: along a row, along a column; ImageOrientationPatient (0020,0037).
        spacing: mm between rows, between columns; PixelSpacing (0028,0030).
        thickness: SliceThickness (0018,0050) in mm, None if unknown.
        splits: values of ``SPLIT_BY``.
        order: InstanceNumber (0020,0013) and frame: the last resort to part volumes.
        digest: of the stored pixels; equal for copies of a slice.
        facts: modality, body_part and unit of the file.
        fault: why its pixels cannot be used, or None.
    """

    path: Path
    frame: int
    shape: tuple[int, int]
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    thickness: float | None
    splits: dict[str, tuple] = field(repr=False)
    order: tuple[int, int]
    digest: tuple[bytes, int] = field(repr=False)
    facts: dict
    fault: str | None

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice, (3,), LPS; the direction in which slices are sorted."""
        normal = np.cross(*self.orientation)
        return normal / np.linalg.norm(normal)


def read_slices(path: Path) -> tuple[tuple[str, ...], list[Slice]]:
    """Read the header of a DICOM file to its slices; the pixels are checked but not decoded.

    Args:
        path: a DICOM file, single frame or multi-frame.

    Returns:
        Raw identifiers that name the series (for grouping only: they must be neither stored nor printed), and one
        slice a frame. A slice whose pixels are cut off has a ``fault``: its volume cannot be whole.

    Raises:
        UnreadableImageError: if the file is not DICOM or is no slice: a localizer, secondary capture, colour, mosaic,
            segmentation, report, ..., or without a place in the patient.
        OSError: if the file cannot be opened.
    """
    with quiet_pydicom():
        data = read_dicom(path)
        try:
            return tuple(dicom_identifiers(data).values()), _slices(data, path)
        except UnreadableImageError as error:
            raise UnreadableImageError(error.reason, path) from None


def _slices(data: Dataset, path: Path) -> list[Slice]:
    fault = None
    try:
        refuse_non_images(data)
    except UnreadableImageError as error:
        if not frame_values(data, 0, "ImagePositionPatient") or any(keyword in data for keyword in PIXEL_KEYWORDS):
            raise
        fault = error.reason  # a slice by its header, whose pixels are gone
    _refuse_other_pictures(data)
    frames = _checked_frames(data)
    try:
        if fault is None:
            check_geometry(data)
    except UnreadableImageError as error:
        fault = error.reason
    stored = next((data[keyword].value for keyword in PIXEL_KEYWORDS if keyword in data), None)
    digest = hashlib.blake2b(stored if isinstance(stored, bytes) else b"", digest_size=16).digest()
    facts = {key: value for key, value in dicom_facts(data).items() if key in ("modality", "body_part")}
    return [_slice(data, path, frame, digest, facts, fault) for frame in range(frames)]


def _slice(data: Dataset, path: Path, frame: int, digest: bytes, facts: dict, fault: str | None) -> Slice:
    position = _first(data, frame, "PlanePositionSequence.ImagePositionPatient", "ImagePositionPatient")
    axes = _first(data, frame, "PlaneOrientationSequence.ImageOrientationPatient", "ImageOrientationPatient")
    spacing = _first(data, frame, "PixelMeasuresSequence.PixelSpacing", "PixelSpacing")
    thickness = _first(data, frame, "PixelMeasuresSequence.SliceThickness", "SliceThickness")
    placed = len(position) == 3 and len(axes) == 6
    if not placed and f"{header_text(data, 'SOPClassUID')}.".startswith(_RADIOGRAPHS):
        raise UnreadableImageError("a radiograph, not a slice")
    if not placed or max(map(abs, position)) > _FAR_MM:
        raise UnreadableImageError("no usable ImagePositionPatient or ImageOrientationPatient: its place is unknown")
    if len(spacing) != 2 or min(spacing) < _FINE_MM or max(spacing) > _FAR_MM:
        raise UnreadableImageError("no usable PixelSpacing: its size is unknown")
    orientation = np.reshape(axes, (2, 3))
    if not np.allclose(orientation @ orientation.T, np.eye(2), atol=1e-2):  # PS3.3 section C.7.6.2.1.1
        raise UnreadableImageError("ImageOrientationPatient is not two perpendicular unit vectors")
    return Slice(
        path=path,
        frame=frame,
        shape=(integer(data, "Rows") or 0, integer(data, "Columns") or 0),
        position=np.asarray(position),
        orientation=orientation,
        spacing=np.asarray(spacing),
        thickness=thickness[0] if thickness else None,
        splits={name: _first(data, frame, *places) for name, places in SPLIT_BY.items()},
        order=(integer(data, "InstanceNumber") or 0, frame),
        digest=(digest, frame),
        facts=facts | {"unit": _unit(data, frame, facts["modality"])},
        fault=fault,
    )


def _refuse_other_pictures(data: Dataset) -> None:
    if header_text(data, "SOPClassUID").startswith(_SECONDARY_CAPTURE):
        raise UnreadableImageError("a secondary capture (screenshot, report page), not a slice")
    for word in (*frame_values(data, 0, "ImageType"), *_first(data, 0, *SPLIT_BY["ImageType"])):
        if word in _OTHER_IMAGE_TYPES:
            raise UnreadableImageError(_OTHER_IMAGE_TYPES[word])
    photometric = header_text(data, "PhotometricInterpretation").upper()
    if (integer(data, "SamplesPerPixel") or 1) > 1 or photometric == "PALETTE COLOR":
        raise UnreadableImageError("a colour image, not a slice")


def _checked_frames(data: Dataset) -> int:
    """Frames of a file; those of a multi-frame file must each say where they are (PS3.3 section C.7.6.16)."""
    frames = frame_count(data)
    if frames == 1:
        return frames
    if functional_group(data, 0, "PlanePositionSequence") is None:
        raise UnreadableImageError("a multi-frame image without a position for each frame")
    groups = len(data.get("PerFrameFunctionalGroupsSequence") or [])
    if groups != frames:
        raise UnreadableImageError(f"{frames} frames, but functional groups for {groups}")
    return frames


def _first(data: Dataset, frame: int, *places: str) -> tuple:
    """Values at the first place that has any."""
    return next((values for place in places if (values := frame_values(data, frame, place))), ())


def _unit(data: Dataset, frame: int, modality: str | None) -> str | None:
    """Unit of the rescaled values: HU of CT, Units (0054,1001) of PET; None where the header does not say."""
    if modality == "PT":
        return known_term(header_text(data, "Units"), UNITS)
    source = functional_group(data, frame, "PixelValueTransformationSequence") or data
    rescaled = bool(frame_values(source, frame, "RescaleIntercept"))
    kind = header_text(source, "RescaleType").upper()  # CT without it means HU: PS3.3 section C.8.2.1
    return "HU" if modality == "CT" and rescaled and kind in ("", "HU") else None
