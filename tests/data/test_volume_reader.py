# SPDX-License-Identifier: Apache-2.0
"""One volume is the same from DICOM, NIfTI and NRRD, whichever way its axes were stored."""

from __future__ import annotations

import csv
import logging
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import LoadImage, LoadImaged, Orientation
from synthetic_series import MR, SHAPE, SPACING, STEP_MM, oblique, random_voxels, write_repeats, write_series

from monai_ssl.data import UnreadableImageError, Volume, VolumeReader, open_volumes, read_volume


def nifti_of(volume: Volume, path, codes: str | None = None, dtype=np.int16, **header):
    """Write a volume as NIfTI does, first axis fastest, its axes turned to ``codes`` first."""
    affine = volume.affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(volume.array.transpose(2, 1, 0).astype(dtype), affine)
    if codes:
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
        image = image.as_reoriented(turn)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("orientation", [None, oblique(25, 10), (1, 0, 0, 0, 0, -1)])
@pytest.mark.parametrize("codes", [None, "RAS", "LPS", "PIR", "ASL"])
def test_a_study_is_the_same_from_dicom_and_from_nifti(tmp_path, orientation, codes):
    options = {} if orientation is None else {"orientation": orientation}
    write_series(tmp_path / "dicom", random_voxels(), **options)
    dicom = read_volume(tmp_path / "dicom")
    nifti = read_volume(nifti_of(dicom, tmp_path / "v.nii.gz", codes))
    for wanted in ("RAS", "SPL", "ILA"):
        one, other = dicom.to_orientation(wanted), nifti.to_orientation(wanted)
        np.testing.assert_array_equal(one.array, other.array)
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
        assert one.orientation == other.orientation == wanted


def test_slices_come_first_from_nifti_too(tmp_path):
    write_series(tmp_path / "dicom", random_voxels())
    dicom = read_volume(tmp_path / "dicom")
    nifti = read_volume(nifti_of(dicom, tmp_path / "v.nii"))
    assert nifti.array.shape == SHAPE and nifti.array.dtype == np.float32 and nifti.array.flags.c_contiguous
    np.testing.assert_allclose(nifti.spacing_mm, (STEP_MM, *SPACING), rtol=1e-6)
    assert nifti.facts["kind"] == "nifti" and nifti.facts["slices"] == 8 and nifti.modality is None


def test_to_orientation_keeps_each_voxel_in_its_place():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.array([[0.0, 0, -0.5, 7], [0, -2, 0, 8], [3, 0, 0, -9], [0, 0, 0, 1]])
    volume = Volume(array, affine, "CT", {"unit": "HU"})
    assert volume.orientation == "SPL"
    turned = volume.to_orientation("ras")
    assert turned.array.shape == (4, 3, 2) and turned.spacing_mm == (0.5, 2.0, 3.0) and turned.facts == volume.facts
    place = np.argwhere(turned.array == array[1, 2, 3])[0]
    np.testing.assert_allclose(turned.affine @ (*place, 1), affine @ (1, 2, 3, 1))
    np.testing.assert_array_equal(turned.to_orientation("SPL").array, array)
    np.testing.assert_allclose(turned.to_orientation("SPL").affine, affine)


