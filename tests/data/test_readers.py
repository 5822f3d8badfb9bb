# SPDX-License-Identifier: Apache-2.0
"""Readers against closed forms, on files made here."""

from __future__ import annotations

import pickle
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import LoadImage
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from synthetic_dicom import lookup_table, make_dicom, write_dicom

from monai_ssl.data import RadiographReader, UnreadableImageError, available_decoders, read_radiograph
from monai_ssl.data.borders import find_border_box
from monai_ssl.data.codestreams import codestream_size
from monai_ssl.data.readers import sniff_kind


def ramp(dtype, low, high, shape=(12, 17)):
    return np.linspace(low, high, np.prod(shape)).round().astype(dtype).reshape(shape)


STORED = {
    "u8": (ramp(np.uint8, 0, 255), 8),
    "u10": (ramp(np.uint16, 0, 1023), 10),
    "u12": (ramp(np.uint16, 3, 4000), 12),
    "u16": (ramp(np.uint16, 0, 65535), 16),
    "s12": (ramp(np.int16, -2048, 2047), 12),
    "s16": (ramp(np.int16, -32768, 32767), 16),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("rescale", [None, (2.0, -100.0), (0.5, 7.0)])
@pytest.mark.parametrize("voi", ["none", "linear", "exact", "sigmoid", "lut"])
@pytest.mark.parametrize("stored", list(STORED))
def test_every_chain_has_its_closed_form(tmp_path, stored, voi, rescale, photometric):
    pixels, bits = STORED[stored]
    elements = {"PhotometricInterpretation": photometric}
    slope, intercept = rescale or (1.0, 0.0)
    if rescale:
        elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    physical = pixels.astype(np.float64) * slope + intercept
    center, width = float(np.round(physical.mean())), float(np.round(np.ptp(physical) / 2))
    if voi in ("linear", "exact", "sigmoid"):
        elements |= {"WindowCenter": [center, 5], "WindowWidth": [width, 10]}  # the first of several counts
        elements["VOILUTFunction"] = {"linear": "LINEAR", "exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}[voi]
    # PS3.3 C.11.2.1.2
    expected, (low, high), source = {
        "none": lambda: (physical, (physical.min(), physical.max()), "pixels"),
        "linear": lambda: (physical, (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2), "window"),
        "exact": lambda: (physical, (center - width / 2, center + width / 2), "window"),
        "sigmoid": lambda: (1 / (1 + np.exp(-4 * (physical - center) / width)), (0.0, 1.0), "sigmoid"),
        "lut": lambda: (None, (0.0, 4095.0), "voi_lut"),
    }[voi]()
    if voi == "lut":
        first = int(np.clip(physical.min(), -30000, 30000)) + 3
        entries = np.linspace(4095, 0, 200).round().astype(np.int64)
        elements["VOILUTSequence"] = lookup_table(first, entries, 12)
        expected = entries[np.clip(np.rint(physical).astype(int) - first, 0, 199)]
    if voi == "none" and bits == 8:
        low, high, source = intercept, 255 * slope + intercept, "bits_stored"
    if photometric == "MONOCHROME1":
        expected = low + high - expected
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, **elements)

    array, meta = read_radiograph(path)
    assert array.dtype == np.float32 and array.shape == pixels.shape and array.flags.c_contiguous
    np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6 * max(abs(low), abs(high), 1))
    assert meta["value_range"] == pytest.approx((low, high))
    assert meta["value_range_source"] == source
    assert meta["inverted"] == (photometric == "MONOCHROME1")
    assert meta["bits_stored"] == bits


