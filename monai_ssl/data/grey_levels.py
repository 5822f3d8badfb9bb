# SPDX-License-Identifier: Apache-2.0
"""From stored DICOM values to physical values and the range a viewer would show.

The chain is DICOM's own (PS3.3 section C.11): modality LUT or rescale, then VOI LUT or window, then inversion of
MONOCHROME1. A linear window does not touch the values, it only gives the range; so nothing is clipped or rounded.
"""

from __future__ import annotations

import math

import numpy as np
from pydicom.dataset import Dataset

from monai_ssl.data.dicom import functional_group, integer, number, numbers
from monai_ssl.data.dicom_pixels import padding_mask, theoretical_range
from monai_ssl.data.errors import UnreadableImageError


def grey_levels(pixels: np.ndarray, data: Dataset, frame: int = 0, apply_voi: bool = True) -> tuple[np.ndarray, dict]:
    """Turn stored grey values into physical values, with the range that maps to [0, 1].

    Args:
        pixels: stored values (rows, columns).
        data: the data set they come from.
        frame: index of the frame, for the functional groups of enhanced objects.
        apply_voi: use the VOI LUT or window of the header; otherwise the range comes from the pixels.

    Returns:
        float32 (rows, columns), and the facts ``value_range`` (low, high), ``value_range_source`` (``"voi_lut"``,
        ``"sigmoid"``, ``"window"``, ``"bits_stored"`` or ``"pixels"``), ``inverted`` and ``padding_fraction``.
        MONOCHROME1 is mirrored within the range (low + high - value), so that higher is always brighter. Padding
        pixels hold the low end of the range.

    Raises:
        UnreadableImageError: if no pixel is finite.
    """
    padding = padding_mask(pixels, data)
    values = modality_values(pixels, data, frame)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        padding = bad if padding is None else padding | bad
    if padding is not None and padding.all():
        if not np.isfinite(values).all():
            raise UnreadableImageError("no finite pixel value")
        padding = None  # an image of padding only is a blank image
    inside = values if padding is None else values[~padding]
    found = float(inside.min()), float(inside.max())

    shown = _voi(values, data, frame, found) if apply_voi else None
    if shown is None:
        theoretical = _small_range(pixels, data, frame)
        shown = values, theoretical or found, "bits_stored" if theoretical else "pixels"
    values, (low, high), source = shown
    if high <= low:
        low, high = low, low + 1.0  # a constant image: any range will do as long as it is not empty
    inverted = str(data.get("PhotometricInterpretation")).strip() == "MONOCHROME1"
    if inverted:
        values = (low + high) - values
    values = np.ascontiguousarray(values, dtype=np.float32)
    if padding is not None:
        values[padding] = low
    facts = {
        "value_range": (low, high),
        "value_range_source": source,
        "inverted": inverted,
        "padding_fraction": 0.0 if padding is None else float(padding.mean()),
    }
    return values, facts


def _exact_float(pixels: np.ndarray) -> np.ndarray:
    """float32 where it holds every value of the type, else float64."""
    return pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64)


def _rescale(data: Dataset, frame: int) -> tuple[float, float]:
    source = functional_group(data, frame, "PixelValueTransformationSequence") or data
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    return (slope if slope else 1.0), (0.0 if intercept is None else intercept)


def modality_values(pixels: np.ndarray, data: Dataset, frame: int) -> np.ndarray:
    """Physical values of a frame: modality LUT (PS3.3 section C.11.1), else RescaleSlope * value + RescaleIntercept.

    Returns:
        float32 or float64, the shape of ``pixels``; slope and intercept are the frame's own where it has them.
    """
    table = _lookup_table(data, "ModalityLUTSequence", pixels.dtype.kind == "i")
    if table is not None:
        return _look_up(pixels, table[0], table[1]).astype(np.float32)
    slope, intercept = _rescale(data, frame)
    if slope == 1 and intercept == 0:
        return _exact_float(pixels)
    return pixels.astype(np.float64) * slope + intercept


def _lookup_table(data: Dataset, sequence: str, signed_input: bool) -> tuple[int, np.ndarray, int] | None:
    """First mapped value, entries and bits of the first LUT of a sequence, or None if absent or broken."""
    try:
        item = (data.get(sequence) or [None])[0]
        if item is None:
            return None
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        entries = item.LUTData
    except Exception:
        # pydicom converts on access and raises whatever the broken value provokes.
        return None
    count, first, bits = count & 0xFFFF or 65536, first & 0xFFFF, bits & 0xFFFF
    if signed_input and first > 32767:
        first -= 65536
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, dtype=np.uint8 if len(entries) in (count, count + 1) else "<u2")
    entries = np.asarray(entries, dtype=np.int64)[:count] & 0xFFFF
    if entries.size == 0:
        return None
    needed = max(int(entries.max()).bit_length(), 1)
    # Writers often state 16 bits for 12-bit entries: trust the entries if they contradict the header.
    return first, entries, bits if needed == bits else needed


def _look_up(values: np.ndarray, first: int, entries: np.ndarray) -> np.ndarray:
    """Entries at ``value - first``, the end entries outside (PS3.3 section C.11.1.1)."""
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)]


def _voi(
    values: np.ndarray, data: Dataset, frame: int, found: tuple[float, float]
) -> tuple[np.ndarray, tuple[float, float], str] | None:
    """VOI LUT if there is one, else the first window (PS3.3 section C.11.2); None if there is neither.

    A window that misses all pixels, or is not wider than one value, is taken for a mistake and ignored.
    """
    table = _lookup_table(data, "VOILUTSequence", found[0] < 0)
    if table is not None:
        first, entries, bits = table
        return _look_up(values, first, entries).astype(np.float32), (0.0, math.ldexp(1, bits) - 1), "voi_lut"
    source = functional_group(data, frame, "FrameVOILUTSequence") or data
    centers, widths = numbers(source, "WindowCenter"), numbers(source, "WindowWidth")
    if not centers or not widths or widths[0] <= 1:
        return None
    center, width = centers[0], widths[0]
    function = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function == "LINEAR":  # equation C.11-2: black at or below low, white above high
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:  # LINEAR_EXACT and the straight part of SIGMOID
        low, high = center - width / 2, center + width / 2
    if high <= found[0] or low >= found[1]:
        return None
    if function == "SIGMOID":  # equation C.11-3
        exponent = np.clip(-4.0 * (values - center) / width, -80.0, 80.0)
        return 1.0 / (1.0 + np.exp(exponent)), (0.0, 1.0), "sigmoid"
    return values, (low, high), "window"


def _small_range(pixels: np.ndarray, data: Dataset, frame: int) -> tuple[float, float] | None:
    """Range of an 8-bit image by its bits, through the rescale; None for deeper images, which rarely fill theirs."""
    bits = integer(data, "BitsStored")
    if pixels.dtype.kind == "f" or not bits or bits > 8 or data.get("ModalityLUTSequence"):
        return None
    slope, intercept = _rescale(data, frame)
    ends = [slope * end + intercept for end in theoretical_range(data, pixels)]
    return min(ends), max(ends)
