# SPDX-License-Identifier: Apache-2.0
"""Epistemic uncertainty: images on which several models, or one with dropout, disagree (BALD).

Houlsby, Huszar, Ghahramani, Lengyel, *Bayesian Active Learning for Classification and Preference Learning*, arXiv
1112.5745, equation 2; with dropout as the several models Gal, Islam, Ghahramani, *Deep Bayesian Active Learning with
Image Data*, ICML 2017. With members s = 1 ... S::

    I(x) = H( 1/S sum_s p_s ) - 1/S sum_s H( p_s )
"""

from __future__ import annotations

import numpy as np

from monai_ssl.label.pool import LabelPool
from monai_ssl.label.predictions import checked_probabilities, most_uncertain, per_image, shannon

__all__ = ["epistemic_images", "epistemic_uncertainty"]


def epistemic_uncertainty(members: np.ndarray) -> np.ndarray:
    """Return ``(N,)`` mutual informations between class and member, in nats: 0 where all members agree.

    Args:
        members: ``(S, N, ..., C)`` probabilities of S members; the axes in between are averaged.

    Example:
        >>> epistemic_uncertainty([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]).round(4)  # log 2, and none
        array([0.6931, 0.    ])
    """
    p = checked_probabilities(members, least_axes=3)
    return np.maximum(per_image(shannon(p.mean(axis=0)) - shannon(p).mean(axis=0)), 0.0)


def epistemic_images(pool: LabelPool, num: int, seed: int = 0) -> np.ndarray:
    """Choose the ``num`` images of most disagreement (``pool.uncertainty["epistemic"]``); ties by the seed."""
    return most_uncertain(pool, "epistemic", num, seed)