def test_sixteen_bits_survive(tmp_path):
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    array, _ = read_radiograph(write_dicom(tmp_path / "a.dcm", pixels))
    np.testing.assert_array_equal(array, pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        array, meta = read_radiograph(tmp_path / name)
        np.testing.assert_array_equal(array, pixels)
        assert meta["bits_stored"] == 16 and meta["value_range"] == (0.0, 65535.0)


def test_modality_lut_replaces_rescale(tmp_path):
    pixels = ramp(np.int16, -20, 90)
    entries = np.arange(100) ** 2
    path = write_dicom(
        tmp_path / "a.dcm", pixels, ModalityLUTSequence=lookup_table(-10, entries), RescaleSlope=3, RescaleIntercept=1
    )
    array, meta = read_radiograph(path)
    np.testing.assert_array_equal(array, entries[np.clip(pixels.astype(int) + 10, 0, 99)])
    assert meta["value_range"] == (0.0, 79.0**2 if pixels.max() + 10 < 99 else 99.0**2)


@pytest.mark.parametrize(
    ("stated", "entries", "top"), [(16, np.arange(4096), 4095), (8, np.arange(4096), 4095), (12, np.arange(3000), 4095)]
)
def test_voi_lut_that_lies_about_its_bits(tmp_path, stated, entries, top):
    path = write_dicom(tmp_path / "a.dcm", ramp(np.uint16, 0, 4095), VOILUTSequence=lookup_table(0, entries, stated))
    assert read_radiograph(path)[1]["value_range"] == (0.0, float(top))


def test_apply_voi_false_keeps_physical_values(tmp_path):
    pixels = ramp(np.int16, -1000, 2000)
    path = write_dicom(
        tmp_path / "a.dcm", pixels, VOILUTSequence=lookup_table(0, np.arange(100), 8), WindowCenter=40, WindowWidth=400
    )
    array, meta = read_radiograph(path, apply_voi=False)
    np.testing.assert_array_equal(array, pixels)
    assert meta["value_range"] == (-1000.0, 2000.0) and meta["value_range_source"] == "pixels"


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 50000, "WindowWidth": 10},
        {"WindowCenter": 500, "WindowWidth": 0},
        {"WindowCenter": 500, "WindowWidth": 1},
        {"WindowCenter": 500},
    ],
)
def test_useless_windows_are_ignored(tmp_path, window):
    path = write_dicom(tmp_path / "a.dcm", ramp(np.uint16, 100, 900), **window)
    assert read_radiograph(path)[1]["value_range"] == (100.0, 900.0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_range(tmp_path, photometric):
    pixels = ramp(np.int16, 0, 1000, (20, 20))
    pixels[:3] = -2000
    pixels[3, :5] = -1990
    elements = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1985, "PhotometricInterpretation": photometric}
    array, meta = read_radiograph(write_dicom(tmp_path / "a.dcm", pixels, **elements))
    low, high = float(pixels[pixels > -1000].min()), 1000.0
    assert meta["value_range"] == (low, high)
    assert meta["padding_fraction"] == pytest.approx(65 / 400)
    assert (array[:3] == low).all() and (array[3, :5] == low).all()
    inside = pixels[4:].astype(float)
    np.testing.assert_array_equal(array[4:], low + high - inside if photometric == "MONOCHROME1" else inside)


def test_padding_value_in_the_other_signedness(tmp_path):
    pixels = ramp(np.int16, 0, 1000)
    pixels[0] = -2000
    data = make_dicom(pixels)
    data.add_new("PixelPaddingValue", "US", 65536 - 2000)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_radiograph(tmp_path / "a.dcm")[1]["padding_fraction"] == pytest.approx(1 / 12)


def test_an_image_of_padding_only_is_a_blank_image(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.full((8, 8), 7, np.uint16), PixelPaddingValue=7)
    array, meta = read_radiograph(path)
    assert (array == 7).all() and meta["value_range"] == (7.0, 8.0)


def test_unused_and_high_bits_are_cut(tmp_path):
    values = ramp(np.uint16, 0, 4095)
    overlay = values | np.uint16(0xA000)  # overlays were once kept in the upper four bits
    np.testing.assert_array_equal(read_radiograph(write_dicom(tmp_path / "a.dcm", overlay, bits=12))[0], values)
    left = write_dicom(tmp_path / "b.dcm", values << np.uint16(4), bits=12, HighBit=15)
    np.testing.assert_array_equal(read_radiograph(left)[0], values)
    signed = ramp(np.int16, -2048, 2047)
    path = write_dicom(tmp_path / "c.dcm", signed & np.int16(0x0FFF), bits=12)  # sign not extended by the writer
    np.testing.assert_array_equal(read_radiograph(path)[0], signed)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes(tmp_path, syntax):
    pixels = ramp(np.uint16, 0, 4095)
    data = make_dicom(pixels, bits=12, syntax=syntax)
    if syntax == ExplicitVRBigEndian:
        data.PixelData = pixels.astype(">u2").tobytes()
        data.set_original_encoding(False, False)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    array, meta = read_radiograph(tmp_path / "a.dcm")
    np.testing.assert_array_equal(array, pixels)
    assert meta["transfer_syntax"] == syntax.name


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("stored", ["u8", "u12", "u16", "s16"])
def test_lossless_compression_is_lossless(tmp_path, stored, syntax):
    pixels, bits = STORED[stored]
    pixels = np.kron(pixels, np.ones((4, 4), pixels.dtype))
    data = make_dicom(pixels, bits=bits)
    data.compress(syntax)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_radiograph(tmp_path / "a.dcm")[0], pixels)


