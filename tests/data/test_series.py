# SPDX-License-Identifier: Apache-2.0
"""DICOM series become the volumes they are, or are refused with a reason."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from synthetic_dicom import write_dicom
from synthetic_series import (
    AXIAL,
    MR,
    ORIGIN,
    SHAPE,
    SPACING,
    STEP_MM,
    expected_affine,
    item,
    oblique,
    random_voxels,
    slice_elements,
    write_enhanced,
    write_repeats,
    write_series,
)

from monai_ssl.data import UnreadableImageError, open_series


def only_volume(paths, **options):
    found = open_series(paths, **options)
    assert [refusal.reason for refusal in found.refused] == []
    assert len(found.volumes) == 1
    return found.volumes[0].read()


def only_reason(paths, **options) -> str:
    found = open_series(paths, **options)
    assert not found.volumes and len(found.refused) == 1
    return found.refused[0].reason


def test_a_regular_series(tmp_path):
    voxels = random_voxels()
    volume = only_volume(write_series(tmp_path, voxels))
    assert volume.array.dtype == np.float32 and volume.array.shape == SHAPE
    np.testing.assert_array_equal(volume.array, voxels.astype(np.float32) - 1000)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-9)
    np.testing.assert_allclose(volume.spacing_mm, (STEP_MM, *SPACING))
    assert (volume.modality, volume.orientation, volume.facts["unit"]) == ("CT", "SPL", "HU")
    assert volume.facts["slices"] == 8 and volume.facts["tilt_degrees"] == 0 and volume.facts["copies_dropped"] == 0


def test_only_the_positions_give_the_order(tmp_path):
    """Reversed instance numbers, shuffled names and shuffled arguments change nothing."""
    voxels = random_voxels()
    straight = only_volume(write_series(tmp_path / "a", voxels))
    paths = write_series(tmp_path / "b", voxels, each=lambda number: {"InstanceNumber": 100 - number})
    shuffled = [path.rename(path.with_name(f"{(5 * place) % 8}.dcm")) for place, path in enumerate(paths)]
    other = only_volume([shuffled[place] for place in (3, 1, 7, 0, 2, 6, 5, 4)])
    np.testing.assert_array_equal(other.array, straight.array)
    np.testing.assert_array_equal(other.affine, straight.affine)


def test_a_series_written_from_head_to_foot(tmp_path):
    voxels = random_voxels()
    volume = only_volume(write_series(tmp_path, voxels, step=(0, 0, -STEP_MM)))
    np.testing.assert_array_equal(volume.array, voxels[::-1].astype(np.float32) - 1000)
    lowest = np.array(ORIGIN) - (0, 0, 7 * STEP_MM)
    np.testing.assert_allclose(volume.affine, expected_affine(origin=lowest), atol=1e-9)


@pytest.mark.parametrize("orientation", [oblique(25, 10), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)])
def test_an_oblique_coronal_or_sagittal_series_is_not_resampled(tmp_path, orientation):
    voxels = random_voxels()
    volume = only_volume(write_series(tmp_path, voxels, orientation=orientation))
    np.testing.assert_array_equal(volume.array, voxels.astype(np.float32) - 1000)
    np.testing.assert_allclose(volume.affine, expected_affine(orientation), atol=1e-6)
    assert volume.facts["tilt_degrees"] == 0


def phantom_hu(world_ras: np.ndarray) -> np.ndarray:
    """A smooth ball and a bar along the patient's long axis in air; (..., 3) mm to HU."""
    x, y, z = np.moveaxis(world_ras, -1, 0)
    ball = 1000 * np.exp(-((x - 4) ** 2 + (y + 3) ** 2 + (z - 22) ** 2) / (2 * 5.0**2))
    bar = 600 * np.exp(-((x + 9) ** 2 + (y - 6) ** 2) / (2 * 3.0**2))
    return ball + bar - 1000


