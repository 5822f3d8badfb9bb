# SPDX-License-Identifier: Apache-2.0
"""Exact and near duplicates: closed cases, a slow reference, and real copies of images."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_ssl.data import build_index, drop_duplicates, find_duplicates
from monai_ssl.data.duplicates import bit_count, near_pairs


def table(hashes, contents=None, **columns):
    contents = [f"c{k}" for k in range(len(hashes))] if contents is None else contents
    hashes = [None if value is None else f"{value:016x}" for value in hashes]
    return pa.table({"content_hash": contents, "perceptual_hash": hashes, **columns})


def test_exact_near_and_unique():
    report = find_duplicates(table([0, 0, 0b111, 2**40 - 1, 0b11, None], ["a", "a", "b", "c", "d", "e"]), 2)
    # Row 2 is 3 bits from row 0, so both are kept; row 4 is 2 bits from row 0 and 1 bit from row 2, the closer one.
    assert report.duplicate_of.tolist() == [-1, 0, -1, -1, 2, -1]
    assert report.distance.tolist() == [-1, -1, -1, -1, 1, -1]
    assert (report.num_exact, report.num_near) == (1, 1)
    assert report.groups() == [[0, 1], [2, 4]]
    assert find_duplicates(table([5, 5]), 0).duplicate_of.tolist() == [-1, 0]
    assert find_duplicates(table([5, 5]), -1).kept.all()
    assert find_duplicates(table([]), 3).groups() == []


def test_labelled_images_are_preferred():
    labelled = table([7, 7, 7, 7], label=[None, "x", None, "y"], split=[None, None, "test", "test"])
    assert find_duplicates(labelled).duplicate_of.tolist() == [3, 3, 3, -1]
    kept, report = drop_duplicates(labelled)
    assert kept["label"].to_pylist() == ["y"] and report.num_near == 3
    assert report.disagreements(labelled, "label") == 1 and report.disagreements(labelled, "split") == 0
    assert report.summary(labelled) == (
        "0 exact and 3 near duplicates among 4 images\n  1 groups, 1 with more than one label"
    )


def test_refused_rows_are_left_alone():
    data = table([7, 7, 7], ["a", "a", None], status=["refused", "ok", "refused"])
    assert find_duplicates(data).kept.all()


def test_exact_copies_of_a_near_duplicate_follow_it():
    report = find_duplicates(table([0, 1, 1], ["a", "b", "b"]), 2)
    assert report.duplicate_of.tolist() == [-1, 0, 0] and report.distance.tolist() == [-1, 1, 1]


@pytest.mark.parametrize("max_distance", [0, 1, 3, 6, 10, 16])
def test_near_pairs_against_a_slow_reference(max_distance):
    rng = np.random.default_rng(max_distance)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flips = np.packbits(rng.random((400, 64)) < 0.08, axis=1).view(">u8").ravel().astype(np.uint64)
    values = np.unique(np.concatenate([centres, rng.choice(centres, 400) ^ flips]))
    expected = [
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if bin(int(values[i]) ^ int(values[j])).count("1") <= max_distance
    ]
    assert [tuple(pair) for pair in near_pairs(values, max_distance).tolist()] == expected
    assert max_distance == 0 or expected


def test_every_duplicate_is_near_the_one_that_is_kept():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.integers(0, 2, 300))  # a long chain of small differences
    values = [(1 << int(step % 64)) - 1 for step in walk]
    report = find_duplicates(table(values), 6)
    assert 2 < report.kept.sum() < 30
    numbers = np.array(values, dtype=np.uint64)
    moved = np.flatnonzero(~report.kept)
    between = bit_count(numbers[moved] ^ numbers[report.duplicate_of[moved]])
    assert between.max() <= 6 and (between == report.distance[moved]).all()
    assert report.kept[report.duplicate_of[moved]].all()
    left = numbers[report.kept]
    assert (bit_count(left[:, None] ^ left[None, :])[~np.eye(len(left), dtype=bool)] > 6).all()


def test_a_hundred_thousand_images_are_feasible():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    values[-500:] = values[:500] ^ np.uint64(0b1011)
    start = time.perf_counter()
    report = find_duplicates(table([int(value) for value in values]), 6)
    assert report.num_near == 500
    assert time.perf_counter() - start < 30


def test_copies_of_an_image_are_found_in_an_index(tmp_path):
    for seed in range(6):
        image = gaussian_filter(np.random.default_rng(seed).standard_normal((180, 200)), 5)
        image = ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{seed}.png")
        if seed < 3:
            Image.fromarray(image).save(tmp_path / f"{seed}_copy.tif")
            Image.fromarray(image).resize((100, 90)).save(tmp_path / f"{seed}_small.jpg", quality=60)
    index = build_index(tmp_path, num_workers=0)
    kept, report = drop_duplicates(index)
    assert (report.num_exact, report.num_near) == (3, 3)
    assert kept["path"].to_pylist() == [f"{seed}.png" for seed in range(6)]
    groups = [[index["path"][row].as_py() for row in group] for group in report.groups()]
    assert groups == [[f"{seed}.png", f"{seed}_copy.tif", f"{seed}_small.jpg"] for seed in range(3)]


def test_errors():
    with pytest.raises(ValueError, match="max_distance is 17"):
        find_duplicates(table([1]), 17)
    with pytest.raises(ValueError, match="the index has no column 'content_hash'"):
        find_duplicates(pa.table({"perceptual_hash": ["0"]}))


def test_bit_count():
    values = np.array([0, 1, 2**64 - 1, 0b1011], dtype=np.uint64)
    assert bit_count(values).tolist() == [0, 1, 64, 3]


@pytest.mark.realdata
def test_real_radiographs(real_data, tmp_path):
    table = build_index(real_data / "radiographs", tmp_path / "index.parquet", progress=False)
    assert set(table["status"].to_pylist()) == {"ok"} and table["label"].null_count == 0
    report = find_duplicates(table)
    assert report.num_exact == 10
    assert 0 < report.num_near < 10
    assert report.disagreements(table, "group_id") == 0  # no two people are taken for one
