from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from array_folders import many_arrays, random_array, read_array, write_arrays
from PIL import Image

from monai_ssl.data import ImageStore, RadiographIntensity, build_index, prepare_store
from monai_ssl.data.items import shrink
from monai_ssl.data.tables import write_table


def prepare(tmp_path, table, **options):
    options = {"reader": read_array, "num_workers": 0, "progress": False} | options
    return prepare_store(table, tmp_path / "images", tmp_path / "store", **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_depth_comes_back_exactly(tmp_path, workers):
    arrays = {
        "byte": random_array((50, 70), 8, dtype=np.uint8),
        "deep": random_array((70, 50), 12),
        "full": random_array((60, 60), 16),
    }
    table = write_arrays(tmp_path / "images", arrays, label=["a", "b", None])
    store = prepare(tmp_path, table, num_workers=workers)
    assert store.table["path"].to_pylist() == ["byte.npy", "deep.npy", "full.npy"]
    assert store.table["label"].to_pylist() == ["a", "b", None]
    assert store.table["store_dtype"].to_pylist() == ["uint8", "uint16", "uint16"]
    for i, array in enumerate(arrays.values()):
        top = np.float32(array.max())
        image = store.read(i)
        assert image.dtype == np.float32 and image.min() == 0 and image.max() == 1
        np.testing.assert_array_equal(image, array.astype(np.float32) / top)  # correctly rounded, not only close
        np.testing.assert_array_equal(store.read_stored(i), array)
        assert store.shape(i) == array.shape


def test_16_bit_png_through_the_whole_way(tmp_path):
    pixels = random_array((80, 60), 16)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    table = build_index(tmp_path / "images", num_workers=0, progress=False)
    store = prepare_store(table, tmp_path / "images", tmp_path / "store", num_workers=0, progress=False)
    np.testing.assert_array_equal(store.read_stored(0), pixels)
    np.testing.assert_array_equal(store.read(0), pixels.astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("name", ["byte", "deep", "full"])
def test_large_images_are_shrunk_in_float_and_keep_16_bits(tmp_path, name):
    bits = {"byte": 8, "deep": 12, "full": 16}[name]
    array = random_array((300, 200), bits)
    store = prepare(tmp_path, write_arrays(tmp_path / "images", {name + "spaced": array}), max_side=96)
    assert store.shape(0) == (96, 64) and store.dtype(0) == np.uint16
    expected = shrink(array.astype(np.float32), (96, 64)) / (2**bits - 1)
    assert np.abs(store.read(0) - expected).max() < 0.51 / 65535 + 1e-7
    np.testing.assert_allclose(store.table["store_spacing_mm"][0].as_py(), [0.2 * 300 / 96, 0.2 * 200 / 64])


@pytest.mark.parametrize("shape", [(200, 150), (20, 40, 30)])
def test_reading_a_box_equals_cutting_it_out(tmp_path, shape):
    store = prepare(tmp_path, write_arrays(tmp_path / "images", {"deep": random_array(shape)}))
    assert store.spatial_dims == len(shape)
    full = store.read(0)
    box = [(side // 4, side // 4 + side // 3) for side in shape]
    np.testing.assert_array_equal(store.read(0, box), full[tuple(slice(*ends) for ends in box)])
    np.testing.assert_array_equal(store.read(0, [slice(2, None)] * len(shape)), full[(slice(2, None),) * len(shape)])
    with pytest.raises(ValueError, match="reaches over the edge"):
        store.read(0, [(0, side + 1) for side in shape])
    with pytest.raises(IndexError):
        store.read(1)


def test_again_keeps_everything_and_another_recipe_mixes_nothing(tmp_path, capsys):
    table = write_arrays(tmp_path / "images", many_arrays(5))
    first = prepare(tmp_path, table)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.b2nd")}
    assert len(files) == 5
    prepare(tmp_path, table, progress=True)
    assert "prepared 0 images" in (err := capsys.readouterr().err) and "kept 5" in err and "on disk" in err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.b2nd")} == files

    small = prepare(tmp_path, table, max_side=20, progress=True)
    said = capsys.readouterr().err
    assert "max_side 512 -> 20" in said and "stay in items-" in said
    assert small.shape(0) == (20, 15)
    assert first.read(0).shape == (40, 30), "a store that is open keeps its own images"
    stretched = prepare(tmp_path, table, max_side=20, policy=RadiographIntensity(stretch_percentiles=(2, 98)))
    assert not np.array_equal(stretched.read(0), small.read(0))
    assert stretched.policy == RadiographIntensity(stretch_percentiles=(2, 98))

    back = prepare(tmp_path, table, progress=True)
    assert "kept 5" in capsys.readouterr().err
    np.testing.assert_array_equal(back.read(3), first.read(3))


def test_only_new_images_are_prepared_when_the_folder_grows(tmp_path, capsys):
    prepare(tmp_path, write_arrays(tmp_path / "images", many_arrays(3)))
    store = prepare(tmp_path, write_arrays(tmp_path / "images", many_arrays(5)), progress=True)
    assert "prepared 2 images" in (err := capsys.readouterr().err) and "kept 3" in err
    assert len(store) == 5


def test_equal_images_share_one_file_but_have_their_own_rows(tmp_path):
    array = random_array((40, 30))
    store = prepare(tmp_path, write_arrays(tmp_path / "images", {"deep1": array, "deep2": array}))
    assert len(store) == 2 and len(list((tmp_path / "store").rglob("*.b2nd"))) == 1
    np.testing.assert_array_equal(store.read(0), store.read(1))


def test_the_order_and_content_do_not_depend_on_the_workers(tmp_path):
    arrays = many_arrays(20)
    table = write_arrays(tmp_path / "images", arrays)
    one = prepare_store(table, tmp_path / "images", tmp_path / "a", reader=read_array, num_workers=0, progress=False)
    two = prepare_store(table, tmp_path / "images", tmp_path / "b", reader=read_array, num_workers=2, progress=False)
    assert one.table.equals(two.table) and one.recipe == two.recipe
    for path in (tmp_path / "a").rglob("*.b2nd"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_an_index_file_will_do_and_refused_rows_stay_refused(tmp_path):
    table = write_arrays(tmp_path / "images", many_arrays(3))
    table = table.set_column(4, "status", pa.array(["ok", "refused", "ok"]))
    table = table.set_column(5, "reason", pa.array([None, "no pixels", None], pa.string()))
    write_table(table, tmp_path / "index.parquet")
    store = prepare(tmp_path, tmp_path / "index.parquet")
    assert store.table["path"].to_pylist() == ["deep000.npy", "deep002.npy"]
    assert store.refused["reason"].to_pylist() == ["no pixels"]
    again = prepare(tmp_path, tmp_path / "store" / "store.parquet")
    assert again.table.equals(store.table)


def test_a_store_says_what_it_holds_and_goes_to_workers(tmp_path):
    arrays = many_arrays(3) | {"bad": random_array((9, 9))}
    store = prepare(tmp_path, write_arrays(tmp_path / "images", arrays))
    text = store.describe()
    assert "3 images, 1 refused" in text and "3 uint16" in text and "1: made to be refused" in text
    assert "radiograph_display_range" in text
    facts = json.loads((tmp_path / "store" / "store.json").read_text())
    assert facts["recipe"]["policy"]["kind"] == "radiograph" and facts["recipe"]["max_side"] == 512
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(1), store.read(1))


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished store; run prepare"):
        ImageStore(tmp_path)
    prepare(tmp_path, write_arrays(tmp_path / "images", many_arrays(2)))
    facts = tmp_path / "store" / "store.json"
    whole = facts.read_text()
    facts.write_text(whole[:50])
    with pytest.raises(ValueError, match=r"store\.json is damaged; delete it and run prepare again"):
        ImageStore(tmp_path / "store")
    facts.write_text(whole.replace('"recipe_id": "', '"recipe_id": "0'))
    with pytest.raises(ValueError, match="come from different runs; run prepare again"):
        ImageStore(tmp_path / "store")


@pytest.mark.parametrize("options", [{"max_side": 0}, {"max_refused_fraction": 1.5}, {"num_workers": -1}])
def test_wrong_arguments(tmp_path, options):
    table = write_arrays(tmp_path / "images", many_arrays(1))
    with pytest.raises(ValueError, match=next(iter(options))):
        prepare(tmp_path, table, **options)


def test_wrong_tables_and_folders(tmp_path):
    table = write_arrays(tmp_path / "images", many_arrays(1))
    with pytest.raises(ValueError, match="no column 'content_hash'"):
        prepare(tmp_path, table.drop_columns(["content_hash"]))
    with pytest.raises(ValueError, match="no usable image"):
        prepare(tmp_path, table.set_column(4, "status", pa.array(["refused"])))
    with pytest.raises(ValueError, match="without a content_hash"):
        prepare(tmp_path, table.set_column(3, "content_hash", pa.array(["../../etc"])))
    with pytest.raises(FileNotFoundError, match="no such table"):
        prepare(tmp_path, tmp_path / "none.parquet")
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        prepare_store(table, tmp_path / "none", tmp_path / "store")
