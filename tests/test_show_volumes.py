# SPDX-License-Identifier: Apache-2.0
"""The sheet of volumes: those of a file, a folder, a DICOM series or a store, boxes where they were cut, no names."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from monai_ssl.data import build_volume_index, prepare_volumes
from monai_ssl.show_views import (
    VOLUME_PRESETS,
    ShownVolume,
    describe_draw,
    save_view_sheet,
    save_volume_sheet,
    some_images,
    some_volumes,
)
from monai_ssl.show_views.volume_sheet import _planes, box_corners
from monai_ssl.transforms import RandomResample, ViewChain, volume_views


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five NIfTI volumes (x, y, z) of 3 mm slices, one of them broken; one is another's label map."""
    folder = tmp_path_factory.mktemp("volumes")
    random = np.random.default_rng(0)
    for number in range(5):
        values = random.normal(300, 100, (14, 12, 8)).astype(np.float32)
        values[:2] = 0
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.5, 3.0, 1.0])), folder / f"secret{number}.nii")
    (folder / "secret0.nii").write_bytes(b"\x5c\x01\x00\x00 broken")
    (folder / "labels.csv").write_text("file,label_map\nsecret2.nii,secret3.nii\n")
    return folder


def test_volumes_are_spread_turned_and_said_what_they_are(folder):
    found = some_volumes(folder, 9, "MR")
    assert [Path(volume.name).name for volume in found] == ["secret1.nii", "secret2.nii", "secret4.nii"]
    first = found[0]
    assert first.voxels.shape == (8, 12, 14) and first.spacing_mm == (3.0, 1.5, 1.0)
    assert (first.orientation, first.modality, first.limits_hu) == ("SPL", "MR", None)
    assert first.caption == "MR, NIfTI\n8 x 12 x 14 voxels of\n3 x 1.5 x 1 mm"
    assert first.voxels.min() == 0 and first.voxels.max() == 1
    # The file runs to the patient's left end with x, so what is dark at x = 0 is dark at the far end of W.
    assert not first.voxels[..., -2:].any() and first.voxels[..., :-2].mean() > 0.3
    (unknown,) = some_volumes(folder / "secret1.nii", 1)
    assert unknown.modality is None and unknown.caption.startswith("modality not known")


