# SPDX-License-Identifier: Apache-2.0
"""Made-up images as DICOM data sets: Digital X-Ray For Presentation (PS3.3 A.26) and CT Image Storage (PS3.3 A.3).

A radiograph uses part of the stored range and its window says which, so a reader that ignores the window, the bit depth
or the photometric interpretation shows something else; so does one that ignores a CT's rescale or the places of its
slices. The headers name nobody: identifiers are ``EXAMPLE-0001`` and so on.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from monai_ssl.data.phantom_organs import Body
from monai_ssl.data.phantom_patient import Patient, random_stream
from monai_ssl.data.phantom_radiograph import PhantomRadiograph
from monai_ssl.data.phantom_scan import Scan

DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"

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

    ds = _header(patient_id, patient.female, patient.age)
    ds.SOPClassUID = DX_FOR_PRESENTATION
    ds.SOPInstanceUID = _uid(seed, number, image, "image")
    ds.StudyInstanceUID = _uid(seed, number, image, "study")
    ds.SeriesInstanceUID = _uid(seed, number, image, "series")
    ds.Modality = "DX"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.SeriesNumber = ds.InstanceNumber = image + 1
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

    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverted else -1
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    # PS3.3 C.11.2.1.2.1: the linear window of width w about c shows c - 0.5 +- (w - 1) / 2.
    ds.WindowCenter, ds.WindowWidth = f"{(low + high) / 2 + 0.5:.1f}", str(high - low + 1)
    _put_pixels(ds, stored)
    return ds


def ct_datasets(scan: Scan, body: Body, patient_id: str, seed: int, number: int) -> list[Dataset]:
    """Describe a CT, one data set a slice, from the feet to the head.

    Args:
        scan: the volume in HU, on axes that are not oblique.
        body: whose; age and sex are written.
        patient_id: goes into PatientID.
        seed, number: cohort and patient; rescale, order of the instance numbers and UIDs follow from them.

    Returns:
        Data sets with file meta information, uncompressed (explicit VR little endian).
    """
    rng = random_stream(seed, "ct file", number)
    slope, intercept, kind = ((1.0, -1024.0, "<u2"), (1.0, 0.0, "<i2"), (0.5, -1024.0, "<u2"))[rng.integers(3)]
    stored = np.rint((scan.array - intercept) / slope).astype(kind)
    downwards = bool(rng.random() < 0.5)  # scanners number slices either way
    step, *pixel = scan.spacing_mm
    common = _header(patient_id, body.female, body.age)
    common.SOPClassUID = CT_IMAGE
    common.StudyInstanceUID = _uid(seed, number, 0, "ct study")
    common.SeriesInstanceUID = _uid(seed, number, 0, "ct series")
    common.FrameOfReferenceUID = _uid(seed, number, 0, "ct frame")
    common.PositionReferenceIndicator = ""
    common.Modality = "CT"
    common.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    common.SeriesNumber = common.AcquisitionNumber = 1
    common.BodyPartExamined = "ABDOMEN"
    common.PatientPosition = "HFS"
    common.KVP = "120"
    common.SliceThickness = f"{step:.2f}"
    common.PixelSpacing = [f"{length:.4f}" for length in pixel]
    common.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    common.PhotometricInterpretation = "MONOCHROME2"
    common.BitsStored, common.HighBit = 16, 15
    common.RescaleIntercept, common.RescaleSlope, common.RescaleType = f"{intercept:g}", f"{slope:g}", "HU"
    common.WindowCenter, common.WindowWidth = "40", "400"
    slices = []
    for place, plane in enumerate(stored):
        ds = deepcopy(common)
        ds.SOPInstanceUID = _uid(seed, number, place, "ct image")
        ds.InstanceNumber = len(stored) - place if downwards else place + 1
        ds.ImagePositionPatient = [f"{value:.3f}" for value in scan.affine[:3] @ (place, 0, 0, 1)]
        _put_pixels(ds, plane)
        slices.append(ds)
    return slices


def _header(patient_id: str, female: bool, age: int) -> Dataset:
    """Elements that all example images have."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
    ds.Manufacturer = "monai_ssl example data"
    ds.PatientName = patient_id.replace("-", "^")
    ds.PatientID = patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = "F" if female else "M"
    ds.PatientAge = f"{age:03d}Y"
    ds.SamplesPerPixel = 1
    ds.BitsAllocated = 16
    return ds


def _put_pixels(ds: Dataset, stored: np.ndarray) -> None:
    """Set size, sign and pixel data from (rows, columns) of 16 bits."""
    ds.Rows, ds.Columns = stored.shape
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"


def _uid(seed: int, number: int, image: int, what: str) -> str:
    return generate_uid(entropy_srcs=["monai_ssl example data", str(seed), str(number), str(image), what])


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item
