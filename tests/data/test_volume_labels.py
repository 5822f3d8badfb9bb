# SPDX-License-Identifier: Apache-2.0
"""Tables of volumes: their column names, Decathlon files, and grids of label maps."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from synthetic_series import expected_affine, oblique

from monai_ssl.data import find_volume_labels, read_volume_labels
from monai_ssl.data.label_maps import grid_difference


def write(path, text):
    path.write_text(text)
    return path


def test_image_and_label_files_become_file_and_label_map(tmp_path):
    table = read_volume_labels(
        write(tmp_path / "a.csv", f"image,label,age\na.nii,m/a.nii.gz,3\nb.nii,,4\nc.nii,{tmp_path}/m/c.mha,5\n"),
        tmp_path,
    )
    assert table.column_names == ["file", "label_map", "age"]
    assert table["label_map"].to_pylist() == ["m/a.nii.gz", None, "m/c.mha"]


@pytest.mark.parametrize("cells", [("ill", "well"), ("0", "1"), ("a.nii", "well"), ("", "")])
def test_a_label_that_is_no_file_stays_a_label(tmp_path, cells):
    table = read_volume_labels(write(tmp_path / "a.csv", f"file,label\na.nii,{cells[0]}\nb.nii,{cells[1]}\n"), tmp_path)
    assert table.column_names == ["file", "label"]


def test_a_label_map_of_its_own_leaves_the_label_alone(tmp_path):
    table = read_volume_labels(
        write(tmp_path / "a.csv", "image,file,label,label_map\nx,a.nii,b.nii,./c.nii\n"), tmp_path
    )
    assert table.to_pylist() == [{"image": "x", "file": "a.nii", "label": "b.nii", "label_map": "c.nii"}]


def decathlon(tmp_path, **content):
    return read_volume_labels(write(tmp_path / "dataset.json", json.dumps(content)), tmp_path)


def pair(name):
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def test_decathlon_lists_become_splits(tmp_path):
    table = decathlon(
        tmp_path,
        modality={"0": "CT"},
        training=[pair("a"), pair("b")],
        validation=[pair("c")],
        test=["./imagesTs/d.nii.gz"],
        numTest=1,
    )
    assert table["file"].to_pylist()[::3] == ["./imagesTr/a.nii.gz", "./imagesTs/d.nii.gz"]
    assert table["label_map"].to_pylist() == [f"labelsTr/{name}.nii.gz" for name in "abc"] + [None]
    assert table["split"].to_pylist() == ["train", "train", "val", "test"]
    assert table["modality"].to_pylist() == ["CT"] * 4


def test_decathlon_without_labelled_images_to_measure_with_is_split_later(tmp_path):
    table = decathlon(tmp_path, modality={"0": "FLAIR", "1": "T1w"}, training=[pair("a")], test=["./imagesTs/d.nii.gz"])
    assert table["split"].to_pylist() == [None, "test"] and set(table["modality"].to_pylist()) == {"MR"}
    table = decathlon(tmp_path, modality={"0": "CT", "1": "PET"}, training=[pair("a")], test=[pair("d")])
    assert table["split"].to_pylist() == ["train", "test"] and "modality" not in table.column_names
    assert decathlon(tmp_path, training=[{"image": ["a.nii"]}])["label_map"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a readable JSON file"),
        ("[]", "it is no dataset.json of a Decathlon; write a CSV"),
        ('{"numTraining": 3, "file_ending": ".nii.gz"}', "lists no images under training, validation, test"),
        ('{"training": [{"image": ["a.nii", "b.nii"]}]}', r"training\[0\] names no image file, or several"),
        ('{"training": [{"label": "a.nii"}]}', r"training\[0\] names no image file, or several"),
    ],
)
def test_other_json_files_are_refused_in_one_sentence(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_volume_labels(write(tmp_path / "x.json", text), tmp_path)


def test_the_table_of_a_folder_is_found_or_must_be_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such table of labels"):
        read_volume_labels(tmp_path / "no.json", tmp_path)
    assert find_volume_labels(tmp_path) is None
    write(tmp_path / "other.csv", "name,value\na,1\n")
    assert find_volume_labels(tmp_path) is None
    decathlon = write(tmp_path / "dataset.json", "{}")
    assert find_volume_labels(tmp_path) == decathlon
    table = write(tmp_path / "mine.csv", "image,label\na.nii,b.nii\n")
    with pytest.raises(ValueError, match=r"two tables of volumes \(mine\.csv, dataset\.json\): name one"):
        find_volume_labels(tmp_path)
    decathlon.unlink()
    assert find_volume_labels(tmp_path) == table
    write(tmp_path / "more.csv", "file\na.nii\n")
    with pytest.raises(ValueError, match=r"several tables with a column 'file' or 'image' \(mine\.csv, more\.csv\)"):
        find_volume_labels(tmp_path)


# ---- grids ----------------------------------------------------------------------------------------------------------

SHAPE = (6, 10, 8)


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1.0, 0), oblique(20, 35)])
@pytest.mark.parametrize("codes", ["SPL", "RAS", "LIA", "IPR"])
def test_a_grid_stored_otherwise_is_the_same_grid(orientation, codes):
    affine = expected_affine(orientation)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes)))
    turned = affine @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    shape = nib.apply_orientation(np.empty(SHAPE), turn).shape
    assert grid_difference(shape, turned, SHAPE, affine) is None
    assert grid_difference(SHAPE, affine, shape, turned) is None
    rounded = turned.copy()
    rounded[:3] = np.round(rounded[:3], 4)  # as a header of four digits has it
    assert grid_difference(shape, rounded, SHAPE, affine) is None
    moved = turned.copy()
    moved[0, 3] += 0.3
    assert "corners lie up to 0.3 mm" in grid_difference(shape, moved, SHAPE, affine)
    longer = (shape[0] + 1, *shape[1:])
    assert "another grid: shape" in grid_difference(longer, turned, SHAPE, affine)


def test_other_spacing_and_other_axes_are_another_grid():
    affine = expected_affine()
    coarse = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    assert "and other axes or spacing" in grid_difference((3, 5, 4), coarse, SHAPE, affine)
    assert "corners lie up to" in grid_difference(SHAPE, affine @ np.diag([1.2, 1, 1, 1]), SHAPE, affine)
    assert "another grid" in grid_difference(SHAPE, expected_affine(oblique(30, 10)), SHAPE, affine)
    assert grid_difference(SHAPE, None, SHAPE, affine) is None, "no place is stated, so only the shape can be compared"
    assert "shape 6 x 10 x 8 against 8 x 10 x 6" in grid_difference(SHAPE, None, SHAPE[::-1], affine)
