# SPDX-License-Identifier: Apache-2.0
"""Several datasets as one, and the order in which they are read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from array_folders import many_arrays, read_array, write_arrays
from torch.utils.data import DataLoader, Dataset
from volume_folders import write_volumes

from monai_ssl.data import (
    MixtureSampler,
    PadCollate,
    SourceMixture,
    StoreDataset,
    VolumePatchDataset,
    VolumeSliceDataset,
    prepare_store,
    prepare_volumes,
)

QUIET = {"num_workers": 0, "progress": False}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Nine flat images of five patients, of whom two are in the store of three volumes too."""
    root = tmp_path_factory.mktemp("mixture")
    patients = ["p0", "p0", "p1", "p2", "p2", "p3", None, "p4", "p4"]
    table = write_arrays(root / "flat", many_arrays(9), group_id=patients, sex=["f", "m"] * 4 + ["f"])
    flat = prepare_store(table, root / "flat", root / "flat_store", reader=read_array, **QUIET)
    index = write_volumes(root / "ct").append_column("group_id", [["p4", "q0", "p1"]])
    return SimpleNamespace(flat=flat, ct=prepare_volumes(index, root / "ct", root / "ct_store", **QUIET))


def mixture_of(stores, **options) -> SourceMixture:
    return SourceMixture(
        {
            "flat": StoreDataset(stores.flat, [8, 1, 2, 3, 5, 6], label_columns=["group_id", "sex"]),
            "ct": VolumeSliceDataset(stores.ct, label_columns=["group_id"], label_maps=True),
        },
        **options,
    )


