# SPDX-License-Identifier: Apache-2.0
"""DICOM headers: which files are images, and the few facts about them that may be kept.

Only the elements of ``_TAGS`` are ever read. Names, dates, comments and private elements are not, so they cannot leak.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.vocabulary import MODALITIES, VIEW_CODES, VIEW_POSITIONS, known_body_part, known_term

MAX_FILE_BYTES = 2 << 30

_TAGS = [
    *("SOPClassUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("Modality", "BodyPartExamined", "ViewPosition", "ViewCodeSequence"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData"),
    *("DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    # Where a slice lies in the patient, what parts the volumes of one series, and the unit of its values.
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "InstanceNumber"),
    *("ImageType", "ComplexImageComponent", "DiffusionBValue", "DiffusionGradientOrientation", "EchoTime"),
    *("TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "TriggerTime", "AcquisitionNumber"),
    *("RescaleType", "Units"),
    *("RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor"),
    *("BluePaletteColorLookupTableDescriptor", "AlphaPaletteColorLookupTableDescriptor"),
    *("RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData"),
    *("AlphaPaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData"),
    *("SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData"),
]
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# SOP classes whose pixels are not a picture of a patient although they are stored like one.
_NOT_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation, not an image",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation, not an image",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiation dose grid, not an image",
}


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom while it reads: its warnings quote header values."""
    logger, settings = logging.getLogger("pydicom"), pydicom.config.settings
    level, mode = logger.level, settings.reading_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        settings.reading_validation_mode = pydicom.config.IGNORE
        try:
            yield
        finally:
            logger.setLevel(level)
            settings.reading_validation_mode = mode


def looks_like_bare_dicom(head: bytes) -> bool:
    """Tell whether a file without preamble starts like a DICOM data set: group 0002 or 0008 with a low element."""
    if len(head) < 8:
        return False
    little = head[0] in (2, 8) and head[1] == 0 and head[3] == 0
    big = head[0] == 0 and head[1] in (2, 8) and head[2] == 0
    return (little or big) and head[:8] != bytes(8)