def test_lossy_jpeg_2000_is_close(tmp_path):
    pixels = ramp(np.uint16, 0, 4095, (64, 64))
    data = make_dicom(pixels, bits=12)
    data.compress(JPEG2000, j2k_psnr=[60])
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert np.abs(read_radiograph(tmp_path / "a.dcm")[0] - pixels).mean() < 20


def compress_with_gdcm(path, syntax):
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(
    ("syntax", "name", "error"),
    [
        ("JPEGLosslessProcess14_1", "JPEG Lossless, Non-Hierarchical, First-Order", 0),
        ("JPEGLosslessProcess14", "JPEG Lossless, Non-Hierarchical (Process 14)", 0),
        ("JPEGExtendedProcess2_4", "JPEG Extended", 1),
    ],
)
def test_jpeg_lossless_and_twelve_bit_extended(tmp_path, syntax, name, error):
    pixels = ramp(np.uint16, 0, 4095, (64, 64))
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12)
    compress_with_gdcm(path, syntax)
    array, meta = read_radiograph(path)
    assert meta["transfer_syntax"].startswith(name)
    assert np.abs(array - pixels).max() <= error and array.max() > 4000
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(UnreadableImageError, match="missing or cut off"):
        read_radiograph(path)


def jpeg_bytes(pixels, **options):
    import io

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def write_jpeg_dicom(path, frames, shape, photometric="MONOCHROME2", syntax=JPEGBaseline8Bit, **elements):
    pixels = np.zeros(shape, np.uint8)
    data = make_dicom(pixels, **elements)
    data.PhotometricInterpretation = photometric
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)
    return path


def test_jpeg_baseline_grey_and_colour(tmp_path):
    grey = ramp(np.uint8, 0, 255, (32, 48))
    path = write_jpeg_dicom(tmp_path / "a.dcm", [jpeg_bytes(grey, quality=95)], grey.shape)
    assert np.abs(read_radiograph(path)[0] - grey).max() < 6
    colour = np.stack([grey, grey[::-1], 255 - grey], -1)
    path = write_jpeg_dicom(
        tmp_path / "b.dcm", [jpeg_bytes(colour, quality=95, subsampling=0)], colour.shape, "YBR_FULL_422"
    )
    array, meta = read_radiograph(path)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(array - luma).max() < 8 and meta["value_range"] == (0.0, 255.0)


