# SPDX-License-Identifier: Apache-2.0
"""Transferability and distances of data sets, beside the ways their papers and usual codes compute them.

LogME by the economy SVD of the features, the Fréchet distance by the root of the product of the covariances, the
H-score by the pseudo-inverse. A row also says whether both give the same value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg import sqrtm
from threadpoolctl import threadpool_limits

from benchmarks.rounds import Row, compare_times, interleaved
from monai_ssl.transferability import frechet_distance, log_me, regularised_h_score


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each measure and number of threads."""
    samples, features = (200, 16) if tiny else (10_000, 512)
    few = 50 if tiny else 1000
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=samples)
    x = rng.normal(size=(10, features))[y] + 3 * rng.normal(size=(samples, features))
    other = 1.2 * x[-few:] + 0.1
    contests = [
        ("LogME", samples, "economy SVD", lambda: log_me(x, y), lambda: _log_me_by_svd(x, y)),
        (
            "Fréchet distance",
            few,
            "scipy sqrtm",
            lambda: frechet_distance(x[:few], other),
            lambda: _frechet(x[:few], other),
        ),
        ("H-score, shrunk", samples, "H-score by pinv", lambda: regularised_h_score(x, y), lambda: _h_score(x, y)),
    ]
    for number in threads:
        with threadpool_limits(number):
            for bench, rows, peer, ours, theirs in contests:
                yield _row(bench, f"{rows} x {features}", peer, ours, theirs, rounds, number)


def _row(bench: str, setting: str, peer: str, ours: Callable, theirs: Callable, rounds: int, threads: int) -> Row:
    first, second = ours(), theirs()
    contestants = {"ours": lambda: _milliseconds(ours), peer: lambda: _milliseconds(theirs)}
    figures = interleaved(contestants, rounds, warm_up=False)
    note = f"values {first:.6g} and {second:.6g}"
    return compare_times(
        figures["ours"], figures[peer], bench=bench, setting=setting, threads=threads, peer=peer, note=note
    )


def _milliseconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def _log_me_by_svd(x: np.ndarray, y: np.ndarray) -> float:
    """The fixed point in the eigenbasis of the economy SVD, class by class."""
    n, d = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    squares, values = s**2, []
    for k in range(y.max() + 1):
        target = (y == k).astype(float)
        z = u.T @ target
        outside = target @ target - z @ z
        alpha = beta = 1.0
        for _ in range(100):
            shrink = alpha / (alpha + beta * squares)
            mean = beta * s * z / (alpha + beta * squares)
            gamma = (1 - shrink).sum()
            residual = ((z * shrink) ** 2).sum() + outside
            old, alpha, beta = alpha / beta, gamma / (mean @ mean), (n - gamma) / residual
            if abs(alpha / beta - old) <= 1e-6 * old:
                break
        evidence = n * np.log(beta / (2 * np.pi)) + d * np.log(alpha) - np.log(alpha + beta * squares).sum()
        values.append((evidence - beta * residual - alpha * (mean @ mean)) / (2 * n))
    return float(np.mean(values))


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x.T), np.cov(y.T)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real))


def _h_score(x: np.ndarray, y: np.ndarray) -> float:
    means = np.stack([x[y == k].mean(axis=0) for k in range(y.max() + 1)])[y]
    return float(np.trace(np.linalg.pinv(np.cov(x.T)) @ np.cov(means.T)))