def world_of(volume) -> np.ndarray:
    index = np.moveaxis(np.indices(volume.array.shape), 0, -1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


@pytest.mark.parametrize(("tilt", "along"), [(18.5, -1), (-12.0, 1)])
def test_gantry_tilt_is_recognised_and_sheared_right(tmp_path, tilt, along):
    """Slices tilted about x, table moved along z: the corrected voxels show the phantom where it is."""
    orientation, rows, columns, slices = oblique(tilt, 0), 60, 50, 24
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    row_axis, column_axis = np.array(orientation[:3]), np.array(orientation[3:])
    origin, step = np.array([-24.0, -28.0, 22.0 - along * 24.0]), np.array([0, 0, along * 2.0])
    spacing = (1.0, 1.0)
    grid = np.moveaxis(np.indices((slices, rows, columns)), 0, -1)
    lps = origin + grid @ np.stack([step, column_axis * spacing[0], row_axis * spacing[1]])
    stored = np.rint(phantom_hu(lps @ affine[:3, :3]) + 1000).astype(np.int16)
    paths = write_series(
        tmp_path, stored, orientation=orientation, step=step, origin=origin, PixelSpacing=list(spacing)
    )

    volume = only_volume(paths)
    assert volume.facts["tilt_degrees"] == pytest.approx(abs(tilt), abs=0.01)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert volume.spacing_mm[0] == pytest.approx(2.0 * np.cos(np.radians(tilt)))
    world = world_of(volume)
    truth = phantom_hu(world)
    inside = volume.array > -999.5  # outside of the acquired slices is air
    assert inside.mean() > 0.2
    assert np.abs(volume.array - truth)[inside].max() < 25  # of 1000 HU; half a pixel off would be 60
    centre = world[volume.array > -300].mean(axis=0)  # only the ball is that dense
    np.testing.assert_allclose(centre, (4, -3, 22), atol=0.3)
    assert volume.array.shape[1] > rows and volume.array.shape[2] == columns  # nothing is cut off


def test_a_drift_below_half_a_pixel_is_no_tilt(tmp_path):
    volume = only_volume(write_series(tmp_path, random_voxels(), step=(0, 0.08, STEP_MM)))
    assert volume.array.shape == SHAPE and volume.facts["tilt_degrees"] == 0


def test_slices_off_the_straight_line_are_refused(tmp_path):
    def jump(number):
        return {"ImagePositionPatient": [ORIGIN[0] + 30 * (number % 2), ORIGIN[1], ORIGIN[2] + number * STEP_MM]}

    assert "straight line" in only_reason(write_series(tmp_path, random_voxels(), each=jump))


def test_missing_slices_are_refused_or_interpolated(tmp_path):
    voxels = random_voxels()
    paths = write_series(tmp_path, voxels)
    kept = [path for place, path in enumerate(paths) if place not in (3, 4)]
    reason = only_reason(kept)
    assert "2 of 8 slices missing" in reason and "7.50 mm apart" in reason and "resample" in reason
    volume = only_volume(kept, uneven="resample")
    assert volume.facts["interpolated_slices"] == 2 and volume.array.shape == SHAPE
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-9)
    hounsfield = voxels.astype(np.float32) - 1000
    for place in (0, 1, 2, 5, 6, 7):
        np.testing.assert_array_equal(volume.array[place], hounsfield[place])
    np.testing.assert_allclose(volume.array[3], (2 * hounsfield[2] + hounsfield[5]) / 3, atol=1e-2)


def test_more_missing_than_present_is_refused_even_then(tmp_path):
    paths = write_series(tmp_path, random_voxels((20, 4, 4)))
    assert "more slices are missing" in only_reason([*paths[:3], paths[-1]], uneven="resample")


def test_uneven_spacing_is_refused_or_resampled(tmp_path):
    heights = [0, 2, 4, 6, 9, 12.5, 15]
    ramp = np.stack([np.full((4, 4), 10 * height, np.int16) for height in heights])
    paths = write_series(
        tmp_path, ramp, each=lambda number: {"ImagePositionPatient": [*ORIGIN[:2], ORIGIN[2] + heights[number]]}
    )
    assert "uneven slice spacing, from 2.00 to 3.50 mm" in only_reason(paths)
    volume = only_volume(paths, uneven="resample")
    depth = volume.array.shape[0]
    step = volume.spacing_mm[0]
    np.testing.assert_allclose(volume.array[:, 0, 0], 10 * step * np.arange(depth) - 1000, atol=1e-3)


def test_rounded_positions_are_even(tmp_path):
    def rounded(number):
        return {"ImagePositionPatient": [*ORIGIN[:2], round(ORIGIN[2] + number * 0.625, 2)]}

    volume = only_volume(write_series(tmp_path, random_voxels((40, 4, 4)), each=rounded))
    assert volume.spacing_mm[0] == pytest.approx(0.625, abs=1e-3)


