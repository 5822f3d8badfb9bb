# SPDX-License-Identifier: Apache-2.0
"""DICOM pixel data to one grey frame, at the stored bit depth."""

from __future__ import annotations

import math

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_color_lut

from monai_ssl.data.codestreams import codestream_size
from monai_ssl.data.dicom import PIXEL_KEYWORDS, frame_count, integer
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.gdcm_frames import decode_with_gdcm, gdcm_available, needs_gdcm

MAX_FRAME_BYTES = 512 << 20  # decoded; about ten times the largest mammogram

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, section 2.5.1


def choose_frame(rule: str | int, frames: int) -> int:
    """Give the index of the frame that stands for a multi-frame image.

    Args:
        rule: ``"first"``, ``"middle"`` (``frames // 2``), ``"last"``, or an index; negative ones count from the end.
        frames: number of frames.

    Raises:
        ValueError: if the rule is unknown.
        UnreadableImageError: if the image has no such frame.

    >>> choose_frame("middle", 30), choose_frame("middle", 1), choose_frame(-1, 4)
    (15, 0, 3)
    """
    named = {"first": 0, "middle": frames // 2, "last": frames - 1}
    if isinstance(rule, str):
        if rule not in named:
            raise ValueError(f"frame_rule is {rule!r}; use 'first', 'middle', 'last' or a frame index")
        return named[rule]
    index = rule + frames if rule < 0 else rule
    if not 0 <= index < frames:
        raise UnreadableImageError(f"no frame {rule}: the image has {frames}")
    return index


def luma(colour: np.ndarray) -> np.ndarray:
    """Grey of an RGB array (rows, columns, 3): BT.601 luma; the channel itself, unchanged, where all three agree."""
    red, green, blue = (colour[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    return colour.astype(np.float32) @ _LUMA


def check_geometry(data: Dataset) -> None:
    """Refuse impossible sizes and pixel data shorter than the header says, before anything is allocated."""
    rows, columns = integer(data, "Rows") or 0, integer(data, "Columns") or 0
    if rows < 1 or columns < 1:
        raise UnreadableImageError("Rows or Columns is zero or missing")
    samples = integer(data, "SamplesPerPixel") or 1
    if samples not in (1, 3):
        raise UnreadableImageError(f"{samples} samples per pixel are not supported")
    allocated = integer(data, "BitsAllocated") or 0
    if allocated not in (8, 16, 32, 64):
        raise UnreadableImageError(f"{allocated} bits allocated per sample are not supported")
    try:
        native = not data.file_meta.TransferSyntaxUID.is_encapsulated
    except ValueError:  # pydicom: "UID is not a transfer syntax"
        raise UnreadableImageError("the transfer syntax is not one of DICOM") from None
    if native:
        width = 2 if samples == 3 and data.get("PhotometricInterpretation") == "YBR_FULL_422" else samples
        expected = rows * columns * width * frame_count(data) * allocated // 8
        keyword = next(keyword for keyword in PIXEL_KEYWORDS if keyword in data)
        found = len(data[keyword].value or b"") if keyword == "PixelData" else expected
        if found < expected:
            raise UnreadableImageError(f"pixel data shorter than the header says ({found} of {expected} bytes)")
    if rows * columns * max(samples * allocated // 8, 4) > MAX_FRAME_BYTES:
        raise UnreadableImageError(f"a frame of {rows} x {columns} pixels exceeds {MAX_FRAME_BYTES >> 20} MiB")


def decode_frame(data: Dataset, frame: int) -> tuple[np.ndarray, str]:
    """Decode one frame.

    Args:
        data: a data set that ``check_geometry`` accepted.
        frame: index of the frame.

    Returns:
        The stored values, and their kind: ``"grey"`` for (rows, columns) in the stored type, or ``"colour"`` for the
        luma of a colour or palette image, (rows, columns).

    Raises:
        UnreadableImageError: if no installed decoder reads it.
    """
    syntax = data.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.name != syntax else "a private transfer syntax"
    _fill_defaults(data)
    native = not syntax.is_encapsulated
    stream = b"" if native else _code_stream(data, frame)
    if needs_gdcm(data) and gdcm_available():
        try:
            return decode_with_gdcm(data, stream), "grey"
        except ValueError as error:
            raise UnreadableImageError(f"the pixel data could not be decoded ({name})") from error
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadableImageError(f"no decoder for {name}") from error
    if not decoder.is_available:
        raise UnreadableImageError(f"the decoder for {name} is not installed")
    try:
        # Unused bits of uncompressed data are cut here, where HighBit is known; of uncompressed YBR the luma is taken.
        raw = native and data.PhotometricInterpretation.startswith("YBR")
        options = {"correct_unused_bits": False, "raw": raw} if native else {}
        pixels, facts = decoder.as_array(data, index=frame, **options)
        photometric = str(facts["photometric_interpretation"])
        if photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, data)[..., :3]
    except MemoryError:
        raise
    except Exception:
        # Each plug-in has its own errors; their texts may quote the header, so they are not chained.
        raise UnreadableImageError(f"the pixel data could not be decoded ({name})") from None
    if pixels.ndim == 3:
        # YBR that was not turned to RGB carries the luma as its first sample.
        return (pixels[..., 0] if photometric.startswith("YBR") else luma(pixels)), "colour"
    return (_cut_unused_bits(pixels, data) if native else pixels), "grey"


def _code_stream(data: Dataset, frame: int) -> bytes:
    """Bytes of a compressed frame, if its size is the header's: decoders allocate what the code stream asks for."""
    try:
        stream = get_frame(data.PixelData, frame, number_of_frames=frame_count(data))
    except Exception:
        raise UnreadableImageError("the compressed pixel data is broken or cut off") from None
    said, found = (integer(data, "Rows"), integer(data, "Columns")), codestream_size(stream)
    if found is not None and found != said:
        raise UnreadableImageError(
            f"the compressed frame is {found[0]} x {found[1]} pixels, the header says {said[0]} x {said[1]}"
        )
    return stream


def palette_bits(data: Dataset) -> int:
    """Bits of the entries of a palette, 8 or 16."""
    descriptor = data.get("RedPaletteColorLookupTableDescriptor") or (0, 0, 8)
    return 16 if int(descriptor[2]) > 8 else 8


def _fill_defaults(data: Dataset) -> None:
    """Give pydicom the elements it insists on, where a file leaves them out."""
    samples = integer(data, "SamplesPerPixel") or 1
    data.SamplesPerPixel = samples
    if not data.get("PhotometricInterpretation"):
        data.PhotometricInterpretation = "MONOCHROME2" if samples == 1 else "RGB"
    if samples == 3 and integer(data, "PlanarConfiguration") is None:
        data.PlanarConfiguration = 0
    if "PixelData" in data:
        if integer(data, "PixelRepresentation") is None:
            data.PixelRepresentation = 0
        stored, allocated = integer(data, "BitsStored"), integer(data, "BitsAllocated")
        if not stored or stored > allocated:
            data.BitsStored = allocated


def _cut_unused_bits(pixels: np.ndarray, data: Dataset) -> np.ndarray:
    """Keep the bits HighBit - BitsStored + 1 .. HighBit (DICOM PS3.5 section 8.1.1), with the sign extended."""
    if pixels.dtype.kind == "f":
        return pixels
    allocated, stored = 8 * pixels.dtype.itemsize, integer(data, "BitsStored")
    high = integer(data, "HighBit")
    if high is None or not stored - 1 <= high < allocated:
        high = stored - 1
    up, down = allocated - 1 - high, allocated - stored
    return pixels if down == 0 else (pixels << up) >> down


def padding_mask(pixels: np.ndarray, data: Dataset) -> np.ndarray | None:
    """Mask of the stored values that PixelPaddingValue and PixelPaddingRangeLimit name, or None if there are none."""
    first = integer(data, "PixelPaddingValue")
    if first is None:
        return None
    last = integer(data, "PixelPaddingRangeLimit")
    bounds = [_as_stored(value, pixels.dtype) for value in (first, first if last is None else last)]
    mask = (pixels >= min(bounds)) & (pixels <= max(bounds))
    return mask if mask.any() else None


def _as_stored(value: int, dtype: np.dtype) -> float:
    """Read a padding value in the pixels' own signedness: writers often give the other one."""
    if dtype.kind == "f":
        return value
    info = np.iinfo(dtype)
    if info.min <= value <= info.max:
        return value
    wrapped = value % (1 << info.bits)
    return wrapped - (1 << info.bits) if wrapped > info.max else wrapped


def theoretical_range(data: Dataset, pixels: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value that BitsStored and PixelRepresentation allow."""
    bits = integer(data, "BitsStored") or 8 * pixels.dtype.itemsize
    low = -math.ldexp(1, bits - 1) if pixels.dtype.kind == "i" else 0.0
    return low, low + math.ldexp(1, bits) - 1
