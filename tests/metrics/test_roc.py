# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_ssl.metrics import area_under_roc, roc_per_class


def binary(seed, size=60, ties=False):
    generator = np.random.default_rng(seed)
    y = np.arange(size) % 3 == 0
    scores = generator.normal(size=size) + y
    return y.astype(int), np.round(scores, 0) if ties else scores


def several(seed, size=60, count=4):
    generator = np.random.default_rng(seed)
    y = np.concatenate([np.arange(count), generator.integers(count, size=size - count)])
    scores = generator.normal(size=(size, count)) + 1.5 * np.eye(count)[y]
    return y, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_binary_equals_scikit_learn(seed, ties):
    y, scores = binary(seed, ties=ties)
    expected = roc_auc_score(y, scores)
    assert area_under_roc(y, scores) == pytest.approx(expected, rel=1e-12)
    assert area_under_roc(y.astype(bool), scores[:, None]) == pytest.approx(expected, rel=1e-12)
    assert area_under_roc(y, np.stack([-scores, scores], axis=1)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_multi_class_equals_scikit_learn(seed, average):
    y, scores = several(seed)
    expected = roc_auc_score(y, scores, multi_class="ovr", average=average)
    assert area_under_roc(y, scores, average=average) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_multi_label_equals_scikit_learn(average):
    generator = np.random.default_rng(0)
    y = generator.integers(2, size=(50, 5))
    scores = generator.normal(size=(50, 5)) + y
    expected = roc_auc_score(y, scores, average=average)
    assert area_under_roc(y, scores, average=average) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(roc_per_class(y, scores), roc_auc_score(y, scores, average=None), rtol=1e-12)


def test_closed_forms():
    y = np.array([0, 0, 1, 1])
    assert area_under_roc(y, np.array([1, 2, 3, 4])) == 1
    assert area_under_roc(y, np.array([4, 3, 2, 1])) == 0
    assert area_under_roc(y, np.zeros(4)) == 0.5
    assert area_under_roc(y, np.array([1, 3, 2, 4])) == 0.75  # three of four pairs in order


def test_only_the_order_of_scores_and_not_of_samples_counts():
    y, scores = several(0)
    order = np.random.default_rng(1).permutation(len(y))
    value = area_under_roc(y, scores)
    assert area_under_roc(y[order], scores[order]) == pytest.approx(value, rel=1e-12)
    assert area_under_roc(y, np.log(scores)) == pytest.approx(value, rel=1e-12)
    y, scores = binary(0, ties=True)
    assert area_under_roc(1 - y, -scores) == pytest.approx(area_under_roc(y, scores), rel=1e-12)


@pytest.mark.parametrize("unknown", [-1, np.nan])
def test_unknown_labels_do_not_count(unknown):
    y, scores = several(0)
    y = y.astype(float)
    y[5:15] = unknown
    scores[5] = np.nan  # nor does a score that nobody asks for
    kept = np.r_[0:5, 15:60]
    assert area_under_roc(y, scores) == pytest.approx(area_under_roc(y[kept], scores[kept]), rel=1e-12)

    generator = np.random.default_rng(0)
    y = generator.integers(2, size=(50, 2)).astype(float)
    scores = generator.normal(size=(50, 2))
    y[:10, 1] = unknown
    expected = [roc_auc_score(y[:, 0], scores[:, 0]), roc_auc_score(y[10:, 1], scores[10:, 1])]
    np.testing.assert_allclose(roc_per_class(y, scores), expected, rtol=1e-12)


def test_a_missing_class_is_named():
    y, scores = several(0)
    y[y == 2] = 0
    with pytest.raises(ValueError, match="class 2 has no positive sample among 60"):
        area_under_roc(y, scores)
    with pytest.raises(ValueError, match="class viral has no positive sample"):
        area_under_roc(y, scores, class_names=["normal", "bacterial", "viral", "other"])
    with pytest.warns(UserWarning, match="class 2 has no positive"):
        value = area_under_roc(y, scores, undefined="warn")
    assert value == pytest.approx(np.nanmean(roc_per_class(y, scores)))
    with pytest.warns(UserWarning, match="class 2 has no positive"):
        weighted = area_under_roc(y, scores, average="weighted", undefined="warn")
    assert weighted == pytest.approx(
        np.average(roc_per_class(y, scores)[[0, 1, 3]], weights=np.bincount(y, minlength=4)[[0, 1, 3]])
    )


def test_a_target_of_one_class_only():
    with pytest.raises(ValueError, match="the target has no negative sample among 3"):
        area_under_roc(np.ones(3), np.arange(3))
    with pytest.raises(ValueError, match="class pneumonia has no negative"):
        area_under_roc(np.ones(3), np.arange(3), class_names=["normal", "pneumonia"])
    with pytest.raises(ValueError, match="the target has no positive or negative sample among 0"):
        area_under_roc(np.full(3, -1), np.arange(3))
    with pytest.raises(ValueError, match="no positive or negative sample among 0"):
        area_under_roc(np.zeros(0), np.zeros(0))
    with pytest.warns(UserWarning, match="no negative"):
        assert np.isnan(area_under_roc(np.ones(3), np.arange(3), undefined="warn"))
    assert np.isnan(roc_per_class(np.ones(3), np.arange(3))).all()


def test_refuses_what_cannot_be():
    y, scores = several(0)
    with pytest.raises(ValueError, match="do not fit together"):
        area_under_roc(y[:5], scores)
    with pytest.raises(ValueError, match="do not fit together"):
        area_under_roc(np.eye(4)[y][:, :3], scores)
    with pytest.raises(ValueError, match=r"must hold 0 \.\. 2, or -1 or NaN for unknown; found 3"):
        area_under_roc(y, scores[:, :3])
    with pytest.raises(ValueError, match=r"found 0\.5"):
        area_under_roc(np.array([0, 0.5, 1]), np.arange(3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        area_under_roc(np.array([0, 1, 1]), np.array([0, np.nan, 1]))
    with pytest.raises(ValueError, match="must be numbers"):
        area_under_roc(np.array(["no", "yes"]), np.arange(2))
    with pytest.raises(ValueError, match="average must be"):
        area_under_roc(y, scores, average="micro")