def test_colour_and_palette_become_luma(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_radiograph(write_dicom(tmp_path / "a.dcm", colour))[0], luma, rtol=1e-5)
    planar = make_dicom(colour)
    planar.PlanarConfiguration = 1
    planar.PixelData = np.moveaxis(colour, -1, 0).tobytes() + b"\0"
    planar.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_radiograph(tmp_path / "b.dcm")[0], luma, rtol=1e-5)
    grey = np.repeat(colour[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(read_radiograph(write_dicom(tmp_path / "c.dcm", grey))[0], colour[..., 0])

    index = ramp(np.uint8, 0, 255)
    tables = {name: np.random.default_rng(k).integers(0, 65536, 256) for k, name in enumerate(("Red", "Green", "Blue"))}
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in tables.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = table.astype("<u2").tobytes()
    array, meta = read_radiograph(write_dicom(tmp_path / "d.dcm", index, **elements))
    expected = 0.299 * tables["Red"] + 0.587 * tables["Green"] + 0.114 * tables["Blue"]
    np.testing.assert_allclose(array, expected[index], rtol=1e-5)
    assert meta["value_range"] == (0.0, 65535.0) and meta["photometric"] == "PALETTE COLOR"


def test_ybr_full_uncompressed(tmp_path):
    ybr = np.random.default_rng(0).integers(60, 190, (6, 8, 3)).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(read_radiograph(path)[0], ybr[..., 0])  # the luma is the first sample


@pytest.mark.parametrize(("rule", "frame"), [("first", 0), ("middle", 2), ("last", 4), (3, 3), (-2, 3)])
def test_frame_rules(tmp_path, rule, frame):
    frames = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=5)
    array, meta = read_radiograph(path, frame_rule=rule)
    np.testing.assert_array_equal(array, frames[frame])
    assert (meta["frame"], meta["frames"]) == (frame, 5)


def test_frames_that_do_not_exist(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", ramp(np.uint8, 0, 9))
    with pytest.raises(UnreadableImageError, match="no frame 1: the image has 1"):
        read_radiograph(path, frame_rule=1)
    with pytest.raises(ValueError, match="use 'first', 'middle', 'last'"):
        read_radiograph(path, frame_rule="centre")


def test_functional_groups_of_enhanced_objects(tmp_path):
    def group(sequence, **values):
        outer, inner = Dataset(), Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(outer, sequence, Sequence([inner]))
        return outer

    frames = np.arange(2 * 4 * 4, dtype=np.int16).reshape(2, 4, 4)
    shared = group("PixelMeasuresSequence", PixelSpacing=[0.5, 0.25])
    per_frame = [group("PixelValueTransformationSequence", RescaleSlope=s, RescaleIntercept=-5) for s in (2, 3)]
    per_frame[1].FrameVOILUTSequence = group("FrameVOILUTSequence", WindowCenter=60, WindowWidth=41)[
        "FrameVOILUTSequence"
    ].value
    path = write_dicom(
        tmp_path / "a.dcm",
        frames,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(per_frame),
    )
    array, meta = read_radiograph(path, frame_rule=1)
    np.testing.assert_array_equal(array, frames[1] * 3 - 5)
    assert meta["pixel_spacing_mm"] == (0.5, 0.25) and meta["value_range"] == (39.5, 79.5)
    assert read_radiograph(path, frame_rule=0)[1]["value_range"] == (-5.0, 25.0)


def test_truncated_and_impossible_files_are_refused(tmp_path):
    pixels = ramp(np.uint16, 0, 4095, (64, 64))
    whole = write_dicom(tmp_path / "a.dcm", pixels).read_bytes()
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole[:-100])
    with pytest.raises(UnreadableImageError, match=r"pixel data shorter than the header says \(8092 of 8192 bytes\)"):
        read_radiograph(cut)
    for keep in (0, 100, 140, 200, 400, 600):
        cut.write_bytes(whole[:keep])
        with pytest.raises(UnreadableImageError):
            read_radiograph(cut)
    for elements, reason in (
        ({"Rows": 0}, "Rows or Columns is zero"),
        ({"Rows": None}, "Rows or Columns is zero"),
        ({"Rows": 65535, "Columns": 65535}, "shorter than the header says"),
        ({"SamplesPerPixel": 4}, "4 samples per pixel"),
        ({"BitsAllocated": 12}, "12 bits allocated"),
        ({"BitsAllocated": 1}, "1 bit per pixel"),
        ({"PixelData": None}, "missing or cut off"),
    ):
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            read_radiograph(write_dicom(tmp_path / "b.dcm", pixels, **elements))
        assert str(tmp_path / "b.dcm") in str(caught.value)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_truncated_compressed_files_are_refused(tmp_path, syntax):
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    data = make_dicom(noise, bits=12)
    data.compress(syntax)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    whole = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImageError, match="missing or cut off"):
        read_radiograph(tmp_path / "a.dcm")


def test_code_stream_of_another_size_is_not_decoded(tmp_path):
    stream = bytearray(jpeg_bytes(np.zeros((16, 16), np.uint8)))
    assert codestream_size(bytes(stream)) == (16, 16)
    place = stream.index(b"\xff\xc0") + 5
    stream[place : place + 4] = struct.pack(">2H", 65000, 65000)
    path = write_jpeg_dicom(tmp_path / "a.dcm", [bytes(stream)], (16, 16))
    with pytest.raises(UnreadableImageError, match="65000 x 65000 pixels, the header says 16 x 16"):
        read_radiograph(path)