def test_two_thicknesses_in_one_series_are_two_volumes(tmp_path):
    heights = [*np.arange(6) * 4.0, *(22.0 + np.arange(5) * 7.0)]
    paths = write_series(
        tmp_path,
        random_voxels((11, 4, 4)),
        each=lambda number: {
            "ImagePositionPatient": [*ORIGIN[:2], ORIGIN[2] + heights[number]],
            "SliceThickness": 4 if number < 6 else 7,
        },
    )
    found = open_series(paths)
    assert [volume.facts["split_by"] for volume in found.volumes] == [{"SliceThickness": 4.0}, {"SliceThickness": 7.0}]
    assert [volume.read().spacing_mm[0] for volume in found.volumes] == pytest.approx([4.0, 7.0])


def test_copies_of_slices_are_dropped(tmp_path):
    voxels = random_voxels()
    paths = write_series(tmp_path, voxels, series="1.2.3.4")
    paths += write_series(tmp_path, voxels[:3], series="1.2.3.4", prefix="copy", first_number=50)
    found = open_series(paths)
    volume = found.volumes[0].read()
    np.testing.assert_array_equal(volume.array, voxels.astype(np.float32) - 1000)
    assert volume.facts["copies_dropped"] == 3
    assert [(len(refusal.paths), refusal.reason) for refusal in found.refused] == [(3, "a copy of another slice")]


def test_a_second_different_slice_at_one_position_is_refused(tmp_path):
    paths = write_series(tmp_path, random_voxels(), series="1.2.3.4")
    paths += write_series(tmp_path, random_voxels((1, 16, 12), seed=1), series="1.2.3.4", prefix="other")
    assert "9 slices at 8 positions, 1 to 2 at each" in only_reason(paths)


@pytest.mark.parametrize(
    ("keyword", "name", "values"),
    [
        ("DiffusionBValue", "DiffusionBValue", (0.0, 400.0, 800.0)),
        ("EchoTime", "EchoTime", (4.5, 9.0, 13.5)),
        ("TemporalPositionIdentifier", "TemporalPosition", (1, 2, 3)),
        ("NominalPercentageOfCardiacPhase", "CardiacPhase", (0.0, 35.0, 70.0)),
        ("AcquisitionNumber", "AcquisitionNumber", (4, 5, 6)),
    ],
)
def test_volumes_at_the_same_positions_are_parted_by_the_element_that_differs(tmp_path, keyword, name, values):
    paths, truth = write_repeats(tmp_path, lambda repeat, number: {keyword: values[repeat]}, SOPClassUID=MR)
    found = open_series(paths)
    assert [volume.facts["split_by"] for volume in found.volumes] == [{name: value} for value in values]
    for volume, array in zip(found.volumes, truth, strict=True):
        np.testing.assert_array_equal(volume.read().array, array)


def test_image_type_parts_volumes_but_its_text_is_not_kept(tmp_path):
    kinds = ["ADC", "DOE JANE", "TRACEW"]
    paths, truth = write_repeats(
        tmp_path, lambda repeat, number: {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", kinds[repeat]]}
    )
    found = open_series(paths)
    assert [volume.facts["split_by"] for volume in found.volumes] == [{"ImageType": rank} for rank in range(3)]
    np.testing.assert_array_equal(found.volumes[2].read().array, truth[2])


def test_b_values_and_directions_part_together(tmp_path):
    b_values, directions = (0.0, 800.0, 800.0), (None, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])

    def each(repeat, number):
        return {"DiffusionBValue": b_values[repeat], "DiffusionGradientOrientation": directions[repeat]}

    found = open_series(write_repeats(tmp_path, each)[0])
    assert [volume.facts["split_by"] for volume in found.volumes] == [
        {"DiffusionBValue": 0.0},
        {"DiffusionBValue": 800.0, "DiffusionGradientOrientation": (0.0, 1.0, 0.0)},
        {"DiffusionBValue": 800.0, "DiffusionGradientOrientation": (1.0, 0.0, 0.0)},
    ]


def test_volumes_that_nothing_names_are_parted_by_order(tmp_path):
    """Trigger times that differ from slice to slice are no key, but they give the order."""
    paths, truth = write_repeats(tmp_path, lambda repeat, number: {"TriggerTime": 100 * (2 - repeat) + number})
    found = open_series(paths)
    assert [volume.facts["split_by"] for volume in found.volumes] == [{"order": rank} for rank in range(3)]
    for volume, array in zip(found.volumes, truth[::-1], strict=True):
        np.testing.assert_array_equal(volume.read().array, array)