@pytest.mark.parametrize("codes", ["RAX", "RA", "RLS", "RASS", "", None])
def test_a_wrong_orientation_is_an_error(codes):
    with pytest.raises(ValueError, match="use one letter of L/R, one of P/A and one of I/S"):
        Volume(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_orientation(codes)


def test_orientation_and_options_of_read_volume(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    assert read_volume(tmp_path, orientation="RAS").array.shape == (12, 16, 8)
    assert read_volume(str(tmp_path)).array.shape == SHAPE
    assert read_volume(paths).array.shape == SHAPE
    with pytest.raises(ValueError, match="orientation is 'RAM'"):
        read_volume(tmp_path, orientation="RAM")
    with pytest.raises(ValueError, match="uneven is 'fill'"):
        read_volume(tmp_path, uneven="fill")


def test_scale_and_offset_of_nifti_are_applied(tmp_path):
    stored = random_voxels((4, 5, 6)).transpose(2, 1, 0)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "v.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "v.nii").array, stored.T * 0.5 - 1024)


def test_fourth_axis_of_nifti_is_a_series_of_volumes(tmp_path):
    stored = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "v.nii.gz")
    with pytest.raises(UnreadableImageError, match=r"v\.nii\.gz: 3 volumes, parted by fourth_axis; choose .*=0 to 2"):
        read_volume(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz", index=2).array, stored[..., 2].T)
    assert read_volume(tmp_path / "v.nii.gz", index=1).facts["split_by"] == {"fourth_axis": 1}
    with pytest.raises(UnreadableImageError, match="no volume 3: it holds 3"):
        read_volume(tmp_path / "v.nii.gz", index=3)
    nib.save(nib.Nifti1Image(stored[..., None, :], np.eye(4)), tmp_path / "vectors.nii")
    with pytest.raises(UnreadableImageError, match="5 axes; volumes have three"):
        read_volume(tmp_path / "vectors.nii")
    nib.save(nib.Nifti1Image(stored[..., :1, None], np.eye(4)), tmp_path / "one.nii")
    assert read_volume(tmp_path / "one.nii").array.shape == (4, 5, 6)


def test_nifti_without_orientation_has_only_a_spacing(tmp_path):
    image = nib.Nifti1Image(random_voxels((4, 5, 6)).T, None)
    image.header.set_zooms((0.5, 1.0, 2.0))
    nib.save(image, tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    assert volume.spacing_mm == (2.0, 1.0, 0.5) and volume.facts["oriented"] is False
    with pytest.raises(UnreadableImageError, match=r"v\.nii: the file does not state its orientation"):
        read_volume(tmp_path / "v.nii", orientation="RAS")


def test_nifti_in_metres_is_read_in_millimetres(tmp_path):
    image = nib.Nifti1Image(random_voxels((4, 5, 6)).T, np.diag([0.001, 0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "v.nii")
    assert read_volume(tmp_path / "v.nii").spacing_mm == pytest.approx((2.0, 1.0, 1.0))


def test_voxels_that_are_not_finite_get_the_smallest_value(tmp_path):
    stored = np.arange(60, dtype=np.float32).reshape(3, 4, 5) + 7
    stored[0, 0, :2] = np.nan, np.inf
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    assert volume.array[0, 0, 0] == volume.array[1, 0, 0] == 9.0
    assert volume.facts["nonfinite_fraction"] == pytest.approx(2 / 60)
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii")
    with pytest.raises(UnreadableImageError, match=r"nan\.nii: no finite voxel value"):
        read_volume(tmp_path / "nan.nii")


def test_broken_nifti_files_are_named(tmp_path):
    path = nifti_of(Volume(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "v.nii")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableImageError, match=r"v\.nii: the NIfTI data is broken or cut off"):
        read_volume(path)
    flat = nib.Nifti1Image(np.zeros((4, 4, 1), np.int16), np.eye(4))
    nib.save(flat, tmp_path / "flat.nii")
    with pytest.raises(UnreadableImageError, match="fewer than two voxels along an axis"):
        read_volume(tmp_path / "flat.nii")
    plane = nifti_of(Volume(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "plane.nii")
    header = bytearray(plane.read_bytes())
    header[312:328] = bytes(16)  # srow_z
    plane.write_bytes(header)
    with pytest.raises(UnreadableImageError, match="the affine is broken"):
        read_volume(tmp_path / "plane.nii")


def test_a_hostile_nifti_header_allocates_nothing(tmp_path):
    path = nifti_of(Volume(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "v.nii")
    header = bytearray(path.read_bytes())
    header[42:48] = np.array([4000, 4000, 4000], "<i2").tobytes()
    path.write_bytes(header)
    with pytest.raises(UnreadableImageError, match="4000 x 4000 x 4000 voxels exceeds 4 GiB"):
        read_volume(path)


def test_several_volumes_in_a_folder_want_a_choice(tmp_path):
    values = (0.0, 500.0, 1000.0)
    _, truth = write_repeats(tmp_path, lambda repeat, number: {"DiffusionBValue": values[repeat]}, SOPClassUID=MR)
    with pytest.raises(UnreadableImageError, match="3 volumes, parted by DiffusionBValue"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, index=1)
    np.testing.assert_array_equal(volume.array, truth[1])
    assert volume.facts["split_by"] == {"DiffusionBValue": 500.0}
    write_series(tmp_path / "another", random_voxels())
    assert len(open_volumes(tmp_path).volumes) == 4


def test_a_folder_of_other_things(tmp_path, caplog):
    write_series(tmp_path / "deep" / "er", random_voxels())
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".hidden.dcm").write_text("hello")
    (tmp_path / "broken.dcm").write_text("hello" * 100)
    nifti_of(Volume(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "v.nii")
    with caplog.at_level(logging.WARNING):
        assert read_volume(tmp_path).array.shape == SHAPE
    assert "left out" in caplog.text and "in a folder only DICOM makes volumes (1 file)" in caplog.text
    found = open_volumes(tmp_path)
    assert {refusal.culprit.name for refusal in found.refused} == {"broken.dcm", "v.nii"}


def test_what_is_no_volume_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableImageError, match="empty: no volume: no DICOM file found"):
        read_volume(tmp_path / "empty")
    with pytest.raises(UnreadableImageError, match="no volume"):
        read_volume([])
    with pytest.raises(FileNotFoundError):
        read_volume(tmp_path / "absent.nii.gz")
    with pytest.raises(FileNotFoundError):
        read_volume(tmp_path / "absent.nrrd")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UnreadableImageError, match=r"notes\.txt: not a volume: looked for DICOM, NIfTI, NRRD"):
        read_volume(tmp_path / "notes.txt")
    paths = write_series(tmp_path / "ct", random_voxels())
    with pytest.raises(
        UnreadableImageError, match=r"003\.dcm|ct: no volume: only 1 slice; a volume needs 3 of the same"
    ):
        read_volume(paths[3])
    paths[5].write_bytes(paths[5].read_bytes()[:-9])
    with pytest.raises(UnreadableImageError, match=r"005\.dcm: no volume: pixel data shorter than the header says"):
        read_volume(tmp_path / "ct")


def test_nrrd_without_itk_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "itk", None)
    (tmp_path / "v.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(
        UnreadableImageError, match=r'v\.nrrd: \.nrrd files need the package itk: pip install "monai-ss'
    ):
        read_volume(tmp_path / "v.nrrd")


class FakeImage:
    """What is asked of an itk image: array in (D, H, W), geometry in (x, y, z) and LPS."""

    def __init__(self, array, spacing, origin, direction, components=1):
        self.array, self.components = array, components
        self.GetSpacing, self.GetOrigin = (lambda: spacing), (lambda: origin)
        self.GetDirection = lambda: direction
        self.GetImageDimension = lambda: len(spacing)
        self.GetNumberOfComponentsPerPixel = lambda: components


def fake_itk(monkeypatch, image):
    def imread(path):
        if image is None:
            raise RuntimeError(f"{path}: some C++ text")
        return image

    module = SimpleNamespace(imread=imread, array_from_image=lambda image: image.array, array_from_matrix=np.asarray)
    monkeypatch.setitem(sys.modules, "itk", module)


def test_itk_files_have_the_place_of_the_same_dicom(tmp_path, monkeypatch):
    turn = oblique(25, 10)
    voxels = random_voxels()
    write_series(tmp_path / "dicom", voxels, orientation=turn)
    dicom = read_volume(tmp_path / "dicom")
    direction = np.stack([turn[:3], turn[3:], np.cross(turn[:3], turn[3:])], axis=1)
    image = FakeImage(voxels - 1000, (SPACING[1], SPACING[0], STEP_MM), (-20.0, -30.0, 40.0), direction)
    fake_itk(monkeypatch, image)
    (tmp_path / "v.mha").write_bytes(b"ObjectType = Image\n")
    volume = read_volume(tmp_path / "v.mha")
    np.testing.assert_array_equal(volume.array, dicom.array)
    np.testing.assert_allclose(volume.affine, dicom.affine, atol=1e-9)
    assert volume.facts["kind"] == "itk" and volume.facts["oriented"]


def test_itk_files_of_other_kinds(tmp_path, monkeypatch):
    path = tmp_path / "v.nrrd"
    path.write_bytes(b"NRRD0004\n")
    series = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    fake_itk(monkeypatch, FakeImage(series, (1.0, 1.0, 2.0, 1.0), (0.0,) * 4, np.eye(4)))
    np.testing.assert_array_equal(read_volume(path, index=1).array, series[1])
    assert read_volume(path, index=1).spacing_mm == (2.0, 1.0, 1.0)
    fake_itk(monkeypatch, FakeImage(np.zeros((3, 4, 5, 3)), (1.0,) * 3, (0.0,) * 3, np.eye(3), components=3))
    with pytest.raises(UnreadableImageError, match="3 values per voxel"):
        read_volume(path)
    fake_itk(monkeypatch, FakeImage(np.zeros((4, 5)), (1.0,) * 2, (0.0,) * 2, np.eye(2)))
    with pytest.raises(UnreadableImageError, match="not a volume"):
        read_volume(path)
    fake_itk(monkeypatch, None)
    with pytest.raises(UnreadableImageError, match=r"v\.nrrd: itk cannot read it") as caught:
        read_volume(path)
    assert caught.value.__suppress_context__


def test_monai_reader_gives_a_meta_tensor_in_its_place(tmp_path):
    write_series(tmp_path / "dicom", random_voxels())
    volume = read_volume(tmp_path / "dicom")
    image = LoadImage(reader=VolumeReader(), ensure_channel_first=True)(str(tmp_path / "dicom"))
    assert isinstance(image, MetaTensor) and tuple(image.shape) == (1, *SHAPE)
    np.testing.assert_array_equal(image[0].numpy(), volume.array)
    np.testing.assert_allclose(image.affine.numpy(), volume.affine)
    assert image.meta["unit"] == "HU"
    data = LoadImaged(keys="image", reader=VolumeReader, orientation="RAS")({"image": tmp_path / "dicom"})
    assert tuple(data["image"].shape) == (12, 16, 8)


def test_monai_orients_our_volume_and_its_own_reader_alike(tmp_path):
    write_series(tmp_path / "dicom", random_voxels())
    path = nifti_of(read_volume(tmp_path / "dicom"), tmp_path / "v.nii.gz", "PIR")
    orient = Orientation("RAS", labels=None)
    ours = orient(LoadImage(reader=VolumeReader(), ensure_channel_first=True)(path))
    theirs = orient(LoadImage(reader="NibabelReader", ensure_channel_first=True)(path))
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_allclose(ours.affine.numpy(), theirs.affine.numpy(), atol=1e-5)


def test_monai_reader_takes_a_list_as_one_series_and_folders_as_channels(tmp_path):
    paths = write_series(tmp_path / "a", random_voxels())
    write_series(tmp_path / "b", random_voxels(seed=1))
    assert tuple(LoadImage(reader=VolumeReader())(paths).shape) == SHAPE
    both = LoadImage(reader=VolumeReader(), ensure_channel_first=True)([tmp_path / "a", tmp_path / "b"])
    assert tuple(both.shape) == (2, *SHAPE)
    write_series(tmp_path / "c", random_voxels(), origin=(0, 0, 0))
    with pytest.raises(ValueError, match="different size or place"):
        LoadImage(reader=VolumeReader())([tmp_path / "a", tmp_path / "c"])


def test_monai_reader_raises_our_error_and_not_another_readers(tmp_path):
    paths = write_series(tmp_path, random_voxels())
    with pytest.raises(UnreadableImageError, match="1 of 8 slices missing"):
        LoadImage(reader=VolumeReader())([path for path in paths if path.name != "004.dcm"])
    reader = VolumeReader()
    assert reader.verify_suffix(tmp_path) and reader.verify_suffix(paths) and reader.verify_suffix("a.nrrd")
    assert not reader.verify_suffix("absent.nii.gz")
    with pytest.raises(ValueError, match="orientation"):
        VolumeReader(orientation="XYZ")


@pytest.mark.realdata
def test_real_nifti_volumes_agree_with_nibabel(real_data):
    paths = [*real_data.glob("volumes_*/various/*.nii.gz")]
    assert paths
    for path in paths:
        canonical = nib.as_closest_canonical(nib.load(path))
        many = len(canonical.shape) == 4
        volume = read_volume(path, index=3 if many else None, orientation="RAS")
        values = canonical.get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(volume.array, values[..., 3] if many else values, err_msg=path.name)
        np.testing.assert_allclose(volume.affine, canonical.affine, atol=1e-4, err_msg=path.name)


@pytest.mark.realdata
def test_real_4d_diffusion_is_a_series_of_volumes(real_data):
    found = open_volumes(real_data / "volumes_mr/various/sct_dmri_4d.nii.gz")
    assert [volume.facts["split_by"] for volume in found.volumes] == [{"fourth_axis": place} for place in range(7)]
    assert found.volumes[6].read().array.shape == (5, 42, 40)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("table", "names"), [("volumes_ct/lidc_nodules", ("sz", "sy", "sx")), ("volumes_mr/msd_hippocampus", None)]
)
def test_real_volumes_have_the_size_their_table_says(real_data, table, names):
    with next((real_data / table).glob("*.csv")).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[::12]
    for row in rows:
        volume = read_volume(real_data / table / row["image"])
        label = read_volume(real_data / table / row["label"])
        assert volume.array.shape == (int(row["nz"]), int(row["ny"]), int(row["nx"])) == label.array.shape
        np.testing.assert_allclose(volume.affine, label.affine, atol=1e-2)
        if names:
            np.testing.assert_allclose(volume.spacing_mm, [float(row[name]) for name in names], atol=1e-3)
        else:
            assert volume.array.max() == pytest.approx(float(row["vmax"]), rel=1e-6)


@pytest.mark.realdata
def test_real_nrrd_files_with_itk_or_a_clear_message(real_data):
    path = real_data / "volumes_mr/various/pyradiomics_brain1.nrrd"
    try:
        import itk  # noqa: F401
    except ImportError:
        with pytest.raises(UnreadableImageError, match="need the package itk"):
            read_volume(path)
        return
    volume = read_volume(path)
    assert volume.array.shape == (25, 256, 256) and volume.orientation == "SAL"
    np.testing.assert_allclose(volume.spacing_mm, (6.5, 0.78125, 0.78125))


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["volumes_ct/dicom_series/totalseg_example_ct", "volumes_mr/dicom_series/prostatex-0000_adc"]
)
def test_plain_real_series_agree_with_monais_reader(real_data, name):
    """Axial CT and oblique MR, where pydicom's order by position is right too."""
    orient = Orientation("RAS", labels=None)
    ours = orient(LoadImage(reader=VolumeReader(), ensure_channel_first=True)(real_data / name))
    theirs = orient(LoadImage(reader="PydicomReader", ensure_channel_first=True)(real_data / name))
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_allclose(ours.affine.numpy(), theirs.affine.numpy(), atol=1e-5)


@pytest.mark.realdata
def test_a_real_series_is_the_same_as_dicom_and_nifti(real_data, tmp_path):
    dicom = read_volume(real_data / "volumes_mr/dicom_series/prostatex-0000_adc", orientation="RAS")
    nifti = read_volume(nifti_of(dicom, tmp_path / "v.nii.gz", "LIA"), orientation="RAS")
    np.testing.assert_array_equal(nifti.array, dicom.array)
    np.testing.assert_allclose(nifti.affine, dicom.affine, atol=1e-4)
