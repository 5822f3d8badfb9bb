# SPDX-License-Identifier: Apache-2.0
"""Distances of data sets in feature space, and of encoders: slow references, closed forms, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import linprog

from monai_ssl.transferability import frechet_distance, label_transport_distance, linear_cka, squared_mmd

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)), RNG.normal(size=(30, 6)) @ np.diag([1, 2, 1, 0.5, 1, 1]) + 0.7


def test_frechet_against_the_root_of_the_matrix():
    a, b = np.cov(X.T), np.cov(Y.T)
    expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(X, Y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(X, Y) == pytest.approx(frechet_distance(Y, X))


def test_frechet_of_gaussians_with_a_known_distance():
    x = RNG.normal(size=(200, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # covariance exactly 1
    assert frechet_distance(x, 3 * x + [1, 0, 2]) == pytest.approx(3 * 2**2 + 5)


def test_frechet_of_fewer_samples_than_features_is_stable_and_too_large():
    wide = RNG.normal(size=(64, 512))
    assert frechet_distance(wide, wide) == pytest.approx(0, abs=1e-9)
    few, more = (frechet_distance(RNG.normal(size=(n, 64)), RNG.normal(size=(n, 64))) for n in (32, 2000))
    assert few > 10 * more > 0


def test_cka_against_gram_matrices_in_loops():
    y = np.concatenate([X[:, :2] ** 2, RNG.normal(size=(40, 60))], axis=1)
    n = len(X)
    centre = np.eye(n) - 1 / n

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return np.trace(k @ centre @ m @ centre)

    k, m = X @ X.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(X, y) == pytest.approx(expected)
    assert linear_cka(X[:, :3], y[:, :4]) == pytest.approx(linear_cka(y[:, :4], X[:, :3]))
    rotated = X @ np.linalg.qr(RNG.normal(size=(6, 6)))[0] * 3 + 1
    assert linear_cka(X, rotated) == pytest.approx(1)
    assert linear_cka(X, rotated, debiased=True) == pytest.approx(1)


def test_debiased_cka_of_unrelated_encoders_is_about_zero():
    values = [linear_cka(RNG.normal(size=(30, 100)), RNG.normal(size=(30, 100)), debiased=True) for _ in range(30)]
    assert abs(np.mean(values)) < 0.05
    assert linear_cka(RNG.normal(size=(30, 100)), RNG.normal(size=(30, 100))) > 0.5  # what the plain one makes of it


def test_mmd_against_loops():
    distances = [np.linalg.norm(a - b) for i, a in enumerate([*X, *Y]) for b in [*X, *Y][i + 1 :]]
    s = np.median(distances)

    def within(rows: np.ndarray) -> float:
        return np.mean(
            [
                np.exp(-((a - b) ** 2).sum() / (2 * s * s))
                for i, a in enumerate(rows)
                for j, b in enumerate(rows)
                if i != j
            ]
        )

    between = np.mean([np.exp(-((a - b) ** 2).sum() / (2 * s * s)) for a in X for b in Y])
    assert squared_mmd(X, Y) == pytest.approx(within(X) + within(Y) - 2 * between)
    cubes = [(a @ b / 6 + 1) ** 3 for a in X for b in Y]
    own = [np.mean([(a @ b / 6 + 1) ** 3 for i, a in enumerate(r) for j, b in enumerate(r) if i != j]) for r in (X, Y)]
    assert squared_mmd(X, Y, kernel="cubic") == pytest.approx(sum(own) - 2 * np.mean(cubes))


def test_mmd_is_unbiased():
    values = [squared_mmd(RNG.normal(size=(15, 3)), RNG.normal(size=(25, 3))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0


def test_transport_against_a_linear_program():
    a, b = X[:8], Y[:8]
    ya, yb = np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 2, 2, 2, 2])

    def wasserstein(u: np.ndarray, v: np.ndarray) -> float:
        cu, cv = np.cov(u.T), np.cov(v.T)
        return ((u.mean(0) - v.mean(0)) ** 2).sum() + np.trace(cu + cv - 2 * sqrtm(cu @ cv).real)

    cost = np.array(
        [
            [((p - q) ** 2).sum() + wasserstein(a[ya == i], b[yb == j]) for q, j in zip(b, yb, strict=True)]
            for p, i in zip(a, ya, strict=True)
        ]
    )
    rows, columns = np.kron(np.eye(8), np.ones(8)), np.kron(np.ones(8), np.eye(8))
    plan = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=np.full(16, 1 / 8))
    assert label_transport_distance(a, ya, b, yb) == pytest.approx(np.sqrt(plan.fun), rel=1e-4)


def test_transport_sees_labels_and_not_their_names():
    y = (X[:, 0] > 0).astype(int)
    assert label_transport_distance(X, y, X, y) == pytest.approx(0, abs=1e-6)
    assert label_transport_distance(X, y, X, 1 - y) == pytest.approx(0, abs=1e-6)
    other = (X[:, 1] > 0).astype(int)  # the same images, another question
    assert label_transport_distance(X, y, X, other) > 0.3
    assert label_transport_distance(X, y, Y, np.arange(30) % 3, max_samples=10) > 0


@pytest.mark.parametrize("measure", [frechet_distance, squared_mmd, linear_cka], ids=lambda f: f.__name__)
def test_what_is_refused(measure):
    broken = X.copy()
    broken[0] = np.inf
    with pytest.raises(ValueError, match="1 of 40 samples have NaN"):
        measure(X, broken)
    with pytest.raises(ValueError, match="6 and 5 features" if measure is not linear_cka else "same images"):
        measure(X, X[:, :5] if measure is not linear_cka else X[:20])
    with pytest.raises(ValueError, match="1 samples are too few"):
        measure(X[:1], X[:1])


def test_further_refusals():
    with pytest.raises(ValueError, match="same features"):
        linear_cka(X, np.ones((40, 3)))
    with pytest.raises(ValueError, match="kernel must be"):
        squared_mmd(X, Y, kernel="linear")
    with pytest.raises(ValueError, match="give a bandwidth"):
        squared_mmd(np.ones((5, 2)), np.ones((5, 2)))
    with pytest.raises(ValueError, match="two classes"):
        label_transport_distance(X, np.zeros(40, int), Y, np.arange(30) % 2)
    with pytest.raises(ValueError, match="6 and 5 features"):
        label_transport_distance(X, np.arange(40) % 2, Y[:, :5], np.arange(30) % 2)