def test_an_incomplete_volume_leaves_the_others(tmp_path):
    paths, truth = write_repeats(tmp_path, lambda repeat, number: {"DiffusionBValue": 400.0 * repeat})
    paths.remove(tmp_path / "b2004.dcm")
    found = open_series(paths)
    assert len(found.volumes) == 2 and "1 of 8 slices missing" in found.refused[0].reason
    np.testing.assert_array_equal(found.volumes[1].read().array, truth[1])


def test_a_broken_slice_spoils_only_its_own_volume(tmp_path):
    paths, truth = write_repeats(tmp_path, lambda repeat, number: {})
    broken = tmp_path / "a1006.dcm"
    broken.write_bytes(broken.read_bytes()[:-50])
    found = open_series(paths)
    assert [volume.facts["split_by"] for volume in found.volumes] == [{"order": 0}, {"order": 2}]
    np.testing.assert_array_equal(found.volumes[1].read().array, truth[2])
    (refusal,) = found.refused
    assert refusal.culprit == broken and len(refusal.paths) == 8
    assert not {path for volume in found.volumes for path in volume.paths} & set(refusal.paths)


def test_elements_that_vary_over_distinct_positions_part_nothing(tmp_path):
    volume = only_volume(
        write_series(tmp_path, random_voxels(), each=lambda number: {"AcquisitionNumber": number, "EchoTime": number})
    )
    assert volume.array.shape == SHAPE and volume.facts["split_by"] == {}


def test_the_rescale_of_each_slice_is_used(tmp_path):
    voxels = random_voxels()
    volume = only_volume(
        write_series(
            tmp_path,
            voxels,
            Modality="PT",
            Units="BQML",
            each=lambda number: {"RescaleSlope": 0.5 + number, "RescaleIntercept": -number},
        )
    )
    ramp = np.arange(8)[:, None, None]
    np.testing.assert_allclose(volume.array, voxels * (0.5 + ramp) - ramp, rtol=1e-6)
    assert volume.facts["unit"] == "BQML"


def test_ct_without_rescale_is_not_called_hounsfield(tmp_path):
    volume = only_volume(write_series(tmp_path, random_voxels(), RescaleSlope=None, RescaleIntercept=None))
    assert volume.facts["unit"] is None


def test_two_series_in_one_list_are_two_volumes(tmp_path):
    paths = write_series(tmp_path / "a", random_voxels()) + write_series(tmp_path / "b", random_voxels((5, 4, 4)))
    assert [volume.read().array.shape for volume in open_series(paths).volumes] == [SHAPE, (5, 4, 4)]


def test_a_localizer_of_three_planes_is_refused(tmp_path):
    paths = []
    for place, orientation in enumerate((AXIAL, (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1))):
        paths += write_series(
            tmp_path, random_voxels((5, 8, 8)), orientation=orientation, series="1.2.3.4", prefix=str(place)
        )
    assert "a localizer" in only_reason(paths)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer (scout) image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "a mosaic"),
        ({"ImagePositionPatient": None}, "its place is unknown"),
        ({"ImagePositionPatient": [0, 0, 1e30]}, "its place is unknown"),
        ({"PixelSpacing": None}, "its size is unknown"),
        ({"PixelSpacing": [1e-30, 1]}, "its size is unknown"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "perpendicular"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "a colour image"),
    ],
)
def test_other_pictures_are_left_out_of_their_series(tmp_path, elements, reason):
    paths = write_series(tmp_path, random_voxels(), series="1.2.3.4")
    odd = slice_elements("1.2.3.4", 99, ORIGIN) | elements
    paths.append(write_dicom(tmp_path / "odd.dcm", random_voxels((16, 12)), **odd))
    found = open_series(paths)
    assert len(found.volumes) == 1 and found.volumes[0].facts["slices"] == 8
    assert found.refused[0].paths == (tmp_path / "odd.dcm",) and reason in found.refused[0].reason


def test_slices_of_another_size_are_left_out(tmp_path):
    paths = write_series(tmp_path, random_voxels(), series="1.2.3.4")
    paths += write_series(tmp_path, random_voxels((2, 9, 9)), series="1.2.3.4", prefix="scout")
    found = open_series(paths)
    assert found.volumes[0].read().array.shape == SHAPE
    assert len(found.refused) == 1 and "another size" in found.refused[0].reason and len(found.refused[0].paths) == 2


