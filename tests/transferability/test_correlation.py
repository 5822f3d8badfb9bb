# SPDX-License-Identifier: Apache-2.0
"""Correlations: the published rows give the published figures, and the permutation test and intervals hold water."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from monai_ssl.transferability import correlation, read_expert_distances

ROWS = Path(__file__).with_name("cats_paper.csv")


def paper() -> list[dict[str, str]]:
    lines = [line for line in ROWS.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def columns(measure: str, self_pairs: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in paper() if self_pairs or row["source"] != row["target"]]
    return np.array([float(row[measure]) for row in rows]), np.array([float(row["score"]) for row in rows])


@pytest.mark.parametrize(
    ("measure", "r", "p", "without"), [("task2vec", -0.11, 0.61, -0.17), ("expert", 0.24, 0.26, 0.29)]
)
def test_the_rows_of_the_paper_give_its_figures(measure, r, p, without):
    found = correlation(*columns(measure))
    assert (found.n, found.value, found.p_value) == (24, pytest.approx(r, abs=0.01), pytest.approx(p, abs=0.01))
    assert found.permutation_p == pytest.approx(p, abs=0.03)
    assert found.low < found.value < found.high
    alone = correlation(*columns(measure, self_pairs=False))
    assert (alone.n, alone.value) == (21, pytest.approx(without, abs=0.01))


def test_spearman_is_that_of_scipy_and_sees_any_monotone_curve():
    x, y = columns("task2vec")
    found, expected = correlation(x, y, kind="spearman"), stats.spearmanr(x, y)
    assert (found.value, found.p_value) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    curve = np.exp(np.arange(12.0))
    assert correlation(np.arange(12), curve, kind="spearman").value == pytest.approx(1)
    assert correlation(np.arange(12), curve).value < 0.8


def test_permutation_p_is_exact_for_few_pairs():
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 5])
    found = correlation(x, y, permutations=20_000)
    assert found.permutation_p == pytest.approx(2 / 24, abs=0.01)  # only the order and its reverse are as extreme


def test_blocks_take_the_difference_of_targets_out():
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], 10)
    x, y = 5 * target + rng.normal(size=20), 5 * target + rng.normal(size=20)
    assert correlation(x, y).permutation_p < 0.01
    assert correlation(x, y, blocks=target).permutation_p > 0.05


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    x, y = (np.repeat(rng.normal(size=8), 10) + 0.1 * rng.normal(size=80) for _ in range(2))
    alone, grouped = correlation(x, y), correlation(x, y, groups=np.repeat(np.arange(8), 10))
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
    assert str(alone).startswith(f"r = {alone.value:.2f} (")


def test_what_is_refused():
    for x, y, message in [
        ([1, 2], [1, 2], "at least three"),
        ([1, 2, 3], [1, 2, np.nan], "not finite"),
        ([1, 1, 1], [1, 2, 3], "the same for all"),
    ]:
        with pytest.raises(ValueError, match=message):
            correlation(x, y)
    with pytest.raises(ValueError, match="kind must be"):
        correlation([1, 2, 3], [1, 2, 4], kind="kendall")


def test_expert_table(tmp_path):
    path = tmp_path / "experts.csv"
    path.write_text(",busi,isic\nmednist,2,5\n\ncats, 6,\n")
    assert read_expert_distances(path) == {("mednist", "busi"): 2, ("mednist", "isic"): 5, ("cats", "busi"): 6}
    with pytest.raises(ValueError, match="no source 'medinst'; did you mean 'mednist'"):
        read_expert_distances(path, sources=["medinst"])
    with pytest.raises(ValueError, match="no target 'chest'"):
        read_expert_distances(path, targets=["chest"])
    path.write_text(",busi,isic\nmednist,2,far\n")
    with pytest.raises(ValueError, match="'mednist' to 'isic' is 'far'"):
        read_expert_distances(path)
    path.write_text(",busi,isic\nmednist,2\n")
    with pytest.raises(ValueError, match="1 values for 2 targets"):
        read_expert_distances(path)
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_expert_distances(tmp_path / "none.csv")
