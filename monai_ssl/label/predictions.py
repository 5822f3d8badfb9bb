# SPDX-License-Identifier: Apache-2.0
"""What the measures of uncertainty share: how predicted probabilities are laid out, and the most uncertain first.

Probabilities have shape ``(N, ..., C)``: N images, each with one or more distributions over C classes. Competing
classes are ``(N, C)``; K findings that do not exclude each other are ``(N, K, 2)``; label maps are ``(N, voxels, C)``.
An image's uncertainty is the mean over what lies between.
"""

from __future__ import annotations

import numpy as np

from monai_ssl.label.pool import LabelPool


def checked_probabilities(probabilities: np.ndarray, least_axes: int = 2) -> np.ndarray:
    """Return them as float64.

    Raises:
        ValueError: they have too few axes, or a distribution is not finite, negative or does not sum to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim < least_axes or p.shape[-1] < 2:
        raise ValueError(f"probabilities must have shape (N, ..., C) with C of at least 2, got {p.shape}")
    if not np.isfinite(p).all() or (p < -1e-6).any() or not np.allclose(p.sum(axis=-1), 1, atol=1e-3):
        raise ValueError("probabilities must be finite, not negative, and sum to 1 over their last axis")
    return p.clip(min=0)


def per_image(values: np.ndarray) -> np.ndarray:
    """Mean over all axes but the first: ``(N, ...)`` to ``(N,)``."""
    return values.reshape(len(values), -1).mean(axis=1)


def shannon(p: np.ndarray) -> np.ndarray:
    """Entropy over the last axis in nats."""
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)


def most_uncertain(pool: LabelPool, kind: str, num: int, seed: int) -> np.ndarray:
    """Return the offered images of which the model is least sure, equal ones in an order of the seed.

    Images without a score come last.

    Raises:
        ValueError: there are no scores of this kind.
    """
    if kind not in pool.uncertainty:
        raise ValueError(f"the strategy {kind!r} needs predictions of a model, and there are none yet")
    order = np.random.default_rng(seed).permutation(len(pool))
    order = order[pool.offered[order]]
    scores = np.nan_to_num(np.asarray(pool.uncertainty[kind], dtype=np.float64)[order], nan=-np.inf)
    return order[np.argsort(-scores, kind="stable")][:num]
