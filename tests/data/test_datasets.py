from __future__ import annotations

import multiprocessing

import blosc2
import monai.data
import numpy as np
import pytest
import torch
from array_folders import random_array, read_array, write_arrays
from torch.utils.data import DataLoader

from monai_ssl.data import EpochSampler, PadCollate, StoreDataset, prepare_store
from monai_ssl.data import cache as cache_module
from monai_ssl.data.cache import SharedImageCache

SHAPES = [(40, 30), (20, 50), (64, 64), (33, 17), (50, 50), (10, 64), (64, 9)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    arrays = {f"{'byte' if i % 2 else 'deep'}{i}": random_array(s, 8 if i % 2 else 12, i) for i, s in enumerate(SHAPES)}
    table = write_arrays(
        folder / "images",
        arrays,
        finding=["normal", "viral", None, "bacterial", "viral", "normal", "normal"],
        mass=[1, 0, None, 1, 0, 1, 0],
        age=[1.5, None, 3.0, 4.0, 5.0, 6.0, 7.0],
        urgent=[True, False, True, None, False, False, True],
        shapes=[[1], [2], [3], [4], [5], [6], [7]],
    )
    return prepare_store(table, folder / "images", folder / "store", reader=read_array, num_workers=0, progress=False)


def test_items_and_labels(store):
    dataset = StoreDataset(store, [3, 2], ["finding", "mass", "age", "urgent"])
    first, second = dataset[0], dataset[1]
    assert first["image"].shape == (1, 33, 17) and first["image"].dtype == torch.float32
    np.testing.assert_array_equal(first["image"][0], store.read(3))
    assert dataset.classes == {"finding": ["bacterial", "normal", "viral"]}
    assert {k: v for k, v in first.items() if k != "image"} == {
        "index": 3, "finding": 0, "mass": 1, "age": 4.0, "urgent": -1
    }  # fmt: skip
    assert (second["finding"], second["mass"], second["urgent"]) == (-1, -1, 1)
    assert torch.isnan(StoreDataset(store, [1], ["age"]).labels["age"]).item()
    assert len(dataset) == 2 and dataset[-1]["index"] == 2
    with pytest.raises(IndexError):
        dataset[2]


def test_classes_keep_the_order_they_are_given_in(store):
    dataset = StoreDataset(store, label_columns={"finding": ["viral", "normal"], "mass": None})
    assert dataset.labels["finding"].tolist() == [1, 0, -1, -1, 0, 1, 1]
    assert dataset.classes == {"finding": ["viral", "normal"]}


def test_labels_outside_a_subset_are_hidden(store):
    columns = ["finding", "mass", "age", "urgent"]
    every = StoreDataset(store, label_columns=columns)
    some = StoreDataset(store, [4, 0, 2, 5], columns, labelled_rows=[5, 4, 3])
    assert some.labels["labelled"].tolist() == [1, 0, 0, 1] and "labelled" not in every[0]
    assert some.classes == every.classes, "hiding a label hides no class"
    for item, row in zip((some[i] for i in range(4)), (4, 0, 2, 5), strict=True):
        assert item["index"] == row and item["labelled"] == int(row in (4, 5))
        if item["labelled"]:
            assert all(item[name] == every[row][name] for name in columns)
        else:
            assert all(item[name] == -1 for name in ("finding", "mass", "urgent")) and np.isnan(item["age"])
    batch = PadCollate()(some.__getitems__([0, 1]))
    assert batch["labelled"].tolist() == [1, 0] and batch["finding"].tolist() == [2, -1]
    mask = np.isin(np.arange(7), [5, 4, 3])
    masked = StoreDataset(store, [4, 0, 2, 5], columns, labelled_rows=mask)
    assert all(torch.equal(masked.labels[name].nan_to_num(9), some.labels[name].nan_to_num(9)) for name in some.labels)
    with pytest.raises(ValueError, match="labelled_rows reach from 0 to 7"):
        StoreDataset(store, labelled_rows=[0, 7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_columns": ["findng"]}, "no column 'findng'; did you mean 'finding'"),
        ({"label_columns": {"finding": ["vral"]}}, r"classes \['vral'\] are nowhere in the column 'finding'"),
        ({"label_columns": {"mass": ["a"]}}, "holds int64, not text"),
        ({"label_columns": ["shapes"]}, "labels are text, numbers or true/false"),
        ({"label_columns": {"finding": ["viral", "viral"]}}, "one twice"),
        ({"rows": [7]}, "the store has 7 images"),
        ({"rows": []}, "not empty"),
        ({"rows": [0.5]}, "row numbers"),
        ({"rows": np.zeros(3, bool)}, "mask of 3 entries"),
        ({"cache": "disk"}, 'use "none" or "memory"'),
    ],
)
def test_wrong_arguments_say_what_is_right(store, options, message):
    with pytest.raises(ValueError, match=message):
        StoreDataset(store, **options)


def test_rows_may_be_a_mask(store):
    assert StoreDataset(store, np.array([True, False] * 3 + [True])).rows.tolist() == [0, 2, 4, 6]


def test_padding_puts_images_at_the_origin_and_tells_their_extent(store):
    dataset = StoreDataset(store, label_columns=["mass"])
    batch = PadCollate()(dataset.__getitems__([0, 1, 6]))
    assert batch["image"].shape == (3, 1, 64, 50) and batch["image"].dtype == torch.float32
    assert batch["extent"].dtype == torch.int64 and batch["extent"].tolist() == [[40, 30], [20, 50], [64, 9]]
    assert batch["index"].tolist() == [0, 1, 6] and batch["index"].dtype == torch.int64
    assert batch["mass"].tolist() == [1, 0, 0]
    for row, image, (height, width) in zip([0, 1, 6], batch["image"], batch["extent"], strict=True):
        np.testing.assert_array_equal(image[0, :height, :width], store.read(row))
        assert image[:, height:].abs().sum() == 0 and image[:, :, width:].abs().sum() == 0


def test_the_quick_way_gives_what_plain_items_give(store):
    dataset = StoreDataset(store, label_columns=["finding", "age"])
    quick = PadCollate()(dataset.__getitems__([5, 3, 4]))
    plain = PadCollate()([dataset[5], dataset[3], dataset[4]])
    assert quick.keys() == plain.keys()
    for key in quick:
        torch.testing.assert_close(quick[key], plain[key], rtol=0, atol=0, msg=key)


def test_padding_takes_volumes_channels_and_other_values():
    items = [
        {"image": torch.rand(2, 3, 4, 5), "text": "a", "box": torch.tensor([1, 2])},
        {"image": torch.rand(2, 4, 2, 6), "text": "b", "box": torch.tensor([3, 4])},
    ]
    batch = PadCollate()(items)
    assert batch["image"].shape == (2, 2, 4, 4, 6) and batch["extent"].tolist() == [[3, 4, 5], [4, 2, 6]]
    torch.testing.assert_close(batch["image"][1, :, :4, :2, :6], items[1]["image"])
    assert batch["image"].sum() == pytest.approx(sum(item["image"].sum().item() for item in items), rel=1e-5)
    assert batch["text"] == ["a", "b"] and batch["box"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="differ in channels"):
        PadCollate()([{"image": torch.rand(1, 4, 4)}, {"image": torch.rand(2, 4, 4)}])


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("loader_class", [DataLoader, monai.data.DataLoader])
def test_batches_do_not_depend_on_the_workers(store, cache, loader_class):
    before = blosc2.nthreads
    blosc2.set_nthreads(2)  # a parent with threads of its own must not make forked workers hang
    try:
        blosc2.asarray(np.zeros((1000, 1000)))[...]
        batches = {}
        for workers in (0, 1, 2):
            dataset = StoreDataset(store, label_columns=["finding", "mass"], cache=cache)
            loader = loader_class(
                dataset,
                batch_size=3,
                sampler=EpochSampler(len(dataset), seed=3),
                num_workers=workers,
                collate_fn=PadCollate(),
                timeout=60 if workers else 0,
                **({"multiprocessing_context": "fork"} if workers else {}),
            )
            batches[workers] = list(loader)
            if cache == "memory":
                assert dataset._cache.num_filled == len(dataset), "what workers read is there for everybody"
                again = list(loader)
                assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batches[workers], again, strict=True))
    finally:
        blosc2.set_nthreads(before)
    for workers in (1, 2):
        for one, other in zip(batches[0], batches[workers], strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_memory_cache_holds_the_narrow_type_and_reads_once(store, monkeypatch):
    dataset = StoreDataset(store, cache="memory")
    reads = []
    original = store.read_stored
    monkeypatch.setattr(store, "read_stored", lambda i, box=None: reads.append(i) or original(i, box))
    for _ in range(2):
        for i in range(len(dataset)):
            np.testing.assert_array_equal(dataset[i]["image"][0], np.divide(original(i), store.levels(i)))
    assert sorted(reads) == list(range(len(SHAPES)))
    sizes = [int(np.prod(shape)) * (1 if i % 2 else 2) for i, shape in enumerate(SHAPES)]
    assert sum(sizes) <= len(dataset._cache._bytes) <= sum(sizes) + 8 * len(SHAPES)
    assert not dataset._cache.get(0).flags.writeable


def test_a_cache_too_large_for_the_memory_is_refused(store, monkeypatch):
    monkeypatch.setattr(cache_module, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r'GiB are free; use cache="none"'):
        StoreDataset(store, cache="memory")


def test_free_memory_is_plausible():
    free = cache_module.free_memory()
    assert free is None or 2**20 < free < 2**50


def _fill(cache: SharedImageCache) -> None:
    cache.put(1, np.full((3, 3), 9, np.uint16))


@pytest.mark.slow
def test_spawned_processes_share_the_cache():
    cache = SharedImageCache([(2, 2), (3, 3)], [np.dtype("u1"), np.dtype("u2")])
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(cache,))
    process.start()
    process.join(120)
    assert cache.get(0) is None
    np.testing.assert_array_equal(cache.get(1), np.full((3, 3), 9, np.uint16))