def test_items_are_those_of_the_sources(stores):
    mixture = mixture_of(stores)
    flat, ct = mixture.datasets
    assert len(mixture) == 9 and mixture.names == ["flat", "ct"] and mixture.sizes == [6, 3]
    for code in (*range(9), 9 * 4 + 2, 9 * 5 + 7):
        item, (source, own) = mixture[code], mixture.locate(code)
        plain = (flat, ct)[source][own]
        assert item["source"] == source == int(code % 9 >= 6)
        assert own == (code % 9 if source == 0 else code // 9 * 3 + code % 9 - 6)
        assert torch.equal(item["image"], plain["image"])
        assert mixture.locate_index(item["index"]) == (source, plain["index"])
        assert item["index"] == plain["index"] + 9 * source, "rows of the first store, then of the second"
    with pytest.raises(IndexError, match="0 or more"):
        mixture[-1]


def test_patients_have_one_number_wherever_they_are(stores):
    mixture = mixture_of(stores)
    names = [stores.flat.table["group_id"][row].as_py() for row in (8, 1, 2, 3, 5, 6)] + ["p4", "q0", "p1"]
    numbers = [mixture[code]["group_id"] for code in range(9)]
    assert numbers[names.index(None)] == -1
    known = [(name, number) for name, number in zip(names, numbers, strict=True) if name]
    assert len(set(known)) == len({name for name, _ in known}) == len({number for _, number in known})
    assert numbers[0] == numbers[6] and numbers[2] == numbers[8]


def test_numbers_of_positives_are_each_sources_own(stores):
    flat = StoreDataset(stores.flat, positives=[0, 0, 1, 2, 2, 3, 4, 5, -1])
    mixture = SourceMixture({"flat": flat, "ct": VolumeSliceDataset(stores.ct, positives=[0, 1, 1])})
    numbers = [mixture[code]["positive_id"] for code in range(12)]
    assert numbers[8] == -1 and numbers[0] == numbers[1] != numbers[9] and numbers[10] == numbers[11]
    assert len(set(numbers)) == 9
    batch = PadCollate()(mixture.__getitems__([0, 9, 1]))
    assert batch["positive_id"].dtype == torch.int64 and batch["positive_id"].tolist() == [
        numbers[i] for i in (0, 9, 1)
    ]


def test_a_batch_of_one_source_keeps_its_entries_and_a_mixed_one_the_common_ones(stores):
    collate, mixture = PadCollate(), mixture_of(stores)
    pure = collate(mixture.__getitems__([6, 16, 26]))
    assert pure["image"].shape[:2] == (3, 1) and pure["label_map"].shape == pure["image"].shape
    assert pure["source"].tolist() == [1, 1, 1] and pure.keys() == {
        *("image", "label_map", "extent", "index", "source", "group_id")
    }
    mixed = collate(mixture.__getitems__([7, 0, 8, 1]))
    assert mixed["source"].tolist() == [1, 0, 1, 0] and "label_map" not in mixed and "sex" not in mixed
    assert mixed["image"].shape == (4, 1, 40, 30), "as large as the largest"
    assert mixed["extent"].tolist() == [[20, 16], [40, 30], [20, 16], [40, 30]]
    assert torch.equal(mixed["image"][1], mixture[0]["image"])
    filled = mixture_of(stores, missing={"sex": -1})
    assert collate(filled.__getitems__([7, 0]))["sex"].tolist() == [-1, filled[0]["sex"]]
    assert collate(filled.__getitems__([7, 8]))["sex"].tolist() == [-1, -1]


class Numbers(Dataset):
    """Plain items with group numbers of their own."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        if i >= self.length:
            raise IndexError(i)
        return {"image": torch.full((1, 2, 2), float(i)), "index": i, "group_id": i // 2 - (i == 0)}


def test_plain_datasets_of_ones_own():
    mixture = SourceMixture({"a": Numbers(4), "b": Numbers(3)})
    items = [mixture[code] for code in (*range(7), 7 * 3 + 5)]
    assert [item["index"] for item in items] == [0, 1, 2, 3, 4, 5, 6, 5], "draws mean nothing to them"
    groups = [item["group_id"] for item in items[:7]]
    assert groups[0] == groups[4] == -1 and groups[2] == groups[3] != groups[1]
    assert len(set(groups) - {-1}) == 4, "equal numbers of two sources are two patients"


def test_clear_errors_of_a_mixture(stores):
    with pytest.raises(ValueError, match="at least one source"):
        SourceMixture({})
    with pytest.raises(ValueError, match="the source 'b' has no items"):
        SourceMixture({"a": Numbers(2), "b": Numbers(0)})
    with pytest.raises(ValueError, match=r"different dimensions .*'ct': 3.*VolumeSliceDataset"):
        SourceMixture({"flat": StoreDataset(stores.flat), "ct": VolumePatchDataset(stores.ct)})


# ---- the order ------------------------------------------------------------------------------------------------------


class Sized(Numbers):
    def __init__(self, length, anew=False):
        super().__init__(length)
        self.draws_anew = anew


def mixture(anew=(), **sizes) -> SourceMixture:
    return SourceMixture({name: Sized(size, name in anew) for name, size in sizes.items()})


def epochs(sampler, count) -> list[list[int]]:
    orders = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert len(orders[-1]) == len(sampler)
    return orders


def sources_of(data, codes) -> np.ndarray:
    return np.array([data.locate(code)[0] for code in codes])


@pytest.mark.parametrize("temper", [0.0, 0.5, 1.0])
def test_each_batch_is_of_one_source_and_sources_get_their_share(temper):
    data = mixture(a=60, b=20, c=9, anew=["c"])
    sampler = MixtureSampler(data, 5, temper=temper, length=103)
    orders = epochs(sampler, 60)
    assert {len(order) for order in orders} == {100}
    batches = np.array([sources_of(data, order).reshape(20, 5) for order in orders])
    assert (batches == batches[..., :1]).all()
    wanted = np.array([60, 20, 9]) ** (1 - temper)
    wanted = 20 * wanted / wanted.sum()
    counts = np.array([np.bincount(epoch[:, 0], minlength=3) for epoch in batches])
    assert (np.abs(counts - wanted) < 1 + 1e-9).all(), "to the nearest whole number of batches"
    np.testing.assert_allclose(counts.mean(0), wanted, atol=0.15)
    starts = np.array([np.bincount(epoch[:4, 0], minlength=3) for epoch in batches])
    assert np.abs(starts.mean(0) - wanted / 5).max() < 0.5, "in random order"


@pytest.mark.parametrize("homogeneous", [True, False])
def test_all_items_come_equally_often_and_no_code_twice(homogeneous):
    data = mixture(a=12, b=7, anew=["b"])
    codes = np.concatenate(epochs(MixtureSampler(data, 4, homogeneous=homogeneous, temper=1.0, length=24), 60))
    assert len(np.unique(codes)) == len(codes)
    seen = np.bincount(codes % len(data), minlength=len(data))
    for part in (seen[:12], seen[12:]):
        assert part.max() - part.min() <= 1
    assert abs(seen[:12].sum() - seen[12:].sum()) <= 60 * 4


def test_no_image_comes_twice_in_a_batch():
    data = mixture(a=11, b=23)
    sampler = MixtureSampler(data, 4)
    batches = np.concatenate([np.array(order).reshape(-1, 4) for order in epochs(sampler, 80)]) % len(data)
    assert all(len(set(batch)) == 4 for batch in batches)
    seen = np.bincount(batches.ravel(), minlength=34)
    for part in (seen[:11], seen[11:]):  # what a pass leaves out is another rest each time
        assert part.min() > 0.75 * part.mean()


@pytest.mark.parametrize("homogeneous", [True, False])
def test_mixed_batches_hold_several_sources(homogeneous):
    data = mixture(a=40, b=40)
    batches = sources_of(data, list(MixtureSampler(data, 8, homogeneous=homogeneous))).reshape(-1, 8)
    assert (batches.min(1) == batches.max(1)).all() == homogeneous
    assert batches.mean() == pytest.approx(0.5, abs=0.11)


@pytest.mark.parametrize("homogeneous", [True, False])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_order_of_one_and_are_at_the_same_source(homogeneous, world):
    data = mixture(a=40, b=20, c=9, anew=["c"])
    options = {"homogeneous": homogeneous, "seed": 3, "length": 64}
    alone = epochs(MixtureSampler(data, 8, **options), 3)
    parts = [epochs(MixtureSampler(data, 8 // world, rank=r, world=world, **options), 3) for r in range(world)]
    for epoch in range(3):
        together = np.array([part[epoch] for part in parts])
        assert together.T.ravel().tolist() == alone[epoch]
        steps = np.array([sources_of(data, row) for row in together]).reshape(world, 8, 8 // world)
        if homogeneous:
            assert (steps == steps[:1, :, :1]).all()


@pytest.mark.parametrize("homogeneous", [True, False])
def test_resumed_at_any_batch_also_with_more_processes(homogeneous):
    data = mixture(a=40, b=20)
    options = {"homogeneous": homogeneous, "seed": 3}
    sampler = MixtureSampler(data, 4, **options)
    sampler.set_epoch(5)
    whole = list(sampler)
    assert list(sampler) == whole and len(whole) == 60
    state = json.loads(json.dumps(sampler.state_dict() | {"position": 12}))
    resumed = MixtureSampler(data, 4, **options)
    resumed.load_state_dict(state)
    assert list(resumed) == whole[12:] and resumed.epoch == 5
    pair = [MixtureSampler(data, 2, rank=rank, world=2, **options) for rank in (0, 1)]
    for part in pair:
        part.load_state_dict(state)
        part.set_epoch(5)
    assert np.array([list(part) for part in pair]).T.ravel().tolist() == whole[12:]
    resumed.load_state_dict(state | {"position": 14})
    assert list(resumed) == whole[12:], "a batch that was begun is read again"
    resumed.set_epoch(6)
    assert resumed.position == 0
    resumed.load_state_dict(state | {"position": 99})
    assert list(resumed) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", {"seed": 1}),
        ("batch", {"batch_size": 3}),
        ("length", {"length": 12}),
        ("shares", {"temper": 1.0}),
        ("homogeneous", {"homogeneous": False}),
        ("sizes", {"mixture": mixture(a=12, b=8, anew="a")}),
    ],
)
def test_a_state_of_another_order_is_an_error(name, change):
    options = {"mixture": mixture(a=12, b=6), "batch_size": 2, "length": 18}
    state = MixtureSampler(**options).state_dict()
    with pytest.raises(ValueError, match=f"the sampler's {name} was"):
        MixtureSampler(**options | change).load_state_dict(state)
    with pytest.raises(ValueError, match="position is -1"):
        MixtureSampler(**options).load_state_dict(state | {"position": -1})


def test_shares_of_ones_own():
    data = mixture(a=40, b=20)
    by_name = MixtureSampler(data, 4, shares={"b": 3, "a": 1}, length=80)
    assert by_name.shares.tolist() == [0.25, 0.75]
    assert sources_of(data, list(by_name)).mean() == pytest.approx(0.75, abs=0.05)
    assert list(by_name) == list(MixtureSampler(data, 4, shares=[1, 3], length=80))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed -1"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"temper": 1.5}, "temper is 1.5"),
        ({"length": 3}, "an epoch of 3 images does not fill one batch of 4"),
        ({"batch_size": 8}, "the source 'b' has 6 images, fewer than a batch of 8"),
        ({"world": 2}, r"fewer than a batch of 8 \(4 in each of 2 processes\)"),
        ({"shares": [1]}, "2 finite numbers above 0"),
        ({"shares": [1, 0]}, "left out of the mixture"),
        ({"shares": {"a": 1, "x": 1}}, r"given for \['a', 'x'\], but the sources are \['a', 'b'\]"),
    ],
)
def test_clear_errors_of_the_order(options, words):
    with pytest.raises(ValueError, match=words):
        MixtureSampler(mixture(a=12, b=6), **({"batch_size": 4} | options))


def test_small_sources_of_volumes_and_mixed_batches_are_fine():
    assert len(MixtureSampler(mixture(a=12, b=2, anew=["b"]), 8)) == 8
    assert len(MixtureSampler(mixture(a=12, b=2), 8, homogeneous=False)) == 8


def test_the_order_is_pinned():
    """A checkpoint of an older version must find its place again, with any NumPy."""
    sampler = MixtureSampler(mixture(a=6, b=4), 2, seed=3)
    sampler.set_epoch(2)
    assert list(sampler) == [26, 27, 22, 20, 21, 23, 29, 28, 25, 24]


@pytest.mark.parametrize("homogeneous", [True, False])
def test_batches_do_not_depend_on_the_workers(stores, homogeneous):
    def batches(workers):
        data = mixture_of(stores)
        sampler = MixtureSampler(data, 3, homogeneous=homogeneous, seed=4, length=18)
        loader = DataLoader(data, 3, sampler=sampler, num_workers=workers, collate_fn=PadCollate(), drop_last=True)
        return list(loader)

    alone, shared = batches(0), batches(2)
    assert len(alone) == len(shared) == 6
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        assert homogeneous is False or len(one["source"].unique()) == 1
    assert len(torch.cat([batch["source"] for batch in alone]).unique()) == 2
