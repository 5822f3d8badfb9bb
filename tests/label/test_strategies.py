# SPDX-License-Identifier: Apache-2.0
"""Strategies: closed-form cases, planted clusters, copies, and the rules that all of them keep."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest

from monai_ssl.label import (
    STRATEGIES,
    LabelPool,
    choose_images,
    core_set_images,
    coverage_radius,
    covering_images,
    entropy_uncertainty,
    epistemic_uncertainty,
    margin_uncertainty,
    typical_images,
    typicality,
)
from monai_ssl.label.strategies import effective_strategy

MODULES = ("typicality", "margin", "entropy", "epistemic", "strategies")


def circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def pool_of(embeddings: np.ndarray, labelled=(), **further) -> LabelPool:
    flags = np.zeros(len(embeddings), dtype=bool)
    flags[list(labelled)] = True
    return LabelPool(embeddings, flags, **further)


def planted(
    sizes=(40, 30, 20, 10), spread: float = 0.05, dims: int = 16, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings around orthogonal directions, and the direction of each."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(len(sizes)), sizes)
    x = np.eye(dims)[kind] + spread * rng.normal(size=(len(kind), dims))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), kind


def scored(embeddings: np.ndarray, labelled=(), **further) -> LabelPool:
    rng = np.random.default_rng(5)
    scores = {kind: rng.random(len(embeddings)) for kind in ("margin", "entropy", "epistemic")}
    return pool_of(embeddings, labelled, uncertainty=scores, **further)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"monai_ssl.label.{name}")
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


# ---- what all of them keep ----


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_choose_different_offered_images_and_repeat_with_the_seed(name):
    x, _ = planted()
    closed = np.arange(len(x)) % 7 == 0
    pool = scored(x, labelled=range(1, 100, 9), closed=closed)
    chosen = choose_images(name, pool, num=12, seed=3)
    assert len(set(chosen.tolist())) == 12
    assert pool.offered[chosen].all()
    np.testing.assert_array_equal(chosen, choose_images(name, pool, num=12, seed=3))
    assert len(choose_images(name, pool, num=1000)) == pool.offered.sum(), "all that are left, and no more"


@pytest.mark.parametrize("name", STRATEGIES)
def test_copies_are_offered_once_and_not_after_one_is_labelled(name):
    x, _ = planted((6, 6), spread=0.3)
    x = np.concatenate([x, x])  # the second dozen repeats the first
    duplicate_of = np.concatenate([np.full(12, -1), np.arange(12)])
    pool = scored(x, labelled=[14], duplicate_of=duplicate_of, closed=np.arange(24) == 3)
    chosen = choose_images(name, pool, num=24)
    assert sorted(chosen.tolist()) == [row for row in range(12) if row not in (2, 3)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_left_is_an_empty_answer(name):
    x, _ = planted((3, 3))
    assert choose_images(name, scored(x, labelled=range(6)), num=2).tolist() == []


def test_predictions_that_are_missing_are_stood_in_for():
    x, _ = planted()
    pool = pool_of(x)
    assert effective_strategy("margin", pool) == "typicality"
    np.testing.assert_array_equal(choose_images("margin", pool, 4), choose_images("typicality", pool, 4))
    assert effective_strategy("margin", pool_of(x, uncertainty={"margin": np.full(len(x), np.nan)})) == "typicality"
    assert effective_strategy("margin", scored(x)) == "margin"


def test_wrong_arguments_are_named():
    x, _ = planted((4, 4))
    pool = pool_of(x)
    with pytest.raises(ValueError, match="no strategy 'typical'; there are random"):
        choose_images("typical", pool)
    with pytest.raises(ValueError, match="num must be at least 1"):
        choose_images("random", pool, num=0)
    with pytest.raises(ValueError, match="needs predictions itself"):
        choose_images("margin", pool, cold_start="entropy")
    with pytest.raises(ValueError, match="labelled must have one entry for each of 8"):
        LabelPool(x, np.zeros(7, dtype=bool))
    with pytest.raises(ValueError, match="8 of 8 embeddings are not of length 1"):
        LabelPool(2 * x, np.zeros(8, dtype=bool))
    with pytest.raises(ValueError, match="1 of 8 embeddings"):
        LabelPool(np.where(np.arange(8)[:, None] == 2, np.nan, x), np.zeros(8, dtype=bool))
    with pytest.raises(ValueError, match="finite"):
        LabelPool.of_features(np.full((3, 2), np.inf), np.zeros(3, dtype=bool))


def test_features_become_unit_rows_around_their_mean():
    features = np.array([[10.0, 1.0], [10.0, 3.0], [10.0, 2.0]])
    pool = LabelPool.of_features(features, [False, False, True])
    np.testing.assert_allclose(pool.embeddings, [[0, -1], [0, 1], [1, 0]], atol=1e-6)


# ---- each by itself ----


def test_core_set_goes_to_the_farthest():
    x = circle(0, 10, 90, 180, 200)
    assert core_set_images(pool_of(x, labelled=[0]), 3).tolist() == [3, 2, 4]
    assert core_set_images(pool_of(circle(0, 30, 60)), 1).tolist() == [1], "without a label: nearest the mean"


def test_core_set_halves_the_radius_of_a_random_choice():
    x, _ = planted((200, 5, 5, 5), spread=0.1)

    def largest_gap(rows):
        return np.sqrt(np.maximum(2 - 2 * (x @ x[rows].T).max(axis=1), 0)).max()

    assert largest_gap(choose_images("core_set", pool_of(x), 4)) < 0.7 * largest_gap(
        choose_images("random", pool_of(x), 4)
    )


def test_typicality_is_the_inverse_mean_distance():
    x = circle(0, 60, 90, 180)
    distance = np.linalg.norm(x[:, None].astype(float) - x[None], axis=2)
    expected = 1 / np.sort(distance, axis=1)[:, 1:3].mean(axis=1)
    np.testing.assert_allclose(typicality(x, neighbours=2), expected, rtol=1e-4)
    assert typicality(circle(0), neighbours=20).tolist() == [1.0]


def test_typical_images_cover_planted_clusters_largest_first():
    x, kind = planted()
    chosen = typical_images(pool_of(x), 4)
    assert kind[chosen].tolist() == [0, 1, 2, 3]
    labelled = typical_images(pool_of(x, labelled=[0, 45]), 2)
    assert kind[labelled].tolist() == [2, 3], "clusters with a label come last"
    outliers = typical_images(pool_of(np.concatenate([x, -x[:1]])), 4)
    assert len(x) not in outliers, "a cluster of one is an outlier"


def test_typical_images_are_central():
    x, kind = planted((60, 60), spread=0.2)
    chosen = typical_images(pool_of(x), 2)
    central = np.array([x[kind == k].mean(axis=0) for k in range(2)])
    toward = np.sort((x * central[kind]).sum(axis=1))
    assert ((x * central[kind]).sum(axis=1)[chosen] > np.median(toward)).all()


def test_coverage_takes_the_ball_with_most_that_is_not_covered():
    x = circle(0, 5, 10, 15, 100, 104, 200)
    radius = 2 * np.sin(np.deg2rad(6) / 2)
    # of 6 degrees: 5 covers 0, 5, 10; then 100 and 104 are two; then one is left alone at 15 (10 has it) and at 200
    assert covering_images(pool_of(x), 4, radius=radius).tolist() == [1, 4, 2, 6]
    assert covering_images(pool_of(x, labelled=[1]), 1, radius=radius).tolist() == [4]
    everything = covering_images(pool_of(x), 7, radius=radius).tolist()
    assert sorted(everything) == list(range(7)), "core-set goes on when all is covered"


def test_coverage_radius_is_the_largest_with_pure_balls():
    x, kind = planted((50, 50), spread=0.1)
    radius = coverage_radius(x, 2, purity=0.9)
    distance = np.linalg.norm(x[:, None].astype(float) - x[None], axis=2)

    def purity(r):
        return np.mean([(kind[distance[i] < r] == kind[i]).all() for i in range(len(x))])

    assert purity(radius - 1e-4) >= 0.9 > purity(radius * 1.1)
    with pytest.raises(ValueError, match="purity"):
        coverage_radius(x, 2, purity=0)


def test_measures_of_uncertainty_have_their_closed_forms():
    p = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(margin_uncertainty(p), [0.5, 1.0])
    np.testing.assert_allclose(entropy_uncertainty(p), [-(p[0] * np.log(p[0])).sum() / np.log(3), 1.0])
    findings = np.stack([p[:, :2] / p[:, :2].sum(1, keepdims=True), [[0.5, 0.5], [1.0, 0.0]]], axis=1)  # (2, 2, 2)
    np.testing.assert_allclose(margin_uncertainty(findings)[0], ((1 - 5 / 9) + 1) / 2)
    same = np.stack([p, p, p])
    np.testing.assert_allclose(epistemic_uncertainty(same), 0, atol=1e-12)
    apart = np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
    expected = np.log(2) + (0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    np.testing.assert_allclose(epistemic_uncertainty(apart), [expected])
    for wrong in ([[0.5, 0.6]], [[np.nan, 1.0]], [[1.0]], [0.5, 0.5], [[-0.5, 1.5]]):
        with pytest.raises(ValueError, match="probabilities must"):
            entropy_uncertainty(np.array(wrong))


@pytest.mark.parametrize("kind", ["margin", "entropy", "epistemic"])
def test_the_most_uncertain_come_first_and_unknown_ones_last(kind):
    x, _ = planted((3, 3))
    scores = np.array([0.1, np.nan, 0.5, 0.9, 0.3, 0.7])
    pool = pool_of(x, labelled=[3], uncertainty={kind: scores})
    assert choose_images(kind, pool, 5).tolist() == [5, 2, 4, 0, 1]
    ties = pool_of(x, uncertainty={kind: np.ones(6)})
    orders = {tuple(choose_images(kind, ties, 6, seed=seed)) for seed in range(5)}
    assert len(orders) > 1, "ties are broken by the seed, not by the order of the files"


def test_cluster_uncertainty_takes_each_group_in_turn():
    x, kind = planted((30, 30, 30))
    scores = np.linspace(0.9, 1.0, 90) - 0.5 * (kind != 2)  # the whole third group is least sure
    pool = pool_of(x, uncertainty={"margin": scores})
    assert set(kind[choose_images("margin", pool, 6)]) == {2}
    chosen = choose_images("cluster_uncertainty", pool, 6)  # of the 60 least sure, which are of two groups
    assert set(kind[chosen]) == {1, 2}
