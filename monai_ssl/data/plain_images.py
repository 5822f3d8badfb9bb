# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, TIFF and BMP to one grey array, 8 or 16 bits deep, by Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from monai_ssl.data.dicom_pixels import MAX_FRAME_BYTES, choose_frame, luma
from monai_ssl.data.errors import UnreadableImageError

_FORMATS = {"png": "PNG", "jpeg": "JPEG", "tiff": "TIFF", "bmp": "BMP"}
_TIFF_PHOTOMETRIC, _TIFF_BITS_PER_SAMPLE = 262, 258


def open_plain_image(path: str | Path, kind: str) -> tuple[Image.Image, dict]:
    """Read the header of an ordinary image.

    Args:
        path: the file.
        kind: ``"png"``, ``"jpeg"``, ``"tiff"`` or ``"bmp"``, as the first bytes say.

    Returns:
        The open Pillow image and its facts: bits_stored, rows, columns (as displayed), frames, photometric.

    Raises:
        UnreadableImageError: if the header is broken, the image is a mask or too large, or Pillow would cut it to
            8 bits (16 bits per channel in colour or with transparency).
    """
    try:
        # Pillow warns of large images; the limit below decides.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=(_FORMATS[kind],))
    except (FileNotFoundError, PermissionError):
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("the image is too large to be a radiograph", path) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, TypeError, KeyError) as error:
        raise UnreadableImageError(f"the {kind.upper()} header is broken or cut off", path) from error
    columns, rows = image.size
    if _swaps_axes(image):
        columns, rows = rows, columns
    facts = {
        "bits_stored": _bits(image),
        "rows": rows,
        "columns": columns,
        "frames": int(getattr(image, "n_frames", 1)),
        "photometric": "MONOCHROME1" if _white_is_zero(image) else _photometric(image),
    }
    if image.mode == "1":
        raise UnreadableImageError("1 bit per pixel: a mask, not an image", path)
    if rows * columns * 4 > MAX_FRAME_BYTES:
        raise UnreadableImageError(f"{rows} x {columns} pixels exceed {MAX_FRAME_BYTES >> 20} MiB", path)
    if _loses_bits(image, path):
        raise UnreadableImageError("16 bits per channel in colour or with transparency: save it as 16-bit grey", path)
    return image, facts


def decode_plain_image(image: Image.Image, frame_rule: str | int) -> tuple[np.ndarray, dict]:
    """Decode an open image to grey, as displayed: the EXIF orientation is applied, transparency is dropped.

    Args:
        image: what ``open_plain_image`` gave.
        frame_rule: which page of a TIFF (see ``choose_frame``).

    Returns:
        float32 (rows, columns), and the facts value_range, value_range_source, inverted, frame, padding_fraction.

    Raises:
        UnreadableImageError: if the pixels are broken or cut off.
    """
    frames = int(getattr(image, "n_frames", 1))
    frame = choose_frame(frame_rule, frames)
    inverted = _white_is_zero(image) and image.mode in ("I;16", "I;16B", "I", "F")
    bits = _bits(image)
    try:
        if frames > 1:
            image.seek(frame)
        if image.format == "JPEG":
            image.draft("L", image.size)  # takes the luma straight from the file: faster, and stays a whole number
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "RGBX"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and zlib.error on broken files.
        raise UnreadableImageError("the pixel data is broken or cut off") from error
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else luma(pixels[..., :3])
    values = np.array(pixels, dtype=np.float32, order="C")
    if bits <= 8:
        low, high, source = 0.0, 255.0, "bits_stored"
    else:
        finite = np.isfinite(values)
        if not finite.any():
            raise UnreadableImageError("no finite pixel value")
        low, high, source = float(values[finite].min()), float(values[finite].max()), "pixels"
        values[~finite] = low
    if high <= low:
        high = low + 1.0
    if inverted:  # Pillow inverts 8-bit TIFF by itself, deeper ones not
        values = (low + high) - values
    facts = {
        "value_range": (low, high),
        "value_range_source": source,
        "inverted": inverted,
        "padding_fraction": 0.0,
        "frame": frame,
    }
    return values, facts


def _bits(image: Image.Image) -> int:
    if image.mode.startswith("I;16"):
        return 16
    return {"I": 32, "F": 32, "1": 1}.get(image.mode, 8)


def _photometric(image: Image.Image) -> str:
    if image.mode in ("P", "PA"):
        return "PALETTE COLOR"
    return "MONOCHROME2" if image.mode[0] in "1LIF" else "RGB"


def _white_is_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0


def _swaps_axes(image: Image.Image) -> bool:
    """EXIF orientations 5 to 8 turn the image by a quarter."""
    try:
        return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:
        return False


def _loses_bits(image: Image.Image, path: str | Path) -> bool:
    """Pillow has no type for 16 bits per channel with several channels: it keeps the upper 8."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,))
        return len(bits) > 1 and max(bits) > 8
    if image.format == "PNG":
        with Path(path).open("rb") as file:
            header = file.read(26)
        return header[24] > 8 and header[25] != 0  # IHDR: bit depth, colour type
    return False
