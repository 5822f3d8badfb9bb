# SPDX-License-Identifier: Apache-2.0
"""JPEG frames with more than 8 bits that pydicom leaves undecoded although GDCM reads them.

pydicom 3.0 refuses JPEG Extended with more than 8 bits and knows no decoder for the retired progressive process. GDCM
decodes both; checked on a 12-bit ramp it wrote itself, and against lossless copies of the same NM and CT images.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from monai_ssl.data.dicom import integer

JPEG_EXTENDED, JPEG_PROGRESSIVE = "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.55"


def gdcm_available() -> bool:
    """Tell whether GDCM is installed."""
    try:
        import gdcm  # noqa: F401
    except ImportError:
        return False
    return True


def needs_gdcm(data: Dataset) -> bool:
    """Tell whether a data set holds grey frames of the kind that only ``decode_with_gdcm`` reads."""
    syntax = str(data.file_meta.TransferSyntaxUID)
    deep = (integer(data, "BitsStored") or 0) > 8 and integer(data, "BitsAllocated") == 16
    return syntax in (JPEG_EXTENDED, JPEG_PROGRESSIVE) and deep and integer(data, "SamplesPerPixel") == 1


def decode_with_gdcm(data: Dataset, stream: bytes) -> np.ndarray:
    """Decode one frame by GDCM itself.

    Args:
        data: a data set for which ``needs_gdcm`` is true.
        stream: the code stream of one frame.

    Returns:
        (rows, columns) int16 or uint16.

    Raises:
        ValueError: if GDCM cannot decode it.
    """
    import gdcm

    gdcm.Trace.WarningOff()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())

    rows, columns, stored = int(data.Rows), int(data.Columns), int(data.BitsStored)
    signed = int(data.PixelRepresentation)
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(data.PhotometricInterpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str(data.file_meta.TransferSyntaxUID))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, stored, stored - 1, signed))
    text = image.GetBuffer()  # GDCM hands bytes out as text, and None for a broken stream
    buffer = b"" if text is None else text.encode("utf-8", "surrogateescape")
    if len(buffer) != 2 * rows * columns:
        raise ValueError("GDCM could not decode the frame")
    pixels = np.frombuffer(buffer, "<i2" if signed else "<u2").reshape(rows, columns)
    return (pixels << (16 - stored)) >> (16 - stored)  # the code stream knows no sign
