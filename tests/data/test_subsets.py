from __future__ import annotations

import collections

import numpy as np
import pyarrow as pa
import pytest

from monai_ssl.data import label_subsets

SHARES = {"bacterial": 0.45, "normal": 0.35, "viral": 0.17, "rare": 0.03}


def patients(count=600, seed=0):
    """One to five images a patient; one patient in ten has two classes."""
    rng = np.random.default_rng(seed)
    groups, labels = [], []
    for patient in range(count):
        names = rng.choice(list(SHARES), 2, p=list(SHARES.values()))
        for image in range(rng.integers(1, 6)):
            groups.append(f"p{patient}")
            labels.append(names[1 if patient % 10 == 0 and image else 0])
    return pa.table({"group_id": groups, "label": labels, "status": ["ok"] * len(groups)})


TABLE = patients()
GROUPS, LABELS = (np.array(TABLE[name].to_pylist()) for name in ("group_id", "label"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_subsets_are_nested_stratified_and_whole_patients(seed):
    fractions = (0.02, 0.1, 0.3, 1.0)
    subsets = label_subsets(TABLE, "label", fractions, seed=seed)
    assert list(subsets) == list(fractions)
    shares = {name: np.mean(name == LABELS) for name in SHARES}
    before: set[int] = set()
    for fraction, rows in subsets.items():
        assert (np.diff(rows) > 0).all() and before <= set(rows.tolist())
        before = set(rows.tolist())
        inside = np.isin(GROUPS, GROUPS[rows])
        assert inside.sum() == len(rows), "patients are whole"
        assert fraction * len(TABLE) <= len(rows) + 0.5 and len(rows) < fraction * len(TABLE) + 5
        counts = collections.Counter(LABELS[rows])
        assert set(counts) == set(SHARES)
        for name, share in shares.items():
            # Patients of two classes are counted for the rarer one, hence the 1 %. Chance alone would give 3 %.
            assert abs(counts[name] - share * len(rows)) <= 6 + 0.01 * len(rows), (fraction, name)
    assert len(subsets[1.0]) == len(TABLE)


def test_seeds_differ_and_repeat():
    one, same, other = (label_subsets(TABLE, "label", (0.1,), seed=seed)[0.1].tolist() for seed in (4, 4, 5))
    assert one == same != other


def test_counts_and_fractions_are_nested_in_each_other():
    subsets = label_subsets(TABLE, "label", (0.1,), counts=(40, 400))
    assert 40 <= len(subsets[40]) < 45 and 400 <= len(subsets[400]) < 405
    assert set(subsets[40]) <= set(subsets[0.1]) <= set(subsets[400])


def test_only_labelled_usable_rows_among_those_asked_for():
    labels = LABELS.tolist()
    labels[:50] = [None] * 50
    table = pa.table({"group_id": GROUPS, "label": labels, "status": ["ok"] * (len(labels) - 30) + ["refused"] * 30})
    everything = label_subsets(table, "label", (1.0,))[1.0]
    assert everything.tolist() == list(range(50, len(labels) - 30))
    part = label_subsets(table, "label", (0.1, 1.0), rows=np.arange(100, 700))
    assert part[1.0].tolist() == list(range(100, 700)) and 60 <= len(part[0.1]) < 65


def test_several_columns_of_0_and_1():
    rng = np.random.default_rng(0)
    findings = {"nodule": rng.random(1000) < 0.05, "effusion": rng.random(1000) < 0.3}
    table = pa.table({"group_id": [f"p{i}" for i in range(1000)]} | {k: v.astype(int) for k, v in findings.items()})
    rows = label_subsets(table, ["nodule", "effusion"], (0.05,))[0.05]
    assert len(rows) == 50
    assert findings["nodule"][rows].any() and findings["effusion"][rows].any()
    assert (~findings["nodule"] & ~findings["effusion"])[rows].any()
    for values in findings.values():
        assert abs(values[rows].mean() - values.mean()) < 0.08
    with pytest.raises(ValueError, match="several label columns must hold 0 and 1"):
        label_subsets(pa.table({"group_id": ["a", "b"], "x": [0, 2], "y": [1, 0]}), ["x", "y"])


def test_images_without_a_group_stand_alone():
    table = pa.table({"group_id": pa.nulls(20, pa.string()), "label": ["a", "b"] * 10})
    assert len(label_subsets(table, "label", (0.5,))[0.5]) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.001,)}, r"a subset of 0.001 \(2 of .* is too small: one patient of each of the 4 classes"),
        ({"fractions": (), "counts": (3,)}, "a subset of 3 .* ask for more"),
        ({"fractions": (0.0,)}, "must be above 0 to 1"),
        ({"fractions": (1.5,)}, "must be above 0 to 1"),
        ({"fractions": (), "counts": (10_000,)}, "counts .* from 1 to"),
        ({"fractions": ()}, "must be above"),
        ({"label": "labl"}, "no column 'labl'; did you mean 'label'"),
        ({"label": "status"}, "has 1 classes"),
    ],
)
def test_subsets_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        label_subsets(TABLE, **({"label": "label"} | options))