def test_ct_knows_its_limits(tmp_path):
    values = np.random.default_rng(0).uniform(-1000, 400, (14, 12, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "ct.nii")
    (ct,) = some_volumes(tmp_path, 1, "CT")
    low, high = ct.limits_hu
    assert low < 0 < high
    turned = values.T[:, ::-1, ::-1]  # x to the left, y to the back
    np.testing.assert_allclose(ct.voxels, ((turned - low) / (high - low)).clip(0, 1), atol=1e-3)


def test_a_store_is_shown_as_it_was_prepared(folder, tmp_path):
    index = build_volume_index(folder, num_workers=0, progress=False, labels=_table(folder, tmp_path))
    store = prepare_volumes(index, folder, tmp_path / "store", policy="mr", spacing_mm=(3, 3, 3), num_workers=0)
    shown = some_volumes(tmp_path, 2)
    assert len(shown) == 2 and shown[0].spacing_mm == (3.0, 3.0, 3.0)
    assert shown[0].modality == "MR" and shown[0].limits_hu is None and shown[0].orientation == "SPL"
    np.testing.assert_array_equal(shown[0].voxels, store.read(0))
    with pytest.raises(ValueError, match="--preset volume"):
        some_images(tmp_path, 1)


def _table(folder, tmp_path):
    (tmp_path / "all.csv").write_text("file,modality\n" + "".join(f"secret{n}.nii,MR\n" for n in (1, 2, 3, 4)))
    return tmp_path / "all.csv"


def test_what_cannot_be_shown(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        some_volumes(tmp_path / "nothing", 1)
    with pytest.raises(ValueError, match="no volume to show; there is none"):
        some_volumes(tmp_path, 1)
    with pytest.raises(ValueError, match="secret0"):
        some_volumes(folder / "secret0.nii", 1)
    with pytest.raises(ValueError, match="use CT or MR"):
        some_volumes(folder, 1, "PT")
    volumes = some_volumes(folder, 1, "MR")
    for wrong in ({"output": "a.jpg"}, {"preset": "radiograph"}, {"num_views": 9}, {"size": 4}, {"size": (12, 12)}):
        with pytest.raises(ValueError):
            save_volume_sheet(volumes, **{"output": tmp_path / "a.png", **wrong})
    with pytest.raises(ValueError, match="no preset"):
        save_view_sheet([], tmp_path / "a.png", "volume")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("preset", VOLUME_PRESETS)
def test_the_sheet_is_the_same_for_a_seed_and_names_no_file(preset, folder, tmp_path):
    volumes = some_volumes(folder, 1, "MR")
    seeds = {"a": 0, "b": 0, "c": 1} if preset == "volume" else {"a": 0}
    made = {
        name: save_volume_sheet(volumes, tmp_path / "new" / f"{name}.png", preset, (8, 12, 12), 2, seed).read_bytes()
        for name, seed in seeds.items()
    }
    assert made["a"] == made.get("b", made["a"]) != made.get("c")
    assert b"secret" not in made["a"]
    wide, high = Image.open(tmp_path / "new" / "a.png").size
    assert wide > 600 and high > 500


def test_slices_are_true_to_scale_and_the_head_is_up():
    voxels = np.zeros((10, 20, 30), dtype=np.float32)
    volume = ShownVolume("x", voxels, (5.0, 2.0, 1.0), "SPL", "CT", None, "caption")
    for shown, upward in ((volume, True), (ShownVolume("x", voxels, (5.0, 2.0, 1.0), None, None, None, ""), False)):
        axes = Figure().subplots(3)
        _planes(axes, shown.voxels, shown.spacing_mm, shown, "", "red", 1)
        assert [place.get_aspect() for place in axes] == [2, 5, 2.5]
        assert [tuple(place.images[0].get_array().shape) for place in axes] == [(20, 30), (10, 30), (10, 20)]
        rising = [place.get_ylim()[0] < place.get_ylim()[1] for place in axes]
        assert rising == [False, upward, upward]
        assert axes[1].get_ylabel() == ("coronal" if upward else "across axis 1")


@pytest.mark.parametrize("in_plane", [True, False])
def test_corners_are_those_of_the_view(in_plane):
    """A volume of its own positions shows where the view's corners were read."""
    shape = (40, 50, 60)
    position = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))[None]
    chain = ViewChain([RandomResample(32, (0.05, 0.1), rotation_deg=30, in_plane=in_plane)])
    for seed in range(4):
        params = chain.draw(position.shape, torch.Generator().manual_seed(seed))
        view = chain.apply(position, params)[0]
        corners = box_corners(chain, params)
        ends = torch.stack([view[:, d, h, w] for d in (0, -1) for h in (0, -1) for w in (0, -1)])
        inside = ((corners >= 0) & (corners <= torch.tensor(shape) - 1)).all(1)
        assert inside.sum() >= 2
        step = float((params["0.crop"][0] / 32).max())
        torch.testing.assert_close(ends[inside], corners[inside], atol=step, rtol=0)


def test_the_caption_names_what_was_drawn():
    chain = volume_views(16, "CT", limits_hu=(-1000, 1000), elastic=0.2).chains[0]
    params = chain.draw((1, 1, 20, 40, 40), torch.Generator().manual_seed(0))
    numbers = {type(transform).__name__: number for number, transform in enumerate(chain.transforms)}
    for key, value in {
        "RandomResample.crop": [10.0, 20.0, 40.0],
        "RandomResample.angle_deg": 12.3,
        "RandomResample.flip": False,
        "RandomWindow.level_hu": 40.0,
        "RandomWindow.width_hu": 400.0,
        "RandomGamma.gamma": 1.0,
        "RandomBrightnessContrast.brightness": 1.0,
        "RandomBrightnessContrast.contrast": 1.0,
        "RandomGaussianBlur.sigma": [0.5, 1.0, 0.5],
        "RandomLowResolution.zoom": [0.5, 1.0, 1.0],
        "RandomGaussianNoise.std": 0.0,
    }.items():
        step, _, name = key.partition(".")
        params[f"{numbers[step]}.{name}"][:] = torch.tensor(value)
    params["0.elastic"] *= 3 / params["0.elastic"].abs().max()
    assert describe_draw(chain, params).replace("\n", ", ") == (
        "25% of the volume, turned +12°, control points moved by 3.0 px, window 40 ± 200 HU, "
        "blur 0.5 x 1.0 x 0.5 px, resolution 50% x 100% x 100%"
    )


@pytest.mark.realdata
def test_real_series_and_files(real_data, tmp_path):
    (series,) = some_volumes(real_data / "volumes_ct" / "dicom_series" / "totalseg_example_ct", 2)
    assert series.modality == "CT" and series.limits_hu is not None and series.orientation == "SPL"
    several = some_volumes(real_data / "volumes_mr" / "dicom_series", 2)
    assert [volume.modality for volume in several] == ["MR", "MR"] and several[0].name != several[1].name
    save_volume_sheet([series, several[0]], tmp_path / "views.png", size=48, num_views=1)