def test_unknown_decoder_is_named(tmp_path):
    path = write_jpeg_dicom(tmp_path / "a.dcm", [b"\xff\xd8abcd"], (16, 16), syntax="1.2.840.10008.1.2.4.65")
    with pytest.raises(UnreadableImageError, match="no decoder for JPEG Lossless, Hierarchical"):
        read_radiograph(path)
    path = write_jpeg_dicom(tmp_path / "b.dcm", [b"\xff\xd8abcd"], (16, 16), syntax=JPEGLosslessSV1)
    with pytest.raises(UnreadableImageError, match="could not be decoded"):
        read_radiograph(path)


def test_float_pixel_data_with_holes(tmp_path):
    values = np.linspace(-1.5, 2.5, 48, dtype=np.float32).reshape(6, 8)
    values[0, 0] = np.nan
    data = make_dicom(ramp(np.uint8, 0, 1, (6, 8)), PixelData=None, BitsAllocated=32)
    for name in ("BitsStored", "HighBit", "PixelRepresentation"):
        data.pop(name)
    data.FloatPixelData = values.tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    array, meta = read_radiograph(tmp_path / "a.dcm")
    np.testing.assert_array_equal(array[1:], values[1:])
    assert array[0, 0] == meta["value_range"][0] == values[0, 1]


def test_missing_optional_elements_are_filled(tmp_path):
    pixels = ramp(np.uint16, 0, 4095)
    names = ("PhotometricInterpretation", "SamplesPerPixel", "PixelRepresentation", "BitsStored", "HighBit")
    path = write_dicom(tmp_path / "a.dcm", pixels, **dict.fromkeys(names))
    np.testing.assert_array_equal(read_radiograph(path)[0], pixels)


def test_file_without_preamble_and_without_extension(tmp_path):
    data = make_dicom(ramp(np.uint16, 0, 4095), syntax=ImplicitVRLittleEndian)
    data.save_as(tmp_path / "IM0001", enforce_file_format=False, implicit_vr=True, little_endian=True)
    whole = write_dicom(tmp_path / "x", ramp(np.uint16, 0, 4095), syntax=ImplicitVRLittleEndian).read_bytes()
    meta_length = 12 + struct.unpack("<I", whole[140:144])[0]
    (tmp_path / "bare").write_bytes(whole[132 + meta_length :])
    for name in ("IM0001", "bare"):
        np.testing.assert_array_equal(read_radiograph(tmp_path / name)[0], ramp(np.uint16, 0, 4095))


# ---- ordinary images ------------------------------------------------------------------------------------------------


def test_png_jpeg_tiff_grey_and_colour(tmp_path):
    grey = ramp(np.uint8, 0, 255, (20, 30))
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    for suffix in ("png", "tif", "bmp"):
        Image.fromarray(grey).save(tmp_path / f"g.{suffix}")
        Image.fromarray(colour).save(tmp_path / f"c.{suffix}")
        array, meta = read_radiograph(tmp_path / f"g.{suffix}")
        np.testing.assert_array_equal(array, grey)
        assert meta["value_range"] == (0.0, 255.0) and meta["bits_stored"] == 8
        np.testing.assert_allclose(read_radiograph(tmp_path / f"c.{suffix}")[0], luma, rtol=1e-5)
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(tmp_path / "g.jpg", quality=95)
    array, _ = read_radiograph(tmp_path / "g.jpg")
    assert np.abs(array - grey).max() < 6 and np.array_equal(array, array.round())
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "p.png")[0], grey)
    Image.fromarray(np.dstack([grey, grey])).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "la.png")[0], grey)


