# SPDX-License-Identifier: Apache-2.0
"""A made-up radiograph as a DICOM data set: Digital X-Ray Image Storage - For Presentation (PS3.3 A.26).

The image uses part of the stored range and its window says which, so a reader that ignores the window, the bit depth or
the photometric interpretation shows something else. The header names
nobody: identifiers are ``EXAMPLE-0001`` and so on.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from monai_ssl.data.phantom_patient import Patient, random_stream
from monai_ssl.data.phantom_radiograph import PhantomRadiograph

DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"

# PS3.16 CID 4010, SNOMED CT.
_VIEW_CODES = {"AP": ("399348003", "antero-posterior"), "PA": ("272479007", "postero-anterior")}


def radiograph_dataset(
    radiograph: PhantomRadiograph, patient: Patient, patient_id: str, seed: int, number: int, image: int
) -> Dataset:
    """Describe one image.

    Args:
        radiograph: the picture; its [0, 1] becomes the window of the stored values.
        patient: whose picture; age and sex are written.
        patient_id: goes into PatientID.
        seed, number, image: cohort, patient and image; bit depth, polarity and UIDs follow from them.

    Returns:
        A data set with file meta information, uncompressed (explicit VR little endian).
    """
    rng = random_stream(seed, "file", number, image)
    bits = 16 if rng.random() < 0.3 else 12
    inverted = bool(rng.random() < 0.1)
    full = 2**bits - 1
    low = int(rng.uniform(0.0, 0.2) * full)
    high = int(rng.uniform(0.7, 1.0) * full)
    stored = np.rint(low + radiograph.pixels * (high - low)).astype("<u2")
    if inverted:
        stored, low, high = full - stored, full - high, full - low

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DX_FOR_PRESENTATION
    ds.SOPInstanceUID = _uid(seed, number, image, "image")
    ds.StudyInstanceUID = _uid(seed, number, image, "study")
    ds.SeriesInstanceUID = _uid(seed, number, image, "series")
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
    ds.Manufacturer = "monai_ssl example data"
    ds.Modality = "DX"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.SeriesNumber = ds.InstanceNumber = image + 1
    ds.PatientName = patient_id.replace("-", "^")
    ds.PatientID = patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = "F" if patient.female else "M"
    ds.PatientAge = f"{patient.age:03d}Y"
    ds.BodyPartExamined = "CHEST"
    ds.AnatomicRegionSequence = [_code("51185008", "Chest")]
    ds.ViewPosition = radiograph.view
    ds.ViewCodeSequence = [_code(*_VIEW_CODES[radiograph.view])]
    ds.PatientOrientation = ["L", "F"]
    ds.ImageLaterality = "U"
    ds.KVP = "110"
    ds.DetectorType = ""
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    ds.AcquisitionContextSequence = []
    spacing = f"{radiograph.pixel_spacing_mm:.4f}"
    ds.ImagerPixelSpacing = ds.PixelSpacing = [spacing, spacing]

    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverted else -1
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated = 16
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    # PS3.3 C.11.2.1.2.1: the linear window of width w about c shows c - 0.5 +- (w - 1) / 2.
    ds.WindowCenter, ds.WindowWidth = f"{(low + high) / 2 + 0.5:.1f}", str(high - low + 1)
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _uid(seed: int, number: int, image: int, what: str) -> str:
    return generate_uid(entropy_srcs=["monai_ssl example data", str(seed), str(number), str(image), what])


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item
