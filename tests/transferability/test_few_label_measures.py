# SPDX-License-Identifier: Apache-2.0
"""Transferability from a few labels: each measure against a slow reference, closed forms, and what it refuses."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from monai_ssl.transferability import (
    gaussian_bhattacharyya,
    h_score,
    knn_transfer,
    leep,
    log_me,
    regularised_h_score,
)

MEASURES = [log_me, h_score, regularised_h_score, knn_transfer, gaussian_bhattacharyya]


def blobs(spread: float, n: int = 60, f: int = 5, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return rng.normal(size=(k, f))[y] + spread * rng.normal(size=(n, f)), y


def evidence(x: np.ndarray, y: np.ndarray) -> float:
    """Largest log density of y under N(0, F F^T / alpha + I / beta), by a search: no algebra of ours."""

    def negative(logs: np.ndarray) -> float:
        covariance = x @ x.T / np.exp(logs[0]) + np.eye(len(x)) / np.exp(logs[1])
        return -multivariate_normal.logpdf(y, np.zeros(len(y)), covariance, allow_singular=True)

    return -min(minimize(negative, start, method="Nelder-Mead").fun for start in ([0, 0], [3, 1])) / len(y)


@pytest.mark.parametrize("shape", [(30, 4), (12, 20)], ids=["tall", "wide"])
def test_log_me_is_the_largest_evidence(shape):
    x, y = blobs(1.0, *shape)
    expected = np.mean([evidence(x, (y == k).astype(float)) for k in range(3)])
    assert log_me(x, y) == pytest.approx(expected, abs=1e-4)


def test_log_me_of_findings_is_that_of_each_and_leaves_the_unknown_out():
    x, y = blobs(0.5)
    findings = np.stack([y == 0, y == 1], axis=1).astype(float)
    findings[:6, 1] = np.nan
    alone = [evidence(x, findings[:, 0]), evidence(x[6:], findings[6:, 1])]
    assert log_me(x, findings) == pytest.approx(np.mean(alone), abs=1e-4)
    with pytest.raises(ValueError, match="finding 0: at least two classes"):
        log_me(x, np.zeros((60, 1)))
    with pytest.raises(ValueError, match="finding 0 must have samples with 0 and with 1"):
        log_me(x, np.stack([y], axis=1))


def test_log_me_does_not_change_under_rotation_and_survives_an_exact_fit():
    x, y = blobs(1.0)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    assert log_me(x @ rotation, y) == pytest.approx(log_me(x, y), abs=1e-9)
    assert np.isfinite(log_me(np.eye(3)[y], y)) and log_me(np.eye(3)[y], y) > 5


def test_log_me_is_fast():
    x, y = np.random.default_rng(0).normal(size=(10_000, 512)), np.arange(10_000) % 10
    start = time.process_time()
    log_me(x, y)
    assert time.process_time() - start < 5


def test_h_score_against_its_definition():
    x, y = blobs(1.0)
    means = np.stack([x[y == k].mean(0) for k in range(3)])[y]
    expected = np.trace(np.linalg.inv(np.cov(x.T, bias=True)) @ np.cov(means.T, bias=True))
    assert h_score(x, y) == pytest.approx(expected)
    assert h_score(np.eye(3)[y], y) == pytest.approx(2)  # K - 1: the features are the classes
    wide = np.random.default_rng(0).normal(size=(20, 40))
    assert h_score(wide, np.arange(20) % 2) == pytest.approx(1)  # tells nothing, whatever the labels
    assert regularised_h_score(wide, np.arange(20) % 2) < 0.3


def test_regularised_h_score_against_its_definition():
    from sklearn.covariance import LedoitWolf

    x, y = blobs(1.0, n=24, f=8)
    fit = LedoitWolf().fit(x)
    means = np.stack([x[y == k].mean(0) for k in range(3)])[y]
    between = np.cov(means.T, bias=True)
    expected = np.trace(np.linalg.inv(fit.covariance_) @ between) * (1 - fit.shrinkage_)
    assert regularised_h_score(x, y) == pytest.approx(expected)


def test_leep_against_loops_and_closed_forms():
    rng = np.random.default_rng(0)
    theta, y = rng.dirichlet(np.ones(4), 30), rng.integers(3, size=30)
    total = 0.0
    for i in range(30):
        expected = 0.0
        for z in range(4):
            expected += theta[i, z] * sum(theta[j, z] for j in range(30) if y[j] == y[i]) / theta[:, z].sum()
        total += np.log(expected) / 30
    assert leep(theta, y) == pytest.approx(total)
    y = np.arange(40) % 4
    uninformative = np.tile(theta[0], (40, 1)) + 1e-9 * np.eye(4)[rng.integers(4, size=40)]
    assert leep(uninformative, y) == pytest.approx(-np.log(4), abs=1e-6)  # minus the entropy of the labels
    assert leep(np.eye(4)[y], y) == pytest.approx(0)
    with pytest.raises(ValueError, match="softmax, not logits"):
        leep(theta * 3, np.arange(30) % 3)


def test_knn_judges_by_others_only():
    x, y = blobs(0.05)
    assert knn_transfer(x, y) == 1.0
    noise = np.random.default_rng(0).normal(size=(60, 5))
    twice = np.repeat(noise[:30], 2, axis=0)  # two equal images a patient
    labels, patients = np.repeat(np.random.default_rng(1).integers(2, size=30), 2), np.repeat(np.arange(30), 2)
    assert knn_transfer(twice, labels, k=1) == 1.0
    assert knn_transfer(twice, labels, groups=patients, k=1) < 0.75


def test_bhattacharyya_closed_form_and_order():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 4000)
    x = rng.normal(size=(8000, 3)) * np.where(y, 2.0, 1.0)[:, None] + np.where(y, 1.5, 0.0)[:, None]
    distance = 3 * 1.5**2 / 2.5 / 8 + 1.5 * np.log(2.5 / 2)
    for covariance in ("spherical", "diagonal"):
        assert gaussian_bhattacharyya(x, y, covariance=covariance) == pytest.approx(-2 * np.exp(-distance), abs=0.02)
    assert gaussian_bhattacharyya(*blobs(0.2)) > gaussian_bhattacharyya(*blobs(2.0)) >= -6
    far, wide = blobs(0.2, n=60, f=100)
    assert gaussian_bhattacharyya(far, wide, components=2) == pytest.approx(
        gaussian_bhattacharyya(
            far @ np.linalg.qr(np.random.default_rng(3).normal(size=(100, 100)))[0], wide, components=2
        )
    )


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_better_features_score_higher_and_unlabelled_rows_do_not_count(measure):
    good, y = blobs(0.3)
    poor, _ = blobs(3.0)
    assert measure(good, y) > measure(poor, y)
    more = np.concatenate([good, np.full((4, 5), 99.0)])
    assert measure(more, np.concatenate([y, [-1] * 4])) == pytest.approx(measure(good, y))
    assert measure(torch.from_numpy(good), torch.from_numpy(y)) == pytest.approx(measure(good, y))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_what_is_refused(measure):
    x, y = blobs(0.5)
    broken = x.copy()
    broken[3, 1] = np.nan
    for features, labels, message in [
        (broken, y, "1 of 60 samples have NaN or infinite"),
        (np.ones((60, 5)), y, "all samples have the same features"),
        (x, y[:50], r"shape \(60,\)"),
        (x, np.zeros(60, int), "at least two classes"),
        (x[0], y, r"shape \(N, F\)"),
        (x, y + 0.5, "whole numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure(features, labels)


@pytest.mark.parametrize("measure", [knn_transfer, gaussian_bhattacharyya], ids=lambda f: f.__name__)
def test_a_class_of_one_sample_is_named(measure):
    x, y = blobs(0.5)
    y[0] = 7
    with pytest.raises(ValueError, match=r"at least 2 labelled samples; too few have the classes 7 \(1\)"):
        measure(x, y)
    assert np.isfinite([log_me(x, y), h_score(x, y), regularised_h_score(x, y)]).all()