def test_exif_orientation_is_honoured(tmp_path):
    grey = ramp(np.uint8, 0, 255, (20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(grey).save(tmp_path / "a.jpg", exif=exif, quality=95)
    array, meta = read_radiograph(tmp_path / "a.jpg")
    assert array.shape == (30, 20) == (meta["rows"], meta["columns"])
    assert np.abs(array - np.rot90(grey, -1)).max() < 6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_white_is_zero(tmp_path, dtype):
    pixels = ramp(dtype, 0, np.iinfo(dtype).max)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={262: 0})
    array, meta = read_radiograph(tmp_path / "a.tif")
    # Pillow writes 8 bits inverted and turns them back, but writes 16 bits as they are.
    expected = pixels if dtype == np.uint8 else 65535 - pixels.astype(np.float32)
    np.testing.assert_array_equal(array, expected)
    assert meta["photometric"] == "MONOCHROME1"


def test_tiff_pages_follow_the_frame_rule(tmp_path):
    pages = [Image.fromarray(ramp(np.uint16, k, 1000 + k)) for k in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    array, meta = read_radiograph(tmp_path / "a.tif")
    assert array.min() == 1 and meta["frames"] == 3
    assert read_radiograph(tmp_path / "a.tif", frame_rule="last")[0].min() == 2


def png_file(rows, columns, depth, kind, body):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", columns, rows, depth, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (2, 4), (4, 6)])
def test_sixteen_bit_colour_is_refused_rather_than_cut(tmp_path, channels, kind):
    (tmp_path / "a.png").write_bytes(png_file(4, 5, 16, kind, bytes(4 * (1 + 5 * 2 * channels))))
    with pytest.raises(UnreadableImageError, match="16 bits per channel"):
        read_radiograph(tmp_path / "a.png")


def test_broken_and_misnamed_images_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    for suffix in ("png", "jpg", "tif", "bmp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        whole = path.read_bytes()
        for keep in (0, 20, len(whole) // 2):
            path.write_bytes(whole[:keep])
            with pytest.raises(UnreadableImageError):
                read_radiograph(path)
    Image.fromarray(noise > 128).save(tmp_path / "mask.png")
    with pytest.raises(UnreadableImageError, match="1 bit per pixel"):
        read_radiograph(tmp_path / "mask.png")
    (tmp_path / "a.dcm").write_text("not DICOM")
    with pytest.raises(UnreadableImageError, match="named like a DICOM file"):
        read_radiograph(tmp_path / "a.dcm")
    Image.fromarray(noise).save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "really.jpg")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "really.jpg")[0], noise)
    with pytest.raises(FileNotFoundError):
        read_radiograph(tmp_path / "absent.png")
    (tmp_path / "notes").write_text("some text")
    assert sniff_kind(tmp_path / "notes") is None


def test_a_png_that_claims_a_huge_size_allocates_nothing(tmp_path):
    for side, reason in ((200000, "too large to be a radiograph"), (12000, "exceed 512 MiB")):
        (tmp_path / "a.png").write_bytes(png_file(side, side, 8, 0, b""))
        with pytest.raises(UnreadableImageError, match=reason):
            read_radiograph(tmp_path / "a.png")


# ---- NIfTI ----------------------------------------------------------------------------------------------------------


def test_nifti_slice_and_volume(tmp_path):
    plane = np.arange(12, dtype=np.int16).reshape(3, 4)  # (x, y)
    nib.save(nib.Nifti1Image(plane, None), tmp_path / "plane.nii.gz")
    array, meta = read_radiograph(tmp_path / "plane.nii.gz")
    np.testing.assert_array_equal(array, plane.T)
    assert (meta["rows"], meta["columns"], meta["frames"]) == (4, 3, 1)

    volume = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(volume, np.diag([1.5, 2.0, 3.0, 1.0])), tmp_path / "ras.nii")
    array, meta = read_radiograph(tmp_path / "ras.nii", frame_rule=1)
    np.testing.assert_array_equal(array, volume[::-1, ::-1, 1].T)  # patient's right at the left, front at the top
    assert meta["pixel_spacing_mm"] == (2.0, 1.5) and meta["frames"] == 5
    # The same patient stored in another axis order is shown the same way.
    turned = nib.Nifti1Image(volume, np.diag([1.5, 2.0, 3.0, 1.0])).as_reoriented(
        np.array([[2, -1], [0, 1], [1, -1]], dtype=float)
    )
    nib.save(turned, tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "turned.nii.gz", frame_rule=1)[0], array)


def test_nifti_scale_range_and_faults(tmp_path):
    image = nib.Nifti1Image(np.arange(12, dtype=np.int16).reshape(3, 4), None)
    image.header.set_slope_inter(2.0, -1.0)
    image.header["cal_min"], image.header["cal_max"] = 3, 9
    nib.save(image, tmp_path / "a.nii")
    array, meta = read_radiograph(tmp_path / "a.nii")
    np.testing.assert_array_equal(array, np.asarray(nib.load(tmp_path / "a.nii").dataobj).T)
    assert meta["value_range"] == (3.0, 9.0) and meta["value_range_source"] == "window"
    whole = (tmp_path / "a.nii").read_bytes()
    for keep in (0, 100, 355):
        (tmp_path / "cut.nii").write_bytes(whole[:keep])
        with pytest.raises(UnreadableImageError):
            read_radiograph(tmp_path / "cut.nii")
    (tmp_path / "fake.nii.gz").write_bytes(b"\x1f\x8b" + b"x" * 500)
    with pytest.raises(UnreadableImageError):
        read_radiograph(tmp_path / "fake.nii.gz")


