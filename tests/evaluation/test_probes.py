# SPDX-License-Identifier: Apache-2.0
"""Linear and nearest-neighbour probes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from monai_ssl.evaluation.probes import knn_probe, linear_probe, regularisation_rule
from monai_ssl.metrics import area_under_roc


def blobs(n: int, classes: int, seed: int = 0, features: int = 12, distance: float = 2.0):
    """Gaussian clouds on very different scales and offsets, as pooled features of a ReLU network are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, features)) * distance / np.sqrt(features) * 2
    y = np.arange(n) % classes
    scale = np.logspace(-1, 1, features)
    return ((centres[y] + rng.normal(size=(n, features))) * scale + 5 * scale).astype(np.float32), y


@pytest.mark.parametrize("classes", [2, 3])
def test_equals_scikit_learn_on_standardised_features(classes):
    x, y = blobs(90, classes)
    probe = linear_probe(x, y, c=0.1)
    z = (x - x.mean(0)) / x.std(0)
    expected = LogisticRegression(C=0.1, max_iter=300).fit(z, y).predict_proba(z)
    np.testing.assert_allclose(probe.probabilities(x), expected, atol=1e-4)
    assert probe.weight.shape == (classes, 12)
    assert probe.c_source == "given"


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_linear_layer_carries_the_standardisation(kind):
    x, y = blobs(80, 3 if kind == "multiclass" else 2)
    if kind == "multilabel":
        y = np.stack([y, np.roll(y, 1) * (np.arange(80) > 20), np.arange(80) % 3 == 0], axis=1).astype(int)
    probe = linear_probe(x, y, c=1e-2, reference=blobs(500, 3, seed=3)[0])
    layer = probe.as_linear_layer()
    with torch.no_grad():
        logits = layer(torch.from_numpy(x))
    torch.testing.assert_close(logits, torch.from_numpy(probe.logits(x)).float(), rtol=1e-3, atol=1e-3)
    p = logits.sigmoid() if kind == "multilabel" else logits.softmax(1)
    np.testing.assert_allclose(p.numpy(), probe.probabilities(x), atol=1e-3)


def test_multilabel_is_one_regression_a_column_and_skips_unknown_labels():
    x, y = blobs(120, 2)
    labels = np.stack([y, 1 - y], axis=1).astype(float)
    labels[:30, 1] = np.nan
    labels[30:40, 0] = -1
    probe = linear_probe(x, labels, c=0.1)
    known = labels[:, 1] == labels[:, 1]
    alone = linear_probe(x[known], labels[known, 1].astype(int), c=0.1, reference=x)
    np.testing.assert_allclose(probe.probabilities(x)[:, 1], alone.probabilities(x)[:, 1], atol=1e-4)


def test_unlabelled_samples_are_left_out():
    x, y = blobs(60, 3)
    y = y.copy()
    y[::4] = -1
    np.testing.assert_allclose(
        linear_probe(x, y, c=0.1).weight, linear_probe(x[y >= 0], y[y >= 0], c=0.1, reference=x).weight, atol=1e-5
    )


def test_reference_statistics_survive_a_dead_and_a_shifted_feature():
    x, y = blobs(30, 2)
    pool = blobs(400, 2, seed=5)[0]
    pool[:, 3] = 0
    x[:, 3] = 0
    probe = linear_probe(x, y, reference=pool, c=0.1)
    new = x.copy()
    new[:, 3] = 1e-3
    assert np.isfinite(probe.logits(new)).all()
    np.testing.assert_allclose(probe.logits(new), probe.logits(x), atol=1e-6)


def test_pool_statistics_help_when_labels_are_few():
    pool, _ = blobs(600, 2, seed=1)
    test_x, test_y = blobs(600, 2, seed=2)
    gains = []
    for seed in range(20):
        x, y = blobs(4, 2, seed=10 + seed)
        own, shared = (linear_probe(x, y, reference=ref, c=1e-2).probabilities(test_x) for ref in (None, pool))
        gains.append(area_under_roc(test_y, shared) - area_under_roc(test_y, own))
    assert np.mean(gains) > 0.02


def test_cross_validation_prefers_weak_regularisation_only_where_labels_allow():
    x, y = blobs(400, 2, features=6, distance=4.0)
    clear = linear_probe(x, y)
    noise = linear_probe(x, np.random.default_rng(0).permutation(y))
    assert clear.c_source == noise.c_source == "cross-validation"
    assert noise.c < clear.c
    assert set(clear.losses) == {1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1}


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_cross_validation_survives_a_sample_that_is_surely_wrong():
    x, y = blobs(60, 2)
    x[7] = 1e4 * x[8 if y[7] == y[9] else 9]  # a probability of exactly 0 for its own class
    probe = linear_probe(x, y, reference=blobs(500, 2, seed=3)[0])
    assert np.isfinite(list(probe.losses.values())).all()


def test_cross_validation_keeps_patients_together():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 6)
    y = np.repeat(rng.permutation(np.arange(30) % 2), 6)  # a patient's label: only the patient's identity tells it
    x = np.repeat(rng.normal(size=(30, 40)), 6, axis=0) + 0.01 * rng.normal(size=(180, 40))
    together, torn = linear_probe(x, y, groups=patients), linear_probe(x, y)
    assert torn.losses[10.0] < 0.1 < together.losses[10.0]
    assert together.c < torn.c


def test_few_labels_use_the_rule():
    x, y = blobs(12, 3)
    probe = linear_probe(x, y)
    assert (probe.c_source, probe.c) == ("rule", regularisation_rule(12))
    patients = np.arange(60) // 20 * 2 + np.arange(60) % 2  # six patients, three a class
    x, y = blobs(60, 2)
    assert linear_probe(x, y, groups=patients).c_source == "rule"


def test_balanced_raises_the_rare_class():
    x, y = blobs(100, 2, distance=0.5)
    keep = np.flatnonzero((y == 0) | (np.arange(100) < 20))
    plain, balanced = (linear_probe(x[keep], y[keep], c=0.1, balanced=b).probabilities(x)[:, 1] for b in (False, True))
    assert balanced.mean() > plain.mean() + 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(20, int), "class_names": ["normal", "ill"]}, "class ill has no labelled sample"),
        ({"labels": np.stack([np.arange(20) % 2, np.ones(20, int)], 1)}, "finding 1 has no negative"),
        ({"labels": np.arange(20) % 3, "num_classes": 2}, r"0 \.\. 1"),
        ({"labels": np.arange(19) % 2}, "same number of samples"),
        ({"labels": np.array(["a", "b"] * 10)}, "numbers"),
        ({"reference": np.ones((5, 3))}, "reference has 3 features"),
        ({"features": np.full((20, 12), np.nan)}, "NaN"),
        ({"num_classes": 1, "labels": np.zeros(20, int)}, "at least two classes"),
    ],
)
def test_bad_input_is_named(change, message):
    x, y = blobs(20, 2)
    arguments = {"features": x, "labels": y, "c": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        linear_probe(arguments.pop("features"), arguments.pop("labels"), **arguments)
    with pytest.raises(ValueError, match="fitted to 12 features"):
        linear_probe(x, y, c=1.0).logits(np.ones((2, 5)))


def test_knn_probe_scores_clouds_and_subtracts_the_offset():
    x, y = blobs(90, 3, distance=3.0)
    queries, truth = blobs(90, 3, seed=4, distance=3.0)
    plain = area_under_roc(truth, knn_probe(x, y, queries, k=10))
    centred = area_under_roc(truth, knn_probe(x, y, queries, k=10, reference=x))
    assert centred > max(plain, 0.7)