def test_half_and_half_sizes_are_refused(tmp_path):
    paths = write_series(tmp_path, random_voxels((4, 9, 9)), series="1.2.3.4")
    paths += write_series(tmp_path, random_voxels((4, 7, 7)), series="1.2.3.4", prefix="b")
    assert "none of which holds most of them" in only_reason(paths)


def test_too_few_slices(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    assert only_reason(paths[:2]) == "only 2 slices; a volume needs 3 of the same series"
    assert only_volume(paths[:2], min_slices=2).array.shape[0] == 2
    with pytest.raises(ValueError, match="min_slices"):
        open_series(paths, min_slices=1)
    with pytest.raises(ValueError, match="uneven"):
        open_series(paths, uneven="ignore")


def test_a_slice_with_cut_pixels_spoils_its_volume_and_is_named(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    paths[7].write_bytes(paths[7].read_bytes()[:-50])
    found = open_series(paths)
    (refusal,) = found.refused
    assert not found.volumes and refusal.culprit == paths[7] and len(refusal.paths) == 8
    assert "pixel data shorter than the header says" in refusal.reason and "8 slices is not whole" in refusal.reason


def test_a_header_that_breaks_at_decoding_is_named(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    samples_per_pixel = b"\x28\x00\x02\x00"
    paths[4].write_bytes(paths[4].read_bytes().replace(samples_per_pixel + b"US", samples_per_pixel + b"U\xc8", 1))
    (opened,) = open_series(paths).volumes
    with pytest.raises(UnreadableImageError, match=r"004\.dcm: unexpected \w+ while decoding"):
        opened.read()


def test_a_transfer_syntax_that_is_none_spoils_the_volume(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    paths[4].write_bytes(paths[4].read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.1\0\0\0", 1))
    assert "the transfer syntax is not one of DICOM" in only_reason(paths)


def test_files_that_are_no_dicom_are_listed(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    text = tmp_path / "notes.dcm"
    text.write_text("nothing of interest " * 20)
    found = open_series([*paths, text, tmp_path / "absent.dcm"])
    assert len(found.volumes) == 1 and len(found.refused) == 2
    assert {refusal.culprit for refusal in found.refused} == {text, tmp_path / "absent.dcm"}


def frame_positions(count):
    return [(ORIGIN[0], ORIGIN[1], ORIGIN[2] + number * STEP_MM) for number in range(count)]


def test_enhanced_multi_frame(tmp_path):
    """Frames out of order, a rescale for each: functional groups say where and how much."""
    voxels = random_voxels()
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    positions = frame_positions(8)

    def groups(number):
        return {
            "PixelValueTransformationSequence": [item(RescaleSlope=number + 1, RescaleIntercept=5, RescaleType="US")]
        }

    path = write_enhanced(tmp_path / "e.dcm", voxels, [positions[place] for place in order], groups)
    volume = only_volume([path])
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-9)
    for frame, place in enumerate(order):
        np.testing.assert_allclose(volume.array[place], voxels[frame] * (frame + 1.0) + 5)
    assert volume.modality == "MR" and volume.facts["slice_thickness_mm"] == STEP_MM


def test_enhanced_multi_frame_with_b_values(tmp_path):
    voxels = random_voxels((10, 6, 6))

    def groups(number):
        direction = item(DiffusionGradientOrientation=[1.0, 0.0, 0.0])
        b_value = 1000.0 if number % 2 else 0.0
        return {
            "MRDiffusionSequence": [item(DiffusionBValue=b_value, DiffusionGradientDirectionSequence=[direction])],
            "FrameContentSequence": [item(FrameAcquisitionNumber=1)],
        }

    path = write_enhanced(tmp_path / "e.dcm", voxels, [p for p in frame_positions(5) for _ in "ab"], groups)
    found = open_series([path])
    assert [volume.facts["split_by"] for volume in found.volumes] == [
        {"DiffusionBValue": 0.0},
        {"DiffusionBValue": 1000.0},
    ]
    np.testing.assert_array_equal(found.volumes[1].read().array, voxels[1::2].astype(np.float32))


def test_an_enhanced_localizer_is_refused(tmp_path):
    frame_type = item(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])
    groups = {"CTImageFrameTypeSequence": [frame_type]}
    path = write_enhanced(tmp_path / "e.dcm", random_voxels(), frame_positions(8), lambda number: groups)
    assert only_reason([path]) == "a localizer (scout) image"


def test_multi_frame_without_positions_is_refused(tmp_path):
    path = write_enhanced(tmp_path / "e.dcm", random_voxels(), [], SharedFunctionalGroupsSequence=None)
    assert only_reason([path]) == "a multi-frame image without a position for each frame"
    path = write_enhanced(tmp_path / "f.dcm", random_voxels(), frame_positions(5))
    assert only_reason([path]) == "8 frames, but functional groups for 5"


def test_nothing_of_the_header_text_is_kept_or_printed(tmp_path):
    secret = generate_uid()
    paths = write_series(
        tmp_path, random_voxels(), series=secret, PatientName="Roe^Richard", PatientID="ID-77", StudyDate="20200102",
        SeriesDescription="Dr Moe", ImageType=["ORIGINAL", "PRIMARY", "POE"], BodyPartExamined="ROE RICHARD",
    )  # fmt: skip
    found = open_series(paths)
    volume = found.volumes[0].read()
    gap = open_series([*paths[:3], *paths[5:]]).refused[0].reason
    kept = repr(found) + repr(volume) + repr(volume.facts) + gap + pickle.dumps(found).decode("latin-1")
    assert not re.search(rf"roe|moe|poe|ID-77|20200102|{re.escape(secret)}", kept, flags=re.IGNORECASE)
    assert volume.facts["body_part"] == "OTHER"


def test_a_huge_volume_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_ssl.data.volumes.MAX_VOLUME_BYTES", 4 * 8 * 16 * 12 - 1)
    assert "a volume of 8 x 16 x 12 voxels exceeds" in only_reason(write_series(tmp_path, random_voxels()))


def test_a_file_that_breaks_after_it_was_opened_is_named(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    opened = open_series(paths).volumes[0]
    paths[2].unlink()
    with pytest.raises(UnreadableImageError, match=r"002\.dcm: the file could not be read"):
        opened.read()


EXPECTED = {  # folder: shapes of its volumes; reasons of its refusals with the number of files
    "dicom_zoo/series/missing_slice": ([], {"1 of 19 slices missing": 18}),
    "dicom_zoo/series/three_b_values_in_one_series": ([(19, 128, 84)] * 3, {}),
    "dicom_zoo/series/localizer_three_planes": ([], {"a localizer": 13}),
    "dicom_zoo/series/ct_two_patients_one_folder": ([(5, 16, 16)], {"161 of 165 slices missing": 4}),
    "dicom_zoo/series/ct_scout_and_screen_shots": ([], {"a secondary capture": 6, "no pixel data": 1}),
    "volumes_ct/dicom_series/ge_head_gantry_tilt": ([(14, 549, 512), (14, 576, 512)], {}),
    "volumes_ct/dicom_series/totalseg_example_ct": ([(20, 512, 512)], {}),
    "volumes_mr/dicom_series/prostatex-0000_adc": ([(19, 128, 84)], {}),
    "volumes_mr/dicom_series/prostatex-0000_calc_bval": ([(19, 128, 84)], {}),
    "volumes_mr/dicom_series/prostatex-0000_tfl3d_pd_ref": ([(16, 128, 128)], {}),
    "volumes_mr/dicom_series/prostatex-0218_adc": ([(20, 104, 128)], {}),
    "volumes_mr/dicom_series/prostatex-0218_fa": ([(20, 104, 128)], {}),
    "volumes_mr/dicom_series/prostatex-0218_dce_08s": ([(20, 160, 160)], {}),
    "volumes_mr/dicom_series/prostatex-0218_dce_42s": ([(20, 160, 160)], {}),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", EXPECTED)
def test_every_real_series_does_what_its_table_says(real_data, name):
    folder = real_data / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in MONAI_SSL_DATA")
    shapes, reasons = EXPECTED[name]
    found = open_series(folder.iterdir())
    volumes = [opened.read() for opened in found.volumes]
    assert [volume.array.shape for volume in volumes] == shapes
    for reason, files in reasons.items():
        assert sum(len(refusal.paths) for refusal in found.refused if reason in refusal.reason) == files
    used = {path for opened in found.volumes for path in opened.paths}
    refused = {path for refusal in found.refused for path in refusal.paths}
    assert used | refused == set(folder.iterdir()) and not used & refused
    for volume in volumes:
        assert np.isfinite(volume.array).all() and np.ptp(volume.array) > 0
        axes = volume.affine[:3, :3] / volume.spacing_mm
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-3)


@pytest.mark.realdata
def test_every_real_series_is_in_the_list(real_data):
    folders = [*real_data.glob("dicom_zoo/series/*"), *real_data.glob("volumes_*/dicom_series/*")]
    assert {path.relative_to(real_data).as_posix() for path in folders} == set(EXPECTED)


def test_the_document_states_what_the_series_test_expects():
    """The table of docs/dicom_support.md and ``EXPECTED`` are the same."""
    text = (Path(__file__).parents[2] / "docs" / "dicom_support.md").read_text(encoding="utf-8")
    for name, (shapes, reasons) in EXPECTED.items():
        cells = re.search(rf"^\| `{Path(name).name}` \| (.+) \| (.+) \|$", text, flags=re.MULTILINE).groups()
        sizes = [" x ".join(map(str, shape)) for shape in shapes]
        assert cells[0] in (", ".join(sizes) or "none", f"{len(sizes)} x {sizes[0] if sizes else ''}")
        assert cells[1] == (", ".join(f"{reason} ({files})" for reason, files in reasons.items()) or "none")


@pytest.mark.realdata
def test_the_real_tilt_is_the_headers(real_data):
    """GantryDetectorTilt of this scanner says +18.5; the positions say the same."""
    found = open_series((real_data / "volumes_ct/dicom_series/ge_head_gantry_tilt").iterdir())
    for opened, thickness in zip(found.volumes, (4.0, 7.0), strict=True):
        volume = opened.read()
        assert volume.facts["tilt_degrees"] == pytest.approx(18.5, abs=0.01)
        assert volume.facts["slice_thickness_mm"] == thickness
        assert volume.spacing_mm[0] == pytest.approx(thickness, abs=0.01)
        # each slice's head lies in the patient where the slice's own header puts it
        for place, path in ((0, opened.paths[0]), (6, opened.paths[6]), (13, opened.paths[13])):
            data = pydicom.dcmread(path)
            rows, columns = (axis.mean() for axis in np.nonzero(data.pixel_array > -200))
            axes = np.reshape(data.ImageOrientationPatient, (2, 3)).astype(float)
            lps = np.array(data.ImagePositionPatient, float) + 0.4882812 * (columns * axes[0] + rows * axes[1])
            rows, columns = (axis.mean() for axis in np.nonzero(volume.array[place] > -200))
            ras = volume.affine @ (place, rows, columns, 1)
            np.testing.assert_allclose(ras[:3], lps * (-1, -1, 1), atol=0.25)  # half a pixel


@pytest.mark.realdata
def test_the_real_b_values_fade(real_data):
    """b = 50, 400 and 800 in this order: the signal falls."""
    found = open_series((real_data / "dicom_zoo/series/three_b_values_in_one_series").iterdir())
    means = [opened.read().array.mean() for opened in found.volumes]
    assert means[0] > means[1] > means[2]


@pytest.mark.realdata
def test_real_enhanced_files(real_data):
    files = real_data / "dicom_zoo" / "files"
    volume = only_volume([files / "enh_Siemens_XA10_6_1.dcm"])
    assert volume.array.shape == (6, 64, 64)
    np.testing.assert_allclose(volume.spacing_mm, (2.4, 3.375, 3.375), rtol=1e-5)
    volume = only_volume([files / "dcmqi_segmentations_23x38x3_multiframe_mf.dcm"])
    assert volume.array.shape == (3, 38, 23)
    assert only_reason([files / "emri_small.dcm"]) == "a multi-frame image without a position for each frame"
    assert only_reason([files / "eCT_Supplemental.dcm"]) == "only 2 slices; a volume needs 3 of the same series"
    assert only_volume([files / "eCT_Supplemental.dcm"], min_slices=2).orientation == "IPR"


@pytest.mark.realdata
def test_every_file_of_the_zoo_is_in_a_volume_or_refused(real_data):
    paths = sorted((real_data / "dicom_zoo" / "files").iterdir())
    found = open_series(paths)
    used = {path for opened in found.volumes for path in opened.paths}
    refused = {path for refusal in found.refused for path in refusal.paths}
    assert used | refused == set(paths)
    assert not [refusal for refusal in found.refused if "unexpected" in refusal.reason]
