# SPDX-License-Identifier: Apache-2.0
"""Margin: images whose two likeliest classes are nearly as likely.

Scheffer, Decomain, Wrobel, *Active Hidden Markov Models for Information Extraction*, IDA 2001; for images with many
classes Joshi, Porikli, Papanikolopoulos, *Multi-class active learning for image classification*, CVPR 2009.
"""

from __future__ import annotations

import numpy as np

from monai_ssl.label.pool import LabelPool
from monai_ssl.label.predictions import checked_probabilities, most_uncertain, per_image

__all__ = ["margin_images", "margin_uncertainty"]


def margin_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """Return ``(N,)`` values of ``1 - (p_first - p_second)`` in [0, 1].

    Args:
        probabilities: ``(N, ..., C)``; axes in between are averaged.

    Example:
        >>> margin_uncertainty([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
        array([0.75, 0.  , 1.  ])
    """
    top = np.sort(checked_probabilities(probabilities), axis=-1)
    return per_image(1 - (top[..., -1] - top[..., -2]))


def margin_images(pool: LabelPool, num: int, seed: int = 0) -> np.ndarray:
    """Choose the ``num`` images of least margin (``pool.uncertainty["margin"]``); ties in an order of the seed."""
    return most_uncertain(pool, "margin", num, seed)
