# SPDX-License-Identifier: Apache-2.0
"""Entropy: images whose predicted distribution is widest.

Settles, *Active Learning Literature Survey*, University of Wisconsin-Madison, 2009, section 3.1, with Shannon's
entropy.
"""

from __future__ import annotations

import numpy as np

from monai_ssl.label.pool import LabelPool
from monai_ssl.label.predictions import checked_probabilities, most_uncertain, per_image, shannon

__all__ = ["entropy_images", "entropy_uncertainty"]


def entropy_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """Return ``(N,)`` values of ``H(p) / log C`` in [0, 1].

    Args:
        probabilities: ``(N, ..., C)``; axes in between are averaged.

    Example:
        >>> entropy_uncertainty([[0.5, 0.5], [1.0, 0.0]])
        array([1., 0.])
    """
    p = checked_probabilities(probabilities)
    return per_image(shannon(p) / np.log(p.shape[-1]))


def entropy_images(pool: LabelPool, num: int, seed: int = 0) -> np.ndarray:
    """Choose the ``num`` images of most entropy (``pool.uncertainty["entropy"]``); ties in an order of the seed."""
    return most_uncertain(pool, "entropy", num, seed)
