# SPDX-License-Identifier: Apache-2.0
"""Write small DICOM files with exactly the elements a test needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid


def make_dicom(pixels: np.ndarray | None, *, bits: int | None = None, syntax=ExplicitVRLittleEndian, **elements):
    """Build a data set. ``pixels`` is (rows, columns[, 3]) or (frames, rows, columns) with NumberOfFrames given."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.PatientID, data.PatientName = "P-1", "Doe^Jane"
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality = "CR"
    if pixels is not None:
        framed = pixels.ndim > 2 and "NumberOfFrames" in elements
        shape = pixels.shape[1:] if framed else pixels.shape
        data.Rows, data.Columns = shape[:2]
        data.SamplesPerPixel = 3 if len(shape) == 3 else 1
        data.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
        if len(shape) == 3:
            data.PlanarConfiguration = 0
        data.BitsAllocated = 8 * pixels.dtype.itemsize
        data.BitsStored = bits or data.BitsAllocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes() + b"\0" * (pixels.nbytes % 2)
        data["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for name, value in elements.items():
        if value is None:
            data.pop(name, None)
        else:
            setattr(data, name, value)
    return data


def lookup_table(first: int, entries: np.ndarray, bits: int = 16) -> Sequence:
    """A modality or VOI LUT sequence of one item."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) & 0xFFFF, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return Sequence([item])


def write_dicom(path: Path, pixels: np.ndarray | None, **elements) -> Path:
    """Write a DICOM file (see ``make_dicom``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_dicom(pixels, **elements).save_as(path, enforce_file_format=True)
    return path