# ---- borders, MONAI face, the rest ----------------------------------------------------------------------------------


def test_borders_are_cropped_on_request(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 200, (60, 80)).astype(np.uint8)
    framed = np.zeros((80, 120), np.uint8)
    framed[10:70, 15:95] = picture
    framed[3:5, 3:5] = 255  # a burnt-in marker
    Image.fromarray(framed).save(tmp_path / "a.png")
    array, meta = read_radiograph(tmp_path / "a.png", crop_borders=True)
    np.testing.assert_array_equal(array, picture)
    assert meta["crop_box"] == (10, 70, 15, 95)
    assert read_radiograph(tmp_path / "a.png")[0].shape == (80, 120)
    assert find_border_box(np.zeros((8, 8)), (0, 1)) == (0, 8, 0, 8)  # blank: nothing to cut to
    assert find_border_box(picture.astype(float), (0, 255)) == (0, 60, 0, 80)


def test_monai_reader(tmp_path):
    pixels = ramp(np.uint16, 0, 599, (20, 30))
    path = write_dicom(
        tmp_path / "IM1",
        pixels,
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope=2,
        RescaleIntercept=-100,
        PixelSpacing=[0.3, 0.2],
    )
    image = LoadImage(reader=RadiographReader(), ensure_channel_first=True)(path)
    assert isinstance(image, MetaTensor) and image.shape == (1, 20, 30)
    np.testing.assert_allclose(image[0].numpy(), 998.0 - (pixels * 2.0 - 100), rtol=1e-6)  # -100 + 1098 - value
    np.testing.assert_allclose(np.diag(image.affine.numpy()), [0.3, 0.2, 1, 1])
    assert image.meta["value_range"] == (-100.0, 1098.0)
    named = LoadImage(reader="monai_ssl.data.RadiographReader", unit_range=True, ensure_channel_first=True)(path)
    assert named.min() == 0 and named.max() == 1 and named[0, 0, 0] == 1
    automatic = LoadImage()
    automatic.register(RadiographReader())
    np.testing.assert_array_equal(automatic(path).numpy(), image[0].numpy())
    two = LoadImage(reader=RadiographReader(), ensure_channel_first=True)([path, path])
    assert two.shape == (2, 20, 30)


def test_monai_never_falls_back_to_a_reader_that_ignores_the_fault(tmp_path):
    whole = write_dicom(tmp_path / "a.dcm", ramp(np.uint16, 0, 599)).read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole[:-10])
    with pytest.raises(UnreadableImageError, match="shorter than the header"):
        LoadImage(reader=RadiographReader())(tmp_path / "a.dcm")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="different sizes"):
        LoadImage(reader=RadiographReader())([tmp_path / "a.png", tmp_path / "b.png"])


def test_reader_leaves_nifti_and_text_to_others(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "a.txt").write_text("text")
    reader = RadiographReader()
    assert not reader.verify_suffix(tmp_path / "a.nii")
    assert not reader.verify_suffix(str(tmp_path / "a.txt"))
    assert not reader.verify_suffix(tmp_path / "absent.dcm")


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableImageError("why", "a.dcm")))
    assert (error.reason, error.path, str(error)) == ("why", "a.dcm", "a.dcm: why")


def test_decoders_are_listed():
    found = available_decoders()
    assert found["python-gdcm"]["version"] and found["pyjpegls"]["version"]
    readable = {name for entry in found.values() for name in entry["transfer_syntaxes"]}
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1):
        assert syntax.name in readable
    assert "RLE Lossless" in found["pylibjpeg-rle"]["transfer_syntaxes"]
    assert "RLE Lossless" not in found["pylibjpeg-openjpeg"]["transfer_syntaxes"]


def test_reading_leaves_the_callers_pydicom_as_it_was(tmp_path):
    import logging

    import pydicom

    before = pydicom.config.settings.reading_validation_mode, logging.getLogger("pydicom").level
    read_radiograph(write_dicom(tmp_path / "a.dcm", ramp(np.uint8, 0, 255)))
    assert (pydicom.config.settings.reading_validation_mode, logging.getLogger("pydicom").level) == before
