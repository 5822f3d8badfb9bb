# SPDX-License-Identifier: Apache-2.0
"""A table of sources becomes stores, rows, one dataset, views and the entries of the manifest."""

from __future__ import annotations

import copy
import csv
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scan_folders import smooth_voxels, write_nifti
from torch.utils.data import DataLoader
from volume_folders import ct_volume

from monai_ssl.data import (
    CTIntensity,
    MixtureSampler,
    MRIntensity,
    PadCollate,
    RadiographIntensity,
    SourceIntensity,
    UnreadableImageError,
    VolumePatchDataset,
    VolumeSliceDataset,
    mixture_dataset,
    mixture_fingerprint,
    mixture_geometry,
    mixture_policy,
    mixture_rows,
    mixture_views,
    open_mixture,
    policy_from_dict,
    sources,
)
from monai_ssl.evaluation import Preprocessing

QUIET = {"num_workers": 0, "progress": False}
SPLITS = ("train", "train", "train", "val", "test")


def write_table(folder: Path, rows: list[dict]) -> None:
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Twenty flat images of ten patients; five CT and five MR volumes of six patients in one folder."""
    root = tmp_path_factory.mktemp("sources")
    (root / "flat").mkdir()
    random, rows = np.random.default_rng(0), []
    for number in range(20):
        pixels = random.integers(0, 255, (30 + number % 3, 40)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "flat" / f"{number:02d}.png")
        patient, split = f"{number // 2}", SPLITS[number // 2 % 5]
        rows.append({"file": f"{number:02d}.png", "patient_id": patient, "split": split, "label": "ab"[number % 2]})
    write_table(root / "flat", rows)
    rows = []
    for number in range(10):
        modality, patient = ("CT", number) if number < 5 else ("MR", number - 4)
        array = ct_volume((12, 20, 16), number) if modality == "CT" else smooth_voxels(number, (10, 18, 16))
        write_nifti(root / "volumes" / f"{number}.nii", array.astype(np.int16))
        rows.append({"file": f"{number}.nii", "patient_id": str(patient), "modality": modality})
    write_table(root / "volumes", rows)
    return root


def config(folders, **more) -> dict:
    volumes = str(folders / "volumes")
    return {
        "chest": {"kind": "images", "dataset_dir": str(folders / "flat"), "max_side": 32},
        "ct": {"kind": "volumes", "dataset_dir": volumes, "modality": "ct", "policy": "ct_lung"},
        "mr": {"kind": "volumes", "dataset_dir": volumes, "modality": "MR"},
    } | more


@pytest.fixture(scope="module")
def opened(folders, tmp_path_factory):
    return open_mixture(config(folders), tmp_path_factory.mktemp("cache"), **QUIET)


def test_every_source_is_opened_with_its_own_policy(folders, opened):
    assert list(opened) == ["chest", "ct", "mr"]
    chest, ct, mr = opened.values()
    assert (chest.kind, chest.modality, len(chest.store)) == ("images", None, 20)
    assert chest.store.recipe["max_side"] == 32 and chest.store.policy == RadiographIntensity()
    assert ct.modality == "CT" and ct.store.policy == CTIntensity(name="ct_lung")
    assert set(ct.store.table["modality"].to_pylist()) == {"CT"} and len(ct.store) == 5, "its volumes only"
    assert mr.store.policy == MRIntensity() and set(mr.store.table["modality"].to_pylist()) == {"MR"}
    assert "patient_id" not in str(chest.store.table.column_names)


def test_a_patient_of_one_folder_is_one_wherever_it_is_and_of_another_folder_another(opened):
    groups = {name: set(source.store.table["group_id"].to_pylist()) for name, source in opened.items()}
    assert len(groups["ct"] & groups["mr"]) == 4, "patients 1 to 4 have both"
    assert not groups["chest"] & (groups["ct"] | groups["mr"]), "patient 1 of another folder is someone else"
    splits = {}
    for name in ("ct", "mr"):
        table = opened[name].store.table
        for group, split in zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True):
            assert splits.setdefault(group, split) == split, "the same split in both stores"


def test_with_one_salt_a_patient_number_is_the_same_everywhere(folders, tmp_path):
    opened = open_mixture(config(folders), tmp_path, salt="00" * 16, **QUIET)
    groups = [set(source.store.table["group_id"].to_pylist()) for source in opened.values()]
    assert len(groups[0] & groups[1]) == 5


def test_nothing_held_out_is_trained_on_whoever_holds_it_out(opened, caplog):
    rows = mixture_rows(opened)
    for name, source in opened.items():
        splits = source.store.table["split"].to_pylist()
        assert {splits[row] for row in rows[name]} == {"train"} and len(rows[name]) == splits.count("train")
    # Another table gives one patient of the CT to "val": it must not be in the MR's pool either.
    table = opened["ct"].store.table
    shared = set(opened["mr"].store.table["group_id"].take(pa.array(rows["mr"])).to_pylist())
    row = next(row for row in rows["ct"] if table["group_id"][row].as_py() in shared)
    splits = table["split"].to_pylist()
    splits[row] = "val"
    place = table.schema.get_field_index("split")
    store = copy.copy(opened["ct"].store)
    store.table = table.set_column(place, "split", pa.array(splits))
    changed = opened | {"ct": sources.ImageSource("ct", "volumes", "CT", store)}
    with caplog.at_level(logging.INFO, "monai_ssl"):
        fewer = mixture_rows(changed)
    assert len(fewer["mr"]) == len(rows["mr"]) - 1 and "source mr: 1 images left out" in caplog.text
    assert np.array_equal(fewer["chest"], rows["chest"])


def test_slices_and_images_in_one_dataset(opened):
    data = mixture_dataset(opened, label_columns=["group_id", "label"], missing={"label": -1})
    rows = mixture_rows(opened)
    assert data.sizes == [len(rows[name]) for name in opened]
    assert all(isinstance(part, VolumeSliceDataset) for part in data.datasets[1:])
    views = mixture_views(opened, 16, standardize=None, num_views=3, options={"ct": {"window_prob": 1.0}})
    steps = [[type(step).__name__ for step in views.views[n].chains[0].transforms] for n in range(3)]
    assert "RandomWindow" in steps[1] and "RandomBiasField" in steps[2] and "RandomBiasField" not in steps[0]
    window = views.views[1].chains[0].transforms[1]
    assert window.limits_hu == opened["ct"].store.policy.window_hu and window.prob == 1
    for homogeneous in (True, False):
        sampler = MixtureSampler(data, 4, homogeneous=homogeneous, temper=1.0, length=48)
        seen = set()
        for batch in DataLoader(data, 4, sampler=sampler, collate_fn=PadCollate(), drop_last=True):
            assert batch["image"].shape[:2] == (4, 1) and ((batch["source"] == 0) == (batch["label"] >= 0)).all()
            made = views(batch["image"], extent=batch["extent"], source=batch["source"])
            assert [view.shape for view in made] == [(4, 1, 16, 16)] * 3
            seen.update(batch["source"].tolist())
        assert seen == {0, 1, 2}


def test_volumes_alone_feed_a_3d_network(folders, tmp_path):
    table = config(folders)
    with pytest.raises(ValueError, match="source 'chest': images are flat, and spatial_dims is 3"):
        open_mixture(table, tmp_path, spatial_dims=3, **QUIET)
    del table["chest"]
    opened = open_mixture(table, tmp_path, spatial_dims=3, **QUIET)
    data = mixture_dataset(opened, spatial_dims=3, read_size=8, foreground_prob=0.5)
    assert all(isinstance(part, VolumePatchDataset) for part in data.datasets)
    batch = PadCollate()(data.__getitems__([0, len(data) - 1]))
    assert batch["image"].shape == (2, 1, 8, 8, 8) and batch["source"].tolist() == [0, 1]
    views = mixture_views(opened, 8, spatial_dims=3)(batch["image"], source=batch["source"])
    assert [view.shape for view in views] == [(2, 1, 8, 8, 8)] * 2


def test_the_manifest_says_how_each_source_was_prepared(opened, tmp_path):
    policy = mixture_policy(opened)
    recorded = policy.to_dict()
    assert policy_from_dict(recorded) == policy and recorded["policies"]["ct"]["name"] == "ct_lung"
    made = Preprocessing((32, 32), policy=recorded)
    back = Preprocessing.from_dict(made.to_dict())
    assert back.intensity_policy() == policy
    narrowed = back.with_store(opened["chest"].store)
    assert narrowed.policy == RadiographIntensity().to_dict(), "its own of the policies, from here on"
    other = type("Store", (), {"policy": RadiographIntensity(stretch_percentiles=(1, 99)), "spatial_dims": 2})
    with pytest.raises(ValueError, match="another intensity policy"):
        back.with_store(other)
    assert mixture_policy({"chest": opened["chest"], "again": opened["chest"]}) == RadiographIntensity()


def test_new_images_are_prepared_by_the_policy_for_their_kind():
    chest, ct, mr = RadiographIntensity(), CTIntensity(name="ct_lung"), MRIntensity()
    policy = SourceIntensity(policies={"chest": chest, "us": chest, "ct": ct, "mr": mr})
    image = np.linspace(-1200, 800, 1000, dtype=np.float32).reshape(10, 100)
    flat = {"value_range": (0.0, 255.0), "value_range_source": "bits_stored", "modality": None}
    assert policy.limits(image, flat) == (0.0, 255.0)
    assert policy.limits(image, {"modality": "CT", "unit": "HU"}) == ct.window_hu
    assert policy.limits(image, {"modality": "MR"}) == mr.limits(image, {"modality": "MR"})
    assert policy.policy_of("us") == chest and policy.suits(flat) and not policy.suits({"modality": "PT"})
    with pytest.raises(UnreadableImageError, match="for its modality, PT"):
        policy.limits(image, {"modality": "PT"})
    two = SourceIntensity(policies={"head": CTIntensity(name="ct_brain"), "lung": ct})
    with pytest.raises(UnreadableImageError, match="the sources head, lung have different"):
        two.limits(image, {"modality": "CT", "unit": "HU"})
    with pytest.raises(ValueError, match="at least one"):
        SourceIntensity(policies={})


def test_the_fingerprint_is_that_of_the_images(opened):
    rows = mixture_rows(opened)
    whole = mixture_fingerprint(opened, rows)
    assert len(whole) == 16 and whole == mixture_fingerprint(dict(reversed(opened.items())), rows)
    assert whole != mixture_fingerprint(opened, rows | {"mr": rows["mr"][1:]})


def test_where_chooses_within_a_source(folders, tmp_path):
    table = {"chest": config(folders)["chest"] | {"where": "label=a"}}
    opened = open_mixture(table, tmp_path, **QUIET)
    rows = mixture_rows(opened)["chest"]
    assert set(opened["chest"].store.table["label"].take(pa.array(rows)).to_pylist()) == {"a"}
    nothing = {"chest": sources.ImageSource("chest", "images", None, opened["chest"].store, "split=val")}
    with pytest.raises(ValueError, match=r"source 'chest': no image .* is left"):
        mixture_rows(nothing)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "photos"}, "source 'new': kind is 'photos'"),
        ({"kind": "images", "datset_dir": "x"}, "no entry is called 'datset_dir'; did you mean 'dataset_dir'"),
        ({"kind": "images", "spacing_mm": 1}, "no entry is called 'spacing_mm'"),
        ({"kind": "volumes", "modality": "XY"}, "source 'new': modality is 'XY'"),
        ({"kind": "images", "policy": "ct"}, "source 'new': policy is 'ct'"),
        ({"kind": "images", "policy": {"kind": "none"}}, "source 'new': unknown intensity policy"),
    ],
)
def test_a_wrong_entry_is_told_before_any_work(source, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        open_mixture({"new": source}, tmp_path / "cache", **QUIET)
    assert not (tmp_path / "cache").exists()


def test_faults_of_folders_name_their_source(folders, tmp_path):
    with pytest.raises(ValueError, match="sources is empty"):
        open_mixture({}, tmp_path)
    with pytest.raises(ValueError, match="a name is made of letters"):
        open_mixture({"a/b": {"kind": "images"}}, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"source 'far': .*no such folder"):
        open_mixture({"far": {"kind": "images", "dataset_dir": str(tmp_path / "nowhere")}}, tmp_path, **QUIET)
    with pytest.raises(ValueError, match=r"source 'pet': .*no volume of modality PT; there are CT, MR"):
        pet = {"kind": "volumes", "dataset_dir": str(folders / "volumes"), "modality": "PT", "policy": "auto"}
        open_mixture({"pet": pet}, tmp_path, **QUIET)
    with pytest.raises(ValueError, match="no source has a column 'grade'"):
        opened = open_mixture({"chest": config(folders)["chest"]}, tmp_path, **QUIET)
        mixture_dataset(opened, label_columns=["grade"])
    with pytest.raises(ValueError, match=r"options are given for the sources \['ct'\]"):
        mixture_views(opened, 16, options={"ct": {}})


def test_without_folders_the_examples_are_opened(folders, tmp_path, monkeypatch):
    from monai_ssl.data import example_volumes, examples

    made = []

    def stand_in(source, folder):
        made.append(folder)
        return Path(shutil.copytree(folders / source, folder, dirs_exist_ok=True))

    monkeypatch.setattr(examples, "make_example_radiographs", lambda folder: stand_in("flat", folder))
    monkeypatch.setattr(example_volumes, "make_example_volumes", lambda folder, **_: stand_in("volumes", folder))
    volumes = {"kind": "volumes", "dataset_dir": None}
    table = {"chest": {"kind": "images"}, "ct": volumes | {"modality": "CT"}, "mr": volumes | {"modality": "MR"}}
    opened = open_mixture(table, tmp_path, **QUIET)
    assert [len(source.store) for source in opened.values()] == [20, 5, 5]
    assert made[1] == made[2] != made[0], "one folder of volumes for all"
    ct, mr = (set(opened[name].store.table["group_id"].to_pylist()) for name in ("ct", "mr"))
    assert len(ct & mr) == 4, "whose patients are the same"


def link(files: list[Path], folder: Path) -> str:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file)
    return str(folder)


@pytest.mark.realdata
def test_radiographs_ct_mr_and_ultrasound_in_one_run(real_data, tmp_path):
    chest = sorted((real_data / "radiographs/images/cidc").glob("*.jpg"))[:24]
    breast = sorted((real_data / "sets2d/busi").glob("*/*.png"))[:24]
    ct = sorted((real_data / "volumes_ct/lidc_nodules/image").iterdir())[:8]
    mr = sorted((real_data / "volumes_mr/msd_hippocampus/imagesTr").glob("*.nii*"))[:8]
    table = {
        "chest": {"kind": "images", "dataset_dir": link(chest, tmp_path / "chest"), "max_side": 128},
        "ct": {"kind": "volumes", "dataset_dir": link(ct, tmp_path / "ct"), "modality": "CT"},
        "mr": {"kind": "volumes", "dataset_dir": link(mr, tmp_path / "mr"), "modality": "MR"},
        "breast": {"kind": "images", "dataset_dir": link(breast, tmp_path / "us"), "modality": "US"},
    }
    opened = open_mixture(table, tmp_path / "cache", progress=False)
    data = mixture_dataset(opened)
    views = mixture_views(opened, 32, band_energy_prob=0.5)
    assert views.names == {0: "chest", 1: "ct", 2: "mr", 3: "breast"}
    for homogeneous in (True, False):
        sampler = MixtureSampler(data, 6, homogeneous=homogeneous, temper=1.0, length=96)
        seen = set()
        for batch in DataLoader(data, 6, sampler=sampler, collate_fn=PadCollate(), drop_last=True):
            assert batch["image"].min() >= 0 and batch["image"].max() <= 1
            assert homogeneous is False or len(batch["source"].unique()) == 1
            made = views(batch["image"], torch.Generator().manual_seed(0), batch["extent"], batch["source"])
            assert all(view.shape == (6, 1, 32, 32) and view.isfinite().all() for view in made)
            assert (made[0] - made[1]).abs().amax((1, 2, 3)).min() > 0.05
            seen.update(batch["source"].tolist())
        assert seen == {0, 1, 2, 3}


def test_geometry_is_that_of_all_sources_or_none(opened, folders, tmp_path):
    volumes = {name: opened[name] for name in ("ct", "mr")}
    assert mixture_geometry(volumes) == {"spacing_mm": None, "orientation": "SPL"}
    assert mixture_geometry(opened)["orientation"] is None, "flat images have none"
    assert opened["mr"].dataset_dir == str(folders / "volumes")
