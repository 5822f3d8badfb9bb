from __future__ import annotations

import functools
import time

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from synthetic_dicom import write_dicom

from monai_ssl.data import StoreDataset, assert_disjoint, label_subsets, open_radiographs, split_rows

COUNT = 40


def made_up(seed, shape=(60, 50)) -> np.ndarray:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """40 images of 20 patients, one of them a copy of another, and one broken file."""
    root = tmp_path / "images"
    (root / "png").mkdir(parents=True)
    lines = ["file,patient_id,label"]
    for i in range(COUNT):
        if i % 4:
            name = f"png/{i:02d}.png"
            Image.fromarray(made_up(i)).save(root / name)
        else:
            name = f"dicom/{i:02d}"
            write_dicom(root / name, made_up(i).astype(np.uint16) * 16, bits=12, WindowCenter=2048, WindowWidth=4096)
        lines.append(f"{name},patient{i // 2},{'ill' if i // 2 % 3 else 'well'}")
    Image.fromarray(made_up(1)).save(root / "png" / "copy of 01.png")
    (root / "png" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def call(folder, tmp_path, **options):
    return open_radiographs(folder, tmp_path / "cache", **({"num_workers": 0, "progress": False} | options))


def test_a_folder_becomes_a_store_with_the_users_columns(folder, tmp_path):
    store = call(folder, tmp_path)
    assert len(store) == COUNT
    table = store.table
    assert {"label", "split", "group_id", "patient", "perceptual_hash", "store_item"} <= set(table.column_names)
    assert table["label"].null_count == 0 and pc.count_distinct(table["group_id"]).as_py() == COUNT // 2
    assert "patient3" not in str(table["patient"].to_pylist()), "identifiers are hashed"
    reasons = dict(zip(store.refused["path"].to_pylist(), store.refused["reason"].to_pylist(), strict=True))
    assert reasons.keys() == {"png/broken.png", "png/copy of 01.png"}
    assert reasons["png/copy of 01.png"] == "duplicate: has the same pixels as png/01.png"
    assert "refused 1: duplicate" in store.describe()
    parts = [table.take(split_rows(table, name)) for name in ("train", "test")]
    assert_disjoint(*parts)
    assert len(label_subsets(table, "label", (0.5,), rows=split_rows(table, "train"))[0.5])
    row = table["path"].to_pylist().index("png/05.png")
    np.testing.assert_array_equal(store.read_stored(row), made_up(5))
    row = table["path"].to_pylist().index("dicom/08")
    np.testing.assert_array_equal(store.read_stored(row), made_up(8).astype(np.uint16) * 16)
    assert StoreDataset(store, label_columns=["label"]).classes["label"] == ["ill", "well"]


def test_the_second_call_is_quick_and_takes_what_is_new(folder, tmp_path):
    first = call(folder, tmp_path)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.b2nd")}
    Image.fromarray(made_up(99)).save(folder / "png" / "new.png")
    second = call(folder, tmp_path)
    assert len(second) == len(first) + 1
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.b2nd")}
    assert now.items() >= made.items() and len(now) == len(made) + 1
    old = dict(zip(first.table["path"].to_pylist(), first.table["split"].to_pylist(), strict=True))
    assert (
        old.items()
        <= dict(zip(second.table["path"].to_pylist(), second.table["split"].to_pylist(), strict=True)).items()
    )


def test_splits_are_the_same_in_every_cache_and_stay_when_images_are_added(folder, tmp_path):
    def splits(cache, **options):
        table = open_radiographs(folder, tmp_path / cache, num_workers=0, progress=False, **options).table
        return dict(zip(table["path"].to_pylist(), table["split"].to_pylist(), strict=True))

    one = splits("a")
    assert splits("b", salt="another salt") == one
    assert splits("b", salt="another salt", seed=5) != one
    lines = (folder / "labels.csv").read_text()
    for i in range(COUNT // 2):  # a third image for everybody
        Image.fromarray(made_up(1000 + i)).save(folder / f"third{i}.png")
        lines += f"\nthird{i}.png,patient{i},ill"
    (folder / "labels.csv").write_text(lines)
    grown = splits("a")
    assert one.items() <= grown.items()
    for i in range(COUNT // 2):
        first = f"dicom/{2 * i:02d}" if i % 2 == 0 else f"png/{2 * i:02d}.png"
        assert grown[f"third{i}.png"] == one[first]
    (tmp_path / "a" / "splits.json").write_text("{")
    with pytest.raises(ValueError, match=r"splits\.json is damaged; restore it, or delete it"):
        splits("a")


def test_duplicates_may_stay_and_splits_may_be_chosen(folder, tmp_path):
    store = call(folder, tmp_path, drop_duplicates=False, split_fractions={"train": 0.5, "test": 0.5}, max_side=30)
    assert len(store) == COUNT + 1 and store.shape(0) == (30, 25)
    assert set(store.table["split"].to_pylist()) == {"train", "test"}


def test_the_users_splits_are_left_alone(folder, tmp_path):
    lines = (folder / "labels.csv").read_text().splitlines()
    rows = [f"{line},{'test' if 'patient3,' in line else 'train'}" for line in lines[1:-1]]
    (tmp_path / "mine.csv").write_text("\n".join([lines[0] + ",split", *rows]))
    store = call(folder, tmp_path, labels_file=tmp_path / "mine.csv")
    splits = dict(zip(store.table["path"].to_pylist(), store.table["split"].to_pylist(), strict=True))
    assert sorted(set(map(str, splits.values()))) == ["None", "test", "train"], "an image of no row has no split"
    assert [path for path, split in splits.items() if split == "test"] == ["png/06.png", "png/07.png"]


def test_a_table_that_only_holds_images_back_leaves_the_others_to_be_dealt(folder, tmp_path):
    lines = (folder / "labels.csv").read_text().splitlines()
    rows = [f"{line},{'test' if 'patient3,' in line else ''}" for line in lines[1:]]
    (tmp_path / "mine.csv").write_text("\n".join([lines[0] + ",split", *rows]))

    def splits():
        table = call(folder, tmp_path, labels_file=tmp_path / "mine.csv").table
        return dict(zip(table["path"].to_pylist(), table["split"].to_pylist(), strict=True))

    found = splits()
    assert None not in found.values() and list(found.values()).count("train") > COUNT // 2
    assert found["png/06.png"] == found["png/07.png"] == "test"
    assert splits() == found
    (tmp_path / "mine.csv").write_text((tmp_path / "mine.csv").read_text().replace(",test", ",val"))
    assert splits()["png/06.png"] == "val", "what the user gives is not remembered against him"


def test_too_many_broken_files_stop_before_the_work(folder, tmp_path):
    for i in range(60):
        (folder / f"broken{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(RuntimeError, match=r"61 of 102 image files cannot be used \(allowed: 50%\).*broken0\.png"):
        call(folder, tmp_path)
    assert not (tmp_path / "cache" / "store").exists()
    assert len(call(folder, tmp_path, max_refused_fraction=0.7)) == COUNT


def test_folders_that_are_none_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        call(tmp_path / "none", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images among its 0 files"):
        call(tmp_path / "empty", tmp_path)


def test_without_a_folder_the_example_data_is_made(tmp_path, monkeypatch):
    from monai_ssl.data import examples

    small = functools.partial(examples.make_example_radiographs, num_patients=12, size=64, num_workers=1)
    monkeypatch.setattr(examples, "make_example_radiographs", small)
    store = call(None, tmp_path)
    assert len(store) >= 12 and not len(store.refused)
    assert set(store.table["split"].to_pylist()) == {"train", "val", "test"}
    assert store.table["label"].null_count == 0 and store.shape(0) == (64, 64)
    assert len(call(None, tmp_path)) == len(store)


@pytest.mark.realdata
def test_the_real_radiographs(real_data, tmp_path):
    started = time.monotonic()
    store = open_radiographs(real_data / "radiographs", tmp_path / "cache", progress=False)
    took = time.monotonic() - started
    assert 2330 <= len(store) <= 2352 and len(store) + len(store.refused) == 2352
    assert all(reason.startswith("duplicate: ") for reason in store.refused["reason"].to_pylist())
    assert {"label", "split", "source", "text", "group_id"} <= set(store.table.column_names)
    assert store.table["label"].null_count == 0
    assert {"train", "val", "test"} == set(store.table["split"].to_pylist())
    parts = {name: store.table.take(split_rows(store.table, name)) for name in ("train", "val", "test")}
    assert 1650 <= len(parts["train"]) <= 1688
    for a, b in (("train", "test"), ("train", "val"), ("val", "test")):
        assert_disjoint(parts[a], parts[b], by=("group_id", "content_hash"))
    again = time.monotonic()
    assert open_radiographs(real_data / "radiographs", tmp_path / "cache", progress=False).table.equals(store.table)
    assert time.monotonic() - again < took / 2
    assert took < 60, "20 s on two idle cores"