def read_dicom(path: str | Path, identifiers_only: bool = False) -> Dataset:
    """Read the listed elements of a DICOM file, pixel data included, without decoding.

    Args:
        path: a DICOM file, with or without preamble.
        identifiers_only: read no more than ``dicom_identifiers`` needs, which is quick: the pixel data is not touched.

    Returns:
        The data set; ``file_meta.TransferSyntaxUID`` is always set.

    Raises:
        UnreadableImageError: if the file is not DICOM, is larger than 2 GiB or ends inside its header.
        OSError: if the file cannot be opened.
    """
    path = Path(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnreadableImageError(f"DICOM file larger than {MAX_FILE_BYTES >> 30} GiB", path)
    with path.open("rb") as file:
        head = file.read(132)
    magic = head[128:] == b"DICM"
    if not magic and not looks_like_bare_dicom(head):
        raise UnreadableImageError("not a DICOM file: no DICM mark and no data set at the start", path)
    try:
        tags = list(_IDENTIFIERS.values()) if identifiers_only else _TAGS
        data = pydicom.dcmread(path, force=not magic, specific_tags=tags, stop_before_pixels=identifiers_only)
    except (OSError, MemoryError):
        raise
    except InvalidDicomError:
        raise UnreadableImageError("not a DICOM file: no DICM mark and no data set at the start", path) from None
    except Exception:
        # Header parsing meets struct, zlib, unicode, key and value errors. Their texts may quote the header, so they
        # are not chained: a traceback ends in logs.
        raise UnreadableImageError("the DICOM header is broken or cut off", path) from None
    if not isinstance(data.file_meta.get("TransferSyntaxUID"), UID) or not data.file_meta.TransferSyntaxUID:
        implicit, little = data.original_encoding
        native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = native
    return data


def refuse_non_images(data: Dataset) -> None:
    """Raise for a data set that holds no picture: directories, reports, plans, waveforms, masks, dose grids.

    The Modality element is not asked: it lies too often. What decides is the pixel data and the SOP class.
    """
    sop_class = UID(header_text(data, "SOPClassUID") or header_text(data.file_meta, "MediaStorageSOPClassUID"))
    known_class = sop_class.name if sop_class and sop_class.name != sop_class else ""
    if not any(keyword in data for keyword in PIXEL_KEYWORDS):
        if "Image Storage" in known_class or "Rows" in data:
            raise UnreadableImageError("the pixel data is missing or cut off")
        raise UnreadableImageError(f"no pixel data ({known_class or 'unknown kind of DICOM object'})")
    if sop_class in _NOT_PICTURES:
        frame_count(data)
        raise UnreadableImageError(_NOT_PICTURES[sop_class])
    if integer(data, "BitsAllocated") == 1:
        raise UnreadableImageError("1 bit per pixel: a mask, not an image")


def integer(data: Dataset, keyword: str) -> int | None:
    """Value of an element as an int, or None if it is absent, empty or not a number."""
    value = number(data, keyword)
    return None if value is None else int(value)


def number(data: Dataset, keyword: str) -> float | None:
    """First value of an element as a finite float, or None if it is absent, empty or not a number."""
    values = numbers(data, keyword)
    return values[0] if values else None


def numbers(data: Dataset, keyword: str) -> list[float]:
    """All values of an element as finite floats; empty if any is not a number."""
    try:
        value = data.get(keyword)
        if value is None or isinstance(value, bytes):
            return []
        items = [value] if isinstance(value, (str, int, float)) else list(value)
        result = [float(item) for item in items]
    except Exception:
        # pydicom converts on access and raises whatever the broken value provokes: the element counts as absent.
        return []
    return result if all(math.isfinite(item) for item in result) else []


def frame_count(data: Dataset) -> int:
    """Number of frames, 1 if the header does not say."""
    try:
        value = data.get("NumberOfFrames")
        count = 1 if value in (None, "") else int(value)
    except Exception:
        raise UnreadableImageError("NumberOfFrames is not a number") from None  # the cause quotes the value
    return max(count, 1)


def functional_group(data: Dataset, frame: int, sequence: str) -> Dataset | None:
    """One functional group of a frame: its own, else the shared one (DICOM PS3.3 section C.7.6.16)."""
    try:
        groups = data.get("PerFrameFunctionalGroupsSequence") or []
        candidates = [groups[frame]] if frame < len(groups) else []
        candidates += list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
        for candidate in candidates:
            if candidate.get(sequence):
                return candidate[sequence][0]
    except Exception:
        # A malformed sequence counts as absent, as a malformed number does.
        return None
    return None


def frame_values(data: Dataset, frame: int, place: str) -> tuple[float, ...] | tuple[str, ...]:
    """Values of an element of one frame; empty if it is absent or broken.

    Args:
        data: the data set.
        frame: index of the frame.
        place: a keyword such as ``"EchoTime"``, or the way to it from a functional group on, joined by dots:
            ``"MREchoSequence.EffectiveEchoTime"``.

    Returns:
        Finite floats; upper-case strings for an element of text (VR CS).
    """
    *sequences, keyword = place.split(".")
    source = functional_group(data, frame, sequences[0]) if sequences else data
    try:
        for sequence in sequences[1:]:
            source = (source.get(sequence) or [None])[0] if source is not None else None
        if source is None or keyword not in source:
            return ()
        if source[keyword].VR == "CS":
            value = source[keyword].value
            return tuple(str(item).strip().upper() for item in ([value] if isinstance(value, str) else value or []))
    except Exception:
        return ()  # pydicom converts on access and raises whatever the broken value provokes
    return tuple(numbers(source, keyword))


def pixel_spacing(data: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """Spacing of the rows and of the columns in mm, or None; at the patient if known, else at the detector."""
    measures = functional_group(data, frame, "PixelMeasuresSequence")
    for source, keyword in (
        (measures, "PixelSpacing"),
        (data, "PixelSpacing"),
        (data, "ImagerPixelSpacing"),
        (data, "NominalScannedPixelSpacing"),
    ):
        values = numbers(source, keyword) if source is not None else []
        if len(values) == 2 and min(values) > 0:
            return values[0], values[1]
    return None


def header_text(data: Dataset, keyword: str) -> str:
    """Value of an element as stripped text; empty if it is absent or broken."""
    try:
        return str(data.get(keyword) or "").strip().strip("\0")
    except Exception:
        return ""


def _view(data: Dataset) -> str | None:
    view = known_term(header_text(data, "ViewPosition"), VIEW_POSITIONS)
    if view is not None:
        return view
    try:
        codes = [str(item.get("CodeValue", "")).strip() for item in data.get("ViewCodeSequence") or []]
    except Exception:
        return None
    return next((VIEW_CODES[code] for code in codes if code in VIEW_CODES), None)


def dicom_facts(data: Dataset) -> dict:
    """Facts of a header that may be stored: closed vocabularies and numbers only, never free text.

    Keys: modality, body_part, view, photometric, transfer_syntax, bits_stored, rows, columns, frames, pixel_spacing_mm.
    """
    syntax = data.file_meta.TransferSyntaxUID
    try:
        frames = frame_count(data)
    except UnreadableImageError:
        frames = None
    return {
        "modality": known_term(header_text(data, "Modality"), MODALITIES),
        "body_part": known_body_part(header_text(data, "BodyPartExamined")),
        "view": _view(data),
        "photometric": known_term(header_text(data, "PhotometricInterpretation"), _PHOTOMETRIC),
        "transfer_syntax": syntax.name if syntax.name != syntax else "private or unknown",
        "bits_stored": integer(data, "BitsStored"),
        "rows": integer(data, "Rows"),
        "columns": integer(data, "Columns"),
        "frames": frames,
        "pixel_spacing_mm": pixel_spacing(data),
    }


def dicom_identifiers(data: Dataset) -> dict[str, str]:
    """Raw patient, study and series identifiers. They are for hashing only and must not be stored or printed."""
    return {name: header_text(data, keyword) for name, keyword in _IDENTIFIERS.items()}


_IDENTIFIERS = {"patient": "PatientID", "study": "StudyInstanceUID", "series": "SeriesInstanceUID"}


# PhotometricInterpretation (0028,0004): defined terms, DICOM PS3.3 section C.7.6.3.1.2.
_PHOTOMETRIC = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "YBR_FULL", "YBR_FULL_422"}
    | {"YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB"}
)
